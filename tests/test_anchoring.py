"""The pace of anchors: company, duty, orphans, failures, bounds. No I/O, no clock."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from walyoff.engine.anchoring import (
    DELAY,
    DUTY,
    LONGEST_DELAY,
    MAX_BLOCK_BATCHES,
    MAX_BLOCK_BYTES,
    ORPHAN_AFTER,
    RETRY_LAST,
    Anchoring,
)


def batch(n: int) -> bytes:
    return n.to_bytes(32, "big")


def test_batches_wait_for_company_and_share_a_block() -> None:
    anchoring = Anchoring(seed=1)
    anchoring.add(batch(1), 100, own=True, now=0.0)
    assert anchoring.take(DELAY / 2) == ()
    anchoring.add(batch(2), 100, own=True, now=DELAY / 2)
    assert anchoring.deadline() == 1.5 * DELAY
    assert anchoring.take(DELAY) == ()
    assert anchoring.take(1.5 * DELAY) == (batch(1), batch(2))
    # One block at a time.
    assert anchoring.take(9.0) == ()
    assert anchoring.deadline() is None


def test_a_steady_flow_is_anchored_in_few_blocks_but_not_later_than_that() -> None:
    anchoring = Anchoring(seed=1)
    blocks = []
    for n in range(1000):
        now = n / 100
        anchoring.add(batch(n), 100, own=True, now=now)
        if chosen := anchoring.take(now):
            blocks.append(now)
            anchoring.written(chosen, now)
    assert blocks == [3.0, 6.01, 9.02]
    assert LONGEST_DELAY == 3.0
    # And when it ends, the rest soon.
    assert anchoring.deadline() == 9.99 + DELAY


def test_dear_blocks_are_written_seldom() -> None:
    anchoring = Anchoring(seed=1)
    anchoring.add(batch(1), 100, own=True, now=0.0)
    assert anchoring.take(1.0)
    anchoring.add(batch(2), 100, own=True, now=1.5)
    # It took two seconds, so the ledger rests for three times as long.
    anchoring.written([batch(1)], 3.0)
    assert anchoring.deadline() == 3.0 + 2.0 * (DUTY - 1)
    assert anchoring.take(8.9) == ()
    assert anchoring.take(9.0) == (batch(2),)


def test_others_batches_are_left_to_their_authors_for_a_while() -> None:
    firsts = set()
    for seed in range(20):
        anchoring = Anchoring(seed=seed)
        anchoring.add(batch(1), 100, own=False, now=0.0)
        due = anchoring.deadline()
        assert due is not None
        assert ORPHAN_AFTER <= due < 2 * ORPHAN_AFTER
        firsts.add(due)
    # Not all members write it in the same moment.
    assert len(firsts) == 20


def test_what_did_not_fit_or_was_put_off_stays_and_delays_nothing() -> None:
    anchoring = Anchoring(seed=1)
    for n in range(3):
        anchoring.add(batch(n), 100, own=True, now=0.0)
    assert anchoring.take(1.0) == (batch(0), batch(1), batch(2))
    anchoring.put_off(batch(1), 1.0)
    anchoring.written([batch(0)], 1.0)
    assert anchoring.take(1.0) == (batch(1), batch(2))


def test_what_is_anchored_is_not_written_again() -> None:
    anchoring = Anchoring(seed=1)
    anchoring.add(batch(1), 100, own=False, now=0.0)
    anchoring.anchored(batch(1))
    assert anchoring.deadline() is None
    assert anchoring.take(1000.0) == ()


def test_failures_are_tried_again_ever_later_and_lose_nothing() -> None:
    anchoring = Anchoring(seed=1)
    anchoring.add(batch(1), 100, own=True, now=0.0)
    now = DELAY
    pauses = []
    for _ in range(20):
        assert anchoring.take(now) == (batch(1),)
        anchoring.failed(now)
        deadline = anchoring.deadline()
        assert deadline is not None
        assert deadline > now
        pauses.append(deadline - now)
        now = deadline
    assert pauses[0] < 2.0
    assert RETRY_LAST / 2 <= pauses[-1] <= RETRY_LAST * 1.5


@given(st.lists(st.integers(1, MAX_BLOCK_BYTES), max_size=60), st.booleans())
def test_blocks_are_bounded_and_everything_is_written_once(sizes: list[int], own: bool) -> None:
    anchoring = Anchoring(seed=1)
    for n, size in enumerate(sizes):
        anchoring.add(batch(n), size, own=own, now=0.0)
    written: list[bytes] = []
    now = 3 * ORPHAN_AFTER
    while (deadline := anchoring.deadline()) is not None:
        now = max(now, deadline)
        chosen = anchoring.take(now)
        assert 0 < len(chosen) <= MAX_BLOCK_BATCHES
        assert sum(sizes[int.from_bytes(b, "big")] for b in chosen) <= MAX_BLOCK_BYTES
        written += chosen
        now += 0.1
        anchoring.written(chosen, now)
    assert sorted(written) == [batch(n) for n in range(len(sizes))]


def test_what_others_left_behind_is_held_back_and_own_batches_are_not() -> None:
    """While a device gets the history, others' batches may be on the part that is missing."""
    anchoring = Anchoring(seed=1)
    anchoring.add(batch(1), 100, own=False, now=0.0)
    late = 2 * ORPHAN_AFTER
    assert not anchoring.has_orphans(ORPHAN_AFTER / 2)
    assert anchoring.has_orphans(late)
    anchoring.add(batch(2), 100, own=True, now=late - DELAY)
    anchoring.hold_orphans(late)
    assert anchoring.take(late) == (batch(2),)
    anchoring.written([batch(2)], late)
    deadline = anchoring.deadline()
    assert deadline is not None
    assert deadline >= late + ORPHAN_AFTER
    assert anchoring.take(deadline) == (batch(1),)
