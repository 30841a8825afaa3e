"""What a message costs when it is alone: commits and wake-ups, counted in virtual time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio

from walyoff.channel import Channel
from walyoff.engine.committing import SIGNATURE_LINGER
from walyoff.testing.virtual import VirtualTimeLoop
from walyoff.testing.world import SimWorld

MESSAGES = 20
EVERY_S = 0.02


def in_virtual_time(function: Callable[[], Awaitable[None]]) -> None:
    anyio.run(function, backend_options={"loop_factory": VirtualTimeLoop})


async def pair(world: SimWorld, work: Callable[[Channel, Channel], Awaitable[None]]) -> None:
    async with world.device("a") as a, world.device("b") as b:
        first = await a.create_channel("family")
        second = await b.join(await first.invite())
        await first.wait_peer()
        await second.wait_peer()
        # What a session begins with, and the anchors of that, are over.
        await anyio.sleep(5)
        await work(first, second)


def count_calls(owner: Any, name: str) -> list[None]:
    """A list that grows with each call of a method of an object."""
    calls: list[None] = []
    original = getattr(owner, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        return original(*args, **kwargs)

    setattr(owner, name, counted)
    return calls


def test_signatures_share_the_commits_of_later_messages() -> None:
    async def work(first: Channel, second: Channel) -> None:
        writes = count_calls(first.engine.store, "write")
        for number in range(MESSAGES):
            await first.send(str(number).encode())
            await anyio.sleep(EVERY_S)
        seconds = MESSAGES * EVERY_S
        # One each, and one for whatever lingers; twice as many would be one each.
        assert len(writes) <= MESSAGES + seconds / SIGNATURE_LINGER + 2
        await anyio.sleep(2 * SIGNATURE_LINGER)
        assert await first.engine.store.unsigned() == []
        await (await first.send(b"last")).wait_received(second.me)

    in_virtual_time(lambda: pair(SimWorld(1), work))


def test_a_device_that_was_away_gets_what_lingered() -> None:
    async def main() -> None:
        world = SimWorld(2)
        async with world.device("a") as a:
            first = await a.create_channel("family")
            async with world.device("b") as b:
                second = await b.join(await first.invite())
                await first.wait_peer()
                await (await first.send(b"one")).wait_received(second.me)
            receipt = await first.send(b"two")
            async with world.device("b") as b:
                with anyio.fail_after(60):
                    await receipt.wait_received()

    in_virtual_time(main)


def test_messages_do_not_wake_those_who_wait_for_company() -> None:
    async def work(first: Channel, second: Channel) -> None:
        woken: list[None] = []

        async def wait() -> None:
            while True:
                await first.engine.company_changed()
                woken.append(None)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            for number in range(MESSAGES):
                receipt = await first.send(str(number).encode())
                await receipt.wait_received(second.me)
            assert woken == []
            for session in first.connections.sessions():
                session.close()
            await anyio.sleep(1)
            assert woken, "a session that ends is news"
            tasks.cancel_scope.cancel()

    in_virtual_time(lambda: pair(SimWorld(3), work))


def test_only_a_lone_message_gets_a_second_attempt_at_its_signature() -> None:
    async def work(first: Channel, _: Channel) -> None:
        engine = first.engine
        runtime: Any = engine.runtime
        begin = runtime.attempts
        again: list[None] = []

        def second() -> bool:
            again.append(None)
            return True

        def attempts(*args: Any) -> Any:
            found = begin(*args)
            found.again = second
            return found

        runtime.attempts = attempts
        signatures = engine.signatures
        await first.send(b"alone")
        assert len(again) == 1
        assert engine.signatures == signatures + 2, "both count for the life of the key"
        await first.send_many([b"one", b"two"])
        assert len(again) == 1
        assert engine.signatures == signatures + 3

    in_virtual_time(lambda: pair(SimWorld(4), work))
