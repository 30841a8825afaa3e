"""A member whose inviter has gone gets in with those who have not heard of it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from typing import Any

import anyio
import pytest

from tests.sim.virtual import in_virtual_time, read, run
from walyoff import Channel, Device, frames, introducing
from walyoff.accepting import judge
from walyoff.connections import Connections
from walyoff.errors import RemoteProtocolError, TransportError
from walyoff.session.dialling import dial
from walyoff.session.peer import Session
from walyoff.testing.world import SimWorld


async def connected(channel: Channel, did: str, within: float = 60) -> bool:
    with anyio.move_on_after(within):
        await channel.wait_peer(did)
        return True
    return False


async def introduction(device: Device, channel: Channel, address: str, epoch: Any) -> Session:
    return await dial(
        await device.connect_stream(address),
        mode="introduce",
        tag_key=introducing.tag_key(epoch),
        context=introducing.context(channel, epoch),
        suites=device.suites(),
        judge=judge(channel),
        runtime=device.runtime,
    )


async def ending(incoming: AsyncGenerator[frames.Frame, None]) -> frames.Frame | None:
    """The next frame, or None if the session ends, in whatever way."""
    try:
        return await anext(incoming, None)
    except (anyio.BrokenResourceError, RemoteProtocolError):
        return None


@in_virtual_time
async def test_a_newcomer_gets_in_although_its_inviter_left_before_others_heard_of_it() -> None:
    world = SimWorld(1)
    async with world.device("a") as a, world.device("m") as m:
        first = await a.create_channel("family")
        member = await m.join(await first.invite())
        await member.send(b"from m")
        await first.wait_peer()
        assert await read(first, 1) == [b"from m"]
    async with world.device("a") as a, world.device("n") as n:
        newcomer = await n.join(await a.channel("family").invite())
        assert await read(newcomer, 1) == [b"from m"]
        me = newcomer.me
        # It was told where the other member was last.
        assert (await n.address_book.of(newcomer.did))[member.me]
    # The inviter is gone, and nobody tells the member of the joining block.
    async with world.device("m") as m, world.device("n") as n:
        member, newcomer = m.channel("family"), n.channel("family")
        assert me not in [found.did for found in member.members()]
        assert await connected(member, newcomer.me)
        assert me in [found.did for found in member.members()]
        await newcomer.send(b"from n")
        assert await read(member, 2) == [b"from m", b"from n"]
        await member.send(b"welcome")
        assert (await read(newcomer, 3))[2] == b"welcome"


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_newcomer_is_told_where_members_are_that_were_only_heard_of(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(*_: object) -> None:
        """The session ends before the other side has said where it is."""

    monkeypatch.setattr(Connections, "_found_at", nothing)

    async def main() -> None:
        world = SimWorld(1)
        async with world.device("a") as a, world.device("n") as n:
            async with world.device("m") as m:
                first = await a.create_channel("family")
                member = (await m.join(await first.invite())).me
                await first.wait_peer()
            newcomer = await n.join(await first.invite())
            assert (await n.address_book.of(newcomer.did))[member] == ["sim:m"]

    run(backend, main)


@in_virtual_time
async def test_the_member_may_have_missed_a_removal_and_its_epoch_as_well() -> None:
    world = SimWorld(1)
    async with world.device("a") as a, world.device("m") as m, world.device("r") as r:
        first = await a.create_channel("family")
        for device in (m, r):
            await first.wait_peer((await device.join(await first.invite())).me)
        removed = r.channel("family").me
    async with world.device("a") as a, world.device("n") as n:
        first = a.channel("family")
        await first.remove(removed)
        newcomer = await n.join(await first.invite())
        assert len(newcomer.engine.epochs) == 2
    async with world.device("m") as m, world.device("n") as n:
        member, newcomer = m.channel("family"), n.channel("family")
        assert len(member.engine.epochs) == 1
        assert await connected(member, newcomer.me)
        await newcomer.send(b"hello")
        assert await read(member, 1) == [b"hello"]
        assert removed not in [found.did for found in member.members()]


@in_virtual_time
async def test_who_was_removed_is_not_introduced() -> None:
    world = SimWorld(1)
    async with world.device("a") as a, world.device("r") as r:
        first = await a.create_channel("family")
        theirs = await r.join(await first.invite())
        await theirs.wait_peer()
        await first.remove(theirs.me)
        await anyio.sleep(2)
        assert not await introducing.introduce(r, theirs, a.addresses[0], judge(theirs))
        # Nor under any epoch that it has, whatever it believes of itself.
        for epoch in theirs.engine.epochs.values():
            with pytest.raises((RemoteProtocolError, TransportError)):
                await introduction(r, theirs, a.addresses[0], epoch)


@in_virtual_time
async def test_an_introduction_is_of_blocks_and_bounded_and_one_of_a_source_at_a_time() -> None:
    world = SimWorld(1)
    async with world.device("a") as a, world.device("b") as b:
        first = await a.create_channel("family")
        theirs = await b.join(await first.invite())
        (epoch,) = theirs.engine.epochs.values()
        before = first.members()
        part = (bytes(1 << 20),)
        junk: list[Callable[[], list[frames.Frame]]] = [
            lambda: [frames.HaveVector(())],
            lambda: [frames.JoinRequest("did:sim:b", ())],
            lambda: [frames.ChainFiles("ledger", (), True)],
            lambda: [frames.ChainFiles("identity", (b"junk",), True)],
            lambda: [frames.ChainFiles("identity", part, False)] * 9,
        ]
        for make in junk:
            session = await introduction(b, theirs, a.addresses[0], epoch)
            async with session.run(), aclosing(session.frames()) as incoming:
                assert isinstance(await anext(incoming), frames.ChainHave)
                for frame in make():
                    session.send_frame(frame)
                # Nothing comes back but the end.
                assert await ending(incoming) is None
        session = await introduction(b, theirs, a.addresses[0], epoch)
        other = await introduction(b, theirs, a.addresses[0], epoch)
        async with (
            session.run(),
            other.run(),
            aclosing(session.frames()) as incoming,
            aclosing(other.frames()) as also,
        ):
            # The newer one of a source is heard.
            began = anyio.current_time()
            assert isinstance(await anext(also), frames.ChainHave)
            while isinstance(await ending(incoming), frames.ChainHave):
                pass
            assert anyio.current_time() - began < 1
            # Who says nothing is sent away.
            assert await ending(also) is None
            assert anyio.current_time() - began <= introducing.TIMEOUT + 2
        assert first.members() == before
        await theirs.send(b"all is well")
        assert await read(first, 1) == [b"all is well"]


@in_virtual_time
async def test_who_introduces_itself_again_and_again_delays_nobody_else() -> None:
    world = SimWorld(1)
    async with world.device("a") as a, world.device("m") as m, world.device("f") as f:
        first = await a.create_channel("family")
        for device in (m, f):
            await first.wait_peer((await device.join(await first.invite())).me)
    async with world.device("a") as a, world.device("n") as n:
        me = (await n.join(await a.channel("family").invite())).me
    async with (
        world.device("m") as m,
        world.device("f") as f,
        anyio.create_task_group() as tasks,
    ):
        member, flood = m.channel("family"), f.channel("family")
        (epoch,) = flood.engine.epochs.values()
        # Else the one that floods would be told, and tell.
        world.network.partition(["f"], ["n"])
        sessions = 0

        async def introduce_without_end() -> None:
            nonlocal sessions
            while True:
                with suppress(RemoteProtocolError, TransportError):
                    session = await introduction(f, flood, m.addresses[0], epoch)
                    sessions += 1
                    tasks.start_soon(hold, session)
                await anyio.sleep(0.2)

        async def hold(session: Session) -> None:
            with suppress(anyio.BrokenResourceError, RemoteProtocolError):
                async with session.run(), aclosing(session.frames()) as incoming:
                    while await ending(incoming) is not None:
                        pass

        tasks.start_soon(introduce_without_end)
        await anyio.sleep(5)
        async with world.device("n"):
            assert await connected(member, me, 8)
        assert sessions > 20
        tasks.cancel_scope.cancel()
