"""What py-libp2p gets wrong, and that it does not reach us: one canary for each guard.

Where it is cheap, the same thing is shown to go wrong without the guard: when such a test
fails, upstream has put it right and the guard can go.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.lowlevel
from walyoff_transports.gossip import MAX_PAYLOAD

from tests.libp2p_support import needs_libp2p
from tests.waiting import HANGS_AFTER

pytestmark = needs_libp2p

libp2p_node = pytest.importorskip("walyoff_transports.libp2p_node", exc_type=ImportError)
libp2p_guard = pytest.importorskip("walyoff_transports.libp2p_guard", exc_type=ImportError)

BaseLibp2pError = libp2p_node.BaseLibp2pError
PROTOCOL = "/x/walyoff/1"


class Echo:
    """A node that echoes on its streams, and can be asked for them."""

    def __init__(self) -> None:
        self.accepted: list[socket.socket] = []
        self.node: Any = None

    def accept(self, sock: socket.socket, _source: str) -> None:
        self.accepted.append(sock)

    async def stream(self, other: Echo) -> Any:
        """A stream to another one, as trio sockets: near and far."""
        near, far = socket.socketpair()
        count = len(other.accepted)
        await self.node.open(other.node.addresses[0], other.node.peer_id, far)
        with trio.fail_after(HANGS_AFTER):
            while len(other.accepted) == count:  # noqa: ASYNC110 - a sink has no events
                await trio.sleep(0.001)
        return trio.socket.from_stdlib_socket(near), trio.socket.from_stdlib_socket(
            other.accepted[-1]
        )

    def connection(self, other: Echo) -> Any:
        return self.node._connection(other.node.peer_id)


@asynccontextmanager
async def nodes(count: int = 2) -> AsyncIterator[list[Echo]]:
    with tempfile.TemporaryDirectory() as folder:
        async with AsyncExitStack() as stack:
            made = []
            for number in range(count):
                echo = Echo()
                state = Path(folder, str(number))
                await trio.Path(state).mkdir()
                settings = libp2p_node.Settings(state_dir=state)
                context = libp2p_node.run_node(settings, echo.accept)
                echo.node = await stack.enter_async_context(context)
                await echo.node.listen(True)
                made.append(echo)
            yield made
            for echo in made:
                for sock in echo.accepted:
                    sock.close()


def run(test: Callable[[], Awaitable[None]], limit: float = 2 * HANGS_AFTER) -> None:
    async def main() -> None:
        with trio.fail_after(limit):
            await test()

    trio.run(main)


async def exchange(near: Any, far: Any) -> None:
    with trio.fail_after(HANGS_AFTER):
        for source, target in ((near, far), (far, near)):
            await source.send(b"still here")
            got = b""
            while len(got) < 10:
                part = await target.recv(10)
                assert part
                got += part
            assert got == b"still here"


# ----------------------------------------------------------------------- cancellation


async def survived_cancels(trials: int) -> int:
    """Cancel writes at all moments; how many went by until the connection was dead."""
    choose = random.Random(7)
    async with nodes() as (a, b):
        near, far = await a.stream(b)
        conn = a.connection(b)
        try:
            for trial in range(trials):
                await cancel_once(conn, choose, opening=trial % 5 == 0)
                if conn.is_closed or conn.muxed_conn.event_shutting_down.is_set():
                    return trial
            await exchange(near, far)
        except (AssertionError, OSError, BaseLibp2pError, trio.TooSlowError):
            return trials - 1
        finally:
            near.close()
        return trials


async def cancel_once(conn: Any, choose: random.Random, *, opening: bool) -> None:
    stream = None if opening else await conn.new_stream()
    with trio.move_on_after(choose.random() * 0.002):
        if stream is None:
            stream = await conn.new_stream()
        await stream.muxed_stream.write(bytes(choose.randrange(1, 60_000)))
        await stream.muxed_stream.read(1)
    if stream is not None:
        await stream.reset()


def test_five_hundred_cancelled_writes_leave_the_connection_alive() -> None:
    async def test() -> None:
        assert await survived_cancels(500) == 500

    run(test)


def test_without_its_guard_a_cancelled_write_kills_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(libp2p_guard.GuardedYamux, "_write_frame")

    async def test() -> None:
        assert await survived_cancels(500) < 500

    run(test)


# ---------------------------------------------------------------- handlers that fail


@pytest.mark.parametrize("protocol", ["/meshsub/1.1.0", "/ipfs/id/1.0.0", "/ipfs/ping/1.0.0"])
def test_garbage_on_a_protocols_stream_does_not_harm_the_host(protocol: str) -> None:
    async def test() -> None:
        async with nodes() as (a, b):
            near, far = await a.stream(b)
            for size in (1, 50, 5_000):
                stream = await a.node._host.new_stream(
                    libp2p_node.ID.from_base58(b.node.peer_id), [protocol]
                )
                with suppress(Exception):
                    await stream.write(os.urandom(size))
                    await stream.close()
            await trio.sleep(0.2)
            await exchange(near, far)
            near.close()

    run(test)


def test_a_handler_that_raises_ends_its_stream_alone() -> None:
    async def test() -> None:
        async with nodes() as (a, b):

            async def fail(_: Any) -> None:
                raise ExceptionGroup("several", [RuntimeError("a"), KeyError("b")])

            b.node._host.set_stream_handler("/fails", fail)
            near, far = await a.stream(b)
            for _ in range(20):
                with trio.fail_after(HANGS_AFTER), pytest.raises(BaseLibp2pError):  # noqa: PT012
                    stream = await a.node._host.new_stream(
                        libp2p_node.ID.from_base58(b.node.peer_id), ["/fails"]
                    )
                    await stream.read(1)
            await exchange(near, far)
            near.close()

    run(test)


# ------------------------------------------------------------------------ connections


async def connect_often(times: int) -> int:
    """Connections that one host took, one after the other."""
    taken = 0
    async with nodes() as (a, b):
        address = libp2p_node.Multiaddr(b.node.addresses[0])
        peer = libp2p_node.ID.from_base58(b.node.peer_id)
        # Upstream's places are 250 or so; with fewer, fewer connections show the same.
        limiter = b.node._swarm._inbound_limiter
        assert limiter.total_tokens < 1_000
        limiter.total_tokens = 20

        async def work(count: int) -> None:
            nonlocal taken
            for _ in range(count):
                with trio.fail_after(HANGS_AFTER):
                    conn = await a.node._swarm.dial_addr(address, peer)
                taken += 1
                await conn.close()

        async with trio.open_nursery() as nursery:
            for _ in range(13):
                nursery.start_soon(work, times // 13)
    return taken


def test_more_connections_come_in_over_time_than_upstream_has_places() -> None:
    async def test() -> None:
        assert await connect_often(4 * 13) == 4 * 13

    run(test)


def test_both_sides_dialling_at_once_share_what_comes_of_it() -> None:
    async def test() -> None:
        async with nodes() as (a, b):
            async with trio.open_nursery() as nursery:
                for _ in range(8):
                    for one, other in ((a, b), (b, a)):
                        nursery.start_soon(
                            one.node.connect, other.node.addresses[0], other.node.peer_id
                        )
            assert 1 <= a.node.connections() <= 2
            for one, other in ((a, b), (b, a)):
                near, far = await one.stream(other)
                await exchange(near, far)
                near.close()

    run(test)


def test_a_peer_is_reached_at_another_of_its_addresses() -> None:
    async def test() -> None:
        async with nodes() as (a, b):
            peer = b.node.peer_id
            await a.node.connect(b.node.addresses[0], peer)
            await a.connection(b).close()
            await a.node.connect(f"/ip4/127.0.0.1/tcp/9/p2p/{peer}", peer)
            assert a.connection(b) is not None

    run(test)


# ------------------------------------------------------------------------ flow control


def test_a_reader_may_pause_longer_than_upstream_allows() -> None:
    """Upstream's writer gives its stream up after five seconds without credit."""

    async def test() -> None:
        blob = os.urandom(3_000_000)
        async with nodes() as (a, b):
            near, far = await a.stream(b)
            async with trio.open_nursery() as nursery:

                async def send() -> None:
                    view = memoryview(blob)
                    while view:
                        view = view[await near.send(view) :]

                nursery.start_soon(send)
                await trio.sleep(5.5)
                got = bytearray()
                while len(got) < len(blob):
                    part = await far.recv(1 << 20)
                    assert part, "the stream ended"
                    got += part
            assert got == blob
            near.close()

    run(test)


def test_a_peer_that_sends_more_than_its_credit_fills_no_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(libp2p_guard, "MAX_UNREAD", 2_000_000)

    async def test() -> None:
        async with nodes() as (a, b):
            near, far = await a.stream(b)
            greedy = a.connection(b)
            stream = next(s for s in greedy.get_streams() if s.get_protocol() == PROTOCOL)
            stream.muxed_stream.send_window = 1 << 40
            with trio.move_on_after(5), suppress(Exception):
                for _ in range(200):
                    await stream.muxed_stream.write(bytes(60_000))
            unread = b.connection(a).muxed_conn.stream_buffers
            assert sum(map(len, unread.values())) <= 2_000_000
            near.close()
            far.close()

    run(test)


def test_streams_of_one_peer_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libp2p_guard, "MAX_PEER_STREAMS", 20)

    async def test() -> None:
        async with nodes() as (a, b):
            await a.node.connect(b.node.addresses[0], b.node.peer_id)
            conn = a.connection(b)
            for _ in range(60):
                # It begins, and never says which protocol it wants.
                await conn.new_stream()
            await trio.sleep(0.3)
            with trio.fail_after(HANGS_AFTER):
                while len(b.connection(a).muxed_conn.streams) > 25:  # noqa: ASYNC110
                    await trio.sleep(0.02)

    run(test)


# --------------------------------------------------------------------------- heartbeat

PEER = """
import sys, tempfile, trio
from pathlib import Path
from walyoff_transports import libp2p_node as n
async def main():
    settings = n.Settings(state_dir=Path(sys.argv[1]))
    async with n.run_node(settings, lambda sock, source: kept.append(sock)) as node:
        await node.listen(True)
        print(node.addresses[0], node.peer_id, flush=True)
        await trio.sleep(1000)
kept = []
trio.run(main)
"""


def test_a_stopped_peer_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(libp2p_guard, "BEAT_EVERY", 0.3)
    monkeypatch.setattr(libp2p_guard, "DEAD_AFTER", 1.5)
    with subprocess.Popen(
        [sys.executable, "-c", PEER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        address, peer = process.stdout.readline().split()

        async def test() -> None:
            async with nodes(1) as (a,):
                near, far = socket.socketpair()
                await a.node.open(address, peer, far)
                stream = trio.socket.from_stdlib_socket(near)
                # An idle peer is not a silent one.
                with trio.move_on_after(2.5):
                    await stream.recv(1)
                    raise AssertionError("the stream ended")
                os.kill(process.pid, signal.SIGSTOP)
                with trio.fail_after(HANGS_AFTER):
                    assert await stream.recv(1) == b""
                stream.close()

        try:
            run(test)
        finally:
            process.kill()


# ----------------------------------------------------------------------------- pubsub


def test_a_publisher_is_heard_again_at_once_after_a_restart(tmp_path: Path) -> None:
    async def test() -> None:
        heard: list[bytes] = []
        async with nodes(1) as (a,):
            await a.node.subscribe("topic", lambda _sender, data: heard.append(data))
            for life in range(3):
                settings = libp2p_node.Settings(state_dir=tmp_path)
                async with libp2p_node.run_node(settings, lambda sock: sock.close()) as node:
                    await node.connect(a.node.addresses[0], a.node.peer_id)
                    with trio.fail_after(HANGS_AFTER):
                        while b"%d" % life not in heard:
                            await node.publish("topic", b"%d" % life)
                            await trio.sleep(0.05)

    run(test)


def test_a_burst_of_publishes_is_not_dropped(tmp_path: Path) -> None:
    async def test() -> None:
        heard: list[bytes] = []
        async with nodes() as (a, b):
            await a.node.subscribe("topic", lambda _sender, data: heard.append(data))
            await b.node.connect(a.node.addresses[0], a.node.peer_id)
            with trio.fail_after(HANGS_AFTER):
                while not heard:
                    await b.node.publish("topic", b"first")
                    await trio.sleep(0.05)
            await trio.sleep(0.3)
            heard.clear()
            # Upstream's limits: ten a second, and queues of 32.
            for number in range(200):
                await b.node.publish("topic", b"%d" % number)
            with trio.fail_after(HANGS_AFTER):
                while len(set(heard)) < 200:  # noqa: ASYNC110 - a sink has no events
                    await trio.sleep(0.01)

    run(test)


def test_a_topic_that_is_joined_while_a_peer_is_taken_up_is_told_to_it(tmp_path: Path) -> None:
    async def test() -> None:
        heard: list[bytes] = []

        async with nodes() as (a, b), trio.open_nursery() as nursery:
            pubsub = a.node._pubsub
            hello = pubsub.get_hello_packet

            async def change() -> None:
                await a.node.unsubscribe("left")
                await a.node.subscribe("joined", lambda _sender, data: heard.append(data))

            def say_hello() -> Any:
                # What it says is what was true before.
                packet = hello()
                nursery.start_soon(change)
                return packet

            await a.node.subscribe("left", lambda _sender, _data: None)
            pubsub.get_hello_packet = say_hello
            await b.node.connect(a.node.addresses[0], a.node.peer_id)
            with trio.fail_after(HANGS_AFTER):
                while not heard:
                    await b.node.publish("joined", b"news")
                    await trio.sleep(0.05)
                while await b.node.topic_peers("left"):  # noqa: ASYNC110 - nobody tells
                    await trio.sleep(0.05)

    run(test)


def test_little_is_kept_for_peers_that_want_nothing(tmp_path: Path) -> None:
    async def test() -> None:
        async with nodes() as (a, b):
            await b.node.connect(a.node.addresses[0], a.node.peer_id)
            pubsub = b.node._pubsub
            with trio.fail_after(HANGS_AFTER):
                while not pubsub.peers:  # noqa: ASYNC110 - nobody tells
                    await trio.sleep(0.05)
            for number in range(3 * libp2p_guard.MAX_PENDING):
                await b.node.publish("topic", b"%d" % number)
            (kept,) = pubsub.router._pending_messages.values()
            assert len(kept) == libp2p_guard.MAX_PENDING

    run(test)


def test_long_messages_that_wait_for_a_subscription_are_not_mixed(tmp_path: Path) -> None:
    async def test() -> None:
        heard: list[bytes] = []

        async with nodes() as (a, b):
            await b.node.connect(a.node.addresses[0], a.node.peer_id)
            with trio.fail_after(HANGS_AFTER):
                while not b.node._pubsub.peers:  # noqa: ASYNC110 - nobody tells
                    await trio.sleep(0.05)
                for number in range(4):
                    await b.node.publish("topic", bytes([number]) * MAX_PAYLOAD)
                # Now upstream sends all: what it kept, and what was said lately.
                await a.node.subscribe("topic", lambda _sender, data: heard.append(data))
                while b"after" not in heard:
                    await b.node.publish("topic", b"after")
                    await trio.sleep(0.1)

    run(test)


def test_one_peer_cannot_flood_pubsub() -> None:
    rates = libp2p_guard._Rates()
    burst = int(libp2p_guard.PEER_BURST)
    assert sum(rates.allow("a", 0.0) for _ in range(burst * 2)) == burst
    assert rates.allow("b", 0.0)
    allowed = sum(rates.allow("a", 1.0) for _ in range(burst * 2))
    assert allowed == pytest.approx(libp2p_guard.PEER_RATE, abs=1)


# ---------------------------------------------------------------------------- logging

QUIET = """
import logging, tempfile, trio
from pathlib import Path
from walyoff_transports import libp2p_node as n
async def main():
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        first = n.run_node(n.Settings(state_dir=Path(one)), lambda sock: None)
        second = n.run_node(n.Settings(state_dir=Path(two)), lambda sock: None)
        async with first as a, second as b:
            await a.connect(b.addresses[0], b.peer_id)
trio.run(main)
print(logging.getLogger().handlers)
"""


def test_nothing_is_logged_to_the_users_program() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", QUIET],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""


# ---------------------------------------------------------------------- the end of it


def test_a_port_in_use_is_not_shared_with_another_device(tmp_path: Path) -> None:
    """Upstream listens with SO_REUSEPORT: the second would take half of the connections."""

    async def test() -> None:
        async with nodes(1) as (a,):
            taken = a.node.addresses[0].split("/")[4]
            (tmp_path / "port").write_text(taken)
            settings = libp2p_node.Settings(state_dir=tmp_path)
            async with libp2p_node.run_node(settings, lambda sock: None) as node:
                assert node.addresses[0].split("/")[4] != taken

    run(test)


def test_a_device_keeps_its_port_and_its_name_over_restarts(tmp_path: Path) -> None:
    async def address() -> str:
        settings = libp2p_node.Settings(state_dir=tmp_path)
        async with libp2p_node.run_node(settings, lambda sock: None) as node:
            return str(node.addresses[0])

    assert trio.run(address) == trio.run(address)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


def test_nothing_is_left_after_the_end() -> None:
    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    async def test() -> None:
        async with nodes() as (a, b):
            near, _ = await a.stream(b)
            near.close()

    run(test)
    before = open_files()
    run(partial(test))
    assert open_files() == before
