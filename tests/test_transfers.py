"""The plan of transfers: any order of facts, known situations, memory, and known mutants."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz.transfers import FILES, World, transfers
from walyoff.chunk_frames import PART
from walyoff.engine.facts import Reason, Report
from walyoff.engine.transfer_facts import MIN_WINDOW, Ask, Part, Whole
from walyoff.engine.transfers import MAX_CHUNKS_AT_ONCE, MAX_WINDOW, PART_TIMEOUT, Transfers
from walyoff.manifest import Manifest, chunk_count
from walyoff.records import CHUNK_SIZE

RECORD = b"r" * 32


def manifest(size: int) -> Manifest:
    ids = b"".join(n.to_bytes(32, "big") for n in range(chunk_count(size)))
    return Manifest(caption=b"", name="n", media_type="a/b", size=size, ids=ids)


def plan_with(size: int, peers: str, seed: int = 1) -> Transfers:
    """A plan for one attachment that all of these peers have."""
    plan = Transfers(seed=seed)
    about = manifest(size)
    plan.add(RECORD, about, bytes(-(-about.count // 8)), wanted=True, now=0.0)
    everything = (2**about.count - 1).to_bytes(-(-about.count // 8), "little")
    for peer in peers:
        plan.peer_joined(peer, f"did:{peer}", 0.0)
        plan.peer_has(peer, RECORD, everything, 0.0)
    return plan


def asks(plan: Transfers) -> list[Ask]:
    return [order for order in plan.orders() if isinstance(order, Ask)]


def reports(plan: Transfers) -> list[tuple[str, str]]:
    found = [order for order in plan.orders() if isinstance(order, Report)]
    return [(report.reason, report.subject) for report in found]


def give(plan: Transfers, ask: Ask, now: float) -> Part:
    """All parts of what was asked for."""
    verdict = Part.IGNORED
    for offset in range(ask.offset, ask.offset + ask.length, PART):
        size = min(PART, ask.offset + ask.length - offset)
        verdict = plan.part(ask.peer, ask.number, offset, size, now)
    return verdict


@settings(max_examples=120, deadline=None)
@given(st.binary(max_size=400))
def test_any_order_of_facts_keeps_it_consistent_and_ends_well(data: bytes) -> None:
    transfers(data)


def test_a_slow_link_has_little_under_way_and_a_fast_one_much() -> None:
    for rate, low, high in (
        (1e5, 0, 2 * MIN_WINDOW),
        (1e7, MIN_WINDOW, 4 * CHUNK_SIZE),
        (1e9, 2e6, MAX_WINDOW),
    ):
        plan = plan_with(400 * CHUNK_SIZE, "a")
        now, queue, most = 0.0, asks(plan), 0.0
        for _ in range(300):
            if not queue:
                break
            ask = queue.pop(0)
            now += ask.length / rate
            if give(plan, ask, now) is Part.COMPLETE:
                plan.stored(next(iter(plan.storing)), now)
            queue += asks(plan)
            most = max(most, plan.peers["a"].under_way)
        assert low <= most <= high + PART, rate


def test_memory_is_bounded_by_the_chunks_at_once() -> None:
    plan = plan_with(400 * CHUNK_SIZE, "abcdefgh")
    for name in "abcdefgh":
        plan.peers[name].window = MAX_WINDOW
    plan.set_budget(None, 0.0)
    assert len(plan.fetches) == MAX_CHUNKS_AT_ONCE


def test_four_gigabytes_take_little_memory_and_time() -> None:
    size = 4 * 2**30
    tracemalloc.start()
    plan = plan_with(size, "ab")
    queue = asks(plan)
    now, whole = 0.0, False
    while queue:
        ask = queue.pop(0)
        now += 0.001
        if give(plan, ask, now) is Part.COMPLETE:
            for key in list(plan.storing):
                plan.stored(key, now)
        for order in plan.orders():
            if isinstance(order, Ask):
                queue.append(order)
            whole = whole or isinstance(order, Whole)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert whole
    assert plan.transfers[RECORD].bytes_held == size
    assert peak < 4 * 2**20


def test_who_sends_wrong_bytes_is_reported_and_not_asked_at_once() -> None:
    plan = plan_with(CHUNK_SIZE, "a")
    while queue := asks(plan):
        for ask in queue:
            give(plan, ask, 1.0)
    (key,) = plan.storing
    plan.wrong(key, RECORD, 1.0)
    assert reports(plan) == [(Reason.WRONG_CONTENT, "a")]
    plan.peer_has("a", RECORD, b"\x01", 1.0)
    assert asks(plan) == []
    plan.peer_joined("b", "did:b", 1.0)
    plan.peer_has("b", RECORD, b"\x01", 1.0)
    assert {ask.peer for ask in asks(plan)} == {"b"}


def test_who_falls_silent_is_given_up_and_another_goes_on() -> None:
    plan = plan_with(CHUNK_SIZE, "a")
    (ask,) = asks(plan)
    plan.part("a", ask.number, 0, PART, 1.0)
    plan.peer_joined("b", "did:b", 2.0)
    plan.peer_has("b", RECORD, b"\x01", 2.0)
    plan.tick(PART_TIMEOUT + 0.5)
    plan.orders()
    assert plan.deadline() is not None
    plan.tick(PART_TIMEOUT + 1.5)
    orders = plan.orders()
    assert [o.reason for o in orders if isinstance(o, Report)] == [Reason.TIMEOUT]
    assert {o.peer for o in orders if isinstance(o, Ask)} == {"b"}
    # What was on its way is of no use any more, and no reason to blame anybody.
    assert plan.part("a", ask.number, PART, PART, 20.0) is Part.IGNORED
    assert reports(plan) == []


@pytest.mark.parametrize(("offset", "size"), [(PART, PART), (0, PART - 1), (0, 1), (0, 0)])
def test_a_part_that_is_not_the_next_one_ends_the_fetch(offset: int, size: int) -> None:
    plan = plan_with(CHUNK_SIZE, "a")
    (ask,) = asks(plan)
    assert plan.part("a", ask.number, offset, size, 1.0) is Part.IGNORED
    assert reports(plan) == [(Reason.MALFORMED, "a")]
    assert not plan.fetches


def test_more_than_was_asked_for_is_refused() -> None:
    plan = plan_with(CHUNK_SIZE, "a")
    (ask,) = asks(plan)
    for offset in range(0, ask.length, PART):
        plan.part("a", ask.number, offset, PART, 1.0)
    fetch = plan.fetches[ask.number]
    fetch.asked = fetch.got
    plan.orders()
    assert plan.part("a", ask.number, fetch.got, PART, 1.0) is Part.IGNORED
    assert reports(plan) == [(Reason.MALFORMED, "a")]


def test_claims_that_cannot_be_are_reported() -> None:
    plan = plan_with(3 * CHUNK_SIZE, "a")
    plan.orders()
    plan.peer_has("a", RECORD, b"\x0f", 1.0)
    assert reports(plan) == [(Reason.MALFORMED, "a")]


def test_a_chunk_is_taken_from_a_slow_peer_at_the_end() -> None:
    plan = plan_with(CHUNK_SIZE, "a")
    asks(plan)
    plan.peer_joined("b", "did:b", 1.0)
    plan.peers["b"].window = MAX_WINDOW
    plan.peer_has("b", RECORD, b"\x01", 1.0)
    assert asks(plan) == []
    plan.peer_has("b", RECORD, b"\x01", 3.0)
    assert {ask.peer for ask in asks(plan)} == {"b"}


def test_what_somebody_reads_comes_first() -> None:
    plan = Transfers(seed=1)
    about = manifest(50 * CHUNK_SIZE)
    plan.add(RECORD, about, bytes(7), wanted=True, now=0.0)
    plan.prefer(RECORD, 30)
    plan.peer_joined("a", "did:a", 0.0)
    plan.peer_has("a", RECORD, (2**50 - 1).to_bytes(7, "little"), 0.0)
    assert asks(plan)[0].place == 30


def test_a_nearly_complete_file_goes_before_a_large_one() -> None:
    plan = plan_with(100 * CHUNK_SIZE, "a")
    asks(plan)
    small = b"s" * 32
    about = Manifest(caption=b"", name="s", media_type="a/b", size=9, ids=b"s" * 32)
    plan.add(small, about, b"\x00", wanted=True, now=0.0)
    plan.peers["a"].window += CHUNK_SIZE
    plan.peer_has("a", small, b"\x01", 0.0)
    assert small in {ask.record_id for ask in asks(plan)}


MUTANTS: dict[str, tuple[str, Any]] = {
    "forgets to give chunks free": ("_release", lambda self, key: self.storing.pop(key, None)),
    "marks nothing": ("_mark", lambda self, key, *, missing: None),
    "takes any part": ("part", lambda self, *args: Part.COMPLETE),
}


@pytest.mark.parametrize("name", list(MUTANTS))
def test_a_wrong_plan_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    attribute, mutant = MUTANTS[name]
    monkeypatch.setattr(Transfers, attribute, mutant)
    # Join, claim, parts, and chunks that turn out wrong.
    facts = [(0, 0), (2, 126), (6, 198), (8, 19), (2, 126), (6, 198), (8, 3)] * 8
    with pytest.raises((AssertionError, KeyError)):
        transfers(bytes(value for fact in facts for value in fact))


def test_the_model_reaches_what_it_is_about() -> None:
    world = World()
    for record_id in FILES:
        world.add(record_id)
    for what, which in ((0, 0), (2, 126), *((6, 30), (8, 3)) * 5):
        world.step(what, which)
    assert world.stored
    world.finish()
    assert len(world.whole) >= 2
