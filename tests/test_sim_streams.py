"""Streams of messages: many consumers, slow ones, named cursors, order."""

from __future__ import annotations

import gc

import anyio

from tests.sim.virtual import group, in_virtual_time, read
from walyoff.engine.recent import RECENT_BYTES
from walyoff.messages import PAGE, PAGE_BYTES
from walyoff.testing.world import SimWorld


@in_virtual_time
async def test_many_consumers_at_once_each_see_everything() -> None:
    async with group(2) as g:
        a, b = g.channels
        expected = [b"%d" % n for n in range(700)]
        found: list[list[bytes]] = []

        async def consume(pause: float, cursor: str | None) -> None:
            mine: list[bytes] = []
            async for message in b.messages(cursor=cursor):
                mine.append(message.content or b"")
                if pause:
                    await anyio.sleep(pause)
                if len(mine) == len(expected):
                    break
            found.append(mine)

        async with anyio.create_task_group() as tasks:
            for n in range(12):
                cursor = f"cursor {n}" if n % 2 else None
                tasks.start_soon(consume, n % 3 * 0.001, cursor)
            for n in range(0, 700, 70):
                await a.send_many(expected[n : n + 70])
                await anyio.sleep(0.05)
        assert found == [expected] * 12


@in_virtual_time
async def test_a_slow_consumer_holds_a_page_and_misses_nothing() -> None:
    async with group(1) as g:
        (a,) = g.channels
        stream = a.messages()
        await a.send(b"first")
        assert (await anext(stream)).content == b"first"
        for n in range(60):
            await a.send_many([b"%d" % n * 100_000] * 10)
            assert len(stream._buffer) <= PAGE
        assert a.engine.recent.size <= RECENT_BYTES
        count = 0
        while count < 600:
            message = await anext(stream)
            assert message.content == b"%d" % (count // 10) * 100_000
            count += 1
            held = sum(len(item.content or b"") for item in stream._buffer)
            assert held <= 2 * RECENT_BYTES


@in_virtual_time
async def test_streams_may_be_broken_off_anywhere() -> None:
    async with group(1) as g:
        (a,) = g.channels
        await a.send_many([b"%d" % n for n in range(3)])
        async for message in a.messages():
            assert message.seq == 1
            break
        async for message in a.history():
            assert message.seq == 1
            break
        async for message, record in a.records():
            assert (message.seq, record.size) == (1, 1)
            break
        # What was forgotten open would warn now, and warnings are errors.
        gc.collect()
        await anyio.sleep(0.1)
        assert [record.size async for _, record in a.records(after=1)] == [1, 1]


@in_virtual_time
async def test_records_of_large_messages_are_read_a_few_at_a_time() -> None:
    async with group(1) as g:
        (a,) = g.channels
        for _ in range(40):
            await a.send(bytes(1_000_000))
        stream = a.records()
        count = 0
        async for _ in stream:
            count += 1
            assert sum(item.size for item in stream._page) <= 2 * PAGE_BYTES
        assert count == 40


@in_virtual_time
async def test_a_cursor_and_a_position_begin_after_the_later_one() -> None:
    async with group(1) as g:
        (a,) = g.channels
        await a.send_many([b"%d" % n for n in range(5)])
        assert (await anext(a.messages(cursor="app", after=3))).content == b"3"
        await a.engine.store.set_cursor("app", 4)
        assert (await anext(a.messages(cursor="app", after=3))).content == b"4"


@in_virtual_time
async def test_a_named_cursor_commits_by_asking_for_the_next() -> None:
    world = SimWorld(2)
    async with world.device("a") as device:
        channel = await device.create_channel("family")
        await channel.send_many([b"%d" % n for n in range(10)])
        stream = channel.messages(cursor="app")
        assert [(await anext(stream)).content for _ in range(4)][-1] == b"3"
        # The fourth was given, and the fifth not asked for.
        again = channel.messages(cursor="app")
        assert (await anext(again)).content == b"3"
        with anyio.move_on_after(1):
            async for _ in again:
                pass
        assert await channel.engine.cursor("app") == 10
    async with world.device("a") as device:
        channel = device.channel("family")
        await channel.send(b"new")
        stream = channel.messages(cursor="app")
        assert (await anext(stream)).content == b"new"


@in_virtual_time
async def test_an_authors_messages_keep_their_order_and_answers_follow_questions() -> None:
    async with group(3) as g:
        a, b, c = g.channels

        async def echo() -> None:
            async for message in b.messages():
                if message.author == a.me:
                    await b.send(b"re " + (message.content or b""))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(echo)
            for n in range(50):
                await a.send(b"%d" % n)
                await anyio.sleep(0.003)
            for channel in (a, b, c):
                found = await read(channel, 100)
                questions = [m for m in found if not m.startswith(b"re ")]
                assert questions == [b"%d" % n for n in range(50)]
                for question in questions:
                    assert found.index(question) < found.index(b"re " + question)
            tasks.cancel_scope.cancel()
