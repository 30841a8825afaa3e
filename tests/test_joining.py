"""Joining by invitations of every kind: uses, revoking, purposes, words, a person's yes."""

from __future__ import annotations

from unittest import mock

import anyio
import pytest

from tests.sim.virtual import in_virtual_time, read
from walyoff import Channel, Device, frames
from walyoff.errors import InvitationError, TransportError
from walyoff.granting import Parts
from walyoff.invitations import grouped
from walyoff.inviting import Joiner
from walyoff.issued import MAX_JOIN_SESSIONS
from walyoff.joining import CONFIRM_TIMEOUT, MAX_ASKED
from walyoff.session import dialling, peer
from walyoff.testing.world import SimWorld
from walyoff.words import COUNT, session_words


async def refused(device: Device, invitation: str) -> str:
    with pytest.raises(InvitationError) as caught:
        await device.join(invitation)
    return str(caught.value)


def states(channel: Channel) -> list[str]:
    return [info.state for info in channel.invitations()]


@in_virtual_time
async def test_one_invitation_lets_in_as_many_as_it_says() -> None:
    world = SimWorld(1)
    async with (
        world.device("a") as a,
        world.device("b") as b,
        world.device("c") as c,
        world.device("d") as d,
    ):
        channel = await a.create_channel("family")
        two = await channel.invite(uses=2)
        many = await channel.invite(uses=None, lifetime=60)
        await b.join(grouped(two))
        assert states(channel) == ["open", "open"]
        await c.join(two)
        assert states(channel) == ["used", "open"]
        assert "used already" in await refused(d, two)
        theirs = await d.join(many)
        await channel.send(b"hello")
        assert await read(theirs, 1) == [b"hello"]
        first, second = channel.invitations()
        assert (first.uses, first.used_by) == (2, ("did:sim:b", "did:sim:c"))
        assert (second.uses, second.used_by) == (None, ("did:sim:d",))
        assert first.by == channel.me
        assert first.created is not None
        assert first.created < second.expires < first.expires
        await anyio.sleep(61)
        assert states(channel) == ["used", "expired"]


@in_virtual_time
async def test_a_revoked_invitation_lets_nobody_in_also_after_a_restart() -> None:
    world = SimWorld(1)
    async with world.device("a") as a:
        channel = await a.create_channel("family")
        invitation = await channel.invite(uses=None)
        ended = await channel.revoke(invitation)
        assert ended.state == "revoked"
        with pytest.raises(InvitationError, match="walyoff invitations"):
            await channel.revoke("0" * 16)
    async with world.device("a") as a, world.device("b") as b:
        channel = a.channel("family")
        assert states(channel) == ["revoked"]
        assert "revoked" in await refused(b, invitation)
        assert [member.did for member in channel.members()] == [channel.me]


@in_virtual_time
async def test_an_invitation_for_an_identity_refuses_a_device() -> None:
    world = SimWorld(1)
    async with world.device("a") as a, world.device("b") as b:
        channel = await a.create_channel("family")
        assert "for an identity" in await refused(b, await channel.invite(purpose="identity"))
        await b.join(await channel.invite(purpose="device"))


@in_virtual_time
async def test_an_invitation_for_a_device_refuses_an_identity() -> None:
    world = SimWorld(1)
    async with world.device("a") as a, world.device("b") as b:
        group = await a.create_channel("group")
        person = await b.create_channel("person")
        with pytest.raises(InvitationError, match="for a device"):
            await b.join(await group.invite(purpose="device"), identity=person)
        assert len(group.members()) == 1
        for purpose in ("identity", "any"):
            theirs = await b.join(await group.invite(purpose=purpose), identity=person)
            joined = group.invitations()[-1]
            assert joined.used_by == (person.did,)
            assert joined.purpose == purpose
            # A person that was removed does not come back by the string that it has.
            await group.remove(person.did)
            assert [member.did for member in group.members()] == [group.me]
            await theirs.changed()
            await anyio.sleep(5)
            await group.revoke(joined.id)


@in_virtual_time
async def test_who_was_removed_does_not_come_back_by_the_invitation_that_it_had() -> None:
    world = SimWorld(1)
    async with world.device("a") as a, world.device("b") as b, world.device("c") as c:
        channel = await a.create_channel("family")
        invitation = await channel.invite(uses=None)
        theirs = await b.join(invitation)
        await theirs.wait_peer()
        await channel.remove(theirs.me)
        # Whether it says so itself, or as somebody else: it knows the string.
        assert "removed" in await refused(b, invitation)
        assert "removed" in await refused(c, invitation)
        await b.join(await channel.invite())
        assert len(channel.members()) == 2


@in_virtual_time
async def test_both_sides_see_the_same_words_and_each_join_has_others() -> None:
    world = SimWorld(1)
    async with world.device("a") as a, world.device("b") as b, world.device("c") as c:
        channel = await a.create_channel("family")
        invitation = await channel.invite(uses=2)
        seen: list[tuple[str, ...]] = []

        async def see(words: tuple[str, ...]) -> None:
            seen.append(words)

        async with channel.joins() as joins:
            for device in (b, c):
                await device.join(invitation, on_words=see)
                joiner = await joins.receive()
                assert joiner.words == seen[-1]
                assert joiner.did == await device.did()
                assert joiner.invitation_id == channel.invitations()[0].id
        assert seen[0] != seen[1]
        assert all(len(words) == COUNT for words in seen)


def test_words_have_66_bits_of_the_session() -> None:
    """A bit of the session id changes half of the words' bits; no word is left out."""
    words = {word for n in range(3000) for word in session_words(n.to_bytes(32, "big"))}
    # Of 2,048 words; 18,000 draws miss one with a chance of 1 in 6,500 each.
    assert 2_040 <= len(words) <= 2_048
    assert len({word[:4] for word in words}) == len(words)


async def _stored(device: Device) -> dict[str, bytes | None]:
    """What the store has, but for the control keys, which are noted soon after the start."""
    keys = [key for key in await device.store.keys("") if not key.startswith("control-keys/")]
    return {key: await device.store.get(key) for key in keys}


@in_virtual_time
async def test_a_join_waits_for_a_persons_yes_and_a_no_leaves_nothing() -> None:
    world = SimWorld(1)
    async with world.device("a") as a, world.device("b") as b:
        channel = await a.create_channel("family")
        asked: list[Joiner] = []
        answer = False
        shown: list[tuple[str, ...]] = []

        async def confirm(joiner: Joiner) -> bool:
            asked.append(joiner)
            # People take their time; heartbeats go on.
            await anyio.sleep(90)
            return answer

        async def see(words: tuple[str, ...]) -> None:
            shown.append(words)

        invitation = await channel.invite(confirm=confirm)
        before = await _stored(a)
        with pytest.raises(InvitationError, match="did not confirm"):
            await b.join(invitation, on_words=see)
        # The words were there before the answer was.
        assert shown == [asked[0].words]
        assert [member.did for member in channel.members()] == [channel.me]
        assert await _stored(a) == before
        assert b.channels() == []
        answer = True
        theirs = await b.join(invitation)
        await channel.send(b"hello")
        assert await read(theirs, 1) == [b"hello"]
        assert len(asked) == 2


@in_virtual_time
async def test_a_question_that_nobody_answers_is_a_no_and_ends_when_the_joiner_leaves() -> None:
    world = SimWorld(1)
    async with world.device("a") as a, world.device("b") as b:
        channel = await a.create_channel("family")
        cancelled = 0

        async def confirm(joiner: Joiner) -> bool:
            nonlocal cancelled
            try:
                await anyio.sleep(3600)
            finally:
                cancelled += 1
            return True

        invitation = await channel.invite(confirm=confirm)
        began = anyio.current_time()
        assert "did not confirm" in await refused(b, invitation)
        assert anyio.current_time() - began == pytest.approx(CONFIRM_TIMEOUT, abs=1)
        assert cancelled == 1
        with anyio.move_on_after(20):
            await b.join(invitation)
        await anyio.sleep(5)
        assert cancelled == 2
        assert states(channel) == ["open"]


@in_virtual_time
async def test_who_asks_without_end_is_sent_away_and_spoils_nothing() -> None:
    world = SimWorld(1)
    async with world.device("a") as a, world.device("b") as b, world.device("c") as c:
        channel = await a.create_channel("family")
        asked = 0

        async def confirm(joiner: Joiner) -> bool:
            nonlocal asked
            asked += 1
            await anyio.sleep(3600)
            return False

        invitation = await channel.invite(confirm=confirm)
        async with anyio.create_task_group() as tasks:
            for _ in range(MAX_ASKED):
                tasks.start_soon(b.join, invitation)
            await anyio.sleep(1)
            assert "try again" in await refused(c, invitation)
            # Who is not asked about gets in meanwhile.
            await c.join(await channel.invite())
            tasks.cancel_scope.cancel()
        assert asked == MAX_ASKED
        await anyio.sleep(1)
        assert a.invitations.asked == 0


@in_virtual_time
async def test_revoking_while_somebody_is_asked_refuses_the_join() -> None:
    world = SimWorld(1)
    async with world.device("a") as a, world.device("b") as b:
        channel = await a.create_channel("family")

        async def confirm(joiner: Joiner) -> bool:
            await channel.revoke(joiner.invitation_id)
            return True

        assert "revoked" in await refused(b, await channel.invite(confirm=confirm))
        assert len(channel.members()) == 1


@in_virtual_time
async def test_an_invitation_to_be_confirmed_lets_nobody_in_when_nobody_can_be_asked() -> None:
    world = SimWorld(1)

    async def yes(joiner: Joiner) -> bool:
        return True

    async with world.device("a") as a:
        invitation = await (await a.create_channel("family")).invite(confirm=yes)
    async with world.device("a") as a, world.device("b") as b:
        assert "nobody is at the inviting device" in await refused(b, invitation)
        assert len(a.channel("family").members()) == 1


@in_virtual_time
async def test_a_joiner_that_says_more_than_it_should_gets_nothing() -> None:
    world = SimWorld(1)
    async with world.device("a") as a, world.device("b") as b:
        channel = await a.create_channel("family")

        async def slow(joiner: Joiner) -> bool:
            await anyio.sleep(1)
            return True

        invitation = await channel.invite(confirm=slow)
        sessions: list[peer.Session] = []

        async def spy(*args: object, **kwargs: object) -> peer.Session:
            session = await dialling.dial(*args, **kwargs)  # type: ignore[arg-type]
            sessions.append(session)
            return session

        async def chatter(words: tuple[str, ...]) -> None:
            await anyio.sleep(0.1)
            sessions[0].send_frame(frames.Pong(1))
            sessions[0].send_frame(frames.HaveVector(()))

        with mock.patch("walyoff.joining.dial", spy), pytest.raises(TransportError):
            await b.join(invitation, on_words=chatter)
        await anyio.sleep(5)
        assert len(channel.members()) == 1


@in_virtual_time
async def test_nobody_makes_another_a_member_by_showing_its_chain() -> None:
    """Whoever has an invitation knows what anybody's chain says, and not how it signs."""
    world = SimWorld(1)
    async with world.device("a") as a, world.device("b") as b:
        channel = await a.create_channel("family")
        victim = "did:sim:victim"
        certify = b.platform.certify

        async def as_victim(did: str, body: bytes) -> bytes:
            return await certify("did:sim:b", body)

        with (
            mock.patch.object(b, "did", mock.AsyncMock(return_value=victim)),
            mock.patch.object(b.platform, "certify", as_victim),
        ):
            assert "does not hold" in await refused(b, await channel.invite())
        await anyio.sleep(5)
        assert [member.did for member in channel.members()] == [channel.me]
        assert channel.foundation.identity.membership.direct == (channel.me,)


@in_virtual_time
async def test_who_holds_an_invitation_makes_the_inviter_hold_little() -> None:
    """Also a spent one: it is found for a month, to give a clear answer."""
    world = SimWorld(1)
    async with world.device("a") as a, world.device("b") as b, world.device("c") as c:
        channel = await a.create_channel("family")
        good, spent = await channel.invite(uses=None), await channel.invite()
        await channel.revoke(spent)
        held: list[int] = []
        taking = Parts.add

        def add(parts: Parts, part: frames.Part) -> None:
            taking(parts, part)
            held.append(a.invitations._held.total())

        sessions: list[peer.Session] = []

        async def silent(*args: object, **kwargs: object) -> peer.Session:
            """Sends parts, and then nothing for a while."""
            session = await dialling.dial(*args, **kwargs)  # type: ignore[arg-type]
            sessions.append(session)
            async with session.run():
                for _ in range(3):
                    session.send_frame(frames.Part(bytes(1 << 20)))
                await anyio.sleep(10)
            raise TransportError("enough")

        async def attack(invitation: str) -> None:
            with pytest.raises((TransportError, InvitationError)):
                await b.join(invitation)

        with (
            mock.patch.object(Parts, "add", add),
            mock.patch("walyoff.joining.dial", silent),
            mock.patch("walyoff.issued.MAX_JOIN_BYTES", 8 << 20),
        ):
            async with anyio.create_task_group() as tasks:
                for _ in range(5):
                    tasks.start_soon(attack, spent)
            assert not held
            async with anyio.create_task_group() as tasks:
                for _ in range(MAX_JOIN_SESSIONS + 5):
                    tasks.start_soon(attack, good)
            assert 6 << 20 < max(held) <= 8 << 20
        await anyio.sleep(70)
        # All of it is given back.
        await c.join(good)
        assert not +a.invitations._held
        assert not +a.invitations._sessions
