"""Certificates that verify nothing yet: how many of one device are kept.

A device certifies keys for itself, as many as it likes, and each is shown to all. Those that
verify batches that are held are as many as there are batches to pay for them; decided here is
how many others of a device are kept, which are let go, and how that is written down: a flood
costs the device that makes it its own older ones, and nobody else anything. One that is wanted
after all is asked for again, or comes with its batches.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection

from walyoff.abc import Store
from walyoff.errors import RemoteProtocolError
from walyoff.records import HASH_SIZE, device_id
from walyoff.wire import expect_bytes, pack, unpack

#: Certificates of one device that verify nothing: four years of renewals without a word.
MAX_UNUSED = 32
#: Their ids, with room.
_MAX_VALUE = 2 * MAX_UNUSED * (HASH_SIZE + 8)

#: The certificates of a device that are needed whatever else there is.
Needed = Callable[[str], Awaitable[Collection[bytes]]]


class UnusedCertificates:
    """Those of one channel. What is said here is written by the caller, in one transaction."""

    def __init__(self, *, channel: str, store: Store) -> None:
        self._channel = channel
        self._store = store
        #: Who needs certificates says so here.
        self.needed_by: list[Needed] = []

    async def add(self, member: str, certificate_id: bytes) -> tuple[str, bytes, list[bytes]]:
        """One more: the key and value to write down, and those to be let go."""
        key = f"unused/{self._channel}/{device_id(member).hex()}"
        value = await self._store.get(key)
        known = [] if value is None else decode_unused(value)
        kept = [*(other for other in known if other != certificate_id), certificate_id]
        gone: list[bytes] = []
        if len(kept) > MAX_UNUSED:
            needed = {one for need in self.needed_by for one in await need(member)}
            # What is needed is not unused any more, and counts as that from here on.
            kept = [one for one in kept if one == certificate_id or one not in needed]
            gone, kept = kept[:-MAX_UNUSED], kept[-MAX_UNUSED:]
        return key, pack(kept), gone


def decode_unused(value: bytes) -> list[bytes]:
    """What was written down. Raises RemoteProtocolError."""
    found = unpack(value, _MAX_VALUE)
    if not isinstance(found, list):
        raise RemoteProtocolError("the certificates of a device are a list")
    return [expect_bytes(one, "certificate id", size=HASH_SIZE) for one in found]


__all__ = ["MAX_UNUSED", "Needed", "UnusedCertificates", "decode_unused"]
