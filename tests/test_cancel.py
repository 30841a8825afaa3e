"""Cancelling at every moment: nothing is lost, nothing leaks, and all works after it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from tests.sim.virtual import group, in_virtual_time, read, run
from walyoff import Channel
from walyoff.errors import InvitationError, LocalProtocolError, TransportError
from walyoff.message import Message
from walyoff.messages import MessageStream
from walyoff.testing.world import SimWorld


async def cancelled_after(seconds: float, act: Callable[[], Awaitable[object]]) -> bool:
    """Cancel something after a time; True if it was cancelled."""
    with anyio.move_on_after(seconds) as scope:
        await act()
    return scope.cancelled_caught


async def now_or_never(act: Callable[[], Coroutine[Any, Any, object]]) -> None:
    """Begin something, let the others run, cancel it."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(act)
        await checkpoint()
        tasks.cancel_scope.cancel()


@in_virtual_time
async def test_cancelled_send_before_its_commit_is_sent_once_or_not_at_all() -> None:
    async with group(2) as g:
        a, b = g.channels
        assert await cancelled_after(0.0, lambda: a.send(b"maybe"))
        await now_or_never(lambda: a.send(b"perhaps"))
        await a.send(b"surely")
        received = [m.content async for m in _until(b.messages(), b"surely")]
        assert received[-1] == b"surely"
        assert len(set(received)) == len(received)
        assert set(received) <= {b"maybe", b"perhaps", b"surely"}


@in_virtual_time
async def test_cancelled_send_in_its_commit_is_the_same_for_all() -> None:
    async with group(2) as g:
        a, b = g.channels
        # A sync takes 1 ms: half of it has passed.
        assert await cancelled_after(0.0005, lambda: a.send_many([b"one", b"two"]))
        await a.send(b"three")
        assert await read(a, 3) == await read(b, 3) == [b"one", b"two", b"three"]


@in_virtual_time
async def test_cancelled_after_send_returned_loses_nothing() -> None:
    world = SimWorld(1)
    async with world.device("a") as device:
        channel = await device.create_channel("family")
        with anyio.CancelScope() as scope:
            await channel.send(b"kept")
            scope.cancel()
            await checkpoint()
    async with world.device("a") as device:
        assert await read(device.channel("family"), 1) == [b"kept"]


@in_virtual_time
async def test_cancelled_wait_for_the_next_message_takes_nothing() -> None:
    async with group(2) as g:
        a, b = g.channels
        stream = b.messages(cursor="app")
        for n in range(5):
            assert await cancelled_after(1.0, stream.__anext__)
            await a.send(b"%d" % n)
            assert (await anext(stream)).content == b"%d" % n


@in_virtual_time
async def test_cancelled_at_any_step_through_history_takes_nothing() -> None:
    async with group(1) as g:
        (a,) = g.channels
        await a.send_many([b"%d" % n for n in range(600)])
        stream = a.messages(cursor="app")
        found: list[bytes | None] = []
        while len(found) < 600:
            with anyio.CancelScope() as scope:
                if len(found) % 3 == 0:
                    # The next wait is the last one: a page from the store, or a cursor's sync.
                    scope.cancel()
                found.append((await anext(stream)).content)
            if scope.cancelled_caught:
                found.append((await anext(stream)).content)
        assert found == [b"%d" % n for n in range(600)]


@in_virtual_time
async def test_cancelled_wait_for_an_anchor_gives_the_message_later() -> None:
    async with group(2) as g:
        a, b = g.channels
        stream = b.messages(anchored=True)
        receipt = await a.send(b"hello")
        # It is there at once, but its block takes a quarter of a second.
        assert await cancelled_after(0.05, stream.__anext__)
        assert await cancelled_after(0.05, receipt.wait_anchored)
        message = await anext(stream)
        assert (message.content, message.anchored) == (b"hello", True)
        await receipt.wait_anchored()


@in_virtual_time
async def test_cancelled_wait_received_can_be_waited_for_again() -> None:
    async with group(2) as g:
        a, b = g.channels
        g.world.network.hold("a", "b")
        receipt = await a.send(b"hello")
        assert await cancelled_after(1.0, receipt.wait_received)
        assert receipt.received_by() == []
        g.world.network.release("a", "b")
        await receipt.wait_received(by=b.me)


@pytest.mark.parametrize("step", range(0, 40, 3))
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_cancelled_join_can_be_tried_again(backend: str, step: int) -> None:
    """Every few milliseconds of a join, which takes 13 on this link."""

    async def main() -> None:
        async with group(1) as g, g.world.device("b") as device:
            (a,) = g.channels
            invitation = await a.invite()
            await cancelled_after(step * 0.0005, lambda: device.join(invitation))
            b = None
            while b is None:
                try:
                    b = await device.join(invitation)
                except TransportError:
                    await anyio.sleep(0.5)
                except (LocalProtocolError, InvitationError):
                    # It went through after all.
                    b = device.channels()[0]
            await a.send(b"welcome")
            assert await read(b, 1) == [b"welcome"]
            assert len(a.members()) == 2
            assert len(device.channels()) == 1

    run(backend, main)


@pytest.mark.parametrize("moment", [0.0, 0.0004, 0.0011, 0.003, 0.02, 0.3])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_cancelled_device_in_full_traffic_keeps_its_promises(
    backend: str, moment: float
) -> None:
    async def main() -> None:
        world = SimWorld(3)
        promised: list[bytes] = []
        async with world.device("a") as one:
            a = await one.create_channel("family")
            with anyio.CancelScope() as life:
                async with world.device("b") as two, anyio.create_task_group() as tasks:
                    b = await two.join(await a.invite())
                    await b.wait_peer()

                    async def talk(who: int) -> None:
                        for n in range(100):
                            content = b"%d %d" % (who, n)
                            receipt = await b.send(content)
                            promised.append(receipt.id)

                    for who in range(3):
                        tasks.start_soon(talk, who)
                    tasks.start_soon(_send_all, a)
                    await anyio.sleep(moment)
                    life.cancel()
            async with world.device("b") as two:
                b = two.channel("family")
                held = {m.id async for m in b.history()}
                assert set(promised) <= held
                receipt = await b.send(b"back again")
                await receipt.wait_received()
                there = {m.id async for m in a.history()}
                assert set(promised) <= there
                await (await a.send(b"good")).wait_received()

    run(backend, main)


@in_virtual_time
async def test_cancelled_device_with_a_new_epoch_waits_for_no_ledger() -> None:
    """The ledger's process ends at the same moment, so it answers nothing any more."""
    world = SimWorld(3)
    began = anyio.current_time()
    async with world.device("a") as one:
        a = await one.create_channel("family")
        with anyio.CancelScope() as life:
            async with world.device("b") as two, world.device("c") as three:
                b = await two.join(await a.invite())
                c = await three.join(await a.invite())
                ledger: Any = b.engine.anchors._ledger
                ledger.is_complete = ledger.learn_keys = _no_answer
                write_down = b.engine.rotation._on_new

                def cancel() -> None:
                    write_down()
                    life.cancel()

                b.engine.rotation._on_new = cancel
                await a.remove(c.me)
                await anyio.sleep(60)
        assert life.cancelled_caught
        assert anyio.current_time() - began < 60
        async with world.device("b") as two:
            assert set(two.channel("family").engine.epochs) == set(a.engine.epochs)


async def _no_answer(*_: object) -> None:
    await anyio.sleep(300)


async def _send_all(channel: Channel) -> None:
    await channel.send_many([b"x" * 1000] * 300)


async def _until(stream: MessageStream, last: bytes) -> AsyncIterator[Message]:
    async for message in stream:
        yield message
        if message.content == last:
            return
