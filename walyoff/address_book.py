"""Where the members of a channel were reached last, kept between runs.

Nothing is believed of it: a session says who is at an address.
"""

from __future__ import annotations

from collections.abc import Iterable

from blake3 import blake3

from walyoff.abc import Store
from walyoff.wire import pack, unpack

#: Addresses of one device that are told and kept, the best first.
MAX_ADDRESSES = 16


class AddressBook:
    """The addresses that one device remembers, by channel and member."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def remember(self, did: str, member: str, addresses: Iterable[str]) -> None:
        """Note where a member of a channel was reached last."""
        value = pack(list(addresses)[:MAX_ADDRESSES])
        name = blake3(member.encode()).hexdigest(16)
        await self._store.put({f"address/{did}/{name}": pack([member, value])})

    async def of(self, did: str) -> dict[str, list[str]]:
        """The last known addresses of the members of a channel."""
        book: dict[str, list[str]] = {}
        for key in await self._store.keys(f"address/{did}/"):
            if value := await self._store.get(key):
                member, addresses = unpack(value, 65536)
                book[member] = unpack(addresses, 65536)
        return book


__all__ = ["MAX_ADDRESSES", "AddressBook"]
