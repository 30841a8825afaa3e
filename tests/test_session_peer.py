"""Sessions over real streams: what waits wakes, what ends is told, what is stuck is closed."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager

import anyio
import anyio.lowlevel
import pytest

from tests.test_session_handshake import ALICE, BOB, BOTH, TAG_KEY
from tests.waiting import HANGS_AFTER
from walyoff import frames
from walyoff.errors import RemoteProtocolError, TransportError
from walyoff.session import dialling, peer
from walyoff.session.dialling import answer, dial
from walyoff.session.handshake import HandshakeContext, PeerPresented
from walyoff.session.peer import Session
from walyoff.session.transcript import Mode
from walyoff.sockets import SocketStream

pytestmark = pytest.mark.anyio

FRAME = frames.encode(frames.ContentsFrame(((bytes(32), bytes(32), bytes(1_000_000)),)))


async def trust(presented: PeerPresented) -> None:
    """Everybody."""


def find(mode: Mode, ephemeral: bytes, tag: bytes) -> HandshakeContext:
    return BOB.context()


@asynccontextmanager
async def sessions() -> AsyncIterator[tuple[Session, Session]]:
    """Two sides of a session; only the first one is run."""
    left, right = (SocketStream(end) for end in socket.socketpair())
    found: list[Session] = []

    async def respond() -> None:
        found.append(await answer(right, find_tag=find, suites=BOTH, judge=trust))

    async with AsyncExitStack() as stack:
        stack.push_async_callback(right.aclose)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(respond)
            one = await dial(
                left, mode="member", tag_key=TAG_KEY, context=ALICE.context(), suites=BOTH,
                judge=trust,
            )  # fmt: skip
        async with one.run():
            yield one, found[0]


async def read(session: Session, count: int) -> None:
    async with aclosing(session.frames()) as incoming:
        for _ in range(count):
            await anext(incoming)


async def test_everybody_who_waits_for_room_is_told() -> None:
    async with sessions() as (one, other):
        for _ in range(8):
            one.send(FRAME)
        with anyio.fail_after(HANGS_AFTER):
            async with anyio.create_task_group() as tasks:
                for limit in (6_000_000, 2_000_000, 0):
                    tasks.start_soon(one.drained, limit)
                tasks.start_soon(read, other, 8)
        assert one.backlog == 0


async def test_who_waits_for_room_is_told_of_the_end() -> None:
    async with sessions() as (one, _):
        for _ in range(8):
            one.send(FRAME)
        with anyio.fail_after(HANGS_AFTER):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(one.drained, 0)
                tasks.start_soon(one.drained, 0)
                await anyio.wait_all_tasks_blocked()
                one.close()


async def test_a_peer_that_reads_nothing_is_given_up_at_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peer, "MAX_BACKLOG", 4_000_000)
    async with sessions() as (one, _):
        for _ in range(20):
            one.send(FRAME)
            assert one.backlog <= 4_000_000
            await anyio.wait_all_tasks_blocked()
        with pytest.raises(anyio.BrokenResourceError):
            await read(one, 1)


async def test_who_asks_without_end_and_reads_nothing_is_not_kept_answers_for() -> None:
    async with sessions() as (one, other):
        for _ in range(8):
            one.send(FRAME)
        waiting = one.backlog
        flood = other._channel.seal([frames.encode(frames.Ping(n)) for n in range(20_000)])
        last = frames.encode(frames.Gone(()))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(other._stream.send, flood + other._channel.seal([last]))
            with anyio.fail_after(10):
                await read(one, 1)
        # The other side has read nothing, so nearly all of it waits still.
        assert one.backlog <= waiting
        assert 0 < len(one._first) <= peer.MAX_FIRST


async def test_a_peer_that_says_much_at_once_leaves_others_their_turns() -> None:
    async with sessions() as (one, other):
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await anyio.lowlevel.checkpoint()

        many = [frames.encode(frames.Ping(n)) for n in range(20_000)]
        flood = other._channel.seal([*many, frames.encode(frames.Gone(()))])
        # All of it at once, as it came while the handshake was judged.
        one._leftover = flood
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(count)
            with anyio.fail_after(10):
                await read(one, 1)
            tasks.cancel_scope.cancel()
        assert turns > len(many) // peer.TURN // 2


async def test_a_stream_that_ends_without_goodbye_is_broken() -> None:
    async with sessions() as (one, other):
        await other._stream.aclose()
        with pytest.raises(anyio.BrokenResourceError):
            await read(one, 1)


async def test_bytes_that_are_no_record_end_the_session() -> None:
    async with sessions() as (one, other):
        await other._stream.send(b"\0\0\0\x20" + bytes(32))
        with pytest.raises(RemoteProtocolError):
            await read(one, 1)
        one.send(FRAME)
        assert one.backlog == 0


async def test_a_peer_that_says_nothing_in_the_handshake_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dialling, "HANDSHAKE_TIMEOUT", 0.2)
    left, right = (SocketStream(end) for end in socket.socketpair())
    with pytest.raises(TransportError):
        await answer(left, find_tag=find, suites=BOTH, judge=trust)
    await right.aclose()
    with pytest.raises(anyio.ClosedResourceError):
        await left.send(b"x")
