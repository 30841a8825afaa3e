"""The frames by which devices pass on the chunks of attachments; see `walyoff.frames`.

Who misses chunks watches an attachment at its peers, is told which chunks they hold, and asks
for ranges of chunks. Parts of a range come in order, each PART bytes long but the last one of
a chunk, so that small frames can pass between them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from walyoff.errors import RemoteProtocolError
from walyoff.manifest import MAX_CHUNKS
from walyoff.records import CHUNK_SIZE, HASH_SIZE
from walyoff.wire import expect_bytes, expect_int, unpack_tail

#: Large enough to cost little, small enough that a message waits a millisecond on a fast link.
PART = 128 * 1024
#: Attachments that one frame asks about, and that one peer may watch.
MAX_WATCHED = 1024
#: A bit for each chunk of the largest attachment.
_MAX_BITS = -(-MAX_CHUNKS // 8)
#: Numbers of requests: what JSON numbers hold exactly.
_MAX_NUMBER = (1 << 53) - 1


@dataclass(frozen=True, slots=True)
class WatchChunks:
    """Please say which chunks of these attachments you hold, and again when it changes."""

    record_ids: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class HaveChunks:
    """The chunks of an attachment that the sender holds: bit `place % 8` of `place // 8`.

    Nothing at all when it does not know the attachment.
    """

    record_id: bytes
    bits: bytes


@dataclass(frozen=True, slots=True)
class WantChunk:
    """Please send a range of a chunk; `number` is the asker's name for the answer."""

    number: int
    record_id: bytes
    place: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class ChunkPart:
    """The next part of what was asked for under a number."""

    number: int
    offset: int
    data: bytes | memoryview = field(repr=False)


@dataclass(frozen=True, slots=True)
class ChunkGone:
    """The chunk that was asked for under a number is not held."""

    number: int


ChunkFrame: TypeAlias = WatchChunks | HaveChunks | WantChunk | ChunkPart | ChunkGone


def _watch(record_ids: Any) -> WatchChunks:
    if not isinstance(record_ids, list) or len(record_ids) > MAX_WATCHED:
        raise RemoteProtocolError(f"attachments are not a list of at most {MAX_WATCHED}")
    return WatchChunks(tuple(expect_bytes(r, "record", size=HASH_SIZE) for r in record_ids))


def _have(record_id: Any, bits: Any) -> HaveChunks:
    return HaveChunks(
        expect_bytes(record_id, "record", size=HASH_SIZE),
        expect_bytes(bits, "chunks", limit=_MAX_BITS),
    )


def _number(value: Any) -> int:
    return expect_int(value, "number of a request", high=_MAX_NUMBER)


def _offset(value: Any) -> int:
    return expect_int(value, "offset", high=CHUNK_SIZE - 1)


def _want(number: Any, record_id: Any, place: Any, offset: Any, length: Any) -> WantChunk:
    start = _offset(offset)
    if start % PART:
        raise RemoteProtocolError(f"offset {start} is not one of a part")
    return WantChunk(
        _number(number),
        expect_bytes(record_id, "record", size=HASH_SIZE),
        expect_int(place, "place", high=MAX_CHUNKS - 1),
        start,
        expect_int(length, "length", low=1, high=CHUNK_SIZE - start),
    )


def _part(number: Any, offset: Any, data: Any) -> ChunkPart:
    return ChunkPart(
        _number(number),
        _offset(offset),
        expect_bytes(data, "part of a chunk", limit=PART),
    )


#: The beginning of a ChunkPart: an array of four, and its type.
_PART_HEAD = b"\x94\x16"


def decode_part(frame: bytes | memoryview) -> ChunkPart | None:
    """A ChunkPart whose data stay where they are; None for everything else.

    What gives None here has the general decoder to say what it is.
    """
    found = unpack_tail(frame, 4, PART) if frame[:2] == _PART_HEAD else None
    if found is None:
        return None
    (_, number, offset), data = found
    try:
        return ChunkPart(_number(number), _offset(offset), data)
    except RemoteProtocolError:
        return None


#: As in `walyoff.frames`, which takes them up.
TYPES: dict[int, tuple[type[Any], Callable[[Any], list[Any]], Callable[..., ChunkFrame]]] = {
    19: (WatchChunks, lambda f: [list(f.record_ids)], _watch),
    20: (HaveChunks, lambda f: [f.record_id, f.bits], _have),
    21: (WantChunk, lambda f: [f.number, f.record_id, f.place, f.offset, f.length], _want),
    22: (ChunkPart, lambda f: [f.number, f.offset, f.data], _part),
    23: (ChunkGone, lambda f: [f.number], lambda n: ChunkGone(_number(n))),
}
