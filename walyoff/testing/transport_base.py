"""What the checks of transports share: their settings, pairs of transports, bounded waits."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from pathlib import Path

import anyio
import pytest
from anyio.abc import ByteStream, ObjectReceiveStream

from walyoff.abc import Broadcast, IpfsNode, Transport, TransportHost
from walyoff.errors import TransportError
from walyoff.tasks import background_tasks

#: How the other side's end shows, depending on who notices first.
ENDED = (anyio.EndOfStream, anyio.BrokenResourceError)
MEGABYTE = 1 << 20


@contextmanager
def temporary_hosts(
    count: int = 2, *, ipfs: Sequence[IpfsNode] = ()
) -> Iterator[list[TransportHost]]:
    """What a device gives its transport, for `count` devices, in folders with short paths."""
    with tempfile.TemporaryDirectory(prefix="wo-") as folder:
        hosts = []
        for number in range(count):
            state, run = Path(folder, f"s{number}"), Path(folder, f"r{number}")
            state.mkdir(mode=0o700)
            run.mkdir(mode=0o700)
            node = ipfs[number] if number < len(ipfs) else None
            hosts.append(TransportHost(state_dir=state, run_dir=run, ipfs=node))
        yield hosts


@pytest.mark.anyio
class TransportChecks:
    """Settings and helpers. Every wait in a check is bounded by `patience`."""

    #: A well-formed address of the transport at which nobody is.
    unreachable: str
    #: Seconds within which anything that happens at all happens.
    patience: float = 60.0
    #: Seconds of silence after which nothing more is expected.
    quiet: float = 0.3
    #: Streams opened without being accepted: more than may wait.
    flood_streams: int = 300
    #: Broadcasts sent without being read: more than may wait.
    flood_broadcasts: int = 1000
    #: Bytes that a sender never gets rid of while nobody reads.
    too_much: int = 64 * MEGABYTE

    def open_transports(self) -> AbstractAsyncContextManager[tuple[Transport, Transport]]:
        """Open two transports, of two devices, that can reach each other."""
        raise NotImplementedError

    @asynccontextmanager
    async def bounded(self) -> AsyncIterator[None]:
        with anyio.fail_after(self.patience * 2):
            yield

    @asynccontextmanager
    async def stream(self) -> AsyncIterator[tuple[ByteStream, ByteStream]]:
        """Both ends of one stream; the first is the one that was opened."""
        async with (
            self.bounded(),
            self.open_transports() as (a, b),
            a.listen() as streams,
            await self.connected(b, a, streams) as ends,
        ):
            yield ends

    @asynccontextmanager
    async def echoing(self) -> AsyncIterator[tuple[Transport, Transport]]:
        """Two transports, of which the first sends back whatever it gets."""
        async with (
            self.bounded(),
            self.open_transports() as (a, b),
            a.listen() as streams,
            background_tasks() as tasks,
        ):
            tasks.start_soon(echo_all, streams, tasks)
            yield a, b

    async def connected(
        self, source: Transport, target: Transport, streams: ObjectReceiveStream[ByteStream]
    ) -> AbstractAsyncContextManager[tuple[ByteStream, ByteStream]]:
        near = await source.connect(target.addresses[0])
        # Some transports only tell the far side when there is something to read.
        await near.send(b"!")
        far = await streams.receive()
        assert await far.receive(1) == b"!"

        @asynccontextmanager
        async def ends() -> AsyncIterator[tuple[ByteStream, ByteStream]]:
            try:
                yield near, far
            finally:
                await anyio.aclose_forcefully(near)
                await anyio.aclose_forcefully(far)

        return ends()

    async def until_echoed(self, source: Transport, target: Transport) -> None:
        while True:
            with suppress(TransportError, *ENDED):
                async with await source.connect(target.addresses[0]) as stream:
                    await stream.send(b"x")
                    await stream.receive()
                    return
            await anyio.sleep(0.05)

    @asynccontextmanager
    async def heard(
        self, topic: str
    ) -> AsyncIterator[tuple[Transport, Transport, ObjectReceiveStream[Broadcast]]]:
        """Two transports, of which the first listens to a topic; they know each other."""
        async with self.bounded(), self.open_transports() as (a, b):
            if not a.max_broadcast:
                pytest.skip("this transport has no broadcasts")
            async with (
                a.listen() as streams,
                await self.connected(b, a, streams),
                a.subscribe(topic) as heard,
            ):
                yield a, b, heard

    async def until_heard(
        self,
        source: Transport,
        heard: ObjectReceiveStream[Broadcast],
        topic: str,
        payload: bytes = b"hello",
    ) -> bytes:
        """Repeat a broadcast until it arrives: any single one may be lost.

        Each one gets half as much time again as the one before, so that a slow transport is
        not kept busy with the repetitions.
        """
        pause, left = 0.1, self.patience
        while left > 0:
            await source.broadcast(topic, payload)
            with anyio.move_on_after(pause):
                while (await heard.receive()).payload != payload:
                    pass
                return payload
            left -= pause
            pause *= 1.5
        raise AssertionError(
            f"no broadcast of {len(payload)} bytes arrived in {self.patience:g} s"
        )


async def receive_exactly(stream: ByteStream, size: int) -> bytes:
    """So many bytes from a stream."""
    data = bytearray()
    while len(data) < size:
        data += await stream.receive(min(size - len(data), MEGABYTE))
    return bytes(data)


def drain(stream: ObjectReceiveStream[Broadcast]) -> list[Broadcast]:
    """What waits in a stream, if it can tell without waiting."""
    got: list[Broadcast] = []
    with suppress(anyio.WouldBlock, anyio.EndOfStream, anyio.ClosedResourceError):
        while True:
            got.append(stream.receive_nowait())  # type: ignore[attr-defined]
    return got


async def send_in_pieces(stream: ByteStream, data: bytes, size: int) -> None:
    for start in range(0, len(data), size):
        await stream.send(data[start : start + size])


async def receive_all(stream: ByteStream, into: bytearray) -> None:
    while True:
        into += await stream.receive()


def same(got: bytes, expected: bytes) -> None:
    """Fail unless both are equal. A plain assert would draw the difference for minutes."""
    if got != expected:
        at = next(
            (i for i, (a, b) in enumerate(zip(got, expected, strict=False)) if a != b),
            min(len(got), len(expected)),
        )
        raise AssertionError(
            f"{len(got)} bytes arrived, {len(expected)} were sent; they differ from byte {at}"
        )


async def expect(stream: ByteStream, data: bytes) -> None:
    same(await receive_exactly(stream, len(data)), data)


async def echo(stream: ByteStream) -> None:
    async with stream:
        with suppress(anyio.BrokenResourceError):
            async for data in stream:
                await stream.send(data)


async def echo_all(
    streams: ObjectReceiveStream[ByteStream], tasks: anyio.abc.TaskGroup
) -> None:
    async for stream in streams:
        tasks.start_soon(echo, stream)
