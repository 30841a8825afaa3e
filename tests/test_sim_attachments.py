"""Attachments between simulated devices, in virtual time: what must hold whatever happens."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import anyio
import pytest

from tests.sim.liars import CHUNK_LIES, Liar
from tests.sim.nodes import Node
from tests.sim.virtual import Group, group, in_virtual_time, run
from tests.waiting import until
from walyoff import Channel, Message
from walyoff.attachments import Attachment, AttachmentState, Progress
from walyoff.engine.policy import AttachmentPolicy, Fetching
from walyoff.errors import LocalProtocolError, QuotaExceededError, StoreError
from walyoff.records import CHUNK_SIZE
from walyoff.testing.network import LAN, Link
from walyoff.testing.world import SimWorld

MIB = CHUNK_SIZE


async def stream(data: bytes, piece: int = 300_000) -> AsyncIterator[bytes]:
    for at in range(0, len(data), piece):
        yield data[at : at + piece]
        await anyio.lowlevel.checkpoint()


def make(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


async def first(channel: Channel, number: int = 1) -> Message:
    """The first message with an attachment, or a later one."""
    async for message in channel.messages():
        if message.attachment is not None:
            number -= 1
            if not number:
                return message
    raise AssertionError


async def attachment(channel: Channel, number: int = 1) -> Attachment:
    found = (await first(channel, number)).attachment
    assert found is not None
    return found


async def read_all(found: Attachment) -> bytes:
    parts = []
    async with found.open() as source:
        async for piece in source:
            parts.append(piece)
    return b"".join(parts)


@in_virtual_time
async def test_a_file_arrives_with_its_caption_and_nothing_is_in_clear() -> None:
    data = make(3 * MIB + 1234)
    async with group(2) as g:
        a, b = g.channels
        receipt = await a.send_stream(
            stream(data), name="photo.jpg", caption="look", topics=["pictures"]
        )
        message = await first(b)
        assert message.id == receipt.id
        assert message.content == b"look"
        assert message.topics == ("pictures",)
        found = message.attachment
        assert found is not None
        assert (found.name, found.media_type, found.size) == (
            "photo.jpg",
            "image/jpeg",
            len(data),
        )
        await found.fetch()
        assert found.state == AttachmentState.HELD
        assert found.held == len(data)
        assert await read_all(found) == data
        assert await read_all(await attachment(a)) == data
        for block in g.world.chain("a", a.did).common_order():
            assert b"photo" not in block
            assert b"jpeg" not in block


@in_virtual_time
async def test_an_empty_file_is_a_file() -> None:
    async with group(2) as g:
        a, b = g.channels
        await a.send_stream(stream(b""), name="empty")
        found = await attachment(b)
        await found.fetch()
        assert (found.size, found.state) == (0, AttachmentState.HELD)
        assert await read_all(found) == b""


@in_virtual_time
async def test_it_is_readable_while_it_arrives() -> None:
    data = make(8 * MIB)
    async with group(2, Link(latency=0.01, bandwidth=1e6)) as g:
        a, b = g.channels
        await a.send_stream(stream(data), name="film")
        found = await attachment(b)
        async with found.open() as source:
            assert await source.receive(10) == data[:10]
            assert found.held <= 4 * MIB
            assert await source.receive(10) == data[10:20]
        assert await read_all(found) == data


@in_virtual_time
async def test_the_same_again_costs_no_transfer() -> None:
    data = make(5 * MIB)
    async with group(2) as g:
        a, b = g.channels
        await a.send_stream(stream(data), name="one")
        await (await attachment(b)).fetch()
        fetched, served = b.engine.attachments.chunks_fetched, a.engine.attachments.bytes_served
        assert fetched == 5
        assert served == len(data)
        await b.send_stream(stream(data), name="two")
        await a.send_stream(stream(data[: 4 * MIB] + b"more"), name="three")
        await (await attachment(a, 2)).fetch()
        await (await attachment(b, 3)).fetch()
        assert await read_all(await attachment(b, 3)) == data[: 4 * MIB] + b"more"
        assert b.engine.attachments.chunks_fetched == 6
        assert a.engine.attachments.chunks_fetched == 0
        assert a.engine.attachments.bytes_served == served + 4
        assert a.engine.attachments.total == b.engine.attachments.total == len(data) + 4


@in_virtual_time
async def test_equal_chunks_of_one_file_travel_once() -> None:
    async with group(2) as g:
        a, b = g.channels
        await a.send_stream(stream(bytes(40 * MIB + 17), 5 * MIB), name="zeros")
        found = await attachment(b)
        await found.fetch()
        assert b.engine.attachments.bytes_fetched == MIB + 17
        assert await read_all(found) == bytes(40 * MIB + 17)


@in_virtual_time
async def test_three_members_serve_at_once() -> None:
    data = make(24 * MIB)
    async with group(4, Link(latency=0.005, bandwidth=2e6)) as g:
        channels = g.channels
        await channels[3].set_attachment_policy(AttachmentPolicy(fetch=Fetching.NONE))
        await channels[0].send_stream(stream(data), name="film")
        for channel in channels[1:3]:
            await (await attachment(channel)).fetch()
        before = [channel.engine.attachments.bytes_served for channel in channels[:3]]
        found = await attachment(channels[3])
        assert found.state == AttachmentState.REMOTE
        began = anyio.current_time()
        most = 0
        async with anyio.create_task_group() as tasks:

            async def watch() -> None:
                nonlocal most
                async for progress in found.progress():
                    most = max(most, len(progress.peers))

            tasks.start_soon(watch)
            await found.fetch()
        spent = anyio.current_time() - began
        after = [channel.engine.attachments.bytes_served for channel in channels[:3]]
        shares = [end - start for start, end in zip(before, after, strict=True)]
        assert most == 3
        assert sum(shares) == len(data)
        assert min(shares) > len(data) // 6
        # One alone would take 12.6 s.
        assert spent < 6.5
        assert await read_all(found) == data


@in_virtual_time
async def test_parts_are_shared_on_before_the_whole_is_there() -> None:
    data = make(12 * MIB)
    async with group(3) as g:
        a, b, c = g.channels
        g.world.network.set_link("a", "b", Link(latency=0.01, bandwidth=1e6))
        g.world.network.set_link("a", "c", Link(latency=0.01, bandwidth=1e6))
        await a.send_stream(stream(data), name="film")
        for channel in (b, c):
            await (await attachment(channel)).fetch()
        for channel in (b, c):
            # Both would have needed all of it from a.
            assert channel.engine.attachments.bytes_served > 2 * MIB
        assert a.engine.attachments.bytes_served < 20 * MIB


@in_virtual_time
async def test_progress_tells_how_far_it_is() -> None:
    data = make(6 * MIB)
    async with group(2, Link(latency=0.01, bandwidth=1e6)) as g:
        a, b = g.channels
        await a.send_stream(stream(data), name="film")
        told: list[Progress] = []
        found = await attachment(b)
        async for progress in found.progress():
            told.append(progress)
        held = [progress.held for progress in told]
        assert held == sorted(held)
        assert held[-1] == len(data)
        assert told[-1].state == AttachmentState.HELD
        middle = told[len(told) // 2]
        assert middle.state == AttachmentState.FETCHING
        assert middle.peers == (a.me,)
        assert 3e5 < middle.rate < 3e6


@in_virtual_time
async def test_the_policy_decides_what_is_fetched() -> None:
    async with group(2) as g:
        a, b = g.channels
        await b.set_attachment_policy(AttachmentPolicy(fetch=Fetching.SMALL, small=MIB))
        await a.send_stream(stream(make(MIB)), name="small")
        await a.send_stream(stream(make(MIB + 1, 2)), name="large")
        small, large = await attachment(b), await attachment(b, 2)
        async for _ in small.progress():
            pass
        await anyio.sleep(20)
        assert large.state == AttachmentState.REMOTE
        assert large.held == 0
        await b.set_attachment_policy(AttachmentPolicy(fetch=Fetching.ALL))
        async for _ in large.progress():
            pass
        assert await large.drop() == MIB + 1
        await anyio.sleep(20)
        assert (large.state, large.held) == (AttachmentState.REMOTE, 0)
        await large.fetch()
        assert await read_all(large) == make(MIB + 1, 2)


@in_virtual_time
async def test_the_policy_is_the_same_after_a_restart() -> None:
    world = SimWorld(1)
    policy = AttachmentPolicy(fetch=Fetching.SMALL, small=MIB, quota=5 * MIB)
    async with world.device("a") as device:
        channel = await device.create_channel("family")
        await channel.set_attachment_policy(policy)
    async with world.device("a") as device:
        assert device.channel("family").attachment_policy == policy


@in_virtual_time
async def test_the_quota_is_kept_and_told() -> None:
    async with group(2) as g:
        a, b = g.channels
        await b.set_attachment_policy(AttachmentPolicy(quota=5 * MIB))
        await a.send_stream(stream(make(4 * MIB)), name="one")
        await a.send_stream(stream(make(4 * MIB, 2)), name="two")
        one, two = await attachment(b), await attachment(b, 2)
        await anyio.sleep(30)
        assert {one.state, two.state} == {AttachmentState.HELD, AttachmentState.OVER_QUOTA}
        assert b.engine.attachments.total <= 5 * MIB
        assert b.status()["attachments"]["over_quota"]
        with pytest.raises(QuotaExceededError):
            await b.send_stream(stream(make(2 * MIB, 3)), name="mine")
        with pytest.raises(QuotaExceededError):
            await b.send_stream(stream(make(9 * MIB, 3)), name="mine", size=9 * MIB)
        assert await b.free_space(keep=0) > 0
        await b.set_attachment_policy(AttachmentPolicy(quota=20 * MIB))
        for found in (one, two):
            await found.fetch()
        assert not b.status()["attachments"]["over_quota"]


@in_virtual_time
async def test_a_full_disk_is_told_and_got_over() -> None:
    data = make(6 * MIB)
    async with group(2, Link(latency=0.01, bandwidth=2e6)) as g:
        a, b = g.channels
        await a.send_stream(stream(data), name="film")
        found = await attachment(b)
        await anyio.sleep(1)
        g.world.disk("b").full = True
        await anyio.sleep(20)
        assert found.state == AttachmentState.NO_SPACE
        assert b.status()["attachments"]["no_space"]
        held = found.held
        assert 0 < held < len(data)
        g.world.disk("b").full = False
        await found.fetch()
        assert await read_all(found) == data
        g.world.disk("a").full = True
        with pytest.raises(StoreError):
            await a.send_stream(stream(make(2 * MIB, 5)), name="more")
        g.world.disk("a").full = False


@in_virtual_time
async def test_a_source_that_breaks_sends_nothing() -> None:
    async def breaking() -> AsyncIterator[bytes]:
        yield make(MIB + 5)
        raise OSError("the camera is gone")

    async def text() -> AsyncIterator[bytes]:
        yield "text"  # type: ignore[misc]

    async with group(2) as g:
        a, _ = g.channels
        top = a.status()["messages"]
        with pytest.raises(OSError, match="camera"):
            await a.send_stream(breaking(), name="film")
        with pytest.raises(LocalProtocolError, match="gives bytes"):
            await a.send_stream(text(), name="film")
        with pytest.raises(LocalProtocolError, match="3 bytes, not the 4"):
            await a.send_stream(stream(b"abc"), name="film", size=4)
        for name in ("a/b", "..", "x\n", ""):
            with pytest.raises(LocalProtocolError, match="file name"):
                await a.send_stream(stream(b"abc"), name=name)
        with pytest.raises(LocalProtocolError, match="media type"):
            await a.send_stream(stream(b"abc"), name="x", media_type="film")
        assert a.status()["messages"] == top
        # What the broken one stored is of use to nobody, and goes when it is asked for.
        assert await a.free_space() > 0
        assert a.engine.attachments.total == 0


@in_virtual_time
async def test_a_forgotten_attachment_is_gone_and_is_told_so() -> None:
    data = make(3 * MIB)
    async with group(2) as g:
        a, b = g.channels
        await a.send_stream(stream(data), name="film")
        found = await attachment(b)
        await found.fetch()
        await b.engine.attachments.forget(found._record_id)
        with pytest.raises(StoreError, match="forgotten"):
            await found.fetch()
        with pytest.raises(StoreError, match="forgotten"):
            await read_all(found)
        assert b.engine.attachments.total == 0
        assert await read_all(await attachment(a)) == data


@in_virtual_time
async def test_small_messages_do_not_wait_for_a_transfer() -> None:
    for link in (
        Link(latency=0.02, bandwidth=1e6),
        Link(latency=0.005, bandwidth=1e7),
        LAN,
    ):
        async with group(2, link) as g:
            a, b = g.channels
            idle = await latency(g)
            size = 60 * MIB if link.bandwidth == 1e7 else 20 * MIB
            await a.send_stream(stream(make(size)), name="film")
            found = await attachment(b)
            await anyio.sleep(1.0 if link is not LAN else 0.0)
            busy = await latency(g)
            if link is not LAN:
                assert found.state == AttachmentState.FETCHING
                # The link is used meanwhile.
                assert found.held > 0.5 * link.bandwidth
            assert busy < max(12 * idle, 0.45), (link, idle, busy)


@pytest.mark.parametrize("lie", CHUNK_LIES)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_member_that_lies_about_chunks_only_costs_time(lie: str, backend: str) -> None:
    async def main() -> None:
        data = make(6 * MIB + 5)
        async with group(3) as g:
            a, b, c = g.channels
            await b.set_attachment_policy(AttachmentPolicy(fetch=Fetching.NONE))
            await a.send_stream(stream(data), name="film")
            await (await attachment(c)).fetch()
            Liar(lie, 1).corrupt_now(c)
            # The liar alone first: nothing wrong is taken from it, whatever it says.
            g.world.network.partition(["a"], ["b", "c"])
            found = await attachment(b)
            with anyio.move_on_after(15):
                await found.fetch()
            # A chunk of one part is there before the part comes again.
            assert found.held == (5 if lie == "repeated parts" else 0)
            # It is told who it was, but for what an honest member might do as well.
            blamed = {report.subject.rpartition("#")[0] for report in b.reports()}
            assert lie == "no chunks" or any(c.me.endswith(name) for name in blamed)
            g.world.network.repair()
            await found.fetch()
            assert await read_all(found) == data

    run(backend, main)


@in_virtual_time
async def test_a_crash_of_either_side_goes_on_where_it_was() -> None:
    data = make(20 * MIB)
    world = SimWorld(3, Link(latency=0.01, bandwidth=2e6))
    async with anyio.create_task_group() as tasks:
        a, b = Node(world, "a", tasks), Node(world, "b", tasks)
        await a.start()
        await b.start()
        await a.create()
        b.join(a)
        await until(lambda: b.channel is not None)
        assert b.channel is not None
        assert a.channel is not None
        await a.channel.send_stream(stream(data), name="film")
        fetched = 0
        for crashing in (b, a, b):
            found = await attachment(b.channel)
            start = found.held
            await until(lambda: found.held >= start + 4 * MIB)  # noqa: B023 - awaited here
            fetched = max(fetched, found.held)
            await crashing.crash()
            await crashing.start()
            await until(lambda: b.channel is not None and a.channel is not None)
        found = await attachment(b.channel)
        # What was durable is still there.
        await until(lambda: found.held >= fetched)
        again = b.channel.engine.attachments
        before = again.bytes_fetched
        await found.fetch()
        assert again.bytes_fetched <= len(data) - fetched + before
        assert await read_all(found) == data
        tasks.cancel_scope.cancel()


async def latency(g: Group) -> float:
    """The median time from send to arrival, one message at a time."""
    a, b = g.channels
    times = []
    messages = b.messages(after=b.status()["messages"])
    for number in range(11):
        began = anyio.current_time()
        content = f"small {number}".encode()
        await a.send(content)
        async for message in messages:
            if message.content == content:
                break
        times.append(anyio.current_time() - began)
        await anyio.sleep(0.05)
    return sorted(times)[5]
