"""Clocks that are wrong, and keys that grow old."""

from __future__ import annotations

import anyio
import pytest

from tests.sim.virtual import in_virtual_time, read
from walyoff import Channel
from walyoff.abc import NewBatch, StoredContent
from walyoff.errors import InvitationError
from walyoff.records import KIND_MESSAGE, Record, commit, make_batch
from walyoff.testing.world import SimWorld

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S
#: Virtual hours would pass in seconds, but a test that takes them counts as stuck.
CHECK_S = 60.0


@pytest.fixture(autouse=True)
def _renewal_is_looked_at_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("walyoff.running.RENEWAL_CHECK_S", CHECK_S)


def certificate_id(channel: Channel) -> bytes:
    return channel.engine.credentials.certificate.certificate_id


@in_virtual_time
async def test_a_joiner_whose_clock_is_hours_ahead_can_use_a_short_invitation() -> None:
    world = SimWorld(1)
    world.skew_s["b"] = 10 * HOUR_S
    async with world.device("a") as a, world.device("b") as b:
        channel = await a.create_channel("family")
        theirs = await b.join(await channel.invite(lifetime=60))
        await channel.send(b"hello")
        assert await read(theirs, 1) == [b"hello"]


@in_virtual_time
async def test_an_expired_invitation_is_refused_by_the_inviters_clock_or_the_own() -> None:
    world = SimWorld(1)
    world.skew_s["b"] = -10 * HOUR_S
    async with world.device("b") as b:
        async with world.device("a") as a:
            channel = await a.create_channel("family")
            invitation = await channel.invite(lifetime=60)
            await anyio.sleep(61)
            with pytest.raises(InvitationError, match="expired"):
                await b.join(invitation)
        # What is in the string is coarse: four hours later it has expired for everybody.
        b.runtime._skew_ms = int(4 * HOUR_S * 1000)  # type: ignore[attr-defined]
        with pytest.raises(InvitationError, match="expired"):
            await b.join(invitation)


@in_virtual_time
async def test_a_key_from_a_time_that_was_wrong_is_replaced_when_the_clock_is_right() -> None:
    world = SimWorld(1)
    world.skew_s["a"] = 400 * DAY_S
    async with world.device("a") as a:
        old = certificate_id(await a.create_channel("family"))
    world.skew_s["a"] = 0
    async with world.device("a") as a, world.device("b") as b:
        channel = a.channel("family")
        assert certificate_id(channel) != old
        theirs = await b.join(await channel.invite())
        await theirs.wait_peer(channel.me)


@in_virtual_time
async def test_a_device_that_runs_for_months_renews_its_key() -> None:
    world = SimWorld(1)
    async with world.device("a") as a:
        channel = await a.create_channel("family")
        first = certificate_id(channel)
        # Its clock is set, rather than that months of heartbeats pass.
        a.runtime._skew_ms = int(50 * DAY_S * 1000)  # type: ignore[attr-defined]
        await anyio.sleep(1.5 * CHECK_S)
        assert certificate_id(channel) != first
        await channel.send(b"after")
        async with world.device("b") as b:
            b.runtime._skew_ms = int(50 * DAY_S * 1000)  # type: ignore[attr-defined]
            theirs = await b.join(await channel.invite())
            assert await read(theirs, 1) == [b"after"]


@in_virtual_time
async def test_what_a_crash_left_unsigned_is_signed_by_the_key_that_it_names() -> None:
    world = SimWorld(1)
    content = StoredContent(salt=bytes(32), data=b"left")
    async with world.device("a") as a:
        channel = await a.create_channel("family")
        head = channel.engine.reconciler.next_own()
        record = Record(0, KIND_MESSAGE, (), len(content.data), commit(bytes(32), b"left"))
        batch = make_batch(
            channel=channel.did,
            author=channel.me,
            certificate_id=certificate_id(channel),
            first_seq=1,
            prev=head.record_id,
            seen=[],
            records=[record],
        )
        left = NewBatch(
            author=channel.me,
            first_seq=1,
            batch_id=batch.batch_id,
            body=batch.body,
            signature=None,
            record_ids=batch.record_ids,
            contents=(content,),
        )
        # As a crash between the commit and the signature leaves it.
        await channel.engine.store.write(batches=[left], deliver=list(batch.record_ids))
    # Long enough that the next start makes a new key.
    world.skew_s = {"a": 50 * DAY_S, "b": 50 * DAY_S}
    async with world.device("a") as a, world.device("b") as b:
        channel = a.channel("family")
        assert certificate_id(channel) != batch.certificate_id
        await channel.send(b"next")
        theirs = await b.join(await channel.invite())
        assert await read(theirs, 2) == [b"left", b"next"]
