"""What goes into the plan of transfers and what comes out: its orders and its tables.

See `walyoff.engine.transfers`, which alone changes what is in them.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias

from walyoff.chunk_frames import PART
from walyoff.engine.facts import Report
from walyoff.manifest import Manifest

#: Bytes under way to one peer, at first and at least.
MIN_WINDOW = PART


class Part(Enum):
    """What became of a part."""

    TAKEN = "taken"
    #: It was the last one of its chunk, which is to be checked and stored now.
    COMPLETE = "complete"
    #: Nobody waits for it any more.
    IGNORED = "ignored"


@dataclass(frozen=True, slots=True)
class Watch:
    """Ask a peer which chunks of attachments it holds."""

    peer: str
    record_ids: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask a peer for a range of a chunk."""

    peer: str
    number: int
    record_id: bytes
    place: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Discard:
    """The parts that came under a number are of no use."""

    number: int


@dataclass(frozen=True, slots=True)
class Whole:
    """All chunks of an attachment are held."""

    record_id: bytes


TransferOrder: TypeAlias = Watch | Ask | Discard | Whole | Report

#: A chunk: its id, and its length, because a liar may name the id of another's chunk.
Key: TypeAlias = tuple[bytes, int]


@dataclass(slots=True, kw_only=True)
class Transfer:
    """An attachment of which chunks are missing. Sets of places are bits of integers."""

    record_id: bytes
    manifest: Manifest
    held: int
    #: Neither held nor on their way.
    missing: int
    wanted: bool
    #: Where somebody reads; what follows is fetched first.
    start: int | None = None
    #: The quota does not allow the next chunk.
    over_quota: bool = False
    places: dict[bytes, int] = field(default_factory=dict)

    @property
    def bytes_held(self) -> int:
        """Bytes of the chunks that are held."""
        count = self.manifest.count
        if not count:
            return 0
        total = self.held.bit_count() * self.manifest.length(0)
        if self.held >> (count - 1) & 1:
            total -= self.manifest.length(0) - self.manifest.length(count - 1)
        return total

    @property
    def whole(self) -> bool:
        """True if nothing is missing."""
        return self.held.bit_count() == self.manifest.count


@dataclass(slots=True)
class Range:
    """A range that was asked for: its end, when, and what the peer had given until then."""

    end: int
    at: float
    delivered: int


@dataclass(slots=True)
class Fetch:
    """A chunk that is under way from one peer."""

    number: int
    key: Key
    peer: str
    record_id: bytes
    place: int
    since: float
    until: float
    #: How many of its bytes were asked for, and came.
    asked: int = 0
    got: int = 0
    asks: deque[Range] = field(default_factory=deque)


@dataclass(slots=True)
class ServingPeer:
    """What is known about a connected peer."""

    did: str
    #: Attachment to the places that the peer holds.
    has: dict[bytes, int] = field(default_factory=dict)
    #: Faults, halved with each success.
    score: float = 0.0
    failures: int = 0
    #: Not asked before.
    until: float = 0.0
    window: float = MIN_WINDOW
    #: Bytes that were asked for and have not come.
    under_way: int = 0
    #: Bytes that came, and lately in a second.
    delivered: int = 0
    rate: float = 0.0
    #: The shortest time that an answer took.
    base: float = 60.0
    fetches: dict[int, Fetch] = field(default_factory=dict)
