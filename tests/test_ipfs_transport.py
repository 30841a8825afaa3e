"""The IPFS transport over two real nodes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import ByteStream, ObjectReceiveStream
from walyoff_transports import ipfs, listening
from walyoff_transports.ipfs import open_transport, parse_address

from tests.waiting import HANGS_AFTER, free_time, until
from walyoff.abc import Broadcast, Transport, TransportHost
from walyoff.errors import LocalProtocolError, PayloadTooLargeError, TransportError
from walyoff.walytis.process import Child, open_child

pytestmark = pytest.mark.anyio
#: How a stream ends, depending on who notices first.
ENDED = (anyio.EndOfStream, anyio.BrokenResourceError)
STRANGER = "12D3KooWQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBDWez9kSCVe2Xo"


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose path leaves room for a socket's name."""
    with tempfile.TemporaryDirectory(prefix="wo", dir="/tmp") as path:
        yield Path(path)


class Pair:
    """Two devices; `b` connects to `a`."""

    def __init__(self, nodes: list[Child], transports: list[Transport]) -> None:
        self.node_a, self.node_b = nodes
        self.a, self.b = transports

    async def restart(self, node: Child) -> None:
        generation = node.generation
        assert node.pid is not None
        os.kill(node.pid, signal.SIGKILL)
        with anyio.fail_after(HANGS_AFTER):
            while node.generation == generation:  # noqa: ASYNC110
                await anyio.sleep(0.01)
            await node.wait_ready()


@asynccontextmanager
async def pair(home: Path, short: Path) -> AsyncIterator[Pair]:
    async with AsyncExitStack() as stack:
        nodes, transports = [], []
        for name in ("a", "b"):
            (short / name).mkdir(mode=0o700)
            node = await stack.enter_async_context(open_child(home / name))
            host = TransportHost(state_dir=home, run_dir=short / name, ipfs=node)
            nodes.append(node)
            transports.append(await stack.enter_async_context(open_transport(host)))
        yield Pair(nodes, transports)


@asynccontextmanager
async def echoing(home: Path, short: Path) -> AsyncIterator[Pair]:
    """Two devices, of which `a` sends back whatever it gets on streams."""

    async def serve(stream: ByteStream) -> None:
        async with stream:
            with contextlib.suppress(anyio.BrokenResourceError):
                async for data in stream:
                    await stream.send(data)

    async def accept(streams: ObjectReceiveStream[ByteStream]) -> None:
        async for stream in streams:
            tasks.start_soon(serve, stream)

    async with (
        pair(home, short) as p,
        p.a.listen() as streams,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(accept, streams)
        yield p
        tasks.cancel_scope.cancel()


async def receive_exactly(stream: ByteStream, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        data += await stream.receive(size - len(data))
    return bytes(data)


async def test_a_megabyte_goes_both_ways(tmp_path: Path, short: Path) -> None:
    blob = os.urandom(1 << 20)
    async with (
        echoing(tmp_path, short) as p,
        await p.b.connect(p.a.addresses[0]) as stream,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(stream.send, blob)
        with anyio.fail_after(HANGS_AFTER):
            assert await receive_exactly(stream, len(blob)) == blob


async def test_fifty_streams_at_once_do_not_mix(tmp_path: Path, short: Path) -> None:
    async def talk(number: int) -> None:
        async with await p.b.connect(p.a.addresses[0]) as stream:
            for n in range(3):
                message = b"%d-%d" % (number, n)
                await stream.send(message)
                assert await receive_exactly(stream, len(message)) == message

    async with echoing(tmp_path, short) as p:
        with anyio.fail_after(HANGS_AFTER):
            async with anyio.create_task_group() as talkers:
                for number in range(50):
                    talkers.start_soon(talk, number)


async def test_broadcasts_arrive_once_at_every_subscriber(tmp_path: Path, short: Path) -> None:
    count = 500

    async def collect(stream: ObjectReceiveStream[Broadcast], into: list[bytes]) -> None:
        while len(into) < count:
            broadcast = await stream.receive()
            assert broadcast.sender == p.node_b.peer_id
            into.append(broadcast.payload)

    async with (
        pair(tmp_path, short) as p,
        p.a.subscribe("topic") as first,
        p.a.subscribe("topic") as second,
        p.b.subscribe("topic") as own,
    ):
        await p.node_b.connect(p.node_a.addresses[0])
        got: tuple[list[bytes], list[bytes]] = ([], [])
        with anyio.fail_after(HANGS_AFTER):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(collect, first, got[0])
                tasks.start_soon(collect, second, got[1])
                for n in range(count):
                    await p.b.broadcast("topic", b"%d" % n)
        want = {b"%d" % n for n in range(count)}
        assert len(got[0]) == len(got[1]) == count
        assert set(got[0]) == set(got[1]) == want
        # Nothing of it came back to the sender.
        with anyio.move_on_after(0.1) as scope:
            await own.receive()
        assert scope.cancelled_caught


async def test_the_largest_broadcast_arrives_and_a_larger_one_is_refused(
    tmp_path: Path, short: Path
) -> None:
    async with pair(tmp_path, short) as p, p.a.subscribe("topic") as stream:
        await p.node_b.connect(p.node_a.addresses[0])
        blob = os.urandom(p.b.max_broadcast)
        with anyio.fail_after(HANGS_AFTER):
            await p.b.broadcast("topic", blob)
            assert (await stream.receive()).payload == blob
        with pytest.raises(PayloadTooLargeError):
            await p.b.broadcast("topic", blob + b"x")
        for topic in ("", "x" * 257, "a\0b"):
            with pytest.raises(LocalProtocolError):
                await p.b.broadcast(topic, b"x")


async def test_broadcasts_to_nobody_do_not_wait(tmp_path: Path, short: Path) -> None:
    async with pair(tmp_path, short) as p:
        began = free_time()
        for _ in range(40):
            await p.b.broadcast("topic", b"x")
        assert free_time() - began < 15


async def test_garbage_on_the_topic_is_ignored(tmp_path: Path, short: Path) -> None:
    async with pair(tmp_path, short) as p, p.a.subscribe("topic") as stream:
        await p.node_b.connect(p.node_a.addresses[0])
        with anyio.fail_after(HANGS_AFTER):
            while not await p.node_b.topic_peers("walyoff/1/topic"):  # noqa: ASYNC110
                await anyio.sleep(0.01)
            for garbage in (b"", b"\xc1", b"\x93\x01\x00", os.urandom(1000)):
                await p.node_b.publish("walyoff/1/topic", garbage)
            await p.b.broadcast("topic", b"good")
            assert (await stream.receive()).payload == b"good"


async def test_a_replaced_child_is_not_noticed_for_long(tmp_path: Path, short: Path) -> None:
    async def works() -> None:
        async with await p.b.connect(p.a.addresses[0]) as stream:
            await stream.send(b"hello")
            assert await stream.receive() == b"hello"
        await p.b.broadcast("topic", b"news")
        assert (await news.receive()).payload == b"news"

    async with echoing(tmp_path, short) as p, p.a.subscribe("topic") as news:
        with anyio.fail_after(HANGS_AFTER):
            await works()
            for node in (p.node_a, p.node_b):
                await p.restart(node)
                await works()


async def test_nobody_there_is_a_transport_error_in_time(
    tmp_path: Path, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ipfs.CONNECT_TIME <= 10
    monkeypatch.setattr(ipfs, "CONNECT_TIME", 1)
    async with pair(tmp_path, short) as p:
        with socket.socket() as mute:
            mute.bind(("127.0.0.1", 0))
            mute.listen()
            port = mute.getsockname()[1]
            began = free_time()
            with pytest.raises(TransportError):
                await p.b.connect(f"ipfs:/ip4/127.0.0.1/tcp/{port}/p2p/{STRANGER}")
            assert free_time() - began < 8
        with pytest.raises(TransportError):
            await p.b.connect(f"ipfs:/ip4/127.0.0.1/tcp/1/p2p/{STRANGER}")
        # Somebody else is there.
        wrong = p.a.addresses[0].replace(p.node_a.peer_id, STRANGER)
        with pytest.raises(TransportError):
            await p.b.connect(wrong)
        # The right one is there, but does not listen.
        async with await p.b.connect(p.a.addresses[0]) as stream:
            with (
                anyio.fail_after(HANGS_AFTER),
                pytest.raises(ENDED),
            ):
                await stream.receive()


@pytest.mark.parametrize(
    "address",
    [
        "",
        "ipfs:",
        "other:/ip4/127.0.0.1/tcp/1/p2p/" + STRANGER,
        "ipfs:/ip4/127.0.0.1/tcp/1",
        "ipfs:/ip4/127.0.0.1/tcp/1/p2p/x\n" + STRANGER,
        "ipfs:/ip4/127.0.0.1/tcp/1/p2p/" + STRANGER + "\n",
        "ipfs:/ip4/127.0.0.1/tcp/1/p2p/" + STRANGER + "/p2p-circuit",
        "ipfs:" + "/x" * 200 + "/p2p/" + STRANGER,
    ],
)
def test_a_foreign_address_is_refused(address: str) -> None:
    with pytest.raises(LocalProtocolError):
        parse_address(address)


async def test_addresses_are_those_that_connect_takes(tmp_path: Path, short: Path) -> None:
    async with pair(tmp_path, short) as p:
        for address in p.a.addresses:
            multiaddr, peer_id = parse_address(address)
            assert peer_id == p.node_a.peer_id
            assert multiaddr in p.node_a.addresses


async def test_a_run_folder_with_a_long_path_is_a_clear_error(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 90)
    long.mkdir()
    async with open_child(tmp_path / "home") as node:
        host = TransportHost(state_dir=tmp_path, run_dir=long, ipfs=node)
        async with open_transport(host) as transport:
            with pytest.raises(LocalProtocolError, match="too long"):
                async with transport.listen():
                    pass
            with pytest.raises(LocalProtocolError, match="too long"):
                await transport._forward(STRANGER)  # type: ignore[attr-defined]


async def test_listening_ends_and_begins_again(tmp_path: Path, short: Path) -> None:
    async with pair(tmp_path, short) as p:
        for _ in range(2):
            async with p.a.listen() as streams:
                with pytest.raises(TransportError, match="already"):
                    async with p.a.listen():
                        pass
                async with await p.b.connect(p.a.addresses[0]) as stream:
                    await stream.send(b"x")
                    with anyio.fail_after(HANGS_AFTER):
                        async with await streams.receive() as accepted:
                            assert await accepted.receive() == b"x"
        assert not list((short / "a").iterdir())


async def test_unaccepted_streams_are_bounded_and_released(
    tmp_path: Path, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "MAX_WAITING", 2)
    async with (
        pair(tmp_path, short) as p,
        AsyncExitStack() as stack,
        p.a.listen() as streams,
    ):
        for _ in range(5):
            stream = await stack.enter_async_context(await p.b.connect(p.a.addresses[0]))
            await stream.send(b"x")
        incoming: Any = streams
        await until(lambda: incoming.statistics().current_buffer_used == 2)
        await anyio.sleep(0.3)
        assert incoming.statistics().current_buffer_used == 2


async def test_forwards_are_bounded_and_their_streams_survive(
    tmp_path: Path, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ipfs, "MAX_FORWARDS", 1)
    async with echoing(tmp_path, short) as p, await p.b.connect(p.a.addresses[0]) as stream:
        await stream.send(b"x")
        assert await stream.receive() == b"x"
        await p.b._forward(STRANGER)  # type: ignore[attr-defined]
        assert len(list((short / "b").iterdir())) == 1
        await stream.send(b"y")
        with anyio.fail_after(HANGS_AFTER):
            assert await stream.receive() == b"y"


async def test_the_callers_error_comes_out_as_it_is(tmp_path: Path, short: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        async with pair(tmp_path, short) as p, p.a.listen(), p.a.subscribe("topic"):
            raise ZeroDivisionError
