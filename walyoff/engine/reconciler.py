"""The reconciler: from what exists, and what is held, to what to do next.

Decided here, and nowhere else: whether a batch extends what is held, and with `asking` which
peer is asked for what, with `delivery` in which order messages appear. Never done here:
I/O, waiting, reading a clock, drawing randomness, verifying signatures. Facts come in
through methods with `now` (seconds, monotonic), orders are collected from `orders()`, and
`deadline()` says when to call `tick` if nothing else happens.

A record goes through these states; only those that are not settled are kept in memory:

    unknown --batch--> wanted --ask--> fetching --content--> held --in order--> delivered
                         ^                |
                         +-- timeout, gone, wrong, peer left --+

A peer that sends a batch in pieces counts as asked for the contents that follow.

Records of one device are accepted strictly in order (a gap is fetched first), contents come
in any order. A message waits for its predecessors (its author's earlier ones, and the
batches its author had seen) for `LATE_AFTER` seconds at most, so that one missing content
never holds up the rest for longer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

from walyoff.abc import Head, StoredContent
from walyoff.engine.asking import (
    GONE_FOR,
    MAX_AUTHORS,
    MAX_FETCHING,
    MAX_FETCHING_BYTES,
    Asking,
)
from walyoff.engine.delivery import Delivery
from walyoff.engine.facts import (
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
from walyoff.records import HASH_SIZE, Batch, Seen, chain_start, device_id


class Reconciler(Asking):
    """The state machine of one channel on one device."""

    #: Tests put a wrong one in its place, to see that it is found out.
    delivery_type: ClassVar[type[Delivery]] = Delivery

    def __init__(self, *, channel: str, author: str, heads: Iterable[Head], seed: int) -> None:
        super().__init__(author=author, heads=heads, seed=seed)
        self.channel = channel
        #: Contents on their way to the store: still gaps for others.
        self._landing: dict[bytes, tuple[str, int]] = {}
        self._delivery = self.delivery_type(self)

    # ------------------------------------------------------------------- output

    def orders(self) -> list[Order]:
        """The orders since the last call, in the order in which to begin them."""
        out, self._orders = self._orders, []
        return out

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

        The contents given must match their commitments. If there are fewer than records, the
        peer sends those of the others next: see `contents`.
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
        later = self._extend(batch, signature, contents, now, bare=peer is None)
        if peer is not None and (state := self.peers.get(peer)):
            state.score /= 2
            self._coming(later, peer, now)
            size = len(batch.body) + len(signature) + sum(len(c.data) for c in contents if c)
            self._progress(peer, author, size, now)
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
        self.contents(((record_id, content),), peer, now)

    def contents(
        self, given: Iterable[tuple[bytes, StoredContent]], peer: str, now: float
    ) -> None:
        """Contents that match their commitments came from a peer.

        They are written together, and together with what they let pass.
        """
        pairs: list[tuple[bytes, StoredContent]] = []
        records: list[OpenRecord] = []
        late: list[bytes] = []
        size, asked = 0, False
        for record_id, content in given:
            record = self.open.get(record_id)
            if record is None:
                continue
            asked = asked or record.peer is not None
            self._settle(record)
            self._landing[record_id] = (record.author, record.seq)
            pairs.append((record_id, content))
            records.append(record)
            size += len(content.data)
            if record.late:
                late.append(record_id)
        if pairs:
            ready = self._delivery.release(now) if len(late) < len(pairs) else ()
            author = records[0].author
            self._orders.append(
                Write(None, None, tuple(pairs), (*late, *ready), author, tuple(records))
            )
            if peer in self.peers:
                self.peers[peer].score /= 2
                self._progress(peer, author, size, now)
        state = self.peers.get(peer)
        has_room = state is None or (
            state.fetching <= MAX_FETCHING // 2 and state.bytes <= MAX_FETCHING_BYTES // 2
        )
        # Planning looks at every open record, so it waits until there is room for many.
        if asked and has_room:
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
        self._look(now)

    def peer_joined(self, peer: str, did: str, vector: Vector, now: float) -> None:
        """A session with a member is up."""
        self.peers.setdefault(peer, PeerState(did, {}, {}))
        self.peer_has(peer, vector, now)

    def peer_left(self, peer: str, now: float) -> None:
        """A session is over."""
        state = self.peers.pop(peer, None)
        self._news.pop(peer, None)
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
        before = self._news.setdefault(peer, {})
        for author, (seq, gaps) in vector.items():
            if author not in state.heads and len(state.heads) >= MAX_AUTHORS:
                continue
            known = state.heads.get(author, 0)
            before.setdefault(author, (known, state.gaps.get(author, frozenset())))
            state.heads[author] = seq
            if gaps:
                state.gaps[author] = gaps
            else:
                state.gaps.pop(author, None)
            if seq > known:
                state.put_off.pop(author, None)
            self._plan_author(author, now)
        if self.open:
            self._look(now)
        else:
            self._news.clear()

    def tick(self, now: float) -> None:
        """A deadline passed."""
        deadline = self.deadline()
        if deadline is None or now < deadline:
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
        self._look(now)

    # ---------------------------------------------------------------- receiving

    def _extend(
        self,
        batch: Batch,
        signature: bytes | None,
        contents: Sequence[StoredContent | None],
        now: float,
        *,
        bare: bool = False,
    ) -> list[OpenRecord]:
        """Take up a batch; the records beyond those whose contents are given, or not there."""
        author, given, seq = batch.author, len(contents), batch.first_seq
        self.heads[author] = HeadInfo(batch.last_seq, batch.record_ids[-1], batch.batch_id)
        held: list[tuple[bytes, StoredContent]] = []
        later: list[OpenRecord] = []
        for i, record_id in enumerate(batch.record_ids):
            if i < given and (content := contents[i]) is not None:
                held.append((record_id, content))
                continue
            record = batch.records[i]
            opened = OpenRecord(
                author,
                seq + i,
                record_id,
                record.size,
                record.commitment,
                now,
                kind=record.kind,
                bare=bare,
                batch=batch,
            )
            self.open[record_id] = opened
            if i >= given:
                later.append(opened)
        at = len(self._orders)
        self._delivery.add(batch, now)
        deliver = self._delivery.release(now)
        self._orders.insert(at, Write(batch, signature, tuple(held), deliver, author))
        return later

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
        for record_id, content in zip(batch.record_ids, contents, strict=False):
            if content is None and (record := self.open.get(record_id)):
                # It does not come by itself.
                record.bare = False
        pairs = zip(batch.record_ids, contents, strict=False)
        self.contents([(i, content) for i, content in pairs if content is not None], peer, now)

    def _deliver(self, now: float) -> None:
        """Order what is ready to be delivered."""
        if ready := self._delivery.release(now):
            self._orders.append(Write(None, None, (), ready))

    def _settle(self, record: OpenRecord) -> None:
        self._unassign(record)
        del self.open[record.record_id]
