"""A model of everything around a reconciler: authors, peers, a store, time. No I/O.

Every order is applied to a small store that checks what a store and an application rely on;
hypothesis drives it through `ReconcilerMachine`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from walyoff.abc import Head, StoredContent
from walyoff.engine import asking
from walyoff.engine.delivery import LATE_AFTER
from walyoff.engine.facts import (
    FetchBatches,
    FetchContents,
    OpenRecord,
    Order,
    Reason,
    Report,
    Verdict,
    Write,
)
from walyoff.engine.reconciler import Reconciler
from walyoff.records import Batch, Record, Seen, chain_start, commit, device_id, make_batch

CHANNEL = "did:sim:channel"
ME = "did:sim:me"
AUTHORS = ("did:sim:x", "did:sim:y", "did:sim:z")
PEERS = ("x#1", "y#2", "z#3", "w#4")
#: One honest peer must settle everything within this much virtual time, among silent liars.
SETTLED_AFTER = 600.0
#: A peer that claims and gives nothing is asked so often at most in that time.
MAX_ASKED = 40
_MAX_TICKS = 5000


@dataclass
class Entry:
    """A batch of the true world and its contents."""

    batch: Batch
    contents: list[StoredContent]


@dataclass
class ModelStore:
    """What is durable, and what it refuses."""

    heads: dict[str, Head] = field(default_factory=dict)
    batches: dict[bytes, Batch] = field(default_factory=dict)
    records: dict[bytes, tuple[Batch, int]] = field(default_factory=dict)
    held: set[bytes] = field(default_factory=set)
    log: list[bytes] = field(default_factory=list)
    delivered: set[bytes] = field(default_factory=set)
    #: When a batch was accepted in this run; older ones are as good as long ago.
    since: dict[bytes, float] = field(default_factory=dict)

    def apply(self, write: Write, now: float) -> None:
        """Write as the real store does, and check what is delivered."""
        if write.batch is not None:
            self._add(write.batch, now)
        for record_id, _ in write.contents:
            assert record_id in self.records, "content of an unknown record"
            assert record_id not in self.held, "a content was written twice"
            self.held.add(record_id)
        for record_id in write.deliver:
            self._deliver(record_id, now)

    def _add(self, batch: Batch, now: float) -> None:
        head = self.heads.get(batch.author)
        assert batch.first_seq == (head.seq if head else 0) + 1, "a head moved back or jumped"
        before = head.record_id if head else chain_start(CHANNEL, batch.author)
        assert batch.prev == before, "a broken chain was accepted"
        self.heads[batch.author] = Head(
            author=batch.author,
            seq=batch.last_seq,
            record_id=batch.record_ids[-1],
            batch_id=batch.batch_id,
        )
        self.batches[batch.batch_id] = batch
        self.since[batch.batch_id] = now
        for at, record_id in enumerate(batch.record_ids):
            self.records[record_id] = (batch, at)

    def _deliver(self, record_id: bytes, now: float) -> None:
        assert record_id in self.held, "delivered without content"
        assert record_id not in self.delivered, "delivered twice"
        batch, at = self.records[record_id]
        overdue = now >= self.since.get(batch.batch_id, -LATE_AFTER) + LATE_AFTER
        for earlier, (other, place) in self.records.items():
            if other.author != batch.author or earlier in self.delivered:
                continue
            if other.first_seq + place < batch.first_seq + at:
                assert earlier not in self.held, "an author's order was broken"
                waited = self.since.get(other.batch_id, -LATE_AFTER) + LATE_AFTER
                assert overdue or now >= waited, "it did not wait for its predecessor"
        for seen in batch.seen:
            known = self.batches.get(seen.batch_id)
            if known is not None and not overdue:
                late = [i for i in known.record_ids if i not in self.delivered]
                first = self.since.get(known.batch_id, 0.0) + LATE_AFTER
                assert not late or now >= first, "an answer came before its question"
        self.delivered.add(record_id)
        self.log.append(record_id)

    def missing(self) -> list[OpenRecord]:
        """Records without content, as the engine restores them."""
        return [
            OpenRecord(
                batch.author,
                batch.first_seq + at,
                record_id,
                batch.records[at].size,
                batch.records[at].commitment,
                0.0,
            )
            for record_id, (batch, at) in self.records.items()
            if record_id not in self.held
        ]

    def deliver_the_rest(self) -> None:
        """What the engine does with contents that have no place yet, at the start."""
        rest = [i for i in self.records if i in self.held and i not in self.delivered]
        self.delivered.update(rest)
        self.log.extend(rest)


class ReconcilerMachine(RuleBasedStateMachine):
    """Facts in any order; safety at every step, liveness at the end."""

    make: type[Reconciler] = Reconciler

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.starts = 0
        self.store = ModelStore()
        self.truth: dict[str, list[Entry]] = {author: [] for author in AUTHORS}
        self.contents: dict[bytes, StoredContent] = {}
        self.asked: list[FetchBatches | FetchContents] = []
        #: (peer, record) to when it said that it does not hold it.
        self.gone: dict[tuple[str, bytes], float] = {}
        self.reports: list[Report] = []
        self.forked: set[str] = set()
        self.start()

    def start(self) -> None:
        self.starts += 1
        self.reconciler = self.make(
            channel=CHANNEL, author=ME, heads=self.store.heads.values(), seed=self.starts
        )
        self.store.deliver_the_rest()
        self.store.since.clear()
        self.reconciler.restore_open(self.store.missing())
        self.asked.clear()
        self.gone.clear()
        self.forked.clear()

    def collect(self) -> None:
        """Carry out the orders."""
        for order in self.reconciler.orders():
            self.carry_out(order)

    def carry_out(self, order: Order) -> None:
        match order:
            case Write():
                self.store.apply(order, self.now)
            case FetchBatches(peer, author, first_seq):
                assert peer in self.reconciler.peers, "a stranger was asked"
                head = self.store.heads.get(author)
                assert first_seq == (head.seq if head else 0) + 1
                self.asked.append(order)
            case FetchContents(peer, record_ids):
                assert peer in self.reconciler.peers, "a stranger was asked"
                assert 0 < len(record_ids) <= asking.MAX_FETCH
                for record_id in record_ids:
                    said = self.gone.get((peer, record_id), -asking.GONE_FOR)
                    assert self.now - said >= asking.GONE_FOR / 2, "asked again after gone"
                    assert record_id not in self.store.held, "asked for what is held"
                self.asked.append(order)
            case Report():
                self.reports.append(order)

    # ------------------------------------------------------------------- the world

    def write(
        self, author: str, sizes: list[int], seen: list[Seen], last: Entry | None
    ) -> Entry:
        contents = [
            StoredContent(salt=bytes([n % 251]) * 32, data=b"%d" % len(self.contents) * size)
            for n, size in enumerate(sizes)
        ]
        batch = make_batch(
            channel=CHANNEL,
            author=author,
            certificate_id=bytes(32),
            first_seq=last.batch.last_seq + 1 if last else 1,
            prev=last.batch.record_ids[-1] if last else chain_start(CHANNEL, author),
            seen=seen,
            records=[Record(0, 0, (), len(c.data), commit(c.salt, c.data)) for c in contents],
        )
        self.contents.update(zip(batch.record_ids, contents, strict=True))
        return Entry(batch, contents)

    def newest(self) -> list[Seen]:
        return [
            Seen(device_id(a), entries[-1].batch.last_seq, entries[-1].batch.batch_id)
            for a, entries in self.truth.items()
            if entries
        ]

    def offer(self, entry: Entry, held: list[bool], peer: str | None) -> Verdict:
        """A batch comes; if less is held than it has records, the peer is to send the rest."""
        contents = [c if h else None for c, h in zip(entry.contents, held, strict=False)]
        batch = entry.batch
        verdict = self.reconciler.batch(batch, b"signature", contents, peer, self.now)
        if verdict is Verdict.DUPLICATE and batch.batch_id not in self.reconciler_batches():
            self.reconciler.fork(batch.author, "another branch")
            verdict = Verdict.FORK
        if verdict is Verdict.FORK:
            self.forked.add(batch.author)
        self.collect()
        if peer in self.reconciler.peers and batch.record_ids[len(held) :]:
            # It may do so, or not: as if it had been asked.
            self.asked.append(FetchContents(peer, batch.record_ids[len(held) :]))
        return verdict

    def reconciler_batches(self) -> set[bytes]:
        self.collect()
        return set(self.store.batches)

    def advance(self, seconds: float) -> None:
        """Let time pass as the engine's timer does."""
        end = self.now + seconds
        for _ in range(_MAX_TICKS):
            deadline = self.reconciler.deadline()
            if deadline is None or deadline > end:
                break
            self.now = max(deadline, self.now)
            self.reconciler.tick(self.now)
            after = self.reconciler.deadline()
            assert after is None or after > self.now, "a tick made no progress"
            self.collect()
        else:
            raise AssertionError("the timer never rests")
        self.now = end

    # ----------------------------------------------------------------------- rules

    @rule(
        author=st.sampled_from(AUTHORS),
        sizes=st.lists(st.integers(0, 3), min_size=1, max_size=4),
        count=st.integers(1, 3),
    )
    def somebody_writes(self, author: str, sizes: list[int], count: int) -> None:
        for _ in range(count):
            chain = self.truth[author]
            seen = [s for s in self.newest() if s.device != device_id(author)]
            chain.append(self.write(author, sizes, seen, chain[-1] if chain else None))

    @rule(sizes=st.lists(st.integers(0, 3), min_size=1, max_size=3))
    def this_device_writes(self, sizes: list[int]) -> None:
        head = self.reconciler.next_own()
        entry = self.write(ME, sizes, self.reconciler.seen(), None)
        batch = make_batch(
            channel=CHANNEL,
            author=ME,
            certificate_id=bytes(32),
            first_seq=head.seq + 1,
            prev=head.record_id,
            seen=self.reconciler.seen(),
            records=entry.batch.records,
        )
        self.contents.update(zip(batch.record_ids, entry.contents, strict=True))
        self.reconciler.own_batch(batch, entry.contents, self.now)
        self.collect()

    @rule(
        data=st.data(),
        author=st.sampled_from(AUTHORS),
        peer=st.none() | st.sampled_from(PEERS),
        ahead=st.integers(-2, 3),
    )
    def a_batch_comes(self, data: Any, author: str, peer: str | None, ahead: int) -> None:
        """Near the head: an old one, the next one, or one with a gap before it."""
        chain = self.truth[author]
        head = self.store.heads.get(author)
        at = sum(1 for e in chain if head and e.batch.last_seq <= head.seq) + ahead
        if not 0 <= at < len(chain):
            return
        entry = chain[at]
        size = len(entry.contents)
        held = [False] * size
        if peer is not None:
            held = data.draw(st.lists(st.booleans(), max_size=size))
        self.offer(entry, held, peer)

    @rule(peer=st.sampled_from(PEERS), author=st.sampled_from(AUTHORS), broken=st.booleans())
    def an_author_equivocates(self, peer: str, author: str, broken: bool) -> None:
        chain = self.truth[author]
        if not chain:
            return
        last = chain[-2] if len(chain) > 1 else None
        entry = self.write(author, [5], [], last)
        if broken:
            # It claims a predecessor that nobody has.
            batch = replace(entry.batch, prev=b"\x01" * 32)
            entry = Entry(batch, entry.contents)
        self.offer(entry, [True], peer)

    @rule(peer=st.sampled_from(PEERS), data=st.data())
    def a_peer_joins_or_claims(self, peer: str, data: Any) -> None:
        """What it claims may be true, too little, or far too much."""
        vector = {}
        for author in data.draw(st.lists(st.sampled_from(AUTHORS), unique=True)):
            chain = self.truth[author]
            true = chain[-1].batch.last_seq if chain else 0
            seq = max(true + data.draw(st.integers(-3, 3)), 0)
            gaps = data.draw(st.frozensets(st.integers(1, max(seq, 1)), max_size=3))
            vector[author] = (seq, gaps)
            for key in [k for k in self.gone if k[0] == peer]:
                del self.gone[key]
        if peer in self.reconciler.peers and data.draw(st.booleans()):
            self.reconciler.peer_has(peer, vector, self.now)
        else:
            did = f"did:sim:{peer[0]}"
            self.reconciler.peer_joined(peer, did, vector, self.now)
        self.collect()

    @rule(peer=st.sampled_from(PEERS))
    def a_peer_leaves(self, peer: str) -> None:
        self.reconciler.peer_left(peer, self.now)
        self.asked = [o for o in self.asked if o.peer != peer]
        for key in [k for k in self.gone if k[0] == peer]:
            del self.gone[key]
        self.collect()

    @precondition(lambda self: self.asked)
    @rule(
        data=st.data(),
        how=st.sampled_from(("honest", "half", "gone", "wrong", "nothing", "refused")),
    )
    def a_peer_answers(self, data: Any, how: str) -> None:
        order = self.asked.pop(data.draw(st.integers(0, len(self.asked) - 1)))
        if isinstance(order, FetchBatches):
            self.answer_range(order, how)
        else:
            self.answer_contents(order, how)
        self.collect()

    def answer_range(self, order: FetchBatches, how: str) -> None:
        if how in ("honest", "half"):
            entries = [
                e for e in self.truth[order.author] if e.batch.last_seq >= order.first_seq
            ]
            for entry in entries[: 1 if how == "half" else None]:
                pieces = len(entry.contents) if how == "half" else len(entry.contents) // 2
                self.offer(entry, [True] * pieces, order.peer)
        if how == "refused":
            reason = Reason.WRONG_SIGNATURE
            self.reconciler.range_failed(order.peer, order.author, reason, self.now)
        if how != "nothing":
            self.reconciler.range_end(order.peer, order.author, self.now)

    def answer_contents(self, order: FetchContents, how: str) -> None:
        ids = list(order.record_ids)
        if how == "honest":
            given = [(record_id, self.contents[record_id]) for record_id in ids]
            self.reconciler.contents(given, order.peer, self.now)
        elif how == "half":
            for record_id in ids[: (len(ids) + 1) // 2]:
                content = self.contents[record_id]
                self.reconciler.content(record_id, content, order.peer, self.now)
                self.collect()
        elif how in ("gone", "wrong", "refused"):
            reason = Reason.GONE if how == "gone" else Reason.WRONG_CONTENT
            # A stranger's word counts for nothing, also here.
            if order.peer in self.reconciler.peers:
                open_ids = [i for i in ids if i in self.reconciler.open]
                self.gone.update({(order.peer, i): self.now for i in open_ids})
            self.reconciler.content_failed(ids, order.peer, reason, self.now)

    @rule(seconds=st.sampled_from((0.01, 0.2, 0.5, 1.0, 3.0, 6.0, 70.0)))
    def time_passes(self, seconds: float) -> None:
        self.advance(seconds)

    @rule()
    def crash_and_restart(self) -> None:
        self.start()
        self.collect()

    @initialize()
    def begin(self) -> None:
        self.collect()

    # -------------------------------------------------------------------- safety

    @invariant()
    def the_books_balance(self) -> None:
        r = self.reconciler
        deadline = r.deadline()
        for name, state in r.peers.items():
            mine = [record for record in r.open.values() if record.peer == name]
            assert state.fetching == len(mine) <= asking.MAX_FETCHING
            assert state.bytes == sum(record.size for record in mine)
            ranges = [x for x in r._ranges.values() if x.peer == name]
            assert state.ranges == len(ranges) <= asking.MAX_RANGES
        for record in r.open.values():
            if record.peer is not None:
                assert record.peer in r.peers, "fetching from a peer that left"
                assert deadline is not None, "a request without a timer"
                assert deadline <= record.until, "a request without a timer"
        for running in r._ranges.values():
            assert deadline is not None, "a request without a timer"
            assert deadline <= running.until, "a request without a timer"

    @invariant()
    def it_agrees_with_the_store(self) -> None:
        r = self.reconciler
        assert {a: h.seq for a, h in r.heads.items()} == {
            a: h.seq for a, h in self.store.heads.items()
        }
        assert set(r.open) == {i for i in self.store.records if i not in self.store.held}
        assert r.forked == self.forked, "a contradiction was not noticed, or imagined"

    @invariant()
    def nothing_waits_too_long(self) -> None:
        """One missing content delays others by `LATE_AFTER` at most."""
        for record_id, (batch, _) in self.store.records.items():
            if record_id in self.store.held and record_id not in self.store.delivered:
                since = self.store.since.get(batch.batch_id, -LATE_AFTER)
                assert self.now <= since + LATE_AFTER, "the head of a line blocks it"

    # ------------------------------------------------------------------ liveness

    def teardown(self) -> None:
        """One honest peer among silent liars settles everything."""
        r = self.reconciler
        self.asked.clear()
        vector = {
            author: (chain[-1].batch.last_seq, frozenset[int]())
            for author, chain in self.truth.items()
            if chain
        }
        self.gone.clear()
        r.peer_joined("honest", "did:sim:h", vector, self.now)
        self.collect()
        end = self.now + SETTLED_AFTER
        slow_until = self.now + asking.REQUEST_TIMEOUT + 1.0
        asked = Counter[tuple[str, str]]()
        while self.now < end and not self.is_settled():
            orders, self.asked = self.asked, []
            mine = [o for o in orders if o.peer == "honest" and self.now > slow_until]
            for order in orders:
                if order.peer in PEERS[:2] and isinstance(order, FetchBatches):
                    # Half of the liars say that they gave all they have; the others nothing.
                    asked[order.peer, order.author] += 1
                    self.answer_range(order, "empty")
                    self.collect()
            for order in mine:
                if isinstance(order, FetchBatches):
                    self.answer_range(order, "honest")
                else:
                    self.answer_contents(order, "honest")
                self.collect()
            self.advance(0.1 if mine else 1.0)
            self.the_books_balance()
            self.it_agrees_with_the_store()
            self.nothing_waits_too_long()
        assert self.is_settled(), "an honest peer did not settle everything"
        assert all(times < MAX_ASKED for times in asked.values()), "a liar was asked for ever"

    def is_settled(self) -> bool:
        r = self.reconciler
        heads = all(
            a in r.forked or not c or (a in r.heads and r.heads[a].seq >= c[-1].batch.last_seq)
            for a, c in self.truth.items()
        )
        return heads and not r.open and self.store.delivered == set(self.store.records)
