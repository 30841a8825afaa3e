"""The libp2p transport's thread: cancellation, crashes, its end, and being absent."""

from __future__ import annotations

import gc
import os
import random
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import ByteStream, ObjectReceiveStream
from walyoff_transports import libp2p

from tests.libp2p_support import needs_libp2p
from tests.waiting import HANGS_AFTER, until
from walyoff.abc import Transport
from walyoff.errors import TransportError
from walyoff.testing.transports import ENDED, receive_exactly, temporary_hosts

pytestmark = [needs_libp2p, pytest.mark.anyio]


@asynccontextmanager
async def two() -> AsyncIterator[tuple[Any, Any]]:
    with temporary_hosts(2) as (one, other):
        async with libp2p.open_transport(one) as a, libp2p.open_transport(other) as b:
            yield a, b


async def echo(streams: ObjectReceiveStream[ByteStream], tasks: anyio.abc.TaskGroup) -> None:
    async def serve(stream: ByteStream) -> None:
        async with stream:
            with suppress(anyio.BrokenResourceError):
                async for data in stream:
                    await stream.send(data)

    async for stream in streams:
        tasks.start_soon(serve, stream)


async def test_five_hundred_cancels_by_the_user_break_no_connection() -> None:
    choose = random.Random(3)
    with anyio.fail_after(HANGS_AFTER):
        async with two() as (a, b), a.listen() as streams, anyio.create_task_group() as tasks:
            tasks.start_soon(echo, streams, tasks)
            kept = await b.connect(a.addresses[0])
            node = b.running().value
            _, peer = libp2p.parse_address(a.addresses[0])
            connection = node._connection(peer)
            for trial in range(500):
                with anyio.move_on_after(choose.random() * 0.006):
                    if trial % 4 == 0:
                        await (await b.connect(a.addresses[0])).aclose()
                    elif trial % 4 == 1:
                        await b.broadcast("topic", b"x")
                    else:
                        await kept.send(bytes(choose.randrange(1, 2_000)))
                        await kept.receive(choose.randrange(1, 2_000))
                assert not connection.is_closed, f"it died of cancellation {trial}"
            async with await b.connect(a.addresses[0]) as stream:
                await stream.send(b"still here")
                assert await receive_exactly(stream, 10) == b"still here"
            assert node._connection(peer) is connection
            await kept.aclose()
            tasks.cancel_scope.cancel()


def crash(transport: Any) -> None:
    """Let a task of the trio side fail that nobody catches."""
    thread = transport.running().thread

    async def fail() -> None:
        raise RuntimeError("a bug")

    thread._token.run_sync_soon(thread._nursery.start_soon, fail)


async def reconnected(b: Transport, address: str) -> None:
    while True:
        with suppress(TransportError, *ENDED):
            async with await b.connect(address) as stream:
                await stream.send(b"again")
                assert await receive_exactly(stream, 5) == b"again"
                return
        await anyio.sleep(0.05)


async def test_after_a_crash_of_the_trio_side_everything_is_there_again() -> None:
    with anyio.fail_after(HANGS_AFTER):
        async with two() as (a, b), a.listen() as streams, anyio.create_task_group() as tasks:
            tasks.start_soon(echo, streams, tasks)
            address = a.addresses[0]
            stream = await b.connect(address)
            await stream.send(b"x")
            assert await stream.receive() == b"x"
            async with a.subscribe("topic") as heard:
                crash(a)
                with pytest.raises(ENDED):
                    await stream.receive()
                with pytest.raises(anyio.EndOfStream):
                    await heard.receive()
            await stream.aclose()
            await reconnected(b, address)
            assert a.generation == 2
            # It is where it was, under the name that it had.
            assert a.addresses[0] == address
            async with a.subscribe("topic") as heard:
                payload = b""
                while payload != b"hello":
                    await b.broadcast("topic", b"hello")
                    with anyio.move_on_after(0.2):
                        payload = (await heard.receive()).payload
            tasks.cancel_scope.cancel()


async def test_calls_in_progress_fail_when_the_trio_side_crashes() -> None:
    with anyio.fail_after(HANGS_AFTER):
        async with two() as (a, b), anyio.create_task_group() as tasks:

            async def connect() -> None:
                with pytest.raises(TransportError):
                    await b.connect(a.addresses[0])

            for _ in range(5):
                tasks.start_soon(connect)
            await anyio.lowlevel.checkpoint()
            crash(b)


async def test_nothing_is_left_of_transports_that_crashed_or_were_closed() -> None:
    async def live(*, crashing: bool) -> None:
        async with two() as (a, b), a.listen() as streams:
            stream = await b.connect(a.addresses[0])
            await stream.send(b"x")
            far = await streams.receive()
            if crashing:
                crash(a)
                crash(b)
                with pytest.raises(ENDED):
                    await stream.receive()
            await stream.aclose()
            await far.aclose()

    def left() -> tuple[int, set[str]]:
        gc.collect()
        threads = {t.name for t in threading.enumerate() if "worker" not in t.name.lower()}
        threads = {name for name in threads if not name.startswith("Trio thread")}
        return len(os.listdir("/proc/self/fd")), threads

    with anyio.fail_after(HANGS_AFTER):
        await live(crashing=False)
        files, threads = left()
        for crashing in (False, True):
            await live(crashing=crashing)
            await until(lambda: left()[1] == threads and left()[0] <= files)


async def test_a_cancelled_opening_leaves_no_thread() -> None:
    before = threading.active_count()
    for turn in range(6):
        with temporary_hosts(1) as (host,), anyio.move_on_after(turn * 0.01):
            async with libp2p.open_transport(host):
                pass
    names = [t.name for t in threading.enumerate()]
    assert "walyoff-libp2p" not in names
    assert threading.active_count() <= before + 2, names


async def test_addresses_of_the_ipfs_transport_are_understood() -> None:
    with anyio.fail_after(HANGS_AFTER):
        async with two() as (a, b), a.listen() as streams, anyio.create_task_group() as tasks:
            tasks.start_soon(echo, streams, tasks)
            await reconnected(b, "ipfs:" + a.addresses[0].partition(":")[2])
            tasks.cancel_scope.cancel()


def test_without_the_extra_the_error_names_it() -> None:
    program = """
import sys
sys.modules["libp2p"] = None
import anyio
from walyoff import plugins
from walyoff.errors import TransportError
from walyoff.testing.transports import temporary_hosts
async def main():
    with temporary_hosts(1) as (host,):
        async with plugins.transport_factory("libp2p")(host):
            pass
try:
    anyio.run(main)
except TransportError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=True
    )
    assert "walyoff[libp2p]" in done.stdout
