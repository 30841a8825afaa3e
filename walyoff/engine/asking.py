"""Whom the reconciler asks for batches and contents, and when it gives a request up.

Decided here: which peer is asked for what, how much is on its way at once, when a request is
given to another peer, and how long a peer that gave nothing is left alone. What is accepted
of the answers is decided in `reconciler`, whose tables these are. As pure as that.

Nothing waits for the end of an answer: a peer is asked for the batches of several devices and
for contents at once, and is granted more of a long answer while its beginning is read.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from walyoff.abc import Head
from walyoff.batch_frames import MAX_GRANT
from walyoff.engine.facts import (
    FetchBatches,
    FetchContents,
    FetchMore,
    HeadInfo,
    OpenRecord,
    Order,
    PeerState,
    Reason,
    Report,
)
from walyoff.engine.link import MAX_INLINE
from walyoff.records import MAX_CONTENT

#: A request without an answer for so long is given to another peer.
REQUEST_TIMEOUT = 5.0
#: Seconds of rest for each open record after all were looked at: ten times as long as it took.
REST = 5e-6
#: Open records that are looked at without a rest: it takes less than a millisecond.
MAX_UNRESTED = 1024
#: When the author itself is connected its push is on the way: others are not asked before.
PUSH_GRACE = 0.3
#: Back-off of a content that nobody gave: doubles from the first to the last, with jitter.
RETRY_FIRST = 0.5
RETRY_LAST = 60.0
#: Contents asked for in one request, and in flight per peer, by number and by size.
MAX_FETCH = 1024
MAX_FETCHING = 4096
MAX_FETCHING_BYTES = 4 * 1024 * 1024
#: Requests for batches in flight per peer: fewer than the questions that a peer queues.
MAX_RANGES = 16
#: A peer gets so much longer for what it was asked for: bytes per second of a slow link.
SLOW_LINK = 512 * 1024
#: A peer that said it has not got a content is not asked again before, unless it says it has.
GONE_FOR = 60.0
#: Devices that one peer may speak of: bounds what a liar makes us remember.
MAX_AUTHORS = 4096
#: One request for batches is answered with so many bytes, and a quarter of them is granted anew
#: whenever it came: many enough that a far peer never waits for the next request, few enough
#: that an answer that nobody wants any more ends soon.
RANGE_BYTES = 8 * 1024 * 1024


@dataclass(slots=True)
class _Range:
    """A request for a device's batches: in flight, or (no peer) put off."""

    peer: str | None
    until: float
    #: The first sequence number that was asked for.
    first: int = 0
    #: Put off because the author itself is connected and pushes.
    grace: bool = False
    #: Bytes of the answer that came since more was granted.
    taken: int = 0


class Asking:
    """The requests of one channel on one device: a part of the reconciler."""

    def __init__(self, *, author: str, heads: Iterable[Head], seed: int) -> None:
        self.author = author
        self.heads: dict[str, HeadInfo] = {
            h.author: HeadInfo(h.seq, h.record_id, h.batch_id) for h in heads
        }
        self.peers: dict[str, PeerState] = {}
        self.open: dict[bytes, OpenRecord] = {}
        #: Authors who contradicted themselves: nothing more is accepted from them.
        self.forked: set[str] = set()
        #: While true others may hold more of this device's own records than it does.
        self.resuming = False
        self._ranges: dict[str, _Range] = {}
        #: When to look again at a record or an author; small, since only open ones are in it.
        self._wake: float | None = None
        #: All open records are looked at no sooner than this because of what peers say.
        self._rested = 0.0
        #: What peers claimed when all were looked at, of those who said something since.
        self._news: dict[str, dict[str, tuple[int, frozenset[int]]]] = {}
        self._orders: list[Order] = []
        # Jitter only: seeded from outside, so that a run can be repeated exactly.
        self._random = random.Random(seed)  # noqa: S311

    def deadline(self) -> float | None:
        """When `tick` is due, if nothing happens before."""
        return None if self._wake is None else max(self._wake, self._rested)

    def wake_at(self, when: float) -> None:
        """`tick` is due at this time at the latest."""
        if self._wake is None or when < self._wake:
            self._wake = when

    def fault(self, peer: str, reason: str, detail: str) -> None:
        """Score a peer."""
        if state := self.peers.get(peer):
            state.score += 1
        self._orders.append(Report(reason, peer, detail))

    # ------------------------------------------------------------------- batches

    def range_end(self, peer: str, author: str, now: float) -> None:
        """A peer finished answering a request for batches."""
        pending = self._ranges.get(author)
        if pending is None or pending.peer != peer:
            return
        self._end_range(author)
        state = self.peers.get(peer)
        if state is not None:
            head = self.heads.get(author)
            if (head.seq if head else 0) < pending.first:
                # It claimed what it did not give: others first, and not at once again.
                state.score += 1
                self._put_off(state, author, now)
            else:
                state.put_off.pop(author, None)
        self._plan_author(author, now, grace=False)
        self._plan_queued(state, now)
        self._plan_contents(now)

    def author_counts(self, author: str, now: float) -> None:
        """More of a device's batches are accepted from now on: ask for them again."""
        for state in self.peers.values():
            state.put_off.pop(author, None)
        self._plan_author(author, now, grace=False)

    def range_failed(
        self,
        peer: str,
        author: str,
        reason: str,
        now: float,
        *,
        blame: bool = True,
        claim: int = 0,
    ) -> None:
        """What a peer sent for a device was refused; it may have done so in good faith.

        It may count later: then the peer has it, up to the sequence number that it claims.
        """
        if blame:
            self.fault(peer, reason, f"batches of {author}")
        if claim:
            self._claim(author, claim, peer)
        state = self.peers.get(peer)
        if state is not None:
            # Its claim stands: it may be honest and only slow, or know a member before us.
            self._put_off(state, author, now)
        pending = self._ranges.get(author)
        if pending is not None and pending.peer == peer:
            self._end_range(author)
        self._plan_author(author, now, grace=False)
        self._plan_queued(state, now)
        self._look(now)

    def _claim(self, author: str, seq: int, peer: str | None) -> None:
        """Who sends a batch has got it."""
        if peer is not None and (state := self.peers.get(peer)):
            known = state.heads.get(author)
            if known is not None or len(state.heads) < MAX_AUTHORS:
                state.heads[author] = max(seq, known or 0)

    def _progress(self, peer: str, author: str, size: int, now: float) -> None:
        """So many bytes of an answer came: it is not late, and there is room for more."""
        running = self._ranges.get(author)
        if running is None or running.peer != peer:
            return
        running.until = now + REQUEST_TIMEOUT
        running.taken += size
        head = self.heads.get(author)
        more = self.peers[peer].heads.get(author, 0) > (head.seq if head else 0)
        if more and running.taken >= RANGE_BYTES // 4:
            # The end of a long batch came while there was nothing more to ask for.
            self._orders.append(FetchMore(peer, author, min(running.taken, MAX_GRANT)))
            running.taken = 0

    def _tick_ranges(self, now: float) -> None:
        for author, pending in list(self._ranges.items()):
            if self._ranges.get(author) is not pending:
                continue
            if pending.until > now:
                self.wake_at(pending.until)
            elif pending.peer is not None:
                self.range_failed(pending.peer, author, Reason.TIMEOUT, now)
            else:
                del self._ranges[author]
                self._plan_author(author, now, grace=False)

    def _plan_author(self, author: str, now: float, *, grace: bool = True) -> None:
        """Ask the best peer for what is missing of a device's batches."""
        if (author == self.author and not self.resuming) or author in self.forked:
            return
        running = self._ranges.get(author)
        if running is not None and (running.peer is not None or (running.grace and grace)):
            return
        self._ranges.pop(author, None)
        head = self.heads.get(author)
        seq = head.seq if head else 0
        ahead = [name for name, p in self.peers.items() if p.heads.get(author, 0) > seq]
        if not ahead:
            return
        ready = [name for name in ahead if self.peers[name].may_be_asked(author, now)]
        if not ready:
            until = min(self.peers[name].put_off[author][1] for name in ahead)
            self._ranges[author] = _Range(None, until)
            self.wake_at(until)
            return
        if grace and seq and self._is_pushing(author, ready):
            self._ranges[author] = _Range(None, now + PUSH_GRACE, grace=True)
            self.wake_at(now + PUSH_GRACE)
            return
        free = [name for name in ready if self.peers[name].ranges < MAX_RANGES]
        if not free:
            for name in ready:
                self.peers[name].queued[author] = None
            return
        # The least busy of the best, so that several devices are caught up from several peers.
        peer = min(
            free,
            key=lambda name: (
                self.peers[name].score,
                self.peers[name].ranges,
                self._random.random(),
            ),
        )
        self.peers[peer].ranges += 1
        self._ranges[author] = _Range(peer, now + REQUEST_TIMEOUT, seq + 1)
        self.wake_at(now + REQUEST_TIMEOUT)
        self._orders.append(FetchBatches(peer, author, seq + 1))

    def _end_range(self, author: str) -> None:
        ended = self._ranges.pop(author, None)
        if ended is not None and ended.peer is not None:
            state = self.peers.get(ended.peer)
            if state is not None:
                state.ranges -= 1

    def _plan_queued(self, state: PeerState | None, now: float) -> None:
        """A range request of a peer is free: the next device's turn."""
        while state is not None and state.queued and state.ranges < MAX_RANGES:
            author = next(iter(state.queued))
            del state.queued[author]
            self._plan_author(author, now)

    def _put_off(self, state: PeerState, author: str, now: float) -> None:
        failures = state.put_off.get(author, (0, 0.0))[0]
        state.put_off[author] = (failures + 1, now + self._pause(failures))

    def _pause(self, failures: int) -> float:
        pause = min(RETRY_FIRST * 2.0 ** min(failures, 10), RETRY_LAST)
        return pause * (0.5 + self._random.random())

    def _is_pushing(self, author: str, ahead: Iterable[str]) -> bool:
        """True if only others are ahead of us while the author itself is connected."""
        names = [name for name, state in self.peers.items() if state.did == author]
        return bool(names) and not any(name in names for name in ahead)

    # ------------------------------------------------------------------ contents

    def _coming(self, records: Iterable[OpenRecord], peer: str, now: float) -> None:
        """Contents that a peer sends unasked, right after their batch: nobody is asked.

        Large ones do not come so, whatever it says; so what it can delay is bounded.
        """
        state = self.peers.get(peer)
        if state is None:
            return
        for record in records:
            if record.size <= MAX_INLINE and state.fetching < MAX_FETCHING:
                self._assign(record, peer, state, now)

    def _assign(self, record: OpenRecord, peer: str, state: PeerState, now: float) -> None:
        state.fetching += 1
        state.bytes += _weight(record)
        record.peer = peer
        record.until = now + REQUEST_TIMEOUT + state.bytes / SLOW_LINK
        self.wake_at(record.until)

    def _look(self, now: float) -> None:
        """Look at all open records, because of what a peer says: now, or when that is due.

        A peer says much in few bytes, and can leave many records open: without a rest, looking
        would take all the time there is.
        """
        if now < self._rested:
            self.wake_at(self._rested)
            return
        self._rest(now)
        for peer, before in self._news.items():
            if state := self.peers.get(peer):
                self._reconsider(state, before, now)
        self._news.clear()
        self._plan_contents(now)

    def _rest(self, now: float) -> None:
        """All open records are being looked at."""
        self._rested = now + max(len(self.open) - MAX_UNRESTED, 0) * REST

    def _reconsider(
        self,
        state: PeerState,
        before: Mapping[str, tuple[int, frozenset[int]]],
        now: float,
    ) -> None:
        """Contents that a peer did not claim to hold before: it may be asked at once."""
        for record in self.open.values():
            known, gaps = before.get(record.author, (0, frozenset()))
            if record.author not in before or (record.seq <= known and record.seq not in gaps):
                continue
            if state.has(record.author, record.seq):
                state.gone.pop(record.record_id, None)
                if record.peer is None:
                    record.until = min(record.until, now)

    def _plan_contents(self, now: float) -> None:
        """Hand open records to peers that hold them, within each peer's limits."""
        free = {name: state for name, state in self.peers.items() if _has_room(state)}
        asks: dict[str, list[bytes]] = {}
        for record in self.open.values():
            if not free:
                # Whatever ends a request plans again.
                break
            if record.peer is not None or (record.bare and self._comes_with_range(record)):
                continue
            if record.until > now:
                self.wake_at(record.until)
                continue
            peer = self._best_holder(record, free, now)
            if peer is None:
                continue
            asks.setdefault(peer, []).append(record.record_id)
            self._assign(record, peer, free[peer], now)
            if not _has_room(free[peer]):
                del free[peer]
        for peer, ids in asks.items():
            for start in range(0, len(ids), MAX_FETCH):
                self._orders.append(FetchContents(peer, tuple(ids[start : start + MAX_FETCH])))

    def _comes_with_range(self, record: OpenRecord) -> bool:
        """True if an answer that is under way brings its batch again, and its content."""
        running = self._ranges.get(record.author)
        return (
            running is not None
            and running.peer is not None
            and 0 < running.first <= record.seq
            and record.size <= MAX_INLINE
            and self.peers[running.peer].has(record.author, record.seq)
        )

    def _best_holder(
        self, record: OpenRecord, free: Mapping[str, PeerState], now: float
    ) -> str | None:
        best: tuple[float, int, float] | None = None
        choice = None
        for name, state in free.items():
            if not state.has(record.author, record.seq):
                continue
            again = state.gone.get(record.record_id)
            if again is not None and again > now:
                self.wake_at(again)
                continue
            if len(free) == 1:
                return name
            rank = (state.score, state.fetching, self._random.random())
            if best is None or rank < best:
                best, choice = rank, name
        return choice

    def _unassign(self, record: OpenRecord) -> None:
        if record.peer is not None and (state := self.peers.get(record.peer)):
            state.fetching -= 1
            state.bytes -= _weight(record)
        record.peer = None

    def _release_fetch(self, record: OpenRecord, now: float, *, soon: bool = False) -> None:
        """A fetch ended without the content: try again, later each time."""
        self._unassign(record)
        if soon:
            record.until = now
            return
        record.until = now + self._pause(record.attempts)
        record.attempts += 1
        self.wake_at(record.until)


def _has_room(state: PeerState) -> bool:
    return state.fetching < MAX_FETCHING and state.bytes < MAX_FETCHING_BYTES


def _weight(record: OpenRecord) -> int:
    """What a content counts in flight: its author may claim any size."""
    return min(record.size, MAX_CONTENT)
