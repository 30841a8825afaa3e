"""Joiners who show their chains as they were: members are asked for newer ends of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from unittest import mock

import anyio
import pytest

from tests import waiting
from tests.sim.virtual import in_virtual_time, run
from tests.test_showing_keys import governance
from tests.test_sim_nesting import Houses, complete, contents, houses, reads
from walyoff import Channel, frames
from walyoff.engine.newcomers import ANSWER_S, MAX_BYTES
from walyoff.errors import InvitationError
from walyoff.testing.platform import SimIdentity
from walyoff.wire import pack

until = partial(waiting.until, within=120.0)

LOST = "did:sim:bob1"
Newer = Callable[[SimIdentity, Sequence[str], int], object]


@asynccontextmanager
async def meeting(*, carol_knows: bool) -> AsyncIterator[tuple[Houses, Channel, Channel]]:
    """Bob removed a device, which reaches dave alone; dave is in the club with carol.

    Carol is in the choir with bob, and in the club with dave and erin. Yields the club as dave
    has it and bob's channel as the lost device has it.
    """
    async with houses() as h:
        await h.group("choir", {"carol": 1, "bob": 2})
        bob, carol = h.channel("bob0", "bob"), h.channel("carol0", "carol")
        await until(lambda: h.has("bob1", "choir"))
        club = await (await h.device("dave0")).create_channel("club")
        await h.devices["carol0"].join(await club.invite(), identity=carol)
        await (await h.device("erin0")).join(await club.invite())
        await until(lambda: len(club.peers()) == 2)
        far = ["bob0", "carol0", "erin0"] if carol_knows else ["bob0"]
        h.world.network.partition(far, ["bob1"])
        if not carol_knows:
            h.world.network.partition(["bob0"], ["carol0"])
        await bob.remove(LOST)
        await until(lambda: not governance(bob).renewal_due)
        if carol_knows:
            await until(lambda: complete(h.channel("carol0", "choir"), 2))
            newest = governance(bob).newest_key
            known = h.world.chain("carol0", f"{bob.did}/identity")
            await until(lambda: any(newest in block for _, block in known.blocks.values()))
        yield h, club, h.channel("bob1", "bob")


@in_virtual_time
async def test_nobody_joins_by_an_old_chain_if_a_member_knows_a_newer_end() -> None:
    async with meeting(carol_knows=True) as (h, club, lost):
        before = anyio.current_time()
        with pytest.raises(InvitationError, match="replaced"):
            await h.devices["bob1"].join(await club.invite(), identity=lost)
        # Everybody answered: nobody was waited for.
        assert anyio.current_time() - before < ANSWER_S
        assert lost.did not in club.voices()
        # An honest one gets in, also as the person whose chain somebody else showed.
        h.world.network.repair()
        joined = await h.devices["bob0"].join(
            await club.invite(), identity=h.channel("bob0", "bob")
        )
        await club.send(b"welcome")
        await reads(joined, b"welcome")
        assert LOST not in {m.did for m in club.members()}


@in_virtual_time
async def test_who_joined_by_an_old_chain_falls_out_when_a_member_hears_of_a_newer_end() -> (
    None
):
    """All members of the club are connected all the time."""
    async with meeting(carol_knows=False) as (h, club, lost):
        mine = await h.devices["bob1"].join(await club.invite(), identity=lost)
        await club.send(b"welcome")
        await reads(mine, b"welcome")
        await until(lambda: LOST in {m.did for m in h.channel("carol0", "club").members()})
        connected = set(club.peers()) - {LOST}
        # Carol hears it in the choir, and nobody else does.
        h.world.network.repair()
        h.world.network.partition(["bob0"], ["dave0", "erin0", "bob1"])
        await until(lambda: LOST not in {m.did for m in club.members()})
        assert set(club.peers()) == connected
        await until(club.engine.rotation.usable)
        await club.send(b"without it")
        await reads(h.channel("carol0", "club"), b"without it")
        await anyio.sleep(30)
        assert b"without it" not in await contents(mine)


def hanging(identity: SimIdentity, names: Sequence[str], limit: int) -> object:
    return anyio.sleep_forever()


async def junk(identity: SimIdentity, names: Sequence[str], limit: int) -> list[bytes]:
    return [b"", b"junk", pack(["did:sim:group-x", b"file"]), pack([names[0], 1])]


async def flood(identity: SimIdentity, names: Sequence[str], limit: int) -> list[bytes]:
    return [pack([n, bytes(MAX_BYTES // 4)]) for n in range(40)]


LIARS = {"hangs": hanging, "junk": junk, "flood": flood}


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("name", LIARS)
def test_a_member_that_lies_or_hangs_keeps_nobody_out_and_hides_nothing(
    backend: str, name: str
) -> None:
    async def main() -> None:
        async with meeting(carol_knows=True) as (h, club, lost):
            honest = SimIdentity.newer

            def newer(identity: SimIdentity, names: Sequence[str], limit: int) -> object:
                lies = identity.member_did == "did:sim:erin0"
                return (LIARS[name] if lies else honest)(identity, names, limit)

            with mock.patch.object(SimIdentity, "newer", newer):
                with pytest.raises(InvitationError, match="replaced"):
                    await h.devices["bob1"].join(await club.invite(), identity=lost)
                before = anyio.current_time()
                guest = await (await h.device("guest")).join(await club.invite())
                assert anyio.current_time() - before < ANSWER_S + 2
            await guest.send(b"hello")
            await reads(club, b"hello")
            assert club.reports() == []

    run(backend, main)


@in_virtual_time
async def test_members_have_shares_and_each_is_asked_once_for_a_joiner() -> None:
    asked: list[str] = []
    honest = SimIdentity.newer

    async def newer(identity: SimIdentity, names: Sequence[str], limit: int) -> list[bytes]:
        asked.append(identity.member_did)
        return await honest(identity, names, limit)

    few = mock.patch("walyoff.engine.newcomers.MAX_ASKED", 2)
    with few, mock.patch.object(SimIdentity, "newer", newer):
        async with houses() as h:
            # A person with more devices than are asked, and one with one.
            club = await h.group("club", {"dave": 1, "many": 3, "one": 1})
            await until(lambda: len(club.peers()) == 4)
            asked.clear()
            await (await h.device("guest")).join(await club.invite())
            assert len(asked) == len(set(asked)) == 2
            assert "did:sim:one0" in asked


@in_virtual_time
async def test_answers_that_nobody_asked_for_are_dropped() -> None:
    async with houses() as h:
        club = await h.group("club", {"alice": 1, "bob": 1})
        other = h.channel("bob0", "club")
        await until(club.peers)
        for link in other.engine.links.values():
            link.send(frames.ChainFiles("did:sim:group-x", (b"junk",), False))
            link.send(frames.ChainFiles("did:sim:group-x", (), True))
            # And what is asked for of anything is answered with nothing.
            link.send(frames.ChainWant("did:sim:group-x", ("identity/x", "", "///")))
        await anyio.sleep(1)
        await club.send(b"on")
        await reads(other, b"on")
        assert club.reports() == other.reports() == []


@in_virtual_time
async def test_nothing_is_kept_of_chains_that_are_none_of_the_channels() -> None:
    async with houses() as h:
        club = await h.group("club", {"alice": 1, "bob": 1})
        other = h.channel("bob0", "club")
        await until(lambda: club.peers() and other.peers())
        for link in other.engine.links.values():
            for number in range(100):
                link.send(frames.ChainHave(f"did:sim:x{number}", ("identity/x",), 1))
        await club.send(b"on")
        await reads(other, b"on")
        await anyio.sleep(1)
        for server in club.connections._servers.values():
            assert 0 < len(server._chains._leaves) < 10
