"""Real devices with three transports: a path that hangs or breaks is left within two seconds.

Proxies stand in the way of libp2p and TCP; the node of the IPFS transport is a process, which
is stopped or killed.
"""

from __future__ import annotations

import itertools
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import ByteStream, TaskGroup
from walyoff_transports import ipfs, libp2p, tcp

from tests.libp2p_support import needs_libp2p
from tests.waiting import EVERY_S, HANGS_AFTER, Moment, free_time, until
from walyoff import Channel, Device, open_device, paths
from walyoff.abc import Transport, TransportFactory, TransportHost
from walyoff.sockets import TcpListener, connect_tcp

pytestmark = [needs_libp2p, pytest.mark.anyio]

FAILED_OVER = 2.0
#: On a machine that stood still one attempt may be late; three in a row are not.
ATTEMPTS = 3
FACTORIES: dict[str, TransportFactory] = {
    "libp2p": libp2p.open_transport,
    "tcp": tcp.open_transport,
    "ipfs": ipfs.open_transport,
}
_PORT = re.compile(r"(?<=/tcp/)[0-9]+|(?<=:)[0-9]+$")


@pytest.fixture(scope="module", params=["asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """One loop is enough here: the logic is tested on both, in virtual time."""
    return str(request.param)


class Proxy:
    """Forwards connections to a port, until it does not."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = TcpListener("127.0.0.1", 0, backlog=64)
        self.port = self._listener.port
        self._open = anyio.Event()
        self._open.set()
        self._broken = False
        self._streams: set[ByteStream] = set()

    async def run(self) -> None:
        try:
            async with anyio.create_task_group() as tasks:
                while True:
                    near = await self._listener.accept()
                    self._streams.add(near)
                    if self._broken:
                        await anyio.aclose_forcefully(near)
                        continue
                    far = await connect_tcp("127.0.0.1", self._target)
                    self._streams.add(far)
                    tasks.start_soon(self._carry, near, far)
                    tasks.start_soon(self._carry, far, near)
        finally:
            self._listener.close()
            with anyio.CancelScope(shield=True):
                await self.cut()

    async def _carry(self, source: ByteStream, target: ByteStream) -> None:
        with suppress(anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            while True:
                await self._open.wait()
                data = await source.receive()
                # What was on its way when it began to hang stays where it is.
                await self._open.wait()
                await target.send(data)
        for stream in (source, target):
            self._streams.discard(stream)
            await anyio.aclose_forcefully(stream)

    async def hang(self) -> None:
        self._open = anyio.Event()

    async def cut(self) -> None:
        self._broken = True
        for stream in list(self._streams):
            await anyio.aclose_forcefully(stream)

    async def mend(self) -> None:
        self._broken = False
        self._open.set()


class Child:
    """The same for a device's IPFS node. The next one comes when it is mended."""

    def __init__(self, device: Device, tasks: TaskGroup) -> None:
        self._child: Any = device.platform.ipfs
        self._tasks = tasks
        self._broken = False

    def _signal(self, number: int) -> None:
        if self._child.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self._child.pid, number)

    async def hang(self) -> None:
        self._fail(signal.SIGSTOP)

    async def cut(self) -> None:
        self._fail(signal.SIGKILL)

    async def mend(self) -> None:
        self._broken = False
        self._signal(signal.SIGCONT)

    def _fail(self, number: int) -> None:
        self._broken = True
        self._tasks.start_soon(self._stop_the_next, self._child.pid)
        self._signal(number)

    async def _stop_the_next(self, pid: int | None) -> None:
        while self._broken:
            if self._child.pid not in (pid, None):
                pid = self._child.pid
                self._signal(signal.SIGSTOP)
            await anyio.sleep(EVERY_S)


class Behind:
    """A transport that others reach through a proxy."""

    def __init__(self, inner: Transport, port: int) -> None:
        self._inner: Any = inner
        self._port = port

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @property
    def addresses(self) -> list[str]:
        return [
            _PORT.sub(str(self._port), address, count=1) for address in self._inner.addresses
        ]


def behind(name: str, found: dict[str, list[Any]]) -> TransportFactory:
    @asynccontextmanager
    async def opener(host: TransportHost) -> AsyncIterator[Any]:
        async with AsyncExitStack() as stack:
            inner = await stack.enter_async_context(FACTORIES[name](host))
            if name == "ipfs":
                yield inner
                return
            port = _PORT.search(inner.addresses[0])
            assert port is not None
            proxy = Proxy(int(port[0]))
            found[name].append(proxy)
            tasks = await stack.enter_async_context(anyio.create_task_group())
            tasks.start_soon(proxy.run)
            try:
                yield Behind(inner, proxy.port)
            finally:
                await proxy.mend()
                tasks.cancel_scope.cancel()

    return opener


def path(channel: Channel) -> str:
    (peer,) = channel.peers() or [""]
    session = channel.connections.session(peer)
    return session.path if session is not None else ""


async def on(expected: str, *channels: Channel) -> None:
    """Wait until the sessions of both are on a path."""
    try:
        await until(lambda: all(path(channel) == expected for channel in channels))
    except TimeoutError:
        found = [path(channel) for channel in channels]
        raise AssertionError(f"on {found}, not {expected}") from None


@pytest.mark.parametrize(
    "order", [("libp2p", "tcp", "ipfs"), ("ipfs", "libp2p", "tcp"), ("tcp", "ipfs", "libp2p")]
)
async def test_the_next_path_takes_over_and_the_best_one_is_taken_up_again(
    home: Path, order: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "RETURN_FIRST_S", 1.0)
    monkeypatch.setattr(paths, "RETURN_LAST_S", 2.0)
    monkeypatch.setattr(paths, "LASTED_S", 0.0)
    at: dict[str, list[Any]] = {name: [] for name in order}
    factories = {name: behind(name, at) for name in order}
    with anyio.fail_after(10 * HANGS_AFTER):
        async with (
            open_device(home / "a", transports=factories) as one,
            open_device(home / "b", transports=factories) as two,
            anyio.create_task_group() as tasks,
        ):
            # One of them is enough, and the other one keeps the ledger going.
            at["ipfs"] = [Child(two, tasks)]
            a = await one.create_channel("family")
            b = await two.join(await a.invite())
            await on(order[0], a, b)
            await flood(a, b, order, at)


async def flood(
    a: Channel, b: Channel, order: tuple[str, ...], at: dict[str, list[Any]]
) -> None:
    #: By content: when, for free time and in all.
    sent: dict[bytes, tuple[Moment, float]] = {}
    took: dict[bytes, float] = {}

    async def write(channel: Channel, label: bytes) -> None:
        for number in itertools.count():
            content = b"%s %d" % (label, number)
            sent[content] = (free_time(), time.monotonic())
            with anyio.CancelScope(shield=True):
                await channel.send(content)
            await anyio.sleep(0.02)

    async def read(channel: Channel) -> None:
        async for message in channel.messages():
            if message.author != channel.me:
                content = message.content or b""
                assert content not in took
                took[content] = free_time() - sent[content][0]

    async def everywhere(name: str, fault: str) -> None:
        for one in at[name]:
            await getattr(one, fault)()

    async def worst(fault: Callable[[], Awaitable[None]], expected: str) -> float:
        """How long the message took that waited longest, in free time."""
        began = time.monotonic()
        await fault()
        await on(expected, a, b)
        after = time.monotonic() + 0.5
        await anyio.sleep(0.5)
        await until(lambda: all(c in took or sent[c][1] > after for c in list(sent)))
        return max(took[c] for c in took if sent[c][1] > began - 0.1)

    async with anyio.create_task_group() as readers:
        for channel in (a, b):
            readers.start_soon(read, channel)
        async with anyio.create_task_group() as writers:
            writers.start_soon(write, a, b"a")
            writers.start_soon(write, b, b"b")
            seconds = []
            for _ in range(ATTEMPTS):
                # Longer than what begins is looked at with more patience.
                await anyio.sleep(2)
                hung = await worst(lambda: everywhere(order[0], "hang"), order[1])
                cut = await worst(lambda: everywhere(order[1], "cut"), order[2])
                seconds.append((round(hung, 2), round(cut, 2)))
                # The best path is back, and so is the session.
                for name in reversed(order):
                    await everywhere(name, "mend")
                await on(order[0], a, b)
                if max(seconds[-1]) < FAILED_OVER:
                    break
            assert max(seconds[-1]) < FAILED_OVER, seconds
            writers.cancel_scope.cancel()
        await until(lambda: len(took) == len(sent))
        readers.cancel_scope.cancel()
