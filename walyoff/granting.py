"""What is handed to a device that becomes a member, and how it travels in parts.

Decided here: what belongs to a grant, and how the chains of a large family fit into frames: a
long value goes ahead in `Part` frames, and the frame that it belongs to has the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from walyoff import frames
from walyoff.certificates import decode
from walyoff.errors import RemoteProtocolError
from walyoff.wire import MAX_DID, expect_bytes, expect_name, pack, unpack

if TYPE_CHECKING:
    from walyoff.channel import Channel
    from walyoff.node import Device

#: Bytes of one part: small enough that other frames get through between two of them.
PART_BYTES = 4 << 20
#: Bytes of all parts of one value: the chains of some thousand devices.
MAX_WHOLE = 56 << 20
#: Certificates that a grant carries, in bytes: some hundred of the default suite.
MAX_CERTIFICATES_SIZE = 4 * 1024 * 1024
#: Chains of one family, and block files of one of them.
MAX_CHAINS = 4_096
MAX_FILES = 65_536
#: As a block file may have, with room.
MAX_FILE = 1 << 21

Grant = TypeVar("Grant", frames.JoinGrant, frames.GroupGrant)


class Parts:
    """Collects the parts of one value. What they are is not printed: they hold secrets."""

    def __init__(self, has_room: Callable[[int], bool] = lambda size: True) -> None:
        """`has_room` is asked for the bytes of each part."""
        self._has_room = has_room
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, part: frames.Part) -> None:
        """One more part. Raises RemoteProtocolError when there are too many."""
        self._size += len(part.data)
        if self._size > MAX_WHOLE or not self._has_room(len(part.data)):
            raise RemoteProtocolError(f"parts of more than {MAX_WHOLE} bytes", reason="size")
        self._parts.append(part.data)

    def take(self, rest: bytes = b"") -> bytes:
        """The value that ends with `rest`; the next one begins empty."""
        whole = b"".join((*self._parts, rest))
        self._parts.clear()
        self._size = 0
        if len(whole) > MAX_WHOLE:
            raise RemoteProtocolError(f"a value of {len(whole)} bytes", reason="size")
        return whole


def in_parts(data: bytes) -> Iterator[frames.Part]:
    """A value as parts; nothing for an empty one."""
    for at in range(0, len(data), PART_BYTES):
        yield frames.Part(data[at : at + PART_BYTES])


def grant_frames(grant: Grant) -> Iterator[frames.Frame]:
    """The frames that carry a grant."""
    rest = len(grant.grant) % PART_BYTES
    cut = len(grant.grant) - rest
    yield from in_parts(grant.grant[:cut])
    yield replace(grant, grant=grant.grant[cut:])


async def make_grant(device: Device, channel: Channel) -> frames.JoinGrant:
    """All that a new device of a channel needs. Holds secrets: for a session alone."""
    return frames.JoinGrant(
        await device.platform.grant(channel.did),
        tuple(channel.engine.epochs.values()),
        _newest(await channel.engine.trust.all_encoded()),
        channel.name,
        channel.state.secret,
        await _met(device, channel),
    )


async def _met(device: Device, channel: Channel) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Where other members are: the inviter may be gone before the joiner hears of them."""
    book = await device.address_book.of(channel.did)
    connections = channel.connections
    known = {}
    for did in (member.did for member in channel.members() if member.did != channel.me):
        # What it said itself comes first: anybody may have said the rest.
        heard = connections.heard_addresses.get(did, ())
        found = dict.fromkeys([*heard, *book.get(did, ()), *connections.said_addresses(did)])
        fit = [address for address in found if len(address) <= frames.MAX_ADDRESS_CHARS]
        if fit:
            known[did] = tuple(fit[: frames.MAX_ADDRESSES])
    return tuple(known.items())[: frames.MAX_MET]


def encode_family(family: Mapping[str, Sequence[bytes]]) -> bytes:
    """The chains of a family, by DID; never empty, so that an identity is known as one."""
    return pack({did: list(files) for did, files in sorted(family.items())})


def decode_family(data: bytes) -> dict[str, list[bytes]]:
    """The inverse of `encode_family`. Raises RemoteProtocolError."""
    value = unpack(data, MAX_WHOLE) if data else {}
    if not isinstance(value, dict) or len(value) > MAX_CHAINS:
        raise RemoteProtocolError(f"a family is a map of at most {MAX_CHAINS} chains")
    return {
        expect_name(did, "DID", limit=MAX_DID): _files(files) for did, files in value.items()
    }


def _files(value: object) -> list[bytes]:
    if not isinstance(value, list) or len(value) > MAX_FILES:
        raise RemoteProtocolError("a chain is a list of block files")
    return [expect_bytes(file, "block file", limit=MAX_FILE) for file in value]


def _newest(certificates: list[bytes]) -> tuple[bytes, ...]:
    """As many certificates as a grant carries, the newest first: others come with batches."""
    chosen: list[bytes] = []
    room = MAX_CERTIFICATES_SIZE
    for encoded in sorted(certificates, key=_expiry, reverse=True)[: frames.MAX_VECTOR]:
        room -= len(encoded)
        if room < 0:
            break
        chosen.append(encoded)
    return tuple(chosen)


def _expiry(encoded: bytes) -> int:
    return decode(encoded).certificate.not_after_ms


__all__ = [
    "Parts",
    "decode_family",
    "encode_family",
    "grant_frames",
    "in_parts",
    "make_grant",
]
