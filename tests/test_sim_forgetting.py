"""Forgetting by consent, by whole devices in virtual time: who is asked, what is destroyed."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Any

import anyio
import pytest
from anyio.abc import ByteReceiveStream

from tests.sim.virtual import Group, group, in_virtual_time, run
from walyoff import Channel, LocalProtocolError, NotAMemberError
from walyoff.attachments import Attachment
from walyoff.engine.consent import ERASED, State, Statement
from walyoff.engine.outbox import Outgoing
from walyoff.errors import StoreError
from walyoff.forgetting import ForgetRequest
from walyoff.records import CHUNK_SIZE, KIND_CONSENT
from walyoff.testing.network import Link
from walyoff.testing.virtual import SimRuntime

SECRET = b"what nobody should have said"
SOON = 30.0


def disk(g: Group, name: str) -> Any:
    """What a device has on its disk of the channel."""
    return g.world.disk(name).channels[g.channels[0].did]


def holds(g: Group, name: str, message: bytes) -> bool:
    return message in disk(g, name).contents


async def until(check: Any, *, within: float = SOON) -> None:
    with anyio.fail_after(within):
        while True:
            value = check()
            if hasattr(value, "__await__"):
                value = await value
            if value:
                return
            await anyio.sleep(0.05)


async def told(g: Group, text: bytes = SECRET, sender: int = 0, **options: Any) -> bytes:
    """A message that all devices hold."""
    receipt = await g.channels[sender].send(text, **options)
    others = [c.me for i, c in enumerate(g.channels) if i != sender]
    await receipt.wait_received(by=others)
    return receipt.id


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(data), CHUNK_SIZE):
        yield data[at : at + CHUNK_SIZE]


async def first_file(channel: Channel) -> Attachment:
    """The attachment of the first message."""
    message = await anext(channel.messages())
    assert message.attachment is not None
    return message.attachment


async def drain(source: ByteReceiveStream) -> None:
    while True:
        await source.receive()


async def request(channel: Channel) -> ForgetRequest:
    with anyio.fail_after(SOON):
        return await anext(channel.forget_requests())


async def gone_everywhere(g: Group, message: bytes, names: str = "abc") -> None:
    await until(lambda: not any(holds(g, n, message) for n in names))


def in_memory(channel: Channel) -> bool:
    engine = channel.engine
    return any(m.content == SECRET for m in engine.recent._by_position.values())


@in_virtual_time
async def test_a_message_is_forgotten_when_all_agree() -> None:
    async with group(3) as g:
        a, b, c = g.channels
        reader = c.messages()
        message = await told(g)
        kept = await told(g, b"this stays", sender=1)
        await a.forget(message, reason="a mistake")
        asked = await request(b)
        assert (asked.id, asked.reason, asked.author) == (message, "a mistake", a.me)
        await request(c)
        await b.approve(message)
        await anyio.sleep(5)
        status = await a.forget_status(message)
        assert status.state is State.OPEN
        assert status.waiting == (c.me,)
        assert {word.voice for word in status.agreed} == {a.me, b.me}
        assert all(holds(g, n, message) for n in "abc")
        await c.approve(message)
        await gone_everywhere(g, message)
        await until(lambda: not any(map(in_memory, g.channels)))

        async def confirmed() -> bool:
            return len((await a.forget_status(message)).erased) == 3

        await until(confirmed)
        for channel in g.channels:
            status = await channel.forget_status(message)
            assert status.state is State.FORGOTTEN
            assert status.erased_here
            assert not status.not_yet
            (shown, other) = [m async for m in channel.history()]
            assert shown.id == message
            assert shown.content is None
            assert shown.forgotten is not None
            assert {w.voice for w in shown.forgotten.agreed} == {a.me, b.me, c.me}
            assert shown.forgotten.reason == "a mistake"
            assert (other.id, other.content, other.forgotten) == (kept, b"this stays", None)
        # A stream that began before shows it as forgotten as well.
        assert (await anext(reader)).content is None
        with pytest.raises(LocalProtocolError, match="is forgotten"):
            await a.forget(message)


@in_virtual_time
async def test_refusing_and_withdrawing() -> None:
    async with group(3) as g:
        a, b, c = g.channels
        message = await told(g)
        with pytest.raises(LocalProtocolError, match="nobody asks"):
            await b.approve(message)
        await a.forget(message)
        await request(b)
        await request(c)
        await b.refuse(message)
        await c.approve(message)
        await anyio.sleep(10)
        status = await a.forget_status(message)
        assert (status.state, status.waiting) == (State.REFUSED, (b.me,))
        assert all(holds(g, n, message) for n in "abc")
        # The proposal is taken back: what was said about it leads to nothing.
        await a.withdraw(message)
        await b.approve(message) if (await b.forget_status(message)).proposed else None
        await anyio.sleep(10)
        assert (await c.forget_status(message)).state is State.NONE
        assert all(holds(g, n, message) for n in "abc")
        with pytest.raises(LocalProtocolError, match="said nothing"):
            await a.withdraw(message)
        # A new proposal, and b has thought better of it.
        await c.forget(message)
        await anyio.sleep(5)
        await b.withdraw(message)
        await b.approve(message)
        await a.approve(message)
        await gone_everywhere(g, message)


@in_virtual_time
async def test_policies_answer_and_are_kept() -> None:
    async with group(3) as g:
        a, b, c = g.channels
        mine, hers = await told(g), await told(g, b"by b", sender=1)
        seen: list[ForgetRequest] = []

        async def decide(asked: ForgetRequest) -> bool:
            seen.append(asked)
            return True

        await b.set_forget_policy("author-only")
        await c.set_forget_policy(decide)
        await a.forget(hers)
        assert (await request(b)).id == hers, (
            "its author is asked, as somebody else proposes it"
        )
        await a.forget(mine)
        await gone_everywhere(g, mine)
        assert holds(g, "a", hers)
        await b.approve(hers)
        await gone_everywhere(g, hers)
        assert {asked.id for asked in seen} == {mine, hers}
        with pytest.raises(LocalProtocolError, match="a policy is one of"):
            await c.set_forget_policy("never")
        await c.set_forget_policy("auto")
        assert g.world.disk("c").values[f"forget-policy/{c.did}"] == b"auto"


@in_virtual_time
async def test_a_policy_that_breaks_asks_the_person() -> None:
    async with group(2) as g:
        a, b = g.channels
        message = await told(g)

        def broken(asked: ForgetRequest) -> bool:
            raise ZeroDivisionError

        await b.set_forget_policy(broken)
        await a.forget(message)
        assert (await request(b)).id == message
        await b.approve(message)
        await gone_everywhere(g, message, "ab")


@in_virtual_time
async def test_who_leaves_no_longer_counts_and_who_joins_does() -> None:
    async with group(3) as g:
        a, b, c = g.channels
        message = await told(g)
        await a.forget(message)
        await request(b)
        async with g.world.device("d") as device:
            d = await device.join(await a.invite())
            await until(lambda: holds(g, "d", message))
            await b.approve(message)
            await a.remove(c.me)
            await anyio.sleep(10)
            status = await a.forget_status(message)
            assert status.waiting == (d.me,)
            assert status.cannot_be_forced == (c.me,)
            assert (await request(d)).id == message
            await d.approve(message)
            await gone_everywhere(g, message, "abd")
            # c was asked, is not counted, and may do for itself what it was asked.
            assert holds(g, "c", message)
            status = await a.forget_status(message)
            assert (status.state, status.cannot_be_forced) == (State.FORGOTTEN, (c.me,))
            with pytest.raises(NotAMemberError):
                await c.refuse(message)
            await c.approve(message)
            assert not holds(g, "c", message)


@in_virtual_time
async def test_a_removed_device_destroys_what_its_person_agreed_to() -> None:
    async with group(3) as g:
        a, b, c = g.channels
        message = await told(g)
        await a.forget(message)
        await request(c)
        await c.approve(message)
        await anyio.sleep(2)
        await a.remove(c.me)
        await gone_everywhere(g, message, "c")
        assert holds(g, "a", message), "b has not agreed"
        await b.approve(message)
        await gone_everywhere(g, message, "ab")


@in_virtual_time
async def test_who_joins_later_never_gets_it_and_sees_who_agreed() -> None:
    async with group(2) as g:
        a, b = g.channels
        message = await told(g)
        await b.set_forget_policy("auto")
        await a.forget(message)
        await gone_everywhere(g, message, "ab")
        async with g.world.device("d") as device:
            d = await device.join(await a.invite())
            await until(lambda: message in disk(g, "d").forgotten)
            (shown,) = [m async for m in d.history()]
            assert shown.forgotten is not None
            assert {w.voice for w in shown.forgotten.agreed} == {a.me, b.me}
            assert not holds(g, "d", message)
            assert await d.forget_waiting() == []


@in_virtual_time
async def test_who_was_away_destroys_it_when_it_returns_and_gives_it_to_nobody() -> None:
    async with group(3) as g:
        a, b, c = g.channels
        message = await told(g)
        await c.set_forget_policy("auto")
        await b.set_forget_policy("auto")
        # c has agreed, and is cut off before it hears that all have.
        g.world.network.partition(["b"], ["a", "c"])
        await a.forget(message)
        await until(lambda: len(a.engine.forgetting.cases.table[message].words) == 2)
        g.world.network.repair()
        g.world.network.partition(["c"], ["a", "b"])
        await until(
            lambda: not holds(g, "a", message) and not holds(g, "b", message), within=90
        )
        await anyio.sleep(60)
        assert holds(g, "c", message)
        g.world.network.repair()
        await until(lambda: not holds(g, "c", message), within=90)
        assert not holds(g, "a", message)
        assert not holds(g, "b", message)


@in_virtual_time
async def test_nothing_stays_in_memory_of_messages_that_are_forgotten() -> None:
    async with group(2) as g:
        a, b = g.channels
        for number in range(5):
            await told(g, b"%d" % number, forget_after=timedelta(seconds=30))
        asked = await told(g, SECRET)
        await a.forget(asked)
        await until(b.forget_waiting)
        await b.approve(asked)
        await anyio.sleep(60)
        for channel in g.channels:
            messages = [message async for message in channel.history()]
            assert [bool(message.forgotten) for message in messages] == [True] * 6
            assert channel.engine.forgetting.cases.table == {}


@in_virtual_time
async def test_what_is_sent_for_a_time_is_forgotten_by_each_device() -> None:
    async with group(2) as g:
        a, b = g.channels
        message = await told(g, forget_after=timedelta(seconds=30))
        stays = await told(g, b"stays")
        await anyio.sleep(20)
        assert holds(g, "a", message)
        assert holds(g, "b", message)
        await anyio.sleep(11)
        assert not holds(g, "a", message)
        assert not holds(g, "b", message)
        for channel in (a, b):
            shown = [m async for m in channel.history()]
            assert [m.id for m in shown] == [message, stays]
            assert shown[0].forgotten is not None
            assert shown[0].forgotten.expired
            status = await channel.forget_status(message)
            assert status.state is State.EXPIRED
            assert status.expires is not None
        with pytest.raises(LocalProtocolError):
            await a.send(b"", forget_after=timedelta(0))


@in_virtual_time
async def test_a_file_that_is_sent_for_a_time_goes_with_its_message() -> None:
    async with group(2) as g:
        a, b = g.channels
        data = os.urandom(3 * CHUNK_SIZE)
        receipt = await a.send_stream(
            pieces(data), name="film", caption=SECRET, forget_after=timedelta(seconds=30)
        )
        await (await first_file(b)).fetch()
        assert [c.engine.attachments.total for c in (a, b)] == [len(data)] * 2
        await anyio.sleep(31)
        for name, channel in (("a", a), ("b", b)):
            assert not holds(g, name, receipt.id)
            assert channel.engine.attachments.total == 0
            assert not disk(g, name).chunks.chunks
            shown = [m async for m in channel.history()]
            assert shown[0].forgotten is not None
            assert shown[0].forgotten.expired


@in_virtual_time
async def test_what_is_forgotten_in_the_middle_of_its_transfer_is_fetched_no_more() -> None:
    async with group(2, Link(latency=0.05, bandwidth=2_000_000)) as g:
        a, b = g.channels
        await b.set_forget_policy("auto")
        data = os.urandom(20 * CHUNK_SIZE)
        receipt = await a.send_stream(pieces(data), name="film", caption=SECRET)
        found = await first_file(b)
        await until(lambda: 2 * CHUNK_SIZE < found.held < 15 * CHUNK_SIZE, within=120)
        reading = found.open()
        assert await reading.receive() == data[:65536]
        await a.forget(receipt.id)
        await until(lambda: not holds(g, "a", receipt.id) and not holds(g, "b", receipt.id))
        await until(lambda: not disk(g, "a").chunks.chunks and not disk(g, "b").chunks.chunks)
        # The reader is told, and nothing comes any more: not of what was under way either.
        with pytest.raises(StoreError, match="forgotten"):
            await drain(reading)
        engine = b.engine.attachments
        assert receipt.id not in engine.open
        assert receipt.id not in engine.transfers.transfers
        await anyio.sleep(60)
        assert engine.total == a.engine.attachments.total == 0
        assert not disk(g, "b").chunks.chunks
        # And the session went on.
        await a.send(b"after")
        await until(lambda: len(disk(g, "b").contents) > 0)


def test_what_expired_while_a_device_was_off_is_gone_before_it_serves_anything() -> None:
    async def main() -> None:
        async with group(2) as g:
            a, b = g.channels
            did = a.did
            async with g.world.device("d") as device:
                d = await device.join(await a.invite())
                receipt = await d.send(SECRET, forget_after=timedelta(seconds=60))
                await receipt.wait_received(by=[a.me, b.me])
            g.world.network.partition(["a", "b"], ["d"])
            await anyio.sleep(100)
            assert receipt.id in g.world.disk("d").channels[did].contents
            async with g.world.device("d") as device:
                assert receipt.id not in g.world.disk("d").channels[did].contents
                (shown,) = [m async for m in device.channels()[0].history()]
                assert shown.content is None

    run("asyncio", main)


@in_virtual_time
async def test_a_full_disk_delays_forgetting_and_no_more() -> None:
    """By consent and by time, with readers that have the message in their hands."""
    async with group(2) as g:
        a, b = g.channels
        expires = await told(g, forget_after=timedelta(seconds=30))
        agreed = await told(g, b"that neither")
        await a.forget(agreed)
        await request(b)
        reader = b.messages()
        store: Any = b.engine.store
        forget = store.forget
        failed: list[Sequence[bytes]] = []

        async def fail(record_ids: Sequence[bytes]) -> None:
            await forget(record_ids)
            failed.append(record_ids)
            raise StoreError("the log could not be cut")

        store.forget = fail
        await b.approve(agreed)
        await anyio.sleep(31)
        # It was marked as forgotten, and not all was done: so it is done again.
        assert {m for ids in failed for m in ids} == {agreed, expires}
        store.forget = forget
        await anyio.sleep(3)
        assert not b.engine.forgetting._again
        assert not b.engine.forgetting._blocked
        assert [(await anext(reader)).content for _ in range(2)] == [None, None]
        assert not in_memory(b)


@in_virtual_time
async def test_what_expires_on_a_full_disk_is_forgotten_when_there_is_room() -> None:
    async with group(2) as g:
        message = await told(g, forget_after=timedelta(seconds=30))
        await anyio.sleep(25)
        g.world.disk("b").full = True
        await anyio.sleep(20)
        assert holds(g, "b", message)
        g.world.disk("b").full = False
        await anyio.sleep(5)
        assert not holds(g, "b", message)


@in_virtual_time
async def test_who_leaves_and_erases_keeps_no_word_of_what_was_asked() -> None:
    async with group(2) as g:
        a, b = g.channels
        message = await told(g)
        await a.forget(message, reason="a mistake")
        await request(b)
        values = g.world.disk("b").values
        assert [key for key in values if key.startswith("consent")]
        await b.leave(erase=True)
        assert not [key for key in values if key.startswith("consent")]


@in_virtual_time
async def test_clocks_that_differ_make_it_sooner_never_later() -> None:
    """A device whose clock is behind sends for an hour: the others count from now at most."""
    async with group(2) as g:
        a, _ = g.channels
        runtime = a.engine.runtime
        assert isinstance(runtime, SimRuntime)
        runtime._skew_ms = 7_200_000
        ahead = await told(g, forget_after=timedelta(seconds=60))
        await anyio.sleep(61)
        assert not holds(g, "b", ahead)


@in_virtual_time
async def test_a_liar_who_says_all_agreed_destroys_nothing_of_others() -> None:
    """Whatever it claims of whom it knew: nobody loses what it holds and did not agree to."""
    async with group(3) as g:
        a, _, c = g.channels
        mine, hers = await told(g), await told(g, b"by b", sender=1)
        for message in (mine, hers):
            for members in (0, 1, 2, 3, 1 << 31):
                lie = Statement(ERASED, message, members)
                await a.engine.outbox.send([Outgoing(b"", lie.topics(), KIND_CONSENT)])
        await anyio.sleep(60)
        assert holds(g, "b", mine)
        assert holds(g, "c", mine)
        assert all(holds(g, n, hers) for n in "bc")
        # c agrees to what a proposes, b does not: a's word is not enough for c.
        await a.forget(hers)
        await request(c)
        await c.approve(hers)
        await anyio.sleep(60)
        assert holds(g, "c", hers)
        assert holds(g, "b", hers)
