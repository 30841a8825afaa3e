"""What a message costs those who give and take it, counted: calls of functions, and commits.

Counts say the same on every machine and under every load; the bounds are a tenth above what is
counted now, for both devices together. Times are for the benchmarks.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import anyio

from walyoff.channel import Channel
from walyoff.records import MAX_RECORDS
from walyoff.testing.memory import MemoryChannelStore
from walyoff.testing.virtual import VirtualTimeLoop
from walyoff.testing.world import SimWorld

MESSAGES = 4 * MAX_RECORDS
CONTENTS = [b"hello"] * MAX_RECORDS


class Calls:
    """Counts calls, of Python and of C, while it is on."""

    def __init__(self) -> None:
        self._counts: Counter[Any] = Counter()

    def _note(self, frame: Any, event: str, _: Any) -> None:
        self._counts[event] += 1
        if event == "call":
            self._counts[frame.f_code] += 1

    def __enter__(self) -> Calls:
        sys.setprofile(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    @property
    def each(self) -> float:
        """For each message."""
        return (self._counts["call"] + self._counts["c_call"]) / MESSAGES

    @property
    def writes(self) -> int:
        """Starts and resumptions of a store's writes: three or so for each."""
        return self._counts[MemoryChannelStore.write.__code__]


async def read(channel: Channel, count: int) -> None:
    found = 0
    async for message in channel.messages():
        found += message.content == b"hello"
        if found == count:
            break


def test_catching_up_takes_few_calls_and_commits() -> None:
    async def main() -> None:
        # The register says nothing in this time: contents come with their batches.
        world = SimWorld(1, append_s=1e6)
        async with world.device("a") as a:
            here = await a.create_channel("family")
            async with world.device("b") as b:
                await (await b.join(await here.invite())).wait_peer(here.me)
            for _ in range(MESSAGES // MAX_RECORDS):
                await here.send_many(CONTENTS)
            await anyio.sleep(5)
            async with world.device("b") as b:
                with calls:
                    await read(b.channels()[0], MESSAGES)

    calls = Calls()
    anyio.run(main, backend_options={"loop_factory": VirtualTimeLoop})
    assert calls.each < 99, calls.each
    assert calls.writes < 12, calls.writes


def test_a_burst_takes_few_calls_and_commits() -> None:
    async def main() -> None:
        world = SimWorld(1, append_s=1e6)
        async with world.device("a") as a, world.device("b") as b:
            here = await a.create_channel("family")
            there = await b.join(await here.invite())
            await there.wait_peer(here.me)
            await here.wait_peer(there.me)
            await anyio.sleep(5)
            with calls:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(read, there, MESSAGES)
                    for _ in range(MESSAGES // MAX_RECORDS):
                        await here.send_many(CONTENTS)

    calls = Calls()
    anyio.run(main, backend_options={"loop_factory": VirtualTimeLoop})
    assert calls.each < 126, calls.each
    assert calls.writes < 40, calls.writes
