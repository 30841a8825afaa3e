"""Members who leave: what they get, what of theirs counts, and that all agree about it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any
from unittest import mock

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import waiting
from tests.sim.virtual import group, in_virtual_time, read, run
from walyoff import Channel, certificates, frames
from walyoff.accepting import judge
from walyoff.engine.facts import Reason
from walyoff.engine.links import LinkServer
from walyoff.engine.outbox import Outgoing
from walyoff.engine.removals import BAR_S, Statement, parse_statement
from walyoff.epochs import Epoch, open_anchor
from walyoff.errors import CipherError, LocalProtocolError, NotAMemberError
from walyoff.introducing import to_try
from walyoff.records import KIND_MESSAGE, KIND_REMOVAL, MAX_TIME_MS, Record, device_id
from walyoff.session import PeerPresented, dialling, peer
from walyoff.testing.network import Link

SOON = 30.0
until = partial(waiting.until, within=SOON)


def has_epoch(channel: Channel, other: Channel | None = None) -> bool:
    """True if a device has an epoch to write under, the same as another one's."""
    epoch = channel.engine.rotation.usable()
    return epoch is not None and (other is None or epoch == other.engine.rotation.usable())


async def contents(channel: Channel) -> set[bytes]:
    """What a device holds."""
    return {m.content async for m in channel.history() if m.content is not None}


async def agree(channels: list[Channel]) -> set[bytes]:
    """Wait until devices hold the same, and return it."""
    with anyio.fail_after(120):
        while True:
            held = [await contents(c) for c in channels]
            if all(h == held[0] for h in held):
                return held[0]
            await anyio.sleep(0.5)


async def send_anyway(channel: Channel, content: bytes) -> None:
    """Send although this device was removed: a hostile one does."""
    await channel.engine.outbox.send([Outgoing(content, (), KIND_MESSAGE)])


@in_virtual_time
async def test_a_removed_member_gets_nothing_more_although_it_is_connected() -> None:
    async with group(3) as g:
        a, b, c = g.channels
        await (await a.send(b"before")).wait_received(by=[b.me, c.me])
        assert c.me in a.peers()
        assert c.me in b.peers()
        await a.remove(c.me)
        assert c.me not in a.peers()
        receipt = await a.send(b"after, from a")
        await receipt.wait_received(by=b.me)
        await (await b.send(b"after, from b")).wait_received(by=a.me)
        await anyio.sleep(60)
        assert await contents(c) == {b"before"}
        assert await contents(a) == {b"before", b"after, from a", b"after, from b"}
        assert c.peers() == []
        with pytest.raises(NotAMemberError):
            await c.send(b"nobody hears me")


@in_virtual_time
async def test_a_new_epoch_begins_that_the_removed_member_never_gets() -> None:
    async with group(3) as g:
        a, b, c = g.channels
        (old,) = a.engine.epochs.values()
        await a.remove(c.me)
        receipt = await a.send(b"sealed anew")
        await until(lambda: b.engine.rotation.usable() is not None)
        assert await read(b, 1, anchored=True) == [b"sealed anew"]
        await receipt.wait_anchored()
        new = a.engine.rotation.usable()
        assert new == b.engine.rotation.usable()
        assert new is not None
        assert new != old
        await anyio.sleep(120)
        assert list(c.engine.epochs.values()) == [old]
        ledger = g.world.chain("a", f"{a.did}/ledger")
        payload = ledger.blocks[ledger.order[-1]][1]
        assert open_anchor(new, payload)
        with pytest.raises(CipherError):
            open_anchor(old, payload)


def test_who_hears_of_it_from_a_member_alone_passes_nothing_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The chain's word is lost here: the remover's own log says it before anything else."""

    async def nothing(self: LinkServer) -> None:
        await anyio.lowlevel.checkpoint()

    async def main() -> None:
        async with group(3) as g:
            a, b, c = g.channels
            monkeypatch.setattr(LinkServer, "announce_chains", nothing)
            monkeypatch.setattr(g.world, "gossip", lambda *args: None)
            await a.remove(c.me)
            await (await a.send(b"not for c")).wait_received(by=b.me)
            assert b.engine.trust.is_member(c.me), "b has not heard of it from the chain"
            assert c.me not in b.peers()
            epoch = a.engine.rotation.usable()
            assert epoch is not None
            await until(lambda: epoch.epoch_id in b.engine.epochs)
            await (await b.send(b"nor this")).wait_received(by=a.me)
            await anyio.sleep(BAR_S / 2)
            assert await contents(c) == set()
            assert epoch.epoch_id not in c.engine.epochs
            assert b.engine.rotation.usable() == epoch

    run("asyncio", main)


def test_an_epoch_is_not_given_to_whom_it_names_by_who_knows_nothing_else() -> None:
    async def main() -> None:
        async with group(3) as g:
            a, b, c = g.channels
            member = next(m for m in a.members() if m.did == c.me)
            epoch = a.engine.rotation.begin()
            named = type(epoch)(
                key=b"k" * 32,
                created_ms=epoch.created_ms + 1,
                ended=(device_id(c.me) + member.joined_at.to_bytes(8, "big"),),
            )
            link = next(s for s in a.engine.links.values() if s.link.did == b.me)
            a.engine.rotation.epochs[named.epoch_id] = named
            a.engine.rotation.give(link, [named])
            await until(lambda: named.epoch_id in b.engine.epochs)
            await until(lambda: epoch.epoch_id in c.engine.epochs)
            await anyio.sleep(60)
            assert c.me in b.peers()
            assert named.epoch_id not in c.engine.epochs

    run("asyncio", main)


@in_virtual_time
async def test_another_member_begins_the_epoch_if_the_remover_cannot() -> None:
    async with group(4) as g:
        a, b, c, d = g.channels
        a.engine.rotation.begin = a.engine.rotation.usable  # type: ignore[assignment]
        await a.remove(d.me)
        await until(lambda: b.engine.rotation.usable() is not None)
        await until(lambda: a.engine.rotation.usable() == b.engine.rotation.usable())
        await until(lambda: c.engine.rotation.usable() == b.engine.rotation.usable())
        await (await c.send(b"on we go")).wait_anchored()
        assert len(d.engine.epochs) == 1


@in_virtual_time
async def test_what_a_member_had_when_it_learned_of_the_removal_counts_for_all() -> None:
    async with group(4) as g:
        a, b, c, d = g.channels
        network = g.world.network
        network.partition("ab", "cd")
        await anyio.sleep(15)
        await (await c.send(b"heard by d")).wait_received(by=d.me)
        await a.remove(c.me)
        await a.send(b"c is out")
        network.repair()
        network.partition("abd", "c")
        assert await agree([a, b, d]) == {b"heard by d", b"c is out"}
        # What it writes from now on, whatever it claims, counts for nobody.
        await send_anyway(c, b"too late")
        await until(lambda: c.engine.anchors.blocks_written > 0)
        network.repair()
        # What it anchored under the old epoch, which all can open, reaches them as well.
        g.world.broadcast_leaves(f"{a.did}/ledger")
        await anyio.sleep(100)
        assert await agree([a, b, d]) == {b"heard by d", b"c is out"}
        assert len({x.engine.durable[c.me] for x in (a, b, d)}) == 1
        assert any(r.reason == Reason.NOT_A_MEMBER for r in a.reports())
        assert all(x.engine.rotation.usable() == a.engine.rotation.usable() for x in (b, d))
        assert b"c is out" not in await contents(c)


@in_virtual_time
async def test_removal_and_sending_at_once_converge_after_crashes() -> None:
    """The one who is removed writes all the time; the limit survives restarts."""
    async with group(4) as g:
        a, b, c, d = g.channels

        async def chatter() -> None:
            for n in range(60):
                await send_anyway(c, b"%d" % n)
                await anyio.sleep(0.01)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(chatter)
            await anyio.sleep(0.2)
            await a.remove(c.me)
        held = await agree([a, b, d])
        assert 0 < len(held) < 60
    async with g.world.device("b") as two, g.world.device("d") as four:
        b, d = two.channel("family"), four.channel("family")
        assert await contents(b) == held
        await anyio.sleep(5)
        own = [r.kind async for m, r in b.records() if m.author == b.me]
        assert own == [KIND_REMOVAL], "it said so once, and knows it"
        async with g.world.device("e") as five:
            e = await five.join(await b.invite())
            assert await agree([b, d, e]) == held, "a newcomer reads what counted"


@in_virtual_time
async def test_a_removed_member_that_is_invited_again_works_again() -> None:
    async with group(3) as g:
        a, b, c = g.channels
        await (await c.send(b"first time")).wait_received(by=[a.me, b.me])
        await a.remove(c.me)
        await (await a.send(b"while it was away")).wait_received(by=b.me)
        await until(lambda: not c.engine.trust.is_member(c.me))
        again = await g.devices[2].join(await b.invite())
        assert again.did == c.did
        assert again.name == "family"
        await (await again.send(b"back")).wait_received(by=[a.me, b.me])
        assert await agree([a, b, again]) == {b"first time", b"while it was away", b"back"}
        await until(lambda: again.engine.rotation.usable() is not None)
        await until(lambda: a.engine.rotation.usable() == again.engine.rotation.usable())
        await (await a.send(b"for all three")).wait_received(by=[b.me, again.me])
        # And out again: the epoch of its first absence, which it knows now, is not used.
        known = set(again.engine.epochs)
        await b.remove(again.me)
        await until(lambda: a.engine.rotation.usable() == b.engine.rotation.usable())
        used = a.engine.rotation.usable()
        assert used is not None
        assert used.epoch_id not in known
        await anyio.sleep(60)
        assert used.epoch_id not in again.engine.epochs


@pytest.mark.parametrize("count", [2, 3])
def test_of_two_who_remove_each_other_both_are_out_on_every_device(count: int) -> None:
    async def main() -> None:
        async with group(count) as g:
            a, b = g.channels[:2]
            g.world.network.partition("a", "bc")
            await anyio.sleep(15)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(a.remove, b.me)
                tasks.start_soon(b.remove, a.me)
            g.world.network.repair()
            g.world.broadcast_leaves(f"{a.did}/identity")
            rest = [c.me for c in g.channels[2:]]
            await until(lambda: all(not c.peers() for c in g.channels), within=60)
            for channel in g.channels[2:]:
                assert [m.did for m in channel.members()] == rest
                await until(partial(has_epoch, channel))
                assert not {a.me, b.me} & set(channel.peers())

    run("asyncio", main)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_member_who_lies_about_a_leaving_shuts_nobody_out_for_good(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("walyoff.engine.removals.BAR_S", 60.0)
    run(backend, lie_about_a_leaving)


async def lie_about_a_leaving() -> None:
    async with group(3) as g:
        a, b, c = g.channels
        member = next(m for m in a.members() if m.did == c.me)
        lie = Statement(device_id(c.me), member.joined_at, 0, bytes(32))
        await a.engine.outbox.send([Outgoing(b"", lie.topics(), KIND_REMOVAL)])
        await until(lambda: c.me not in b.peers())
        await anyio.sleep(100)
        await until(lambda: c.me in b.peers(), within=120)
        await (await c.send(b"still here")).wait_received(by=b.me)


@in_virtual_time
async def test_what_a_liar_states_and_gives_is_bounded_and_spoils_nothing() -> None:
    """It states another last record than the true one, unknown devices, and gives epochs."""
    async with group(4) as g:
        a, b, c, d = g.channels
        await (await c.send(b"true")).wait_received(by=[a.me, b.me, d.me])
        member = next(m for m in a.members() if m.did == c.me)
        lies = [Statement(device_id(c.me), member.joined_at, 1, b"x" * 32)]
        lies += [Statement(n.to_bytes(16), 0, 9, bytes(32)) for n in range(600)]
        await d.engine.outbox.send([Outgoing(b"", s.topics(), KIND_REMOVAL) for s in lies])
        link = next(s for s in d.engine.links.values() if s.link.did == b.me)
        for n in range(100):
            names = tuple(i.to_bytes(24) for i in range(512))
            link.send(frames.EpochKeys((Epoch(key=n.to_bytes(32), created_ms=1, ended=names),)))
        await a.remove(c.me)
        await anyio.sleep(5)
        assert len(b.engine.removals._known) <= 256 + 4
        assert sum(len(e.ended) for e in b.engine.epochs.values()) <= 16 * 1024
        async with g.world.device("e") as device:
            e = await device.join(await a.invite())
            assert await read(e, 1) == [b"true"]
    # The store takes it all back.
    async with g.world.device("b") as device:
        assert device.channel("family").engine.rotation.usable() is not None


@in_virtual_time
async def test_statements_are_no_messages() -> None:
    async with group(3) as g:
        a, b, c = g.channels
        await a.send(b"one")
        await a.remove(c.me)
        await (await a.send(b"two")).wait_received(by=b.me)
        assert await read(b, 2) == [b"one", b"two"]
        assert [m.content for m in await b.last(10)] == [b"one", b"two"]
        kinds = [record.kind async for _, record in b.records()]
        assert kinds.count(KIND_REMOVAL) == 2, "the remover's and b's own"


@in_virtual_time
async def test_wrong_removals_are_refused() -> None:
    async with group(2) as g:
        a, b = g.channels
        with pytest.raises(LocalProtocolError):
            await a.remove(a.me)
        with pytest.raises(NotAMemberError):
            await a.remove("did:sim:nobody")
        await a.remove(b.me)
        with pytest.raises(NotAMemberError):
            await a.remove(b.me)
        await until(lambda: not b.engine.trust.is_member(b.me))
        with pytest.raises(NotAMemberError):
            await b.remove(a.me)


def test_a_removal_that_fails_changes_nothing() -> None:
    async def main() -> None:
        async with group(2) as g:
            a, b = g.channels

            async def fails(did: str) -> None:
                await anyio.lowlevel.checkpoint()
                raise CipherError("no")

            a.foundation.identity.remove_member = fails  # type: ignore[method-assign]
            with pytest.raises(CipherError):
                await a.remove(b.me)
            await a.wait_peer(b.me)
            await (await a.send(b"all is well")).wait_received(by=b.me)

    run("asyncio", main)


_TOPICS = st.lists(st.text(min_size=1, max_size=64), max_size=8).map(tuple)


@given(_TOPICS, st.integers(0, 255), st.integers(0, 10))
def test_any_record_is_a_statement_or_none(topics: Any, kind: int, size: int) -> None:
    found = parse_statement(Record(MAX_TIME_MS, kind, topics, size, bytes(32)))
    assert found is None or found.topics() == topics


@given(
    st.builds(
        Statement,
        st.binary(min_size=16, max_size=16),
        st.integers(0, 1 << 62),
        st.integers(0, 1 << 62),
        st.binary(min_size=32, max_size=32),
    )
)
def test_statements_come_back_as_they_were(statement: Statement) -> None:
    assert parse_statement(Record(0, KIND_REMOVAL, statement.topics(), 0, b"")) == statement


def make_world(loss: float) -> Callable[[], Awaitable[None]]:
    async def main() -> None:
        async with group(
            4, Link(latency=0.05, jitter=0.05, loss=loss), seed=int(loss * 99)
        ) as g:
            a, b, c, d = g.channels
            for n in range(5):
                await c.send(b"c%d" % n)
                await b.send(b"b%d" % n)
            g.world.network.partition("ac", "bd")
            await c.send(b"to a alone")
            await anyio.sleep(1)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(b.remove, c.me)
                tasks.start_soon(d.remove, c.me)
            await anyio.sleep(1)
            g.world.network.repair()
            await agree([a, b, d])
            for channel in (b, d):
                await until(partial(has_epoch, channel, a), within=120)

    return main


@pytest.mark.parametrize("loss", [0.0, 0.3, 0.6])
def test_two_who_remove_the_same_one_at_once_converge(loss: float) -> None:
    run("asyncio", make_world(loss))


@in_virtual_time
async def test_who_leaves_in_the_middle_of_a_handshake_gets_no_session() -> None:
    async with group(3) as g:
        a, _, c = g.channels
        await until(lambda: a.connections.session(c.me) is not None)
        held = a.connections.session(c.me)
        assert held is not None
        served: list[str] = []

        def gone(step: Callable[..., Awaitable[peer.Session]]) -> Any:
            async def shake(*args: Any, **kwargs: Any) -> peer.Session:
                session = await step(*args, **kwargs)
                if kwargs["runtime"] is a.engine.runtime and session.did == c.me:
                    # The certificate was judged before.
                    a.engine.trust.barred.add(c.me)
                    served.append(session.name)
                return session

            return shake

        with (
            mock.patch("walyoff.accepting.answer", gone(dialling.answer)),
            mock.patch("walyoff.node.dial", gone(dialling.dial)),
        ):
            held.close()
            await until(lambda: bool(served))
            for _ in range(100):
                await anyio.sleep(0.05)
                assert a.connections.session(c.me) in {None, held}


@in_virtual_time
async def test_the_certificate_of_who_left_is_not_checked() -> None:
    async with group(3) as g:
        a, b, c = g.channels
        await b.remove(c.me)
        await until(lambda: not a.engine.trust.admits(c.me))
        signed = certificates.decode(c.handshake_context().certificate)
        shown = PeerPresented(certificate=signed, encoded=c.handshake_context().certificate)
        # As one that was not seen before.
        a.engine.trust._trusted.clear()
        with (
            mock.patch.object(a.engine.trust.identity, "verify", side_effect=AssertionError),
            pytest.raises(NotAMemberError, match="not a member now"),
        ):
            await judge(a)(shown)


DAY_MS = 24 * 3600 * 1000


def _invented(kind: str, number: int, since_ms: int) -> Epoch:
    """An epoch that a member hands out for nothing."""
    ended = () if kind == "like the real one" else (number.to_bytes(24),)
    return Epoch(key=number.to_bytes(32), created_ms=since_ms + number, ended=ended)


@pytest.mark.parametrize("kind", ["like the real one", "of nobody"])
def test_who_filled_the_room_for_epochs_does_no_harm_after_it_was_removed(kind: str) -> None:
    async def main() -> None:
        async with group(3) as g:
            a, b, c = g.channels
            await until(lambda: all(has_epoch(x, a) for x in g.channels))
            real = a.engine.rotation.usable()
            assert real is not None
            for start in range(1, 1100, 50):
                many = tuple(
                    _invented(kind, n, real.created_ms + DAY_MS)
                    for n in range(start, start + 50)
                )
                for link in c.engine.links.values():
                    link.send(frames.EpochKeys(many))
                await anyio.sleep(0.1)
            for channel in (a, b):
                room = channel.engine.rotation._room
                assert not room.has([_invented(kind, 5000, 0)])
            await b.remove(c.me)
            await until(lambda: has_epoch(b) and has_epoch(a, b))
            # One epoch for both, not one each; and what is real opens what was.
            await anyio.sleep(10)
            assert has_epoch(a, b)
            now = b.engine.rotation.usable()
            assert now is not None
            for channel in (a, b):
                assert real.epoch_id in channel.engine.rotation.epochs
                # Introductions begin with what the others can check, however new the rest is.
                assert to_try(channel)[0] == now
                assert () in {epoch.ended for epoch in to_try(channel)}
            assert now.created_ms <= b.engine.runtime.wall_ms()

    run("asyncio", main)
