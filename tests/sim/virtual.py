"""Tests in virtual time on both event loops."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import pytest
import sniffio
import trio.testing

from walyoff import Channel, Device
from walyoff.testing.network import LAN, Link, SimNetwork
from walyoff.testing.virtual import VirtualTimeLoop
from walyoff.testing.world import SimWorld

#: Virtual seconds after which a test counts as stuck.
STUCK_AFTER = 600.0


def run(backend: str, main: Callable[[], Awaitable[Any]]) -> None:
    """Run a coroutine function in virtual time."""

    async def bounded() -> None:
        with anyio.fail_after(STUCK_AFTER):
            await main()

    if backend == "trio":
        clock = trio.testing.MockClock(autojump_threshold=0)
        anyio.run(bounded, backend="trio", backend_options={"clock": clock})
    else:
        anyio.run(bounded, backend_options={"loop_factory": VirtualTimeLoop})


def stand_still(seconds: float) -> None:
    """Let virtual time pass in which nothing runs, as in a process that is suspended."""
    if sniffio.current_async_library() == "trio":
        clock = trio.lowlevel.current_clock()
        assert isinstance(clock, trio.testing.MockClock)
        clock.jump(seconds)
    else:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        loop.stand_still(seconds)


def in_virtual_time(test: Callable[[], Awaitable[None]]) -> Callable[[str], None]:
    """Make an asynchronous test one in virtual time, on asyncio and on trio."""

    @pytest.mark.parametrize("backend", ["asyncio", "trio"])
    def wrapper(backend: str) -> None:
        run(backend, test)

    functools.update_wrapper(wrapper, test)
    # Or pytest would look at the signature of the test within.
    del wrapper.__wrapped__  # type: ignore[attr-defined]
    return wrapper


class Group:
    """Some devices in one channel."""

    def __init__(self, world: SimWorld, devices: list[Device], channels: list[Channel]) -> None:
        self.world = world
        self.devices = devices
        self.channels = channels


@asynccontextmanager
async def group(
    count: int, link: Link = LAN, *, seed: int = 1, others: Sequence[SimNetwork] = ()
) -> AsyncIterator[Group]:
    """That many running devices, named a, b, c, in one channel and connected."""
    world = SimWorld(seed, link, others=others)
    async with AsyncExitStack() as stack:
        devices = [
            await stack.enter_async_context(world.device(chr(ord("a") + n)))
            for n in range(count)
        ]
        first = await devices[0].create_channel("family")
        channels = [first]
        for device in devices[1:]:
            channels.append(await device.join(await first.invite()))
        for channel in channels:
            for device in devices:
                if channel.me != await device.did():
                    await channel.wait_peer(await device.did())
        yield Group(world, devices, channels)


async def read(channel: Channel, count: int, **options: Any) -> list[bytes]:
    """The contents of that many messages."""
    found: list[bytes] = []
    if count:
        async for message in channel.messages(**options):
            assert message.content is not None
            found.append(message.content)
            if len(found) == count:
                break
    return found
