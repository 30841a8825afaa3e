"""The reconciler alone: facts in any order, lies, crashes, and mutants that must be caught."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.reconciler_model import CHANNEL, ME, ReconcilerMachine
from walyoff.abc import StoredContent
from walyoff.batch_frames import MAX_GRANT
from walyoff.engine.asking import GONE_FOR
from walyoff.engine.delivery import Delivery
from walyoff.engine.facts import (
    FetchBatches,
    FetchContents,
    FetchMore,
    OpenRecord,
    PeerState,
    Reason,
    Verdict,
    Write,
)
from walyoff.engine.reconciler import Reconciler
from walyoff.records import Batch, Record, chain_start, make_batch


def test_any_order_of_facts_keeps_the_log_right_and_settles() -> None:
    run_state_machine_as_test(
        ReconcilerMachine, settings=settings(max_examples=120, stateful_step_count=40)
    )


class NeverTimesOut(Reconciler):
    """Forgets requests that are not answered."""

    def _plan_contents(self, now: float) -> None:
        super()._plan_contents(now)
        for record in self.open.values():
            if record.peer is not None:
                record.until = math.inf


class LosesTheTimer(Reconciler):
    """A tick for one thing forgets when the others are due."""

    def tick(self, now: float) -> None:
        super().tick(now)
        self._wake = None


class _DoesNotWaitForPredecessors(Delivery):
    def _release_batch(self, pending: Any, ready: list[bytes], late: float, now: float) -> bool:
        return super()._release_batch(pending, ready, now, now)


class DoesNotWaitForPredecessors(Reconciler):
    delivery_type = _DoesNotWaitForPredecessors


class _DoesNotWaitForQuestions(Delivery):
    def _dependencies_met(self, batch: Batch) -> bool:
        return True


class DoesNotWaitForQuestions(Reconciler):
    delivery_type = _DoesNotWaitForQuestions


class AcceptsAnyPredecessor(Reconciler):
    def fork(self, author: str, detail: str) -> None:
        """Nothing is wrong with it."""


class AcceptsGaps(Reconciler):
    def batch(
        self,
        batch: Batch,
        signature: bytes,
        contents: Sequence[StoredContent | None],
        peer: str | None,
        now: float,
    ) -> Verdict:
        verdict = super().batch(batch, signature, contents, peer, now)
        if verdict is Verdict.GAP:
            self._extend(batch, signature, contents, now)
        return verdict


class IgnoresGone(Reconciler):
    def content_failed(
        self, record_ids: Iterable[bytes], peer: str, reason: str, now: float
    ) -> None:
        super().content_failed(record_ids, peer, reason, now)
        if state := self.peers.get(peer):
            state.gone.clear()


class DeliversWhatComes(Reconciler):
    """A content is delivered when it comes, and again when it is its turn."""

    def content(self, record_id: bytes, content: StoredContent, peer: str, now: float) -> None:
        known = record_id in self.open
        super().content(record_id, content, peer, now)
        if known:
            self._orders.append(Write(None, None, (), (record_id,)))


class ForgetsLateOnes(Reconciler):
    def content(self, record_id: bytes, content: StoredContent, peer: str, now: float) -> None:
        if record := self.open.get(record_id):
            record.late = False
        super().content(record_id, content, peer, now)


class _WaitsForEver(Delivery):
    def _release_batch(self, pending: Any, ready: list[bytes], late: float, now: float) -> bool:
        return super()._release_batch(pending, ready, math.inf, now)


class WaitsForEver(Reconciler):
    """One missing content holds up everything after it."""

    delivery_type = _WaitsForEver


class KeepsAskingTheDeparted(Reconciler):
    def peer_left(self, peer: str, now: float) -> None:
        self.peers.pop(peer, None)


class MiscountsRequests(Reconciler):
    def _settle(self, record: OpenRecord) -> None:
        record.peer = None
        super()._settle(record)


class ForgetsAcrossRestarts(Reconciler):
    def restore_open(self, records: Iterable[OpenRecord]) -> None:
        super().restore_open(list(records)[1:])


class DisbelievesTheSlow(Reconciler):
    """One timeout, and a peer is never asked for that device again."""

    def range_failed(
        self, peer: str, author: str, reason: str, now: float, **more: Any
    ) -> None:
        if state := self.peers.get(peer):
            state.heads.pop(author, None)
        super().range_failed(peer, author, reason, now, **more)


class BelievesClaimsWithoutPause(Reconciler):
    """A peer that gives nothing is asked again in the same moment, and again."""

    def _put_off(self, state: PeerState, author: str, now: float) -> None:
        """Why wait?"""


class TakesStrangersForHolders(Reconciler):
    """Asks peers for what they do not claim to hold, and believes no gaps."""

    def content_failed(
        self, record_ids: Iterable[bytes], peer: str, reason: str, now: float
    ) -> None:
        if reason == Reason.WRONG_CONTENT:
            super().content_failed(record_ids, peer, reason, now)
            return
        for record_id in record_ids:
            if record := self.open.get(record_id):
                self._release_fetch(record, now, soon=True)
        self._plan_contents(now)


MUTANTS = [
    NeverTimesOut,
    LosesTheTimer,
    DoesNotWaitForPredecessors,
    DoesNotWaitForQuestions,
    AcceptsAnyPredecessor,
    AcceptsGaps,
    DeliversWhatComes,
    ForgetsLateOnes,
    WaitsForEver,
    KeepsAskingTheDeparted,
    MiscountsRequests,
    ForgetsAcrossRestarts,
    DisbelievesTheSlow,
    # Those that are too rare to be found each time have tests of their own below.
]


#: Seeds from which a mutant may be caught.
SEEDS = 6


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_reconciler_that_is_wrong_in_one_thing_is_caught(mutant: type[Reconciler]) -> None:
    assert any(is_caught(mutant, number) for number in range(SEEDS))


def is_caught(mutant: type[Reconciler], number: int) -> bool:
    """Whether the model finds a fault, from one seed. The rarest are not found from each."""
    machine = type(f"{mutant.__name__}Machine", (ReconcilerMachine,), {"make": mutant})
    seed(number)(machine)
    try:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=1000,
                stateful_step_count=40,
                phases=[Phase.generate],
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    except Exception:
        return True
    return False


def requests_in_a_minute(make: type[Reconciler]) -> int:
    """How often a peer is asked that claims much and at once says that it has no more."""
    reconciler = make(channel=CHANNEL, author=ME, heads=[], seed=1)
    reconciler.peer_joined("x#1", "did:sim:x", {"did:sim:y": (9, frozenset())}, 0.0)
    now, asked = 0.0, 0
    while asked < 1000:
        if any(isinstance(order, FetchBatches) for order in reconciler.orders()):
            asked += 1
            reconciler.range_end("x#1", "did:sim:y", now)
            continue
        deadline = reconciler.deadline()
        if deadline is None or deadline > 60.0:
            break
        now = deadline
        reconciler.tick(now)
    return asked


def test_a_claim_without_goods_costs_few_requests() -> None:
    assert 3 < requests_in_a_minute(Reconciler) < 15
    assert requests_in_a_minute(BelievesClaimsWithoutPause) == 1000


@pytest.mark.parametrize("make", [Reconciler, IgnoresGone, TakesStrangersForHolders])
def test_who_said_that_it_has_not_got_a_content_is_not_asked_again_soon(
    make: type[Reconciler],
) -> None:
    # Too rare a sequence for the machine to find each time, so it is written out.
    record = Record(0, 0, (), 5, bytes(32))
    batch = make_batch(
        channel="c",
        author="did of p",
        certificate_id=bytes(32),
        first_seq=1,
        prev=chain_start("c", "did of p"),
        seen=[],
        records=[record],
    )
    reconciler = make(channel="c", author="me", heads=(), seed=1)
    reconciler.peer_joined("p", "did of p", {"did of p": (1, frozenset())}, 0.0)
    reconciler.batch(batch, b"signature", [None], "p", 0.0)
    asked = [order for order in reconciler.orders() if isinstance(order, FetchContents)]
    assert [order.peer for order in asked] == ["p"]
    reconciler.content_failed(batch.record_ids, "p", Reason.GONE, 1.0)
    now = 1.0
    again = 0
    while (deadline := reconciler.deadline()) is not None and deadline < GONE_FOR / 2:
        now = max(now, deadline)
        reconciler.tick(now)
        again += sum(isinstance(order, FetchContents) for order in reconciler.orders())
    assert bool(again) == (make is not Reconciler)


def test_no_more_is_granted_at_once_than_a_frame_may_say() -> None:
    size = 60_000
    count = MAX_GRANT // size + 10
    batch = make_batch(
        channel="c",
        author="did of p",
        certificate_id=bytes(32),
        first_seq=1,
        prev=chain_start("c", "did of p"),
        seen=[],
        records=[Record(0, 0, (), size, bytes(32))] * count,
    )
    reconciler = Reconciler(channel="c", author="me", heads=(), seed=1)
    reconciler.peer_joined("p", "did of p", {"did of p": (count, frozenset())}, 0.0)
    reconciler.batch(batch, b"signature", [], "p", 0.0)
    content = StoredContent(salt=bytes(32), data=bytes(size))
    *most, last = batch.record_ids
    # The end of a long batch, behind which nothing is known.
    reconciler.contents([(record_id, content) for record_id in most], "p", 0.0)
    assert not [order for order in reconciler.orders() if isinstance(order, FetchMore)]
    # Then its author goes on.
    reconciler.peer_has("p", {"did of p": (count + 1, frozenset())}, 0.0)
    reconciler.contents([(last, content)], "p", 0.0)
    orders = [order for order in reconciler.orders() if isinstance(order, FetchMore)]
    assert [order.size for order in orders] == [MAX_GRANT]


def open_many(count: int) -> tuple[Reconciler, list[OpenRecord]]:
    """A reconciler that misses so many contents, with one peer, which has none of them."""
    machine = Reconciler(channel="c", author="me", heads=(), seed=1)
    records = [OpenRecord("a", n + 1, n.to_bytes(32), 10, bytes(32), 0.0) for n in range(count)]
    machine.restore_open(records)
    machine.peer_joined("p", "did:p", {"a": (0, frozenset())}, 0.0)
    return machine, records


@pytest.mark.parametrize("flood", ["claims", "gone", "refused"])
def test_a_peer_that_says_much_in_little_does_not_make_us_look_all_the_time(
    flood: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, records = open_many(20_000)
    looks: list[float] = []
    plan = machine._plan_contents

    def counting(now: float) -> None:
        looks.append(now)
        plan(now)

    monkeypatch.setattr(machine, "_plan_contents", counting)
    for n in range(1000):
        now = 1.0 + n / 1000
        if flood == "claims":
            machine.peer_has("p", {"b": (n % 2, frozenset())}, now)
        elif flood == "gone":
            machine.content_failed([records[n].record_id], "p", Reason.GONE, now)
        else:
            machine.range_failed("p", "b", Reason.WRONG_SIGNATURE, now)
        deadline = machine.deadline()
        if deadline is not None and deadline <= now:
            machine.tick(now)
    # Looking at them takes about 10 ms: a tenth of the time at most.
    assert 1 <= len(looks) <= 15


def test_what_a_peer_came_to_hold_is_asked_for_after_the_rest() -> None:
    machine, records = open_many(20_000)
    machine.peer_has("p", {"b": (1, frozenset())}, 1.0)
    machine.orders()
    missing = frozenset(range(2, 257))
    machine.peer_has("p", {"a": (300, missing)}, 1.001)
    machine.peer_has("p", {"a": (300, missing - {9})}, 1.002)
    assert not any(isinstance(order, FetchContents) for order in machine.orders())
    deadline = machine.deadline()
    assert deadline is not None
    assert 1.002 < deadline < 1.5
    machine.tick(deadline)
    asked = [order for order in machine.orders() if isinstance(order, FetchContents)]
    wanted = {records[seq - 1].record_id for seq in (1, 9, *range(257, 301))}
    assert {i for order in asked for i in order.record_ids} == wanted


def test_few_open_records_are_looked_at_at_once() -> None:
    machine, records = open_many(1000)
    machine.peer_has("p", {"b": (1, frozenset())}, 1.0)
    machine.peer_has("p", {"a": (5, frozenset())}, 1.0)
    asked = [order for order in machine.orders() if isinstance(order, FetchContents)]
    assert [set(order.record_ids) for order in asked] == [{r.record_id for r in records[:5]}]
