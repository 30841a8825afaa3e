"""What a sent message costs its device, counted: calls of functions, and events.

Counts say the same on every machine and under every load; the bounds are a tenth above what is
counted now. Times are for the benchmarks; the steps of SQLite are in `test_store_inserting`.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import anyio

from walyoff.channel import Channel
from walyoff.testing.virtual import VirtualTimeLoop
from walyoff.testing.world import SimWorld

WRITERS = 64
EACH = 8
MESSAGES = WRITERS * EACH


def count(send: Callable[[Channel], Awaitable[None]]) -> tuple[float, float]:
    """Calls of functions, of Python and of C, and events made, for each message."""
    calls: Counter[Any] = Counter()

    def note(frame: Any, event: str, _: Any) -> None:
        calls[event] += 1
        if event == "call":
            calls[frame.f_code] += 1

    async def main() -> None:
        async with SimWorld(1).device("a") as device:
            channel = await device.create_channel("family")
            await send(channel)
            await anyio.sleep(5)
            sys.setprofile(note)
            try:
                await send(channel)
            finally:
                sys.setprofile(None)

    anyio.run(main, backend_options={"loop_factory": VirtualTimeLoop})
    events = calls[asyncio.Event.__init__.__code__]
    return (calls["call"] + calls["c_call"]) / MESSAGES, events / MESSAGES


def test_single_sends_take_few_calls_and_share_their_events() -> None:
    async def write(channel: Channel) -> None:
        for _ in range(EACH):
            await channel.send(b"hello")

    async def send(channel: Channel) -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(WRITERS):
                tasks.start_soon(write, channel)

    calls, events = count(send)
    assert calls < 125, calls
    assert events < 0.5, f"{events}: an event for each call is one or more"


def test_messages_that_are_sent_together_take_fewer() -> None:
    async def send(channel: Channel) -> None:
        await channel.send_many([b"hello"] * MESSAGES)

    calls, events = count(send)
    assert calls < 46, calls
    assert events < 0.05, events
