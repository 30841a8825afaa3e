"""A join that breaks at any step can simply be tried again, with the same string.

Every step means: each time that the code of a join waits for anything, at the joiner and at
the inviter. There the join is cancelled, its connection cut, or the device killed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from contextlib import asynccontextmanager, suppress
from typing import Any, Generic, TypeVar
from unittest import mock

import anyio
import pytest

from tests.sim.virtual import read, run
from walyoff import Channel, Device, joining
from walyoff.errors import (
    InvitationError,
    LocalProtocolError,
    RemoteProtocolError,
    TransportError,
    WalyoffError,
)
from walyoff.testing.world import SimWorld

T = TypeVar("T")
#: More than any join has; the last tries go through.
MAX_STEPS = 400
#: Tries after the one that broke: a device that was killed is away for a moment.
TRIES = 4


class Stepped(Generic[T]):
    """A coroutine that counts how often it went on, and does something the n-th time."""

    def __init__(
        self, work: Coroutine[Any, Any, T], at: int, act: Callable[[], object]
    ) -> None:
        self._work = work
        self._at = at
        self._act = act
        self.count = 0

    @property
    def broke(self) -> bool:
        return self.count >= self._at

    def __await__(self) -> Generator[Any, Any, T]:
        inner = self._work.__await__()
        go: Callable[[Any], Any] = inner.send
        value: Any = None
        while True:
            self.count += 1
            if self.count == self._at:
                self._act()
            try:
                waiting = go(value)
            except StopIteration as end:
                result: T = end.value
                return result
            try:
                value, go = (yield waiting), inner.send
            except BaseException as error:
                value, go = error, inner.throw


class Running:
    """A device that can be killed and started again."""

    def __init__(self, world: SimWorld, name: str, tasks: anyio.abc.TaskGroup) -> None:
        self._world = world
        self._name = name
        self._tasks = tasks
        self._scope = anyio.CancelScope()
        self._ended = anyio.Event()
        self.device: Device

    async def start(self) -> Device:
        self._ended = anyio.Event()
        return await self._tasks.start(self._run)  # type: ignore[no-any-return]

    async def _run(self, *, task_status: anyio.abc.TaskStatus[Device]) -> None:
        try:
            with anyio.CancelScope() as self._scope:
                async with self._world.device(self._name) as self.device:
                    task_status.started(self.device)
                    await anyio.sleep_forever()
        finally:
            self._ended.set()

    def kill(self) -> None:
        self._scope.cancel()

    async def restart(self) -> Device:
        await self._ended.wait()
        return await self.start()


@asynccontextmanager
async def two_devices() -> AsyncIterator[tuple[Running, Running, str]]:
    """The inviter, the joiner, and an invitation."""
    world = SimWorld(1)
    async with anyio.create_task_group() as tasks:
        a, b = (Running(world, name, tasks) for name in "ab")
        channel = await (await a.start()).create_channel("family")
        await channel.send(b"before")
        await b.start()
        yield a, b, await channel.invite()
        tasks.cancel_scope.cancel()


async def joined(b: Running, invitation: str) -> Channel:
    """Try again, as a person does."""
    last: WalyoffError | None = None
    for _ in range(TRIES):
        if b.device.channels():
            return b.device.channels()[0]
        try:
            return await b.device.join(invitation)
        except InvitationError:
            # None of these: the string is good, and the device is the one that used it.
            raise
        except LocalProtocolError:
            return b.device.channels()[0]
        except WalyoffError as error:
            last = error
            await anyio.sleep(0.5)
    raise AssertionError(f"not joined in {TRIES} tries") from last


async def settled(a: Running, b: Running, channel: Channel) -> None:
    """All is as if nothing had happened."""
    ours = a.device.channels()[0]
    await ours.send(b"welcome")
    await channel.send(b"thanks")
    for one in (ours, channel):
        assert sorted(await read(one, 3)) == [b"before", b"thanks", b"welcome"]
        assert [member.did for member in one.members()] == [ours.me, channel.me]
    assert len(b.device.channels()) == len(a.device.channels()) == 1
    (info,) = ours.invitations()
    assert (info.state, info.used_by) == ("used", (channel.me,))


async def join_broken_at(step: int, how: str) -> bool:
    """Break the joiner's side at a step; False if the join has no such step."""
    async with two_devices() as (a, b, invitation):
        with anyio.CancelScope() as scope:

            def act() -> None:
                # A kill takes the device with it.
                scope.cancel()
                if how == "kill":
                    b.kill()

            work = Stepped(b.device.join(invitation), step, act)
            with suppress(WalyoffError):
                await work
        if how == "kill" and work.broke:
            await b.restart()
        await settled(a, b, await joined(b, invitation))
        return work.broke


async def grant_broken_at(step: int, how: str) -> bool:
    """Break the inviter's side at a step; False if the grant has no such step."""
    works: list[Stepped[None]] = []
    grant = joining.grant_join

    async def broken(device: Device, channel: Channel, issued: Any, session: Any) -> None:
        if works:
            await grant(device, channel, issued, session)
            return
        act = a.kill if how == "kill" else session.close
        works.append(Stepped(grant(device, channel, issued, session), step, act))
        await works[0]

    with mock.patch("walyoff.accepting.grant_join", broken):
        async with two_devices() as (a, b, invitation):
            with suppress(TransportError, RemoteProtocolError):
                await b.device.join(invitation)
            if how == "kill" and works[0].broke:
                await a.restart()
            await settled(a, b, await joined(b, invitation))
    return works[0].broke


async def every_step(broken_at: Callable[[int, str], Awaitable[bool]], how: str) -> int:
    for step in range(1, MAX_STEPS):
        try:
            if not await broken_at(step, how):
                return step - 1
        except BaseException as error:
            error.add_note(f"at step {step}")
            raise
    raise AssertionError("the join never ended")


@pytest.mark.parametrize("how", ["cancel", "kill"])
def test_a_join_that_breaks_at_the_joiner_can_be_tried_again(how: str) -> None:
    async def main() -> None:
        steps = await every_step(join_broken_at, how)
        assert steps > 30

    run("asyncio", main)


@pytest.mark.parametrize("how", ["cut", "kill"])
def test_a_join_that_breaks_at_the_inviter_can_be_tried_again(how: str) -> None:
    async def main() -> None:
        steps = await every_step(grant_broken_at, how)
        assert steps > 10

    run("asyncio", main)
