"""Device keys that renew: by age, by use, by another suite; and what an old key is good for."""

from __future__ import annotations

from collections.abc import Sequence
from unittest import mock

import anyio
import pytest

from tests.sim.virtual import Group, group, in_virtual_time, read, run
from walyoff import Channel, Device, frames
from walyoff.accepting import judge
from walyoff.engine.facts import Reason
from walyoff.errors import RemoteProtocolError
from walyoff.records import KIND_MESSAGE, Batch, Record, commit, make_batch, signed_message
from walyoff.session.dialling import dial
from walyoff.session.peer import Session
from walyoff.testing.world import SimWorld
from walyoff.trust import CERTIFICATE_LIFETIME_MS, Credentials, make_credentials
from walyoff.unused import MAX_UNUSED

DAY_S = 24 * 3600.0
CHECK_S = 60.0
SALT = bytes(32)


@pytest.fixture(autouse=True)
def _renewal_is_looked_at_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("walyoff.running.RENEWAL_CHECK_S", CHECK_S)


def certificate_id(channel: Channel) -> bytes:
    return channel.engine.credentials.certificate.certificate_id


def set_clocks(devices: Sequence[Device], days: float) -> None:
    """Set the clocks, rather than that months of heartbeats pass."""
    for device in devices:
        device.runtime._skew_ms = int(days * DAY_S * 1000)  # type: ignore[attr-defined]


def forged(victim: Channel, key: Credentials, time_ms: int) -> tuple[Batch, bytes]:
    """A next batch in a victim's name, signed by a key of the victim's."""
    head = victim.engine.reconciler.next_own()
    batch = make_batch(
        channel=victim.did,
        author=victim.me,
        certificate_id=key.certificate.certificate_id,
        first_seq=head.seq + 1,
        prev=head.record_id,
        seen=[],
        records=[Record(time_ms, KIND_MESSAGE, (), 6, commit(SALT, b"forged"))],
    )
    return batch, key.sign_key.sign(signed_message(batch.batch_id))


async def forge(victim: Channel, key: Credentials, time_ms: int, to: str) -> None:
    """Give a device such a batch."""
    engine = victim.engine
    batch, signature = forged(victim, key, time_ms)
    link = next(state for state in engine.links.values() if state.link.did == to)
    link.certify(key.encoded, key.certificate.certificate_id)
    link.send(frames.BatchFrame(batch.body, signature, ((SALT, b"forged"),)))
    await anyio.sleep(1)


async def replaced_key(g: Group) -> Credentials:
    """What the first device signed with before it got a new key that the second knows of."""
    a, b = g.channels
    await (await a.send(b"mine")).wait_received(by=b.me)
    replaced = a.engine.credentials
    set_clocks(g.devices, 50)
    await anyio.sleep(1.5 * CHECK_S)
    await (await a.send(b"by the new key")).wait_received(by=b.me)
    return replaced


async def hear(session: Session) -> None:
    """Read what a session says; there must be nothing."""
    async with session.run():
        async for frame in session.frames():
            raise AssertionError(f"a replaced key was told {frame}")


@in_virtual_time
async def test_a_replaced_key_does_not_pass_while_the_one_before_arrives() -> None:
    async with group(2) as g:
        a, b = g.channels
        stolen = await replaced_key(g)
        held = b.engine.durable[a.me]
        g.world.network.partition("a", "b")
        await a.send(b"not there yet")
        await anyio.sleep(1)
        (missing,) = await a.engine.store.batches(a.me, held + 1, held + 1)
        assert missing.signature is not None
        batch, signature = forged(a, stolen, 0)
        inbox, heed = b.engine.inbox, b.engine.removals.heed

        async def heed_slowly(said: Batch) -> None:
            if said.batch_id == batch.batch_id:
                await inbox.offer(missing.body, missing.signature or b"", None, None)
            await heed(said)

        with (
            mock.patch.object(b.engine.removals, "heed", heed_slowly),
            pytest.raises(RemoteProtocolError, match="replaced key"),
        ):
            await inbox.offer(batch.body, signature, ((SALT, b"forged"),), None)
        assert b.engine.reconciler.heads[a.me].seq == held + 1


@in_virtual_time
async def test_keys_renew_while_messages_flow_and_old_messages_stay_verifiable() -> None:
    async with group(2) as g:
        a, b = g.channels
        first = certificate_id(a)
        await (await a.send(b"old")).wait_received(by=b.me)
        set_clocks(g.devices, 50)
        await anyio.sleep(1.5 * CHECK_S)
        assert certificate_id(a) != first
        await (await a.send(b"new")).wait_received(by=b.me)
        assert b.engine.trust.is_retired(first)
        # A newcomer verifies both, by two keys.
        async with g.world.device("c") as device:
            set_clocks([device], 50)
            c = await device.join(await b.invite())
            assert await read(c, 2) == [b"old", b"new"]
        # A new session is under the new key.
        g.world.network.partition("a", "b")
        await anyio.sleep(15)
        g.world.network.repair()
        await b.wait_peer(a.me)
        (session,) = (s for s in b.connections.sessions() if s.did == a.me)
        assert session.peer.certificate.certificate_id == certificate_id(a)


def test_a_key_that_has_signed_much_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("walyoff.running.MAX_SIGNATURES", 10)

    async def main() -> None:
        async with group(2) as g:
            a, b = g.channels
            first, other = certificate_id(a), certificate_id(b)
            for n in range(10):
                await a.send(b"%d" % n)
            await anyio.sleep(1.5 * CHECK_S)
            assert certificate_id(a) != first
            assert certificate_id(b) == other
            await (await a.send(b"10")).wait_received(by=b.me)

    run("asyncio", main)


@in_virtual_time
async def test_what_is_written_after_a_certificates_end_is_refused() -> None:
    async with group(2) as g:
        a, b = g.channels
        key = a.engine.credentials
        await forge(a, key, key.certificate.not_after_ms + 1, b.me)
        assert a.me not in b.engine.durable
        assert {r.reason for r in b.reports()} == {Reason.EXPIRED_KEY}


@in_virtual_time
async def test_a_device_whose_clock_is_set_far_ahead_is_still_believed() -> None:
    async with group(2) as g:
        a, b = g.channels
        set_clocks(g.devices[:1], CERTIFICATE_LIFETIME_MS / DAY_S / 1000 + 10)
        await (await a.send(b"before the key is renewed")).wait_received(by=b.me)
        assert b.reports() == []


def test_who_stole_a_replaced_key_can_neither_write_nor_connect() -> None:
    async def main() -> None:
        async with group(2) as g:
            a, b = g.channels
            stolen = await replaced_key(g)
            held = b.engine.durable[a.me]
            await forge(a, stolen, 0, b.me)
            assert b.engine.durable[a.me] == held
            assert Reason.OLD_KEY in {r.reason for r in b.reports()}
            # The refusal is not held against what the device itself writes next.
            await (await a.send(b"still mine")).wait_received(by=b.me)
            context = a.handshake_context()
            context = type(context)(
                channel=context.channel,
                sign_key=stolen.sign_key,
                certificate=stolen.encoded,
            )
            device = g.devices[0]
            stream = await device.connect_stream(g.devices[1].addresses[0])
            session = await dial(
                stream,
                mode="member",
                tag_key=a.state.tag_key,
                context=context,
                suites=device.suites(),
                judge=judge(a),
                runtime=device.runtime,
            )
            # The initiator is done first; the refusal is the first thing that it hears.
            with pytest.raises((RemoteProtocolError, anyio.BrokenResourceError)):
                await hear(session)

        # And that is so after a restart.
        async with g.world.device("b") as device:
            assert device.channel("family").engine.trust.is_retired(
                stolen.certificate.certificate_id
            )

    run("asyncio", main)


@in_virtual_time
async def test_sessions_with_expired_certificates_end() -> None:
    async with group(2) as g:
        a, b = g.channels
        assert a.peers() == [b.me]
        a.engine.credentials = a.engine.credentials
        a.connections.end_expired(g.devices[0].runtime.wall_ms())
        assert a.peers() == [b.me]
        a.connections.end_expired(g.devices[0].runtime.wall_ms() + CERTIFICATE_LIFETIME_MS + 1)
        await anyio.sleep(0.01)
        assert a.peers() == []


@pytest.mark.parametrize("suites", [("classic-1", "hybrid-1"), ("hybrid-1", "classic-1")])
def test_a_member_moves_to_another_suite_without_joining_again(suites: tuple[str, str]) -> None:
    async def main() -> None:
        world = SimWorld(3)
        old, new = suites
        async with world.device("b", suite="classic-1") as two:
            async with world.device("a", suite=old) as one:
                a = await one.create_channel("family")
                b = await two.join(await a.invite())
                await (await a.send(b"old suite")).wait_received(by=b.me)
                did = a.me
            async with world.device("a", suite=new) as one:
                a = one.channel("family")
                assert a.me == did
                assert a.engine.credentials.certificate.suite == new
                await (await a.send(b"new suite")).wait_received(by=b.me)
                (session,) = b.connections.sessions()
                assert session.peer.certificate.suite == new
                assert await read(b, 2) == [b"old suite", b"new suite"]

    run("asyncio", main)


async def certify_more(device: Device, channel: Channel, number: int) -> list[Credentials]:
    """Certificates that a member makes for itself and writes nothing by."""
    made = []
    for _ in range(number):
        made.append(
            await make_credentials(
                channel=channel.did,
                identity=channel.foundation.identity,
                store=device._store,
                suite="classic-1",
                now_ms=device.runtime.wall_ms(),
                renew=True,
            )
        )
    return made


@in_virtual_time
async def test_certificates_that_a_member_makes_without_end_cost_its_own_alone() -> None:
    async with group(3) as g:
        a, b, c = g.channels
        for channel in (a, b):
            await (await channel.send(b"before")).wait_received(by=c.me)
        used = [certificate_id(a), certificate_id(b)]
        quiet = certificate_id(c)
        assert await a.engine.trust.load(quiet) is not None
        link = next(state for state in b.engine.links.values() if state.link.did == c.me)
        flood = await certify_more(g.devices[1], b, 3 * MAX_UNUSED)
        for one in flood:
            link.certify(one.encoded, one.certificate.certificate_id)
        await anyio.sleep(2)
        store = c.engine.trust.store
        kept = await store.keys(f"certificate/{c.did}/")
        # Of b the newest, and the one that it writes by; of the others all.
        assert len(kept) == MAX_UNUSED + 3
        for one in flood[:-MAX_UNUSED]:
            assert await c.engine.trust.load(one.certificate.certificate_id) is None
        for wanted in (*used, quiet, flood[-1].certificate.certificate_id):
            assert await c.engine.trust.load(wanted) is not None
        # Everything goes on, also by one of those that were let go.
        b.engine.credentials = flood[0]
        await (await b.send(b"after")).wait_received(by=c.me)
        assert await read(c, 3) == [b"before", b"before", b"after"]
        assert c.engine.trust.is_retired(used[1])
        for one in await certify_more(g.devices[1], b, MAX_UNUSED + 1):
            link.certify(one.encoded, one.certificate.certificate_id)
        await anyio.sleep(2)
        for wanted in (used[1], flood[0].certificate.certificate_id):
            assert await c.engine.trust.load(wanted) is not None
