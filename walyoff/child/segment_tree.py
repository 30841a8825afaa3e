"""The segments of a channel: which there are, which is the newest, and where blocks stand.

Pure logic, and its encoding; no I/O. Segments form a tree, because two devices may open the
next one at the same time. Every device follows the same rule: of several next segments the
one whose link block has the smallest name goes on. The blocks of the others are read all the
same, so nothing is lost; they only grow no further.

A place is a position in the whole ledger. It is given when a block is read for the first
time, in runs: so many blocks of this segment, then so many of that one. The last run is open:
what its segment gains is part of it. So a block that comes late to an old segment gets a new
place, no place ever changes, and what is kept is one run for a segment.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Any

from walyoff.child.blocks import check_cid
from walyoff.child.proofs import MAX_NUMBER
from walyoff.errors import RemoteProtocolError
from walyoff.wire import (
    expect_array,
    expect_int,
    expect_str,
    expect_version,
    pack,
    unpack,
)

STATE_VERSION = 1
#: A state: some hundred bytes for each segment; a hundred thousand segments are 25 million
#: blocks.
MAX_STATE = 64 << 20
MAX_SEGMENTS = 100_000
#: Next segments of one segment that are followed: those with the smallest link names. Honest
#: devices open one, or a few at the same moment; only members can open any.
MAX_NEXT = 16


@dataclass(slots=True, kw_only=True)
class Segment:
    """One segment."""

    chain: str
    #: How many segments come before it.
    number: int
    #: The segment that names it and the name of the block that does; None for the first.
    parent: str | None
    link: str | None
    #: Whether the link was seen here, and the parent's, up to the first.
    connected: bool
    #: How many positions of the chain were looked at for links.
    looked: int = 0
    #: The newest blocks when it was last looked at: known without opening it.
    leaves: list[str] = field(default_factory=list)


class SegmentTree:
    """All segments of one channel."""

    def __init__(self, root: str) -> None:
        check_cid(root)
        self.root = root
        self.segments: dict[str, Segment] = {
            root: Segment(chain=root, number=0, parent=None, link=None, connected=True)
        }
        #: Chain and length of each run, in order; the last one's is its least.
        self._runs: list[tuple[str, int]] = []
        #: The place before each run, and how much of each chain has places.
        self._starts: list[int] = []
        self._covered: dict[str, int] = {}
        self._head: Segment | None = None

    def __repr__(self) -> str:
        return f"<SegmentTree {self.root} [{len(self.segments)} segments]>"

    def __contains__(self, chain: object) -> bool:
        return chain in self.segments

    # ------------------------------------------------------------------------ tree

    def add(self, chain: str, *, parent: str, link: str, connected: bool) -> bool:
        """A link names a next segment; True if that is news.

        Segments of unknown parents are no segments, and a chain has one place: the first
        that was seen counts, and a link that was seen counts more than one that was told.
        """
        self._head = None
        before = self.segments.get(parent)
        if before is None or len(self.segments) >= MAX_SEGMENTS:
            return False
        known = self.segments.get(chain)
        connected = connected and before.connected
        if known is not None:
            if known.connected or not connected or known.parent is None:
                return False
            known.parent, known.link, known.number = parent, link, before.number + 1
            known.connected = True
            return True
        self.segments[chain] = Segment(
            chain=chain, number=before.number + 1, parent=parent, link=link, connected=connected
        )
        return True

    def next_of(self, chain: str) -> list[Segment]:
        """The segments that follow a segment, the one that goes on first."""
        found = [s for s in self.segments.values() if s.parent == chain]
        return sorted(found, key=lambda s: s.link or "")[:MAX_NEXT]

    def head(self) -> Segment:
        """The newest segment: where blocks are written."""
        if self._head is None:
            first: dict[str, Segment] = {}
            for segment in self.segments.values():
                if segment.parent is not None:
                    best = first.get(segment.parent)
                    if best is None or (segment.link or "") < (best.link or ""):
                        first[segment.parent] = segment
            head = self.segments[self.root]
            while (following := first.get(head.chain)) is not None:
                head = following
            self._head = head
        return self._head

    def in_order(self) -> list[Segment]:
        """All segments, earlier ones first, and of equal ones the one that goes on."""
        return sorted(self.segments.values(), key=lambda s: (s.number, s.link or ""))

    # ---------------------------------------------------------------------- places

    def extend(self, tops: dict[str, int]) -> bool:
        """Give places to what is new, by the highest position of each chain.

        True if the runs changed in a way that has to be kept: the growth of the last run
        needs no keeping.
        """
        changed = False
        order = [s.chain for s in self.in_order() if s.connected and s.chain in tops]
        if self._runs:
            # First of all, as its growth may have places already that were not kept.
            order.insert(0, self._runs[-1][0])
        for chain in order:
            top = tops.get(chain, 0)
            gained = top - self._covered.get(chain, 0)
            if gained <= 0:
                continue
            if self._runs and self._runs[-1][0] == chain:
                self._runs[-1] = (chain, self._runs[-1][1] + gained)
            else:
                self._starts.append(self.top)
                self._runs.append((chain, gained))
                changed = True
            self._covered[chain] = top
        return changed

    @property
    def top(self) -> int:
        """The highest place."""
        return self._starts[-1] + self._runs[-1][1] if self._runs else 0

    def covered(self, chain: str) -> int:
        """How many positions of a chain have places."""
        return self._covered.get(chain, 0)

    def run_after(self, place: int) -> tuple[int, str, int, int] | None:
        """The run that holds the place after this one: (place before its first position
        that is meant, chain, position before that, how many are left in the run)."""
        if place >= self.top:
            return None
        index = bisect_right(self._starts, place) - 1
        chain, length = self._runs[index]
        into = place - self._starts[index]
        before = sum(n for c, n in self._runs[:index] if c == chain)
        return place, chain, before + into, length - into

    def place_of(self, chain: str, position: int) -> int:
        """The place of a position; 0 if it has none yet."""
        before = 0
        for (name, length), start in zip(self._runs, self._starts, strict=True):
            if name != chain:
                continue
            if position <= before + length:
                return start + position - before
            before += length
        return 0

    # -------------------------------------------------------------------- encoding

    def encode(self) -> bytes:
        """For a file of this device."""
        segments = [
            [s.chain, s.parent, s.link, s.connected, s.looked, s.leaves]
            for s in self.in_order()
        ]
        return pack(
            [STATE_VERSION, self.root, segments, [[chain, n] for chain, n in self._runs]]
        )

    @classmethod
    def decode(cls, data: bytes) -> SegmentTree:
        """The inverse. Raises RemoteProtocolError."""
        version, root, segments, runs = expect_array(unpack(data, MAX_STATE), 4, "segments")
        expect_version(version, "segments", STATE_VERSION)
        tree = cls(expect_str(root, "chain", limit=64))
        for item in _list(segments):
            chain, parent, link, connected, looked, leaves = expect_array(item, 6, "segment")
            name = _cid(chain)
            if name != tree.root:
                tree.add(
                    name, parent=_cid(parent), link=_cid(link), connected=connected is True
                )
            if name in tree.segments:
                tree.segments[name].looked = expect_int(looked, "position")
                tree.segments[name].leaves = [_cid(leaf) for leaf in _list(leaves)]
        for item in _list(runs):
            chain, length = expect_array(item, 2, "run")
            name = _cid(chain)
            tree._starts.append(tree.top)
            tree._runs.append((name, expect_int(length, "length", low=1, high=MAX_NUMBER)))
            tree._covered[name] = tree._covered.get(name, 0) + tree._runs[-1][1]
        return tree


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise RemoteProtocolError("segments have another form")
    return value


def _cid(value: Any) -> str:
    name = expect_str(value, "block name", limit=64)
    check_cid(name)
    return name
