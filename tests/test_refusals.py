"""Members who fill the register with batches that do not hold."""

from __future__ import annotations

import anyio

from tests.sim.virtual import group, in_virtual_time
from tests.waiting import until
from walyoff import Channel
from walyoff.engine.facts import Reason
from walyoff.engine.refusals import AGAIN_S
from walyoff.epochs import seal_anchor
from walyoff.records import Record, decode_batch, make_batch

MANY = 40


async def fill(channel: Channel, *, signed_by: Channel, count: int = MANY) -> None:
    """Write an anchor of batches that a member did not sign, and of rubbish."""
    engine = channel.engine
    stored = await engine.store.batches(signed_by.me, 1, 1)
    held = decode_batch(stored[0].body)
    forged = []
    for number in range(count):
        record = held.records[0]._replace(time_ms=held.records[0].time_ms + number + 1)
        forged.append((_batch(held.certificate_id, signed_by, record), b"signature"))
    rubbish = [(b"rubbish %d" % n, b"") for n in range(count)]
    payload = seal_anchor(
        engine.anchors.newest_epoch(),
        [],
        [*forged, *rubbish],
        salt=engine.runtime.random_bytes(16),
    )
    await engine.anchors._ledger.append(payload)


def _batch(certificate_id: bytes, author: Channel, record: Record) -> bytes:
    batch = make_batch(
        channel=author.did,
        author=author.me,
        certificate_id=certificate_id,
        first_seq=2,
        prev=bytes(32),
        seen=[],
        records=[record],
    )
    return batch.body


@in_virtual_time
async def test_a_member_that_fills_the_register_is_named_once_in_a_while() -> None:
    async with group(3) as g:
        a, b, c = g.channels
        await (await b.send(b"held by all")).wait_received(by=[a.me, c.me])
        await fill(c, signed_by=b)
        await until(lambda: a.status()["refused_batches"].get("", 0) == MANY)
        # All are counted, by the member that is named in them and by reason.
        assert a.status()["refused_batches"] == {b.me: MANY, "": MANY}
        faults = a.status()["faults"]
        assert faults == {Reason.WRONG_SIGNATURE: MANY, "malformed": MANY}
        assert sorted(r.subject == b.me for r in a.reports()) == [False, True]
        await fill(c, signed_by=b, count=7)
        await until(lambda: a.status()["refused_batches"][""] == MANY + 7)
        assert len(a.reports()) == 2
        await anyio.sleep(AGAIN_S)
        await fill(c, signed_by=b, count=1)
        await until(lambda: len(a.reports()) == 4)
        assert all(f"{MANY + 6} more" in r.detail for r in a.reports()[2:])
        # What holds still counts.
        await (await b.send(b"after")).wait_received(by=[a.me, c.me])
        assert a.status()["forked"] == []


@in_virtual_time
async def test_one_member_does_not_hide_another() -> None:
    async with group(3) as g:
        a, b, c = g.channels
        for channel in (b, c):
            await (await channel.send(b"held")).wait_received(by=a.me)
        await fill(c, signed_by=b)
        await fill(b, signed_by=c, count=3)
        await until(lambda: a.status()["refused_batches"].get(c.me, 0) == 3)
        named = {r.subject for r in a.reports()}
        assert {b.me, c.me} <= named
