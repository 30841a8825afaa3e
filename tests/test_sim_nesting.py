"""Identities of identities, in the simulator: people with devices, groups of people."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any
from unittest import mock

import anyio
import pytest

from tests import waiting
from tests.sim.virtual import in_virtual_time
from walyoff import Channel, Device, frames, granting, node
from walyoff.channel_state import ChannelState
from walyoff.errors import InvitationError, LocalProtocolError, NotAMemberError
from walyoff.joining import Granted, request_join
from walyoff.kinship import MAX_ASKED
from walyoff.testing.network import LAN, Link
from walyoff.testing.world import SimWorld
from walyoff.wire import pack, unpack

SOON = 60.0
until = partial(waiting.until, within=SOON)


def complete(channel: Channel, devices: int) -> bool:
    """True if a device knows of so many."""
    return len(channel.members()) == devices


class Houses:
    """People, each an identity with devices: `alice0` is the first device of `alice`."""

    def __init__(self, world: SimWorld, stack: AsyncExitStack) -> None:
        self.world = world
        self.devices: dict[str, Device] = {}
        self._stack = stack

    async def device(self, name: str) -> Device:
        self.devices[name] = await self._stack.enter_async_context(self.world.device(name))
        return self.devices[name]

    async def person(self, name: str, devices: int) -> Channel:
        """A person with so many devices; its channel as the first of them has it."""
        first = await (await self.device(f"{name}0")).create_channel(name)
        for number in range(1, devices):
            device = await self.device(f"{name}{number}")
            await device.join(await first.invite())
        return first

    async def group(self, name: str, people: dict[str, int]) -> Channel:
        """A group of people; its channel as the first device of the first of them has it."""
        found: Channel | None = None
        for person, devices in people.items():
            own = await self.person(person, devices)
            device = self.devices[f"{person}0"]
            if found is None:
                found = await device.create_channel(name, identity=own)
            else:
                await device.join(await found.invite(), identity=own)
        assert found is not None
        return found

    def channel(self, device: str, name: str) -> Channel:
        return self.devices[device].channel(name)

    def has(self, device: str, name: str) -> bool:
        return any(c.name == name for c in self.devices[device].channels())


@asynccontextmanager
async def houses(link: Link = LAN, *, seed: int = 1) -> AsyncIterator[Houses]:
    async with AsyncExitStack() as stack:
        yield Houses(SimWorld(seed, link), stack)


async def contents(channel: Channel) -> set[bytes]:
    return {m.content async for m in channel.history() if m.content is not None}


async def reads(channel: Channel, content: bytes, *, within: float = SOON) -> tuple[str, ...]:
    """Wait for a message; the path of its author."""
    with anyio.fail_after(within):
        async for message in channel.messages():
            if message.content == content:
                return message.path
    raise AssertionError


@in_virtual_time
async def test_a_message_to_a_group_reaches_every_device_of_everybody() -> None:
    async with houses() as h:
        club = await h.group("club", {"alice": 3, "bob": 2, "carol": 2})
        names = ["alice0", "alice1", "alice2", "bob0", "bob1", "carol0", "carol1"]
        # Only one device of each joined; the others heard of it from that one.
        await until(lambda: all(h.has(name, "club") for name in names))
        for name in names:
            channel = h.channel(name, "club")
            await until(partial(complete, channel, 7))
        people = {name: h.channel(f"{name}0", name).did for name in ("alice", "bob", "carol")}
        for name in names:
            channel = h.channel(name, "club")
            await channel.send(f"from {name}".encode())
        for name in names:
            channel = h.channel(name, "club")
            for author in names:
                path = await reads(channel, f"from {author}".encode())
                assert path == (f"did:sim:{author}", people[author[:-1]], club.did)


@in_virtual_time
async def test_a_device_that_joins_a_person_gets_the_persons_groups_and_their_history() -> None:
    async with houses() as h:
        club = await h.group("club", {"alice": 1, "bob": 1})
        await club.send(b"long ago")
        new = await h.device("bob1")
        await new.join(await h.channel("bob0", "bob").invite())
        await until(lambda: h.has("bob1", "club"))
        await reads(h.channel("bob1", "club"), b"long ago")
        await h.channel("bob1", "club").send(b"here I am")
        path = await reads(club, b"here I am")
        assert path == ("did:sim:bob1", h.channel("bob0", "bob").did, club.did)
        # Nothing about the group is on the person's chain.
        chain = h.world.chain("bob0", f"{h.channel('bob0', 'bob').did}/identity")
        assert not any(club.did.encode() in payload for _, payload in chain.blocks.values())


@in_virtual_time
async def test_three_levels_and_more() -> None:
    async with houses() as h:
        club = await h.group("club", {"alice": 2, "bob": 1})
        carol = await h.person("carol", 2)
        union = await h.devices["carol0"].create_channel("union", identity=carol)
        await h.devices["alice0"].join(await union.invite(), identity=club)
        names = ["alice0", "alice1", "bob0", "carol0", "carol1"]
        await until(lambda: all(h.has(name, "union") for name in names))
        await h.channel("bob0", "union").send(b"hello, union")
        path = await reads(h.channel("carol1", "union"), b"hello, union")
        assert path == ("did:sim:bob0", h.channel("bob0", "bob").did, club.did, union.did)
        new = await h.device("bob1")
        await new.join(await h.channel("bob0", "bob").invite())
        await until(lambda: h.has("bob1", "union"))
        await h.channel("bob1", "union").send(b"me too")
        assert len(await reads(h.channel("carol0", "union"), b"me too")) == 4


@in_virtual_time
async def test_a_join_for_an_identity_ends_well_when_another_device_is_faster() -> None:
    async with houses() as h:
        club = await h.group("club", {"alice": 1, "bob": 1})
        carol = await h.person("carol", 1)
        union = await h.devices["carol0"].create_channel("union", identity=carol)

        async def slowly(*arguments: Any) -> Granted:
            granted = await request_join(*arguments)
            await until(lambda: h.has("bob0", "union"))
            await until(lambda: h.has("alice0", "union"))
            return granted

        # Carol is of the club too: she gives bob the group as soon as the chain says so.
        await h.devices["carol0"].join(await club.invite(), identity=carol)
        with mock.patch.object(node, "request_join", slowly):
            joined = await h.devices["bob0"].join(
                await union.invite(), identity=h.channel("bob0", "club"), name="ours"
            )
        assert joined is h.devices["bob0"].channel("ours")
        assert not joined.state.given_by
        await joined.send(b"by the identity")
        await reads(h.channel("alice0", "union"), b"by the identity")


@in_virtual_time
async def test_a_device_removed_from_a_person_gets_nothing_more_of_the_persons_groups() -> None:
    async with houses() as h:
        club = await h.group("club", {"alice": 2, "bob": 2})
        names = ["alice0", "alice1", "bob0", "bob1"]
        await until(lambda: all(h.has(name, "club") for name in names))
        lost = h.channel("bob1", "club")
        receipt = await club.send(b"before")
        await receipt.wait_received(by=[f"did:sim:{n}" for n in ("alice1", "bob0", "bob1")])
        await until(lambda: len(lost.peers()) == 3)
        await h.channel("bob0", "bob").remove("did:sim:bob1")
        # At once, in the group as well, at the device that removed it.
        assert "did:sim:bob1" not in h.channel("bob0", "club").peers()
        await h.channel("bob0", "club").send(b"after, from bob0")
        await reads(club, b"after, from bob0")
        for name in ("alice0", "alice1", "bob0"):
            await h.channel(name, "club").send(b"after, from " + name.encode())
        await anyio.sleep(60)
        assert await contents(lost) == {b"before"}
        assert lost.peers() == []
        with pytest.raises(NotAMemberError):
            await lost.send(b"nobody hears me")
        for name in ("alice0", "alice1", "bob0"):
            channel = h.channel(name, "club")
            assert len(await contents(channel)) == 4
            assert {m.did for m in channel.members()} == {
                f"did:sim:{n}" for n in ("alice0", "alice1", "bob0")
            }
            epoch = channel.engine.rotation.usable()
            assert epoch is not None
            # The epoch of now is none that the lost device has.
            assert epoch.epoch_id not in lost.engine.epochs


@in_virtual_time
async def test_a_person_who_is_removed_loses_the_group_on_all_devices_and_can_come_back() -> (
    None
):
    async with houses() as h:
        club = await h.group("club", {"alice": 1, "bob": 2})
        await until(lambda: h.has("bob1", "club"))
        bob = h.channel("bob0", "bob")
        await until(lambda: len(club.peers()) == 2)
        with pytest.raises(LocalProtocolError, match="belongs to"):
            await club.remove("did:sim:bob1")
        with pytest.raises(LocalProtocolError, match="does not remove itself"):
            await h.channel("bob0", "club").remove(bob.did)
        await club.remove(bob.did)
        assert club.peers() == []
        await club.send(b"without bob")
        await anyio.sleep(30)
        for name in ("bob0", "bob1"):
            assert await contents(h.channel(name, "club")) == set()
        # What bob does among his own devices meanwhile is nobody's business.
        epoch = club.engine.rotation.usable()
        await bob.remove("did:sim:bob1")
        await anyio.sleep(30)
        assert club.engine.rotation.usable() == epoch
        await h.devices["bob1"].join(await bob.invite())
        await h.devices["bob0"].join(await club.invite(), identity=bob)
        await reads(h.channel("bob0", "club"), b"without bob")
        await reads(h.channel("bob1", "club"), b"without bob")
        await h.channel("bob1", "club").send(b"back again")
        await reads(club, b"back again")


@in_virtual_time
async def test_a_device_that_nobody_knew_is_shut_out_with_its_person() -> None:
    """It joined the person who was removed, and meets somebody who has not heard of it."""
    async with houses() as h:
        club = await h.group("club", {"alice": 1, "bob": 1, "carol": 1})
        bob = h.channel("bob0", "bob")
        await until(lambda: len(h.channel("carol0", "club").peers()) == 2)
        carol = h.channel("carol0", "club")
        # Alice's device does not hear of bob's second one, and carol's nothing from the chain.
        deaf(club)
        new = await h.device("bob1")
        await new.join(await bob.invite())
        await until(lambda: h.has("bob1", "club") and len(carol.members()) == 4)
        assert len(club.members()) == 3
        deaf(carol)
        h.world.chain("carol0", f"{club.did}/identity").followed = False
        await club.remove(bob.did)
        await club.send(b"without bob")
        await reads(carol, b"without bob")
        assert len(carol.members()) == 4
        assert not carol.engine.trust.admits("did:sim:bob0")
        assert not carol.engine.trust.admits("did:sim:bob1")
        await anyio.sleep(60)
        assert await contents(h.channel("bob1", "club")) == set()


@in_virtual_time
async def test_who_joins_by_an_old_chain_is_out_once_anybody_knows_a_newer_one() -> None:
    async with houses() as h:
        await h.group("choir", {"carol": 1, "bob": 1})
        bob, carol = h.channel("bob0", "bob"), h.channel("carol0", "carol")
        lost = await h.device("bob1")
        await lost.join(await bob.invite())
        await until(
            lambda: h.has("bob1", "choir") and complete(h.channel("carol0", "choir"), 3)
        )
        club = await h.group("club", {"dave": 1})
        await h.devices["carol0"].join(await club.invite(), identity=carol)
        # The lost device and dave hear of nobody else while it is removed, and joins.
        h.world.network.partition(["bob0", "carol0"], ["bob1", "dave0"])
        await bob.remove("did:sim:bob1")
        await until(lambda: complete(h.channel("carol0", "choir"), 2))
        mine = await lost.join(await club.invite(), identity=h.channel("bob1", "bob"))
        await club.send(b"welcome")
        await reads(mine, b"welcome")
        # Carol knows bob's chain from the choir.
        h.world.network.repair()
        await until(lambda: "did:sim:bob1" not in {m.did for m in club.members()})
        assert "did:sim:bob1" not in club.peers()
        await until(club.engine.rotation.usable)
        epoch = club.engine.rotation.usable()
        assert epoch is not None
        await club.send(b"without it")
        await reads(h.channel("carol0", "club"), b"without it")
        await anyio.sleep(SOON)
        assert b"without it" not in await contents(mine)
        assert epoch.epoch_id not in mine.engine.epochs
        assert mine.peers() == []


def deaf(channel: Channel) -> None:
    """The device compares no chains any more."""
    channel.foundation.chains.clear()  # type: ignore[attr-defined]


@in_virtual_time
async def test_circles_and_what_is_not_ones_own_are_refused() -> None:
    async with houses() as h:
        club = await h.group("club", {"alice": 1, "bob": 1})
        alice = h.channel("alice0", "alice")
        with pytest.raises(InvitationError, match="circle"):
            await h.devices["bob0"].join(
                await alice.invite(), identity=h.channel("bob0", "club")
            )
        with pytest.raises(LocalProtocolError, match="already"):
            await h.devices["bob0"].join(await club.invite(), identity=h.channel("bob0", "bob"))
        # A device that was removed from a person speaks for it no longer.
        await (await h.device("bob1")).join(await h.channel("bob0", "bob").invite())
        await until(lambda: h.has("bob1", "club"))
        await h.channel("bob0", "bob").remove("did:sim:bob1")
        own = h.channel("bob1", "bob")
        await until(lambda: not own.engine.trust.is_member(own.me))
        with pytest.raises(NotAMemberError):
            await h.devices["bob1"].create_channel("mine", identity=own)


@in_virtual_time
async def test_a_device_outside_a_group_is_given_nothing_of_it() -> None:
    """Whatever it says in the sessions of an identity that it does belong to."""
    async with houses() as h:
        await h.group("club", {"alice": 1, "bob": 1})
        alice = h.channel("alice0", "alice")
        other = await h.devices["alice0"].create_channel("other")
        guest = await (await h.device("guest")).join(await other.invite())
        await until(guest.peers)
        club = h.channel("alice0", "club")
        server = guest.connections.servers()[0]
        for did in (club.did, alice.did):
            server._state.send(frames.WantGroup(did))
        await anyio.sleep(30)
        assert [c.name for c in h.devices["guest"].channels()] == ["other"]
        # And nobody takes what it offers.
        grant = frames.GroupGrant("did:sim:group-x", b"", (), (), "trap", bytes(32))
        server._state.send(grant)
        await anyio.sleep(30)
        assert not h.has("alice0", "trap")
        # Nor does it hold what it sends ahead of nothing.
        await until(guest.peers)
        session = guest.connections.session(other.me)
        assert session is not None
        session.send_frame(frames.Part(bytes(1000)))
        await until(lambda: guest.connections.session(other.me) is not session)


@in_virtual_time
async def test_a_device_that_leaves_a_person_leaves_its_groups_and_a_person_a_group() -> None:
    async with houses() as h:
        club = await h.group("club", {"alice": 2, "bob": 2})
        names = ["alice0", "alice1", "bob0", "bob1"]
        await until(lambda: all(h.has(name, "club") for name in names))
        for name in names:
            await until(partial(complete, h.channel(name, "club"), 4))
        gone = "did:sim:bob1"
        await h.channel("bob1", "bob").leave()
        assert h.devices["bob1"].channels() == []
        await until(lambda: gone not in {m.did for m in club.members()})
        assert gone not in club.peers()
        # The others go on, also the person whose device it was.
        await h.channel("bob0", "club").send(b"still here")
        await reads(club, b"still here")
        await h.channel("bob0", "club").leave()
        assert h.has("bob0", "bob")
        await until(
            lambda: {m.did for m in club.members()} == {"did:sim:alice0", "did:sim:alice1"}
        )
        assert not h.has("bob0", "club")


@in_virtual_time
async def test_a_device_that_names_groups_without_end_is_asked_for_a_few() -> None:
    async with houses() as h:
        alice = await h.person("alice", 2)
        other = h.channel("alice1", "alice")
        await until(other.peers)
        server = other.connections.servers()[0]
        asking = h.devices["alice0"].kinship
        for n in range(50):
            named = tuple(f"did:sim:group-{n}-{m}" for m in range(100))
            server._state.send(frames.GroupsHeld(named))
            await anyio.sleep(1)
        assert 0 < len(asking._asked) <= MAX_ASKED
        # Others are asked at once, and what it made up is forgotten with it.
        assert asking.wanted(["did:sim:group-real"]) == ["did:sim:group-real"]
        await alice.remove(other.me)
        await until(lambda: not asking._asked)


@in_virtual_time
async def test_groups_that_another_device_founds_without_end_are_taken_up_to_a_number() -> None:
    async with houses() as h:
        await h.person("alice", 2)
        other = h.channel("alice1", "alice")
        with mock.patch("walyoff.kinship.MAX_GIVEN", 3):
            founder = h.devices["alice0"]
            for n in range(6):
                await founder.create_channel(f"g{n}", identity=h.channel("alice0", "alice"))
            await until(lambda: sum(h.has("alice1", f"g{n}") for n in range(6)) == 3)
            await anyio.sleep(30)
            taken = [n for n in range(6) if h.has("alice1", f"g{n}")]
            assert len(taken) == 3
            told = [r for r in other.reports() if r.reason == "too-many-groups"]
            assert told
            assert {r.subject for r in told} == {h.channel("alice0", "alice").me}
            # The session goes on, and who leaves a group has room again.
            await h.channel("alice0", "alice").send(b"still here")
            assert await reads(other, b"still here")
            leaving = h.channel("alice1", f"g{taken[0]}")
            await h.devices["alice1"].close_channel(leaving.did)
            await until(lambda: sum(h.has("alice1", f"g{n}") for n in range(6)) == 3)
        states = [c.state for c in h.devices["alice1"].channels() if c.name != "alice"]
        for state in states:
            assert ChannelState.decode(state.encode()).given_by == state.given_by
            assert state.given_by == h.channel("alice0", "alice").me
        # What the previous format kept has none.
        assert ChannelState.decode(pack(unpack(states[0].encode(), 4096)[:4])).given_by == ""


@in_virtual_time
async def test_a_grant_that_is_larger_than_a_frame_travels_in_parts() -> None:
    """Both to who joins as an identity and to a further device of it."""
    async with houses() as h:
        club = await h.group("club", {"alice": 1})
        # Blocks of others, which everybody keeps and nobody believes.
        ledger = h.world.chain("alice0", f"{club.did}/ledger")
        for _ in range(20):
            ledger.append(os.urandom(1 << 20))
        sent: list[list[frames.Frame]] = []
        grant_frames = granting.grant_frames

        def noted(grant: Any) -> list[frames.Frame]:
            sent.append(list(grant_frames(grant)))
            return sent[-1]

        with (
            mock.patch("walyoff.joining.grant_frames", noted),
            mock.patch("walyoff.kinship.grant_frames", noted),
        ):
            bob = await h.person("bob", 1)
            joined = await h.devices["bob0"].join(await club.invite(), identity=bob)
            await joined.wait_peer(club.me)
            new = await h.device("bob1")
            await new.join(await bob.invite())
            await until(lambda: h.has("bob1", "club"))
        large = [made for made in sent if len(made) > 1]
        assert [type(made[-1]) for made in large] == [frames.JoinGrant, frames.GroupGrant]
        for made in large:
            parts = [part for part in made if isinstance(part, frames.Part)]
            assert sum(len(part.data) for part in parts) > frames.MAX_FRAME
            assert max(len(frames.encode(frame)) for frame in made) < frames.MAX_FRAME / 2
        for name in ("bob0", "bob1"):
            theirs = h.world.chain(name, f"{club.did}/ledger")
            assert set(ledger.blocks) <= set(theirs.blocks)
        await club.send(b"to everybody")
        for name in ("bob0", "bob1"):
            assert await reads(h.channel(name, "club"), b"to everybody")


@in_virtual_time
async def test_a_grant_stops_when_its_reader_leaves_the_group_meanwhile() -> None:
    async with houses(Link(latency=0.005, bandwidth=4e6)) as h:
        club = await h.group("club", {"alice": 1, "bob": 1})
        theirs = h.channel("bob0", "club")
        await until(lambda: complete(theirs, 2))
        ledger = h.world.chain("bob0", f"{club.did}/ledger")
        for _ in range(24):
            ledger.append(os.urandom(1 << 20))
        begun: list[type[frames.Frame]] = []
        grant_frames = granting.grant_frames

        def noted(grant: Any) -> Iterator[frames.Frame]:
            for frame in grant_frames(grant):
                begun.append(type(frame))
                yield frame

        with (
            mock.patch("walyoff.kinship.grant_frames", noted),
            mock.patch("walyoff.kinship.BACKLOG", 1 << 20),
        ):
            new = await h.device("bob1")
            await new.join(await h.channel("bob0", "bob").invite())
            await until(lambda: len(begun) >= 3)
            assert complete(theirs, 3)
            await club.remove(h.channel("bob0", "bob").did)
            await until(lambda: not theirs.engine.trust.is_member(theirs.me))
            await anyio.sleep(60)
        # Parts of public chains went; the end, which has the secrets, did not.
        assert set(begun) == {frames.Part}
        assert not h.has("bob1", "club")
        await h.channel("bob0", "bob").send(b"still us")
        assert await reads(h.channel("bob1", "bob"), b"still us")


@in_virtual_time
async def test_a_slow_device_that_is_asked_twice_keeps_its_session() -> None:
    make = granting.make_grant

    async def slowly(*args: Any) -> frames.JoinGrant:
        await anyio.sleep(25)
        return await make(*args)

    async with houses() as h:
        await h.group("club", {"alice": 1, "bob": 1})
        new = await h.device("bob1")
        with mock.patch("walyoff.kinship.make_grant", slowly):
            own = await new.join(await h.channel("bob0", "bob").invite())
            await until(own.peers)
            session = own.connections.session("did:sim:bob0")
            await until(lambda: h.has("bob1", "club"))
            await anyio.sleep(90)
            assert own.connections.session("did:sim:bob0") is session is not None
