"""The ledgers that come with walyoff pass the shipped suite; wrong ones fail it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import cache
from typing import Any

import anyio
import pytest
from anyio.abc import ObjectReceiveStream
from trio.testing import MockClock

from walyoff.abc import Block, Ledger
from walyoff.errors import LocalProtocolError
from walyoff.tasks import background_tasks
from walyoff.testing import LedgerConformance, SimLedger, SimWorld, VirtualTimeLoop
from walyoff.testing.chains import MAX_PAYLOAD, SimChain


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Virtual time: a check that waits in vain costs nothing."""
    if request.param == "trio":
        return "trio", {"clock": MockClock(autojump_threshold=0)}
    return "asyncio", {"loop_factory": VirtualTimeLoop}


Make = Callable[[SimChain], Ledger]


async def keep_equal(source: SimChain, target: SimChain) -> None:
    """What devices do over their sessions."""
    while True:
        changed = source.changed
        leaves, _ = await target.leaves()
        await target.take(source.missing(leaves))
        await changed.wait()


@asynccontextmanager
async def simulated(make: Make) -> AsyncIterator[tuple[Ledger, Ledger]]:
    world = SimWorld(1)
    a, b = world.chain("a", "ledger"), world.chain("b", "ledger")
    async with background_tasks() as tasks:
        tasks.start_soon(keep_equal, a, b)
        tasks.start_soon(keep_equal, b, a)
        yield make(a), make(b)


class TestSimLedger(LedgerConformance):
    @asynccontextmanager
    async def open_ledgers(self) -> AsyncIterator[tuple[Ledger, Ledger]]:
        async with simulated(lambda chain: SimLedger(chain, 0.01)) as pair:
            yield pair


class Right(SimLedger):
    """Right in everything: what the wrong ones below differ from in one thing."""

    def __init__(self, chain: SimChain) -> None:
        super().__init__(chain, 0.01)
        self.chain = chain


class Unlimited(Right):
    """Takes any size."""

    async def append(self, payload: bytes) -> Block:
        # A short part stands for all of it, so that no limit of the right one is met.
        return await super().append(payload[: self.max_payload])


class Empty(Right):
    """Takes an empty payload."""

    async def append(self, payload: bytes) -> Block:
        try:
            return await super().append(payload)
        except LocalProtocolError:
            if payload:
                raise
            return await super().append(b"\0")


class Merging(Right):
    """Writes the same payload only once."""

    def __init__(self, chain: SimChain) -> None:
        super().__init__(chain)
        self._written: dict[bytes, Block] = {}

    async def append(self, payload: bytes) -> Block:
        if payload not in self._written:
            self._written[payload] = await super().append(payload)
        return self._written[payload]


class Filtering(Right):
    """Passes the stream on through something of its own."""

    buffer = 10_000

    def begin(self, after: int) -> int:
        return after

    def change(self, block: Block, held: int) -> list[Block]:
        return [block]

    @asynccontextmanager
    async def blocks(self, after: int = 0) -> AsyncIterator[ObjectReceiveStream[Block]]:
        held = len(self.chain.order)
        send, receive = anyio.create_memory_object_stream[Block](self.buffer)
        async with super().blocks(self.begin(after)) as inner, background_tasks() as tasks:

            async def copy() -> None:
                async for block in inner:
                    with suppress(anyio.WouldBlock, anyio.BrokenResourceError):
                        for item in self.change(block, held):
                            send.send_nowait(item)

            with send, receive:
                tasks.start_soon(copy)
                yield receive


class Gapped(Filtering):
    """Misses some of what comes between history and live."""

    def change(self, block: Block, held: int) -> list[Block]:
        return [block] if block.position <= max(held, 4) or block.position > held + 2 else []


class Inclusive(Filtering):
    """Begins at the position, and not after it."""

    def begin(self, after: int) -> int:
        return after - 1 if after > 1 else after


class Renaming(Filtering):
    """Calls a block by another name when it is read."""

    def change(self, block: Block, held: int) -> list[Block]:
        return [Block(ref=block.ref + "'", position=block.position, payload=block.payload)]


class Losing(Filtering):
    """Loses blocks when a reader is slow."""

    buffer = 30


class Reversing(Right):
    """Gives what is new of a page in the wrong order."""

    @asynccontextmanager
    async def blocks(self, after: int = 0) -> AsyncIterator[ObjectReceiveStream[Block]]:
        send, receive = anyio.create_memory_object_stream[Block](10_000)
        async with background_tasks() as tasks:

            async def follow() -> None:
                position = after
                while True:
                    changed = self.chain.changed
                    order = self.chain.order
                    for number in range(len(order), position, -1):
                        payload = self.chain.blocks[order[number - 1]][1]
                        block = Block(ref=order[number - 1], position=number, payload=payload)
                        with anyio.move_on_after(1):
                            await send.send(block)
                    position = len(order)
                    await changed.wait()

            with send, receive:
                tasks.start_soon(follow)
                yield receive


class Half(Right):
    """Leaves a half-written block behind when it is cancelled."""

    async def append(self, payload: bytes) -> Block:
        done = False
        try:
            block = await super().append(payload)
            done = True
            return block
        finally:
            if not done and payload and len(payload) <= MAX_PAYLOAD:
                self.chain.append(payload[: len(payload) // 2])


class Deaf(Right):
    """Never hears of other devices."""

    def __init__(self, chain: SimChain) -> None:
        # A chain of its own, which nobody keeps equal.
        super().__init__(SimWorld(2).chain("alone", "ledger"))


CASES: list[tuple[Make, set[str]]] = [
    (Unlimited, {"test_the_largest_payload_passes_and_a_larger_one_is_refused"}),
    (Empty, {"test_an_empty_payload_is_refused"}),
    (Merging, {"test_the_same_payload_twice_makes_two_blocks"}),
    (Inclusive, {"test_reading_begins_after_the_given_position"}),
    (Losing, {"test_a_slow_reader_misses_nothing_and_stops_nobody"}),
    (Half, {"test_a_cancelled_append_is_whole_or_absent"}),
    (
        Gapped,
        {
            "test_there_is_no_gap_between_history_and_live",
            "test_reading_begins_after_the_given_position",
            "test_both_devices_get_what_both_append_at_once",
        },
    ),
    (
        Deaf,
        {
            "test_what_one_device_appends_reaches_the_other",
            "test_parents_come_before_children_on_both_devices",
            "test_both_devices_get_what_both_append_at_once",
        },
    ),
]
#: Wrong in what most checks look at, so that these are only some of those that fail.
WIDE: list[tuple[Make, set[str]]] = [
    (Renaming, {"test_an_appended_block_is_what_was_given"}),
    (
        Reversing,
        {
            "test_all_history_comes_in_the_order_of_positions",
            "test_parents_come_before_children_on_both_devices",
        },
    ),
]


@cache
def failures(make: Make) -> frozenset[str]:
    """The names of the checks that a ledger fails."""

    class Suite(LedgerConformance):
        @asynccontextmanager
        async def open_ledgers(self) -> AsyncIterator[tuple[Ledger, Ledger]]:
            async with simulated(make) as pair:
                yield pair

    failed = set()
    for name in dir(Suite):
        if name.startswith("test_"):
            try:
                anyio.run(
                    getattr(Suite(), name), backend_options={"loop_factory": VirtualTimeLoop}
                )
            except (Exception, pytest.fail.Exception):
                failed.add(name)
    return frozenset(failed)


@pytest.mark.parametrize(("broken", "expected"), CASES)
def test_a_wrong_ledger_fails_what_it_should_and_nothing_else(
    broken: Make, expected: set[str]
) -> None:
    assert failures(broken) - failures(Right) == expected


@pytest.mark.parametrize(("broken", "expected"), WIDE)
def test_a_thoroughly_wrong_ledger_fails(broken: Make, expected: set[str]) -> None:
    assert expected <= failures(broken) - failures(Right)
