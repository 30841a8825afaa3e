"""The reconciler: from what exists, and what is held, to what to do next.

Decided here, and nowhere else: whether a batch extends what is held, which peer is asked
for what, when a request is given up, and in which order messages appear. Never done here:
I/O, waiting, reading a clock, drawing randomness, verifying signatures. Facts come in
through methods with `now` (seconds, monotonic), orders are collected from `orders()`, and
`deadline()` says when to call `tick` if nothing else happens.

A record goes through these states; only those that are not settled are kept in memory:

    unknown --batch--> wanted --ask--> fetching --content--> held --in order--> delivered
                         ^                |
                         +-- timeout, gone, wrong, peer left --+

Records of one device are accepted strictly in order (a gap is fetched first), contents come
in any order. A message waits for its predecessors (its author's earlier ones, and the
batches its author had seen) for `LATE_AFTER` seconds at most, so that one missing content
never holds up the rest for longer.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from walyoff.abc import Head, StoredContent
from walyoff.engine.delivery import Delivery
from walyoff.engine.facts import (
    FetchBatches,
    FetchContents,
    HeadInfo,
    OpenRecord,
    Order,
    PeerState,
    Reason,
    Report,
    Vector,
    Verdict,
    Write,
)
from walyoff.engine.states import RecordState
from walyoff.records import HASH_SIZE, MAX_CONTENT, Batch, Seen, chain_start, device_id

#: A request without an answer for so long is given to another peer.
REQUEST_TIMEOUT = 5.0
#: When the author itself is connected its push is on the way: others are not asked before.
PUSH_GRACE = 0.3
#: Back-off of a content that nobody gave: doubles from the first to the last, with jitter.
RETRY_FIRST = 0.5
RETRY_LAST = 60.0
#: Contents asked for in one request, by number and by size, and in flight per peer.
MAX_FETCH = 256
MAX_FETCHING = 1024
MAX_FETCHING_BYTES = 4 * 1024 * 1024
#: Requests for batches in flight per peer: fewer than the questions that a peer queues.
MAX_RANGES = 16
#: A peer gets so much longer for what it was asked for: bytes per second of a slow link.
SLOW_LINK = 512 * 1024
#: A peer that said it has not got a content is not asked again before, unless it says it has.
GONE_FOR = 60.0
#: Devices that one peer may speak of: bounds what a liar makes us remember.
MAX_AUTHORS = 4096


@dataclass(slots=True)
class _Range:
    """A request for a device's batches: in flight, or (no peer) put off."""

    peer: str | None
    until: float
    #: The first sequence number that was asked for.
    first: int = 0
    #: Put off because the author itself is connected and pushes.
    grace: bool = False


class Reconciler:
    """The state machine of one channel on one device."""

    #: Tests put a wrong one in its place, to see that it is found out.
    delivery_type: ClassVar[type[Delivery]] = Delivery

    def __init__(self, *, channel: str, author: str, heads: Iterable[Head], seed: int) -> None:
        self.channel = channel
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
        #: Contents on their way to the store: still gaps for others.
        self._landing: dict[bytes, tuple[str, int]] = {}
        self._delivery = self.delivery_type(self)
        self._ranges: dict[str, _Range] = {}
        #: When to look again at a record or an author; small, since only open ones are in it.
        self._wake: float | None = None
        self._orders: list[Order] = []
        # Jitter only: seeded from outside, so that a run can be repeated exactly.
        self._random = random.Random(seed)  # noqa: S311

    # ------------------------------------------------------------------- output

    def orders(self) -> list[Order]:
        """The orders since the last call, in the order in which to begin them."""
        out, self._orders = self._orders, []
        return out

    def deadline(self) -> float | None:
        """When `tick` is due, if nothing happens before."""
        return self._wake

    def next_own(self) -> HeadInfo:
        """Where the next own batch continues."""
        return self.heads.get(self.author) or HeadInfo(
            0, chain_start(self.channel, self.author), bytes(HASH_SIZE)
        )

    def seen(self) -> list[Seen]:
        """The newest batches of other devices, for the header of the next own batch."""
        others = [
            Seen(device_id(author), head.seq, head.batch_id)
            for author, head in self.heads.items()
            if author != self.author and author not in self.forked
        ]
        others.sort(key=lambda seen: seen.device)
        return others[-16:]

    def state(self, record_id: bytes) -> RecordState | None:
        """Where a record is that is not settled; None for the delivered and the unknown."""
        record = self.open.get(record_id)
        if record is not None:
            return RecordState.FETCHING if record.peer is not None else RecordState.WANTED
        return RecordState.HELD if self._delivery.waits(record_id) else None

    def gaps(self, author: str) -> list[int]:
        """The sequence numbers of a device whose contents are not held."""
        found = [r.seq for r in self.open.values() if r.author == author]
        found += [seq for name, seq in self._landing.values() if name == author]
        return sorted(found)

    def landed(self, record_ids: Iterable[bytes]) -> None:
        """Contents are durable now."""
        for record_id in record_ids:
            self._landing.pop(record_id, None)

    # -------------------------------------------------------------------- facts

    def restore_open(self, records: Iterable[OpenRecord]) -> None:
        """Records that the store knows without content, at the start."""
        for record in records:
            record.late = True
            self.open[record.record_id] = record

    def own_batch(self, batch: Batch, contents: Sequence[StoredContent], now: float) -> None:
        """This device wrote a batch; its signature follows."""
        self._extend(batch, None, contents, now)

    def batch(
        self,
        batch: Batch,
        signature: bytes,
        contents: Sequence[StoredContent | None],
        peer: str | None,
        now: float,
    ) -> Verdict:
        """A verified batch came from a peer, or from the ledger (no peer).

        The contents given must match their commitments.
        """
        author = batch.author
        if author in self.forked:
            return Verdict.FORK
        self._claim(author, batch.last_seq, peer)
        head = self.heads.get(author)
        seq = head.seq if head else 0
        if batch.first_seq > seq + 1:
            self._plan_author(author, now, grace=False)
            return Verdict.GAP
        if batch.first_seq <= seq:
            # The driver compares it with what is stored; see `fork`.
            self._fill(batch, contents, peer, now)
            return Verdict.DUPLICATE
        if batch.prev != (head.record_id if head else chain_start(self.channel, author)):
            self.fork(author, f"broken chain at {batch.first_seq}")
            return Verdict.FORK
        self._extend(batch, signature, contents, now)
        running = self._ranges.get(author)
        if running is not None and peer is not None and running.peer == peer:
            running.until = now + REQUEST_TIMEOUT
        if peer is not None and (state := self.peers.get(peer)):
            state.score /= 2
        self._plan_author(author, now)
        self._plan_contents(now)
        return Verdict.ACCEPTED

    def fork(self, author: str, detail: str) -> None:
        """An author contradicted itself: freeze it where it is, and say so."""
        if author not in self.forked:
            self.forked.add(author)
            self._end_range(author)
            # A queue may wait for the request that ended.
            self.wake_at(0.0)
            self._orders.append(Report(Reason.FORK, author, detail))

    def content(self, record_id: bytes, content: StoredContent, peer: str, now: float) -> None:
        """A content that matches its commitment came from a peer."""
        record = self.open.get(record_id)
        if record is None:
            return
        self._settle(record)
        self._landing[record_id] = (record.author, record.seq)
        late = (record_id,) if record.late else ()
        self._orders.append(
            Write(None, None, ((record_id, content),), late, record.author, record.kind)
        )
        if not late:
            self._deliver(now)
        state = self.peers.get(peer)
        if state is not None:
            state.score /= 2
        # Planning looks at every open record, so it waits until there is room for many.
        if state is None or (
            state.fetching <= MAX_FETCH // 2 and state.bytes <= MAX_FETCHING_BYTES // 2
        ):
            self._plan_contents(now)

    def forget(self, record_ids: Iterable[bytes], now: float) -> None:
        """Contents are not wanted any more, and never again."""
        for record_id in record_ids:
            record = self.open.get(record_id)
            if record is not None:
                self._settle(record)
                if record.late:
                    self._orders.append(Write(None, None, (), (record_id,), record.author))
        self._deliver(now)

    def content_failed(
        self, record_ids: Iterable[bytes], peer: str, reason: str, now: float
    ) -> None:
        """A peer does not hold these contents, or sent wrong ones."""
        state = self.peers.get(peer)
        for record_id in record_ids:
            record = self.open.get(record_id)
            if record is None:
                continue
            if state is not None:
                # Only of records that were open; dropped with the session.
                state.gone[record_id] = now + GONE_FOR * (0.5 + self._random.random())
            if record.peer == peer:
                self._release_fetch(record, now)
        if reason != Reason.GONE:
            self.fault(peer, reason, "content refused")
        self._plan_contents(now)

    def peer_joined(self, peer: str, did: str, vector: Vector, now: float) -> None:
        """A session with a member is up."""
        self.peers.setdefault(peer, PeerState(did, {}, {}))
        self.peer_has(peer, vector, now)

    def peer_left(self, peer: str, now: float) -> None:
        """A session is over."""
        state = self.peers.pop(peer, None)
        if state is None:
            return
        for record in self.open.values():
            if record.peer == peer:
                self._release_fetch(record, now, soon=True)
        asked = [author for author, r in self._ranges.items() if r.peer == peer]
        for author in asked:
            del self._ranges[author]
        for author in (*asked, *state.queued):
            self._plan_author(author, now)
        self._plan_contents(now)

    def peer_has(self, peer: str, vector: Vector, now: float) -> None:
        """A peer says what it holds."""
        state = self.peers.get(peer)
        if state is None:
            return
        before: dict[str, tuple[int, frozenset[int]]] = {}
        for author, (seq, gaps) in vector.items():
            if author not in state.heads and len(state.heads) >= MAX_AUTHORS:
                continue
            known = state.heads.get(author, 0)
            before[author] = (known, state.gaps.get(author, frozenset()))
            state.heads[author] = seq
            if gaps:
                state.gaps[author] = gaps
            else:
                state.gaps.pop(author, None)
            if seq > known:
                state.put_off.pop(author, None)
            self._plan_author(author, now)
        if self.open:
            self._reconsider(state, before, now)
            self._plan_contents(now)

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

    def author_counts(self, author: str, now: float) -> None:
        """More of a device's batches are accepted from now on: ask for them again."""
        for state in self.peers.values():
            state.put_off.pop(author, None)
        self._plan_author(author, now, grace=False)

    def range_failed(
        self, peer: str, author: str, reason: str, now: float, *, blame: bool = True
    ) -> None:
        """What a peer sent for a device was refused; it may have done so in good faith."""
        if blame:
            self.fault(peer, reason, f"batches of {author}")
        state = self.peers.get(peer)
        if state is not None:
            # Its claim stands: it may be honest and only slow, or know a member before us.
            self._put_off(state, author, now)
        pending = self._ranges.get(author)
        if pending is not None and pending.peer == peer:
            self._end_range(author)
        self._plan_author(author, now, grace=False)
        self._plan_queued(state, now)

    def fault(self, peer: str, reason: str, detail: str) -> None:
        """Score a peer."""
        if state := self.peers.get(peer):
            state.score += 1
        self._orders.append(Report(reason, peer, detail))

    def tick(self, now: float) -> None:
        """A deadline passed."""
        if self._wake is None or now < self._wake:
            return
        self._wake = None
        self._tick_ranges(now)
        timed_out: dict[str, None] = {}
        for record in self.open.values():
            if record.peer is None:
                continue
            if record.until <= now:
                timed_out[record.peer] = None
                self._release_fetch(record, now)
            else:
                self.wake_at(record.until)
        for peer in timed_out:
            self.fault(peer, Reason.TIMEOUT, "contents")
        for state in self.peers.values():
            self._plan_queued(state, now)
        self._deliver(now)
        self._plan_contents(now)

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

    # ---------------------------------------------------------------- receiving

    def _extend(
        self,
        batch: Batch,
        signature: bytes | None,
        contents: Sequence[StoredContent | None],
        now: float,
    ) -> None:
        self.heads[batch.author] = HeadInfo(
            batch.last_seq, batch.record_ids[-1], batch.batch_id
        )
        held = []
        for i, (record_id, content) in enumerate(zip(batch.record_ids, contents, strict=True)):
            if content is not None:
                held.append((record_id, content))
                continue
            record = batch.records[i]
            self.open[record_id] = OpenRecord(
                batch.author,
                batch.first_seq + i,
                record_id,
                record.size,
                record.commitment,
                now,
                kind=record.kind,
            )
        at = len(self._orders)
        self._delivery.add(batch, now)
        deliver = self._delivery.release(now)
        self._orders.insert(at, Write(batch, signature, tuple(held), deliver, batch.author))

    def _fill(
        self,
        batch: Batch,
        contents: Sequence[StoredContent | None],
        peer: str | None,
        now: float,
    ) -> None:
        """Take from a batch that is known the contents that are missing."""
        if not self.open or peer is None:
            return
        for record_id, content in zip(batch.record_ids, contents, strict=True):
            if content is not None and record_id in self.open:
                self.content(record_id, content, peer, now)

    def _deliver(self, now: float) -> None:
        """Order what is ready to be delivered."""
        if ready := self._delivery.release(now):
            self._orders.append(Write(None, None, (), ready))

    def _settle(self, record: OpenRecord) -> None:
        self._unassign(record)
        del self.open[record.record_id]

    # ----------------------------------------------------------------- fetching

    def _claim(self, author: str, seq: int, peer: str | None) -> None:
        """Who sends a batch has got it."""
        if peer is not None and (state := self.peers.get(peer)):
            known = state.heads.get(author)
            if known is not None or len(state.heads) < MAX_AUTHORS:
                state.heads[author] = max(seq, known or 0)

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

    def _plan_contents(self, now: float) -> None:
        """Hand open records to peers that hold them, within each peer's limits."""
        if not self.open or not self.peers:
            return
        asks: dict[str, list[bytes]] = {}
        for record in self.open.values():
            if record.peer is not None:
                continue
            if record.until > now:
                self.wake_at(record.until)
                continue
            peer = self._best_holder(record, asks, now)
            if peer is None:
                continue
            state = self.peers[peer]
            asks.setdefault(peer, []).append(record.record_id)
            state.fetching += 1
            state.bytes += _weight(record)
            record.peer = peer
            record.until = now + REQUEST_TIMEOUT + state.bytes / SLOW_LINK
            self.wake_at(record.until)
        for peer, ids in asks.items():
            self._orders.append(FetchContents(peer, tuple(ids)))

    def _best_holder(
        self, record: OpenRecord, asks: Mapping[str, list[bytes]], now: float
    ) -> str | None:
        best: tuple[float, int, float] | None = None
        choice = None
        for name, state in self.peers.items():
            if not state.has(record.author, record.seq):
                continue
            again = state.gone.get(record.record_id)
            if again is not None and again > now:
                self.wake_at(again)
                continue
            if state.fetching >= MAX_FETCHING or len(asks.get(name, ())) >= MAX_FETCH:
                continue
            if state.bytes >= MAX_FETCHING_BYTES:
                continue
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

    def wake_at(self, when: float) -> None:
        """`tick` is due at this time at the latest."""
        if self._wake is None or when < self._wake:
            self._wake = when


def _weight(record: OpenRecord) -> int:
    """What a content counts in flight: its author may claim any size."""
    return min(record.size, MAX_CONTENT)
