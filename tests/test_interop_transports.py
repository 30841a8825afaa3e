"""A device on the libp2p transport and one on the IPFS transport reach each other."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import anyio
import pytest
from anyio.abc import ByteStream, ObjectReceiveStream
from walyoff_transports import ipfs, libp2p

from tests.libp2p_support import needs_libp2p
from tests.waiting import HANGS_AFTER
from walyoff.abc import Broadcast, Transport
from walyoff.errors import TransportError
from walyoff.testing.transports import ENDED, receive_exactly, temporary_hosts
from walyoff.walytis.process import open_child

pytestmark = [needs_libp2p, pytest.mark.anyio]


@asynccontextmanager
async def pair(home: Path) -> AsyncIterator[tuple[Transport, Transport]]:
    """One transport of each kind: libp2p and IPFS."""
    async with AsyncExitStack() as stack:
        child = await stack.enter_async_context(open_child(home / "ipfs"))
        own, other = stack.enter_context(temporary_hosts(2, ipfs=[child]))
        on_ipfs = await stack.enter_async_context(ipfs.open_transport(own))
        on_libp2p = await stack.enter_async_context(libp2p.open_transport(other))
        with anyio.fail_after(5 * HANGS_AFTER):
            yield on_libp2p, on_ipfs


async def serve(streams: ObjectReceiveStream[ByteStream], tasks: anyio.abc.TaskGroup) -> None:
    async def echo(stream: ByteStream) -> None:
        async with stream:
            with suppress(anyio.BrokenResourceError):
                async for data in stream:
                    await stream.send(data)

    async for stream in streams:
        tasks.start_soon(echo, stream)


async def exchange(source: Transport, target: Transport, blob: bytes) -> None:
    async with (
        await source.connect(target.addresses[0]) as stream,
        anyio.create_task_group() as tasks,
    ):

        async def send() -> None:
            for start in range(0, len(blob), 70_000):
                await stream.send(blob[start : start + 70_000])

        tasks.start_soon(send)
        assert await receive_exactly(stream, len(blob)) == blob


async def test_streams_both_ways(home: Path) -> None:
    blob = os.urandom(3_000_000)
    async with pair(home) as transports, anyio.create_task_group() as tasks:
        for transport in transports:

            async def listen(
                transport: Transport = transport,
                *,
                task_status: anyio.abc.TaskStatus[None],
            ) -> None:
                async with transport.listen() as streams, anyio.create_task_group() as inner:
                    task_status.started()
                    await serve(streams, inner)

            await tasks.start(listen)
        libp2p_side, ipfs_side = transports
        for source, target in ((libp2p_side, ipfs_side), (ipfs_side, libp2p_side)):
            await exchange(source, target, b"small")
            await exchange(source, target, blob)
            async with anyio.create_task_group() as talkers:
                for number in range(10):
                    talkers.start_soon(exchange, source, target, b"%d" % number * 5_000)
        tasks.cancel_scope.cancel()


async def test_the_end_of_a_stream_shows_on_the_other_kind(home: Path) -> None:
    async with pair(home) as (one, two):
        for source, target in ((one, two), (two, one)):
            async with target.listen() as streams:
                near = await source.connect(target.addresses[0])
                await near.send(b"x")
                far = await streams.receive()
                assert await far.receive() == b"x"
                await near.aclose()
                with pytest.raises(ENDED):
                    await far.receive()
                await far.aclose()
                near = await source.connect(target.addresses[0])
                await near.send(b"x")
                far = await streams.receive()
                assert await far.receive() == b"x"
                await far.aclose()
                with pytest.raises(ENDED):
                    await near.receive()
                await near.aclose()


async def test_a_stream_to_somebody_who_does_not_listen_fails(home: Path) -> None:
    async with pair(home) as (one, two):
        for source, target in ((one, two), (two, one)):
            with suppress(TransportError):
                async with await source.connect(target.addresses[0]) as stream:
                    with pytest.raises(ENDED):
                        await stream.receive()


async def heard(
    source: Transport, stream: ObjectReceiveStream[Broadcast], payload: bytes
) -> None:
    while True:
        await source.broadcast("topic", payload)
        with anyio.move_on_after(0.3):
            while (await stream.receive()).payload != payload:
                pass
            return


async def test_gossip_both_ways_on_one_topic(home: Path) -> None:
    async with (
        pair(home) as (one, two),
        one.subscribe("topic") as at_one,
        two.subscribe("topic") as at_two,
        two.listen(),
    ):
        # Somebody has to make the connection; then the topics find each other.
        await (await one.connect(two.addresses[0])).aclose()
        await heard(one, at_two, b"from libp2p")
        await heard(two, at_one, b"from ipfs")
        await heard(one, at_two, os.urandom(200_000))
        await heard(two, at_one, os.urandom(200_000))
        got: set[bytes] = set()

        async def receive() -> None:
            async for item in at_two:
                got.add(item.payload)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receive)
            sent = {b"%d" % number for number in range(200)}
            for payload in sorted(sent):
                await one.broadcast("topic", payload)
            with anyio.move_on_after(10):
                while not sent <= got:  # noqa: ASYNC110 - the set has no events
                    await anyio.sleep(0.02)
            tasks.cancel_scope.cancel()
        # The same acknowledged envelopes on both: nothing of a burst is lost.
        assert sent <= got
