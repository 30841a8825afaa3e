"""Devices on different transports share a channel: libp2p, IPFS, and both at once."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import ByteStream, TaskGroup, TaskStatus

from tests.libp2p_support import needs_libp2p
from tests.waiting import HANGS_AFTER, free_time
from walyoff import Channel, Device, open_device
from walyoff.errors import TransportError

pytestmark = [needs_libp2p, pytest.mark.anyio]


@pytest.fixture(scope="module", params=["asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """One loop is enough here: the transports themselves are tested on both."""
    return str(request.param)


class Group:
    """Devices by name, each of which can be restarted."""

    def __init__(self, home: Path, tasks: TaskGroup) -> None:
        self._home = home
        self._tasks = tasks
        self._transports: dict[str, Sequence[str]] = {}
        self._stops: dict[str, tuple[anyio.Event, anyio.Event]] = {}
        self.devices: dict[str, Device] = {}

    async def open(self, name: str, *transports: str) -> Device:
        self._transports[name] = transports or self._transports[name]
        self.devices[name] = await self._tasks.start(self._run, name)
        return self.devices[name]

    async def _run(self, name: str, *, task_status: TaskStatus[Device]) -> None:
        stop, stopped = self._stops[name] = (anyio.Event(), anyio.Event())
        path = self._home / name
        try:
            async with open_device(path, transports=self._transports[name]) as device:
                task_status.started(device)
                await stop.wait()
        finally:
            stopped.set()

    async def close(self, name: str) -> None:
        del self.devices[name]
        stop, stopped = self._stops[name]
        stop.set()
        await stopped.wait()

    def channel(self, name: str) -> Channel:
        return self.devices[name].channel("family")


@asynccontextmanager
async def group(home: Path) -> AsyncIterator[Group]:
    async with anyio.create_task_group() as tasks:
        made = Group(home, tasks)
        with anyio.fail_after(5 * HANGS_AFTER):
            yield made
        for name in list(made.devices):
            await made.close(name)


async def wait_for(channel: Channel, contents: set[bytes]) -> None:
    left = set(contents)
    async for message in channel.messages():
        left.discard(message.content or b"")
        if not left:
            return


async def join(g: Group, inviting: str, joining: str) -> None:
    channel = g.channel(inviting)
    await g.devices[joining].join(await channel.invite(), name="family")


@pytest.mark.parametrize(("first", "second"), [("ipfs", "libp2p"), ("libp2p", "ipfs")])
async def test_a_device_joins_one_on_the_other_transport(
    home: Path, first: str, second: str
) -> None:
    async with group(home) as g:
        a = await g.open("a", first)
        await a.create_channel("family")
        b = await g.open("b", second)
        await join(g, "a", "b")
        await g.channel("a").send(b"from a")
        await g.channel("b").send(bytes(300_000) + b"from b")
        for name in ("a", "b"):
            await wait_for(g.channel(name), {b"from a", bytes(300_000) + b"from b"})
        assert [address.partition(":")[0] for address in a.addresses] == [first]
        assert [address.partition(":")[0] for address in b.addresses] == [second]


async def test_three_devices_converge_under_traffic_and_restarts(home: Path) -> None:
    async with group(home) as g:
        await g.open("i", "ipfs")
        await g.open("p", "libp2p")
        await g.open("both", "libp2p", "ipfs")
        await g.devices["both"].create_channel("family")
        await join(g, "both", "i")
        await join(g, "both", "p")
        sent: set[bytes] = set()

        async def talk(name: str, label: str, count: int) -> None:
            for number in range(count):
                content = f"{name} {label} {number}".encode()
                await g.channel(name).send(content)
                sent.add(content)
                await anyio.sleep(0.01)

        for turn, name in enumerate(("p", "i", "both")):
            others = [other for other in ("i", "p", "both") if other != name]
            async with anyio.create_task_group() as tasks:
                for other in others:
                    tasks.start_soon(talk, other, f"turn {turn}", 20)
                await g.channel(name).send(b"bye %d" % turn)
                sent.add(b"bye %d" % turn)
                await g.close(name)
                await anyio.sleep(0.2)
                await g.open(name)
        for name in ("i", "p", "both"):
            await wait_for(g.channel(name), sent)
        faults = {name: g.channel(name).status()["faults"] for name in g.devices}
        assert not any(faults.values()), faults


class Broken:
    """Breaks one transport of a device: what is open ends, and nothing opens any more."""

    def __init__(self, device: Device, name: str) -> None:
        self._transport: Any = device._transports[name]

    async def refuse(self, address: str) -> ByteStream:
        raise TransportError("it is broken")

    def now(self) -> None:
        self._transport.connect = self.refuse
        thread = self._transport.running().thread
        thread._token.run_sync_soon(thread._asked.set)


def dials(device: Device) -> list[str]:
    """The schemes of the addresses that a device connects to, from now on."""
    seen: list[str] = []
    for name, transport in device._transports.items():
        connect = transport.connect

        async def noted(address: str, connect: Any = connect, name: str = name) -> ByteStream:
            seen.append(name)
            stream: ByteStream = await connect(address)
            return stream

        transport.connect = noted  # type: ignore[method-assign]
    return seen


async def test_a_broken_path_is_replaced_within_two_seconds_and_nothing_is_lost(
    home: Path,
) -> None:
    async with group(home) as g:
        await g.open("a", "libp2p", "ipfs")
        await g.open("b", "libp2p", "ipfs")
        await g.devices["a"].create_channel("family")
        await join(g, "a", "b")
        a, b = g.channel("a"), g.channel("b")
        # A restart, so that the address books are used, and the best path is chosen.
        await g.close("b")
        await g.open("b")
        b = g.channel("b")
        await a.wait_peer(b.me)
        await b.wait_peer(a.me)
        sent: set[bytes] = set()
        stop = anyio.Event()

        async def flood() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                content = b"%d" % number
                await a.send(content)
                sent.add(content)
                await anyio.sleep(0.005)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(flood)
            await anyio.sleep(0.5)
            sessions = {session.name for session in a.connections.sessions()}
            for name in ("a", "b"):
                Broken(g.devices[name], "libp2p").now()
            began = free_time()
            while not {s.name for s in a.connections.sessions()} - sessions:  # noqa: ASYNC110
                await anyio.sleep(0.01)
            took = free_time() - began
            await anyio.sleep(0.3)
            stop.set()
        await wait_for(b, sent)
        logging.getLogger("tests").info("another path after %.2f s", took)
        # How soon on an idle machine is decided in virtual time.
        assert took < 8


async def test_the_first_transport_is_the_one_that_is_used(home: Path) -> None:
    async with group(home) as g:
        await g.open("a", "libp2p", "ipfs")
        await g.open("b", "ipfs", "libp2p")
        await g.devices["a"].create_channel("family")
        await join(g, "a", "b")
        await g.channel("a").send(b"hello")
        await wait_for(g.channel("b"), {b"hello"})
        for name, best in (("a", "libp2p"), ("b", "ipfs")):
            other = g.channel("b" if name == "a" else "a").me
            seen = dials(g.devices[name])
            for session in g.channel(name).connections.sessions():
                session.close()
            await anyio.sleep(1.5)
            await g.channel(name).wait_peer(other)
            assert seen[:1] in ([], [best])
