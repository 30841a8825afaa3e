"""One device of a measurement, as a process.

    python -m walyoff.bench.agent --home DIR [--transport NAME] [--suite NAME] [--trace]

It does what applications do, through the public interface alone: `open_device`, `send`,
`send_many`, `async for message in channel.messages()`.
"""

from __future__ import annotations

import time

_BEGAN = time.monotonic_ns()

import argparse  # noqa: E402  (the moment of the start comes first)
import cProfile  # noqa: E402
import os  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import TYPE_CHECKING, Any  # noqa: E402

import anyio  # noqa: E402
from anyio.abc import TaskGroup  # noqa: E402

import walyoff  # noqa: E402
from walyoff.agents.serving import Action, serve, tell, until_signal  # noqa: E402
from walyoff.bench.load import Tallies, chunks, payload, shares  # noqa: E402
from walyoff.bench.machine import memory_mib, usage  # noqa: E402
from walyoff.bench.profiling import functions  # noqa: E402

if TYPE_CHECKING:
    from walyoff.bench.tracer import Tracer
    from walyoff.channel import Channel
    from walyoff.node import Device


#: How often memory is looked at while a file is sent, or comes.
LOOK_EVERY_S = 0.25


class Look:
    """The most memory that this process was seen to have, from time to time."""

    def __init__(self) -> None:
        self.mib = 0.0
        self._again = 0.0

    def take(self) -> None:
        """Look, unless it was done just now: it takes milliseconds of the event loop."""
        if anyio.current_time() >= self._again:
            self._again = anyio.current_time() + LOOK_EVERY_S
            self.mib = max(self.mib, memory_mib(os.getpid()))


class Agent:
    """Does what is asked."""

    def __init__(self, device: Device, tasks: TaskGroup, tracer: Tracer | None) -> None:
        self._device = device
        self._tasks = tasks
        self._tracer = tracer
        self._tallies = Tallies()
        self._profiler = cProfile.Profile()
        #: When a session with another device was first seen, in nanoseconds.
        self._met = 0
        self.actions: dict[str, Action] = {
            "create": self._create,
            "invite": self._invite,
            "did": self._did,
            "join": self._join,
            "peer": self._peer,
            "peers": self._peers,
            "burst": self._burst,
            "latency": self._latency,
            "expect": self._expect,
            "attach": self._attach,
            "attached": self._attached,
            "usage": self._usage,
            "status": self._status,
            "trace": self._trace,
            "profile": self._profile,
        }
        for channel in device.channels():
            self._follow(channel)

    @property
    def _channel(self) -> Channel:
        return self._device.channels()[0]

    def _follow(self, channel: Channel) -> None:
        self._tasks.start_soon(self._receive, channel, channel.status()["messages"])
        self._tasks.start_soon(self._watch_peer, channel)

    async def _receive(self, channel: Channel, after: int) -> None:
        me = channel.me
        take = self._tallies.take
        clock = time.monotonic_ns
        async for message in channel.messages(after=after):
            if message.content and message.author != me:
                take(message.content, clock())

    async def _watch_peer(self, channel: Channel) -> None:
        await channel.wait_peer()
        self._met = time.monotonic_ns()

    # ------------------------------------------------------------------ beginning

    async def _create(self, request: dict[str, Any]) -> dict[str, Any]:
        self._follow(await self._device.create_channel(request["name"]))
        return {"me": self._channel.me}

    async def _invite(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"invitation": await self._channel.invite()}

    async def _did(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"did": await self._device.did()}

    async def _join(self, request: dict[str, Any]) -> dict[str, Any]:
        began = time.monotonic_ns()
        channel = await self._device.join(request["invitation"])
        ended = time.monotonic_ns()
        self._follow(channel)
        return {"me": channel.me, "began": began, "ended": ended}

    async def _peer(self, request: dict[str, Any]) -> dict[str, Any]:
        did = await self._channel.wait_peer(request.get("did"))
        return {"did": did, "at": time.monotonic_ns()}

    async def _peers(self, request: dict[str, Any]) -> dict[str, Any]:
        while len(self._channel.peers()) < request["count"]:
            await self._channel.changed()
        return {"at": time.monotonic_ns()}

    # ------------------------------------------------------------------ measuring

    async def _burst(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send `count` messages, in calls of `batch`, `writers` of which run at a time."""
        channel, run, size = self._channel, request["run"], request["size"]
        batch = request["batch"]

        async def write_single(numbers: range) -> None:
            for number in numbers:
                await channel.send(payload(run, size, number))

        async def write_many(numbers: range) -> None:
            for number in numbers:
                first = number * batch
                last = min(first + batch, request["count"])
                await channel.send_many([payload(run, size, n) for n in range(first, last)])

        before, began = usage(), time.monotonic_ns()
        async with anyio.create_task_group() as tasks:
            calls = -(-request["count"] // batch)
            for numbers in shares(calls, request["writers"]):
                tasks.start_soon(write_single if batch == 1 else write_many, numbers)
        ended = time.monotonic_ns()
        after = usage()
        return {
            "began": began,
            "ended": ended,
            "cpu_s": after["cpu_s"] - before["cpu_s"],
            "child_cpu_s": after["child_cpu_s"] - before["child_cpu_s"],
        }

    async def _latency(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send one message every `every` seconds, by the clock and not by the answers."""
        channel, run, size = self._channel, request["run"], request["size"]
        waits = []
        next_at = anyio.current_time()
        for number in range(request["count"]):
            await anyio.sleep_until(next_at)
            next_at += request["every"]
            began = time.monotonic_ns()
            await channel.send(payload(run, size, number))
            waits.append((time.monotonic_ns() - began) / 1e6)
        waits.sort()
        return {"send_p50_ms": waits[len(waits) // 2]}

    async def _expect(self, request: dict[str, Any]) -> dict[str, Any]:
        """Wait until so many messages of a run are here."""
        tally = self._tallies[request["run"]]
        complete = anyio.Event()
        tally.when(request["count"], complete.set)
        await complete.wait()
        return {**tally.summary(), "met": self._met}

    async def _attach(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a file of new bytes; memory is the most that was seen meanwhile."""
        look = Look()
        began = time.monotonic_ns()
        receipt = await self._channel.send_stream(
            chunks(request["size"]),
            name="file",
            size=request["size"],
            progress=lambda _: look.take(),
        )
        ended = time.monotonic_ns()
        return {"id": receipt.id.hex(), "began": began, "ended": ended, "memory_mib": look.mib}

    async def _attached(self, request: dict[str, Any]) -> dict[str, Any]:
        """Wait until all of an attachment is here."""
        wanted, look = bytes.fromhex(request["id"]), Look()
        async for message in self._channel.messages():
            if message.id == wanted and message.attachment is not None:
                async for _ in message.attachment.progress():
                    look.take()
                break
        return {"ended": time.monotonic_ns(), "memory_mib": look.mib}

    async def _usage(self, _: dict[str, Any]) -> dict[str, Any]:
        return usage()

    async def _status(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"status": self._channel.status()}

    async def _trace(self, _: dict[str, Any]) -> dict[str, Any]:
        """What the tracer saw since it was asked the last time."""
        return {"events": self._tracer.take() if self._tracer else []}

    async def _profile(self, request: dict[str, Any]) -> dict[str, Any]:
        """Begin to profile the event loop's thread, or end it and tell what took the time."""
        if request["on"]:
            self._profiler.enable()
            return {}
        self._profiler.disable()
        return {"functions": functions(self._profiler)}


async def main(options: argparse.Namespace) -> None:
    """Run until stdin ends."""
    tracer: Tracer | None = None
    if options.trace:
        from walyoff.bench.tracer import Tracer  # noqa: PLC0415

        tracer = Tracer()
        tracer.install()
    opening = time.monotonic_ns()
    async with (
        walyoff.open_device(
            options.home, transports=options.transport, suite=options.suite
        ) as device,
        anyio.create_task_group() as tasks,
    ):
        opened = time.monotonic_ns()
        agent = Agent(device, tasks, tracer)
        tell(event="ready", pid=os.getpid(), began=_BEGAN, opening=opening, opened=opened)
        await serve(agent.actions)
        tasks.cancel_scope.cancel()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--transport", action="append")
    parser.add_argument("--suite", default="hybrid-1")
    parser.add_argument("--backend", default="asyncio", choices=("asyncio", "trio"))
    parser.add_argument("--trace", action="store_true")
    found = parser.parse_args()
    found.transport = found.transport or ["ipfs"]
    return found


if __name__ == "__main__":
    chosen = _options()
    anyio.run(until_signal, main, chosen, backend=chosen.backend)
