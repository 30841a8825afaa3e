"""Who is told at once what a device has come to hold, and who later."""

from __future__ import annotations

from collections import Counter
from typing import Any, cast

import anyio
import pytest

from tests.sim.virtual import group, in_virtual_time
from walyoff import frames
from walyoff.engine.announcing import AT_ONCE, LATER_S, Announcer, claim, is_held
from walyoff.engine.driver import Engine
from walyoff.engine.link import LinkState


class Listener:
    """A link that notes what it was told."""

    def __init__(self, did: str) -> None:
        self.name = self.did = did
        self.backlog = 0
        self.told: list[frames.Have] = []

    def send(self, data: bytes) -> None:
        frame = frames.decode(data)
        assert isinstance(frame, frames.HaveVector)
        self.told += frame.vector

    def send_bulk(self, data: bytes) -> None:
        """Nothing large is said here."""

    def close(self) -> None:
        """Nothing is open."""


class Company:
    """As much of an engine as announcing needs."""

    me = "me"

    def __init__(self, count: int) -> None:
        self.listeners = [Listener(f"d{n}") for n in range(count)]
        self.durable: Counter[str] = Counter()

    def admitted_links(self) -> list[LinkState]:
        return [LinkState(listener) for listener in self.listeners]

    def have(self, author: str) -> frames.Have:
        return frames.Have(author, self.durable[author])

    def told(self) -> set[str]:
        return {listener.did for listener in self.listeners if listener.told}


def company(count: int) -> tuple[Company, Announcer]:
    made = Company(count)
    return made, Announcer(cast(Engine, cast(Any, made)))


def test_in_a_small_channel_everybody_is_told_at_once() -> None:
    made, announcer = company(AT_ONCE)
    made.durable["d1"] = 1
    announcer.held(["d1"])
    assert len(made.told()) == AT_ONCE


@in_virtual_time
async def test_in_a_large_one_the_author_and_a_few_and_all_a_moment_later() -> None:
    made, announcer = company(50)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(announcer.run)
        spread: set[str] = set()
        for n in range(1, 21):
            before = {listener.did: len(listener.told) for listener in made.listeners}
            made.durable["d7"] = n
            announcer.held(["d7", "me"])
            now = {d.did for d in made.listeners if len(d.told) > before[d.did]}
            assert "d7" in now
            assert AT_ONCE <= len(now) <= AT_ONCE + 1
            spread |= now
        # Not always the same few.
        assert len(spread) == 50
        await anyio.sleep(2 * LATER_S)
        for listener in made.listeners:
            assert listener.told[-1] == frames.Have("d7", 20)
            assert {have.author for have in listener.told} == {"d7"}
        assert sum(len(listener.told) for listener in made.listeners) < 20 * (AT_ONCE + 4)
        tasks.cancel_scope.cancel()


@in_virtual_time
async def test_who_left_is_told_nothing_and_forgotten() -> None:
    made, announcer = company(20)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(announcer.run)
        announcer.held(["d1"])
        missing = [d for d in made.listeners if not d.told]
        made.listeners = [d for d in made.listeners if d.told]
        await anyio.sleep(2 * LATER_S)
        assert not any(d.told for d in missing)
        assert not announcer._later
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("count", [1, 255, 256, 257, 1000])
def test_nothing_counts_as_held_that_is_not_named_as_missing(count: int) -> None:
    """Every second content is missing; the oldest of those may go without their names."""
    missing = range(2, 2 * count + 1, 2)
    have = claim("author", 2 * count + 1, missing)
    held = {seq for seq in range(2 * count + 3) if is_held(have.seq, set(have.gaps), seq)}
    assert held.isdisjoint(missing)
    assert max(held) == 2 * count + 1
    # What is newer than the named ones is known; of all, while all can be named.
    known = {seq for seq in range(1, 2 * count + 2) if seq not in missing}
    named = frames.MAX_GAPS
    assert held - {0} == {seq for seq in known if count < named or seq > missing[-named]}


@in_virtual_time
async def test_a_receipt_does_not_take_silence_for_a_word() -> None:
    async with group(2) as g:
        a, b = g.channels
        receipt = await a.send(b"hello")
        await receipt.wait_received(by=b.me)
        last = receipt.seq + 2 * frames.MAX_GAPS
        gaps = frozenset(range(receipt.seq + 1, last, 2))
        a.engine.confirmed[b.me][a.me] = (last, gaps)
        assert receipt.received_by() == []
        a.engine.confirmed[b.me][a.me] = (last, gaps - {last - 1})
        assert receipt.received_by() == [b.me]
