"""The register of one channel: its segments, as one ledger that only grows.

Decided here: when the next segment is opened, and which one is followed in Walytis (the
newest). Which segment is the newest and where blocks stand is `segment_tree`'s; what counts
as a block is `judging`'s; reading and handing over are `held_segments`'.

A segment is full when it holds as many blocks as is agreed on. The device that filled it
makes a new chain, and writes a link into the full one: the new chain's id and its first
blocks, signed by the identity's keys and sealed for the members of now. So the cost of a
block, of a start and of a join depends on the length of a segment, not of history.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from walyoff.child.chainfiles import GENESIS_BLOCKS, content_of
from walyoff.child.chains import Chains
from walyoff.child.held_segments import HeldSegments
from walyoff.child.judging import EpochKeys, SegmentJudge, Verify
from walyoff.child.proofs import (
    TOPIC_ANCHOR,
    TOPIC_LINK,
    Link,
    link_body,
    payload_epoch,
    seal_link,
    wrap,
)
from walyoff.child.segment_tree import Segment
from walyoff.epochs import SALT_SIZE
from walyoff.errors import LedgerError, LocalProtocolError, RemoteProtocolError, WalyoffError

#: Anchor blocks of one segment, unless it is said otherwise. At 256 a block costs what it
#: costs on an empty chain, and a segment is read in a tenth of a second.
SEGMENT_BLOCKS = 256
#: A full segment is followed so much longer, in seconds: for blocks of those who do not know
#: of the next one yet.
LINGER_S = 20.0
#: The device that filled a segment opens the next one; others do after so many seconds and a
#: random part, if it did not.
OTHERS_AFTER_S = 15.0

_log = logging.getLogger(__name__)

Sign = Callable[[bytes], bytes]


class SegmentedLedger(HeldSegments):
    """All segments of one channel. Safe to use from many threads."""

    def __init__(
        self,
        *,
        did: str,
        root: str,
        chains: Chains,
        state: Path,
        guarded: bool,
        limit: int,
        control_keys: Callable[[], list[str]],
        sign: Sign,
        verify: Verify,
        told: Sequence[tuple[str, str, str]] = (),
    ) -> None:
        super().__init__(did, root, chains, state, guarded=guarded)
        self.keys = EpochKeys()
        self._limit = limit
        self._control_keys = control_keys
        self._sign = sign
        self._verify = verify
        self._advancing = threading.Lock()
        self._judges: dict[str, SegmentJudge] = {}
        #: When segments that are no longer the newest are closed.
        self._closing: dict[str, float] = {}
        #: The segment that this device wrote to last, and since when one is known to be full.
        self._wrote: str | None = None
        self._full: tuple[str, float] = ("", 0.0)
        #: A segment that this device wrote to, to be announced once more.
        self._repeat: str | None = None
        for chain, parent, link in told:
            self.tree.add(chain, parent=parent, link=link, connected=False)
        for segment in self.tree.in_order():
            self._guard(segment.chain)
            self._tops[segment.chain] = chains.top(segment.chain)

    def __repr__(self) -> str:
        return f"<SegmentedLedger {self.did} [{len(self.tree.segments)} segments]>"

    def _guard(self, chain: str) -> None:
        if chain in self._judges:
            return
        judge = SegmentJudge(chain, self.did, self.keys, self._control_keys, self._verify)
        self._judges[chain] = judge
        if self.guarded:

            def prepare(
                payload: bytes, topics: Sequence[str], parents: Sequence[bytes]
            ) -> bytes:
                is_link = TOPIC_LINK in topics
                key = self.keys.get(payload_epoch(payload, link=is_link))
                return wrap(payload, key, chain, parents)

            self._chains.guard(chain, judge, prepare)

    # ------------------------------------------------------------------ life cycle

    def follow(self) -> None:
        """Open the newest segment, and look for news in those that grew. Idempotent."""
        with self._lock:
            unborn = self._unborn()
            for segment in self.tree.in_order():
                if segment.chain in unborn or self._tops.get(segment.chain, 0) > segment.looked:
                    self._look(segment)
            self._follow_head()
            self._keep()

    def _unborn(self) -> set[str]:
        """Segments whose links name chains that are not here.

        A power loss may have taken the birth of a segment, which is in the link to it.
        """
        return {
            segment.parent
            for segment in self.tree.in_order()
            if segment.parent and not self._chains.has(segment.chain)
        }

    def close(self) -> None:
        """Follow no segment any more. Idempotent."""
        with self._lock:
            for chain in (*self._closing, self._followed):
                if chain is not None:
                    self._chains.close(chain)
            self._closing.clear()
            self._followed = None
            self._keep()

    def tick(self, now: float) -> None:
        """Close segments whose time is over, and repeat announcements."""
        with self._lock:
            self._keep()
            # Pubsub loses messages in silence, the more the busier it is, and Walytis repeats
            # its own only after 20 seconds.
            repeat, self._repeat = self._repeat, None
            if repeat is not None and self._chains.is_open(repeat):
                self._chains.announce(repeat)
            over = [chain for chain, at in self._closing.items() if at <= now]
            for chain in over:
                del self._closing[chain]
                self._chains.close(chain)
                self._chains.release(chain)

    def _follow_head(self) -> None:
        head = self.tree.head().chain
        if head == self._followed or not self._chains.has(head):
            return
        self._chains.open(head)
        if self._followed is not None:
            self._closing[self._followed] = time.monotonic() + LINGER_S
        self._closing.pop(head, None)
        self._followed = head

    # --------------------------------------------------------------------- writing

    def append(self, payload: bytes) -> tuple[str, int]:
        """Write an anchor; returns its block's name and place (0 while what comes before
        the newest segment is not here).

        Raises:
            LocalProtocolError: the ledger was closed, or the payload is no anchor.
            LedgerError: the key of its epoch, or the newest segment, is not here yet.
        """
        with self._lock:
            if self._followed is None:
                raise LocalProtocolError("the ledger is not open")
            chain = self.tree.head().chain
            if chain != self._followed:
                raise LedgerError("the newest segment is not here yet")
            try:
                ref, position = self._chains.append(chain, payload, [TOPIC_ANCHOR])
            except RemoteProtocolError as error:
                raise LedgerError(f"the payload would be refused: {error}") from error
            self._tops[chain] = max(position, self._tops.get(chain, 0))
            self._repeat = chain
            if position - GENESIS_BLOCKS >= self._limit:
                self._wrote = chain
            self._extend()
            self._keep()
            return ref, self.tree.place_of(chain, position)

    def wants_next(self, now: float) -> bool:
        """Whether it is this device's turn to open the next segment, at a monotonic time."""
        with self._lock:
            head = self.tree.head().chain
            if (
                self.keys.newest() is None
                or head != self._followed
                or self._chains.top(head) - GENESIS_BLOCKS < self._limit
            ):
                return False
            if self._full[0] != head:
                # Devices that wait for another one do not all wait equally long.
                self._full = (head, now + OTHERS_AFTER_S * (1 + random.random()))  # noqa: S311
            return self._wrote == head or now >= self._full[1]

    def advance(self) -> None:
        """Open the next segment if it is time."""
        with self._advancing:
            newest = self.keys.newest()
            if newest is None or not self.wants_next(time.monotonic()):
                return
            # Made without the lock: it takes some tenths of a second, and others may write.
            following = self._chains.create()
            self._chains.close(following)
            with self._lock:
                head = self.tree.head()
                if head.chain != self._followed or self.tree.next_of(head.chain):
                    # Somebody else's link came meanwhile; the new chain is of no use.
                    self._chains.discard(following)
                    return
                number = head.number + 1
                body = link_body(self.did, head.chain, number, following)
                link = Link(
                    group=self.did,
                    previous=head.chain,
                    number=number,
                    chain=following,
                    birth=tuple(self._chains.export(following)[0][:GENESIS_BLOCKS]),
                    signature=self._sign(body),
                )
                epoch_id, key = newest
                payload = seal_link(link, key, epoch_id, os.urandom(SALT_SIZE))
                if not self.guarded:
                    raise LedgerError("segments are for guarded ledgers")
                self._chains.append(head.chain, payload, [TOPIC_LINK])
                self._look(head)
                self._keep()

    # --------------------------------------------------------------------- reading

    def grew(self, chain: str) -> None:
        """Blocks were admitted to a chain."""
        with self._lock:
            segment = self.tree.segments.get(chain)
            # What was handed over was looked at then.
            if segment is not None and self._chains.top(chain) != segment.looked:
                self._look(segment)
                self._keep()

    def _look(self, segment: Segment) -> None:
        """Take note of what a segment gained: blocks, and links to next segments."""
        if not self._chains.has(segment.chain):
            return
        files = self._files(segment.chain)
        before = len(self.tree.segments), segment.connected
        for entry in files.with_topic(TOPIC_LINK):
            try:
                content = content_of(files.read(entry.cid))
                self._take_link(segment, entry.cid, content)
            except WalyoffError as error:
                _log.warning("link %s of %s does not count: %s", entry.cid, self.did, error)
        self._tops[segment.chain] = files.top
        segment.looked = files.top
        segment.leaves = files.leaves()
        if before[0] != len(self.tree.segments) or segment.chain != self._followed:
            self._changed = True
        self._extend()
        self._follow_head()

    def _take_link(self, segment: Segment, ref: str, content: bytes) -> None:
        link = self._judges[segment.chain].link(content)
        if link.number != segment.number + 1:
            raise RemoteProtocolError("link with a wrong number", reason="bad-link")
        new = self.tree.add(
            link.chain, parent=segment.chain, link=ref, connected=segment.connected
        )
        self._guard(link.chain)
        if not self._chains.has(link.chain):
            # The link, which is durable, holds them as well.
            self._chains.import_files(link.chain, link.birth, sync=False)
            self._tops[link.chain] = self._chains.top(link.chain)
        if new:
            _log.info("%s: segment %d is %s", self.did, link.number, link.chain)
            # What was told before it was seen may have told of others.
            following = self.tree.segments[link.chain]
            if following.looked < self._tops.get(link.chain, 0):
                self._look(following)

    # ------------------------------------------------------------------ statistics

    def statistics(self) -> dict[str, int]:
        """What was refused on all segments, by reason, and what waits for a key."""
        with self._lock:
            found: dict[str, int] = {}
            for chain in self.tree.segments:
                for reason, count in self._chains.refusals(chain).statistics().items():
                    found[reason] = found.get(reason, 0) + count
                if aside := self._chains.aside(chain):
                    found["kept-aside"] = found.get("kept-aside", 0) + aside
            return found

    def take_keys(self, keys: Sequence[tuple[bytes, bytes]]) -> None:
        """Epoch ids and anchor keys, newest last; what waited for them is admitted."""
        if not self.keys.add(keys):
            return
        with self._lock:
            chains = [chain for chain in self.tree.segments if self._chains.is_open(chain)]
        for chain in chains:
            self._chains.admit_aside(chain)
        # Links that did not open before may do so now.
        with self._lock:
            unborn = self._unborn()
            for segment in self.tree.in_order():
                fresh = self._chains.is_open(segment.chain) or segment.looked == 0
                if fresh or segment.chain in unborn:
                    self._look(segment)
            self._keep()


__all__ = ["LINGER_S", "SEGMENT_BLOCKS", "SegmentedLedger"]
