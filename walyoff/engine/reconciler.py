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
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from walyoff.abc import Head, StoredContent
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
from walyoff.records import HASH_SIZE, Batch, Seen, chain_start, device_id

#: A request without an answer for so long is given to another peer.
REQUEST_TIMEOUT = 5.0
#: When the author itself is connected its push is on the way: others are not asked before.
PUSH_GRACE = 0.3
#: A message waits at most so long for its missing predecessors.
LATE_AFTER = 1.0
#: Back-off of a content that nobody gave: doubles from the first to the last, with jitter.
RETRY_FIRST = 0.5
RETRY_LAST = 60.0
#: Contents asked for in one request, by number and by size, and in flight per peer.
MAX_FETCH = 256
MAX_FETCH_BYTES = 2 * 1024 * 1024
MAX_FETCHING = 1024


@dataclass(slots=True)
class _Pending:
    """A batch whose records are not all delivered."""

    batch: Batch
    since: float
    #: Index of the next record to deliver.
    at: int


@dataclass(slots=True)
class _Range:
    """A request for a device's batches, in flight or put off."""

    peer: str | None
    until: float


class Reconciler:
    """The state machine of one channel on one device."""

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
        self._devices = {device_id(author): author for author in self.heads}
        self._pending: dict[str, deque[_Pending]] = {}
        self._undelivered: set[bytes] = set()
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

    def gaps(self, author: str) -> list[int]:
        """The sequence numbers of a device whose contents are not held."""
        return sorted(r.seq for r in self.open.values() if r.author == author)

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
        head = self.heads.get(author)
        seq = head.seq if head else 0
        if batch.first_seq > seq + 1:
            self._learn_head(author, batch.last_seq, peer, now)
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
        if running is not None and running.peer == peer:
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
            self._ranges.pop(author, None)
            self._orders.append(Report(Reason.FORK, author, detail))

    def content(self, record_id: bytes, content: StoredContent, peer: str, now: float) -> None:
        """A content that matches its commitment came from a peer."""
        record = self.open.get(record_id)
        if record is None:
            return
        self._settle(record)
        late = (record_id,) if record.late else ()
        self._orders.append(Write(None, None, ((record_id, content),), late, record.author))
        if not late:
            self._release(now)
        state = self.peers.get(peer)
        if state is not None:
            state.score /= 2
        # Planning looks at every open record, so it waits until there is room for many.
        if state is None or state.fetching <= MAX_FETCH // 2:
            self._plan_contents(now)

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
                # Bounded by what is open; dropped with the session.
                if state.gone is None:
                    state.gone = set()
                state.gone.add(record_id)
            if record.peer == peer:
                self._release_fetch(record, now)
        if reason != Reason.GONE:
            self.fault(peer, reason, "content refused")
        self._plan_contents(now)

    def peer_joined(self, peer: str, did: str, vector: Vector, now: float) -> None:
        """A session with a member is up."""
        self.peers[peer] = PeerState(did, {}, {})
        self.peer_has(peer, vector, now)

    def peer_left(self, peer: str, now: float) -> None:
        """A session is over."""
        if self.peers.pop(peer, None) is None:
            return
        for record in self.open.values():
            if record.peer == peer:
                self._release_fetch(record, now, soon=True)
        for author in [a for a, r in self._ranges.items() if r.peer == peer]:
            del self._ranges[author]
            self._plan_author(author, now)
        self._plan_contents(now)

    def peer_has(self, peer: str, vector: Vector, now: float) -> None:
        """A peer says what it holds."""
        state = self.peers.get(peer)
        if state is None:
            return
        for author, (seq, gaps) in vector.items():
            state.heads[author] = seq
            if gaps:
                state.gaps[author] = gaps
            else:
                state.gaps.pop(author, None)
            self._plan_author(author, now)
        if self.open:
            state.gone = None
            for record in self.open.values():
                if (
                    record.peer is None
                    and record.until > now
                    and state.has(record.author, record.seq)
                ):
                    record.until = now
            self._plan_contents(now)

    def range_end(self, peer: str, author: str, now: float) -> None:
        """A peer finished answering a request for batches."""
        pending = self._ranges.get(author)
        if pending is None or pending.peer != peer:
            return
        del self._ranges[author]
        state = self.peers.get(peer)
        head = self.heads.get(author)
        if state and state.heads.get(author, 0) > (head.seq if head else 0):
            self._plan_author(author, now)

    def range_failed(self, peer: str, author: str, reason: str, now: float) -> None:
        """What a peer sent for a device was refused."""
        self.fault(peer, reason, f"batches of {author}")
        if state := self.peers.get(peer):
            state.heads.pop(author, None)
        pending = self._ranges.get(author)
        if pending is not None and pending.peer == peer:
            del self._ranges[author]
        self._plan_author(author, now)

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
        for author, pending in list(self._ranges.items()):
            if pending.until <= now:
                del self._ranges[author]
                if pending.peer is not None:
                    self.range_failed(pending.peer, author, Reason.TIMEOUT, now)
                else:
                    self._plan_author(author, now, grace=False)
            else:
                self._wake_at(pending.until)
        timed_out: set[str] = set()
        for record in self.open.values():
            if record.peer is not None and record.until <= now:
                timed_out.add(record.peer)
                self._release_fetch(record, now)
        for peer in timed_out:
            self.fault(peer, Reason.TIMEOUT, "contents")
        self._release(now)
        self._plan_contents(now)

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
        self._devices.setdefault(device_id(batch.author), batch.author)
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
            )
        at = len(self._orders)
        queue = self._pending.setdefault(batch.author, deque())
        queue.append(_Pending(batch, now, 0))
        self._undelivered.add(batch.batch_id)
        deliver = self._release(now, collect=True)
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

    def _settle(self, record: OpenRecord) -> None:
        if record.peer is not None and (state := self.peers.get(record.peer)):
            state.fetching -= 1
        del self.open[record.record_id]

    # ----------------------------------------------------------------- delivery

    def _release(self, now: float, *, collect: bool = False) -> tuple[bytes, ...]:
        """Deliver what is ready; returns it (collect) or orders it."""
        ready: list[bytes] = []
        progress = True
        while progress:
            progress = False
            for author in list(self._pending):
                progress = self._release_author(author, ready, now) or progress
        if collect:
            return tuple(ready)
        if ready:
            self._orders.append(Write(None, None, (), tuple(ready)))
        return ()

    def _release_author(self, author: str, ready: list[bytes], now: float) -> bool:
        queue = self._pending[author]
        progress = False
        while queue:
            pending = queue[0]
            late = pending.since + LATE_AFTER
            if now < late and not self._dependencies_met(pending.batch):
                self._wake_at(late)
                break
            if not self._release_batch(pending, ready, late, now):
                self._wake_at(late)
                break
            queue.popleft()
            self._undelivered.discard(pending.batch.batch_id)
            progress = True
        if not queue:
            del self._pending[author]
        return progress

    def _release_batch(
        self, pending: _Pending, ready: list[bytes], late: float, now: float
    ) -> bool:
        """Deliver a batch's records in order; False if one is still waited for."""
        ids = pending.batch.record_ids
        while pending.at < len(ids):
            record_id = ids[pending.at]
            if record_id in self.open:
                if now < late:
                    return False
                # It takes its place when it comes; the ones after it no longer wait.
                self.open[record_id].late = True
            else:
                ready.append(record_id)
            pending.at += 1
        return True

    def _dependencies_met(self, batch: Batch) -> bool:
        for seen in batch.seen:
            if seen.batch_id in self._undelivered:
                return False
            author = self._devices.get(seen.device)
            head = self.heads.get(author) if author else None
            if head is None or head.seq < seen.last_seq:
                return not self.peers
        return True

    # ----------------------------------------------------------------- fetching

    def _learn_head(self, author: str, seq: int, peer: str | None, now: float) -> None:
        if peer is not None and (state := self.peers.get(peer)):
            state.heads[author] = max(seq, state.heads.get(author, 0))
        self._plan_author(author, now, grace=False)

    def _plan_author(self, author: str, now: float, *, grace: bool = True) -> None:
        """Ask the best peer for what is missing of a device's batches."""
        if author == self.author or author in self.forked:
            return
        running = self._ranges.get(author)
        if running is not None and running.peer is not None:
            return
        head = self.heads.get(author)
        seq = head.seq if head else 0
        ahead = [name for name, p in self.peers.items() if p.heads.get(author, 0) > seq]
        if not ahead:
            self._ranges.pop(author, None)
            return
        if running is not None and grace:
            return
        if grace and seq and self._is_pushing(author, ahead):
            self._ranges[author] = _Range(None, now + PUSH_GRACE)
            self._wake_at(now + PUSH_GRACE)
            return
        peer = min(ahead, key=lambda name: (self.peers[name].score, self._random.random()))
        self._ranges[author] = _Range(peer, now + REQUEST_TIMEOUT)
        self._wake_at(now + REQUEST_TIMEOUT)
        self._orders.append(FetchBatches(peer, author, seq + 1))

    def _is_pushing(self, author: str, ahead: Iterable[str]) -> bool:
        """True if only others are ahead of us while the author itself is connected."""
        names = [name for name, state in self.peers.items() if state.did == author]
        return bool(names) and not any(name in names for name in ahead)

    def _plan_contents(self, now: float) -> None:
        """Hand open records to peers that hold them, within each peer's limits."""
        if not self.open or not self.peers:
            return
        asks: dict[str, list[bytes]] = {}
        sizes: dict[str, int] = {}
        for record in self.open.values():
            if record.peer is not None:
                continue
            if record.until > now:
                self._wake_at(record.until)
                continue
            peer = self._best_holder(record, asks, sizes)
            if peer is None:
                continue
            asks.setdefault(peer, []).append(record.record_id)
            sizes[peer] = sizes.get(peer, 0) + record.size
            record.peer = peer
            record.until = now + REQUEST_TIMEOUT
            self.peers[peer].fetching += 1
            self._wake_at(record.until)
        for peer, ids in asks.items():
            self._orders.append(FetchContents(peer, tuple(ids)))

    def _best_holder(
        self, record: OpenRecord, asks: Mapping[str, list[bytes]], sizes: Mapping[str, int]
    ) -> str | None:
        best: tuple[float, int, float] | None = None
        choice = None
        for name, state in self.peers.items():
            if not state.has(record.author, record.seq):
                continue
            if state.gone is not None and record.record_id in state.gone:
                continue
            if state.fetching >= MAX_FETCHING or len(asks.get(name, ())) >= MAX_FETCH:
                continue
            if sizes.get(name, 0) >= MAX_FETCH_BYTES:
                continue
            rank = (state.score, state.fetching, self._random.random())
            if best is None or rank < best:
                best, choice = rank, name
        return choice

    def _release_fetch(self, record: OpenRecord, now: float, *, soon: bool = False) -> None:
        """A fetch ended without the content: try again, later each time."""
        if record.peer is not None and (state := self.peers.get(record.peer)):
            state.fetching -= 1
        record.peer = None
        if soon:
            record.until = now
            return
        record.attempts += 1
        pause = min(RETRY_FIRST * 2 ** min(record.attempts - 1, 10), RETRY_LAST)
        record.until = now + pause * (0.5 + self._random.random())
        self._wake_at(record.until)

    def _wake_at(self, when: float) -> None:
        if self._wake is None or when < self._wake:
            self._wake = when
