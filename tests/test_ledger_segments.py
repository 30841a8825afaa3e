"""Segments on real chains: they follow each other, converge, are handed over and cost alike."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import anyio
import pytest

from tests.ledger_support import (
    anchor,
    children,
    found,
    hand_over,
    join,
    read,
    text_of,
    until,
    until_peers,
)
from tests.waiting import HANGS_AFTER
from walyoff.errors import LedgerError, LocalProtocolError, RemoteProtocolError
from walyoff.walytis.register import RegisterLedger
from walyoff.wire import unpack

pytestmark = pytest.mark.anyio

SEGMENT = 6


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def count_is(ledger: RegisterLedger, count: int) -> None:
    async def there() -> bool:
        return len(await ledger.segments()) == count

    await until(there)


async def test_segments_follow_each_other_and_read_as_one_ledger(home: Path) -> None:
    async with children(home, "a", "b") as (a, b):
        mine, one = await found(a, SEGMENT)
        _, two = await join(mine, b, SEGMENT)
        await until_peers(a, one.chain_id)
        sent = [b"%d" % n for n in range(20)]
        positions: list[int] = []
        async with two.blocks() as stream:
            for number, text in enumerate(sent, 1):
                positions.append((await one.append(anchor(text))).position)
                if number % SEGMENT == 0:
                    await count_is(one, number // SEGMENT + 1)
            with anyio.fail_after(HANGS_AFTER):
                live = [await stream.receive() for _ in sent]
        # The other device followed from segment to segment by what Walytis announced.
        assert [text_of(block) for block in live] == sent
        assert positions == sorted(set(positions))
        again = await read(one, len(sent))
        assert [text_of(block) for block in again] == sent
        assert [block.position for block in again] == positions
        middle = await read(one, 5, after=positions[14])
        assert [text_of(block) for block in middle] == sent[15:]
        for ledger in (one, two):
            segments = await ledger.segments()
            assert [s["number"] for s in segments] == [0, 1, 2, 3]
            assert all(s["connected"] and s["held"] for s in segments)
            assert (await ledger.statistics())["ledger"] == {}
        assert [s["chain"] for s in await one.segments()] == [
            s["chain"] for s in await two.segments()
        ]


async def test_two_devices_that_open_the_next_segment_at_once_converge(home: Path) -> None:
    async with children(home, "a", "b", connect=False) as (a, b):
        mine, one = await found(a, SEGMENT)
        _, two = await join(mine, b, SEGMENT)
        texts = {b"%s %d" % (who, n) for who in (b"a", b"b") for n in range(10)}
        for number in range(10):
            for ledger, who in ((one, b"a"), (two, b"b")):
                await ledger.append(anchor(b"%s %d" % (who, number)))
                if number == SEGMENT - 1:
                    await count_is(ledger, 2)
        assert (await one.segments())[1]["chain"] != (await two.segments())[1]["chain"]
        seen_before = await read(one, 10)
        await hand_over(one, two)
        await hand_over(two, one)
        for ledger in (one, two):
            blocks = await read(ledger, 20)
            assert {text_of(block) for block in blocks} == texts
            places = [block.position for block in blocks]
            assert places == sorted(set(places))
        # No place that was told has changed.
        assert (await read(one, 20))[:10] == seen_before
        heads = [[s["chain"] for s in await x.segments()] for x in (one, two)]
        assert heads[0] == heads[1]
        assert len(heads[0]) == 3
        assert await one.leaves() == await two.leaves()
        # Both go on in the same one, whichever it is.
        await one.append(anchor(b"after a"))
        await two.append(anchor(b"after b"))
        grown = [{s["chain"] for s in await x.segments() if s["open"]} for x in (one, two)]
        await hand_over(one, two)
        await hand_over(two, one)
        assert await one.wanted(await two.leaves()) is None
        assert await two.wanted(await one.leaves()) is None
        assert grown[0] & grown[1]
        last = await read(two, 22)
        assert {text_of(block) for block in last} == texts | {b"after a", b"after b"}


async def test_joiner_gets_the_list_and_the_newest_and_then_all(home: Path) -> None:
    async with children(home, "a", "c", connect=False) as (a, c):
        mine, one = await found(a, SEGMENT)
        sent = [b"%d" % n for n in range(20)]
        for number, text in enumerate(sent, 1):
            await one.append(anchor(text))
            if number % SEGMENT == 0:
                await count_is(one, number // SEGMENT + 1)
        _, two = await join(mine, c, SEGMENT)
        segments = await two.segments()
        assert [s["chain"] for s in segments] == [s["chain"] for s in await one.segments()]
        assert [s["held"] for s in segments] == [False, False, False, True]
        assert not (await two.statistics())["complete"]
        # It can write at once, in the newest; where that stands is not known yet.
        assert (await two.append(anchor(b"hello"))).position == 0
        # A power loss takes the birth that came with the first link: it comes from there again.
        wanted = await two.wanted(await one.leaves())
        first = [f for f in await one.export(wanted) if unpack(f, 1 << 21)[0] == one.chain_id]
        assert await two.import_files(first) == (5 + SEGMENT + 1, {})
        second = segments[1]["chain"]
        os.truncate(home / "c" / "walytis" / second / "HandedOver", 0)
        assert c.pid is not None
        os.kill(c.pid, signal.SIGKILL)

        async def back() -> bool:
            return c.generation > 1 and (await two.segments())[1]["held"]

        await until(back)
        # The births of the second and the third come with the links that name them.
        assert await hand_over(one, two) == 2 * (SEGMENT + 1)
        assert await hand_over(two, one) == 1
        assert (await two.statistics())["complete"]
        for ledger in (one, two):
            assert [text_of(block) for block in await read(ledger, 21)] == [*sent, b"hello"]


async def test_places_survive_kills_and_late_blocks_get_new_ones(home: Path) -> None:
    async with children(home, "a", "b", connect=False) as (a, b):
        mine, one = await found(a, SEGMENT)
        _, two = await join(mine, b, SEGMENT)
        await two.append(anchor(b"late"))
        for number in range(9):
            await one.append(anchor(b"%d" % number))
            if number == SEGMENT - 1:
                await count_is(one, 2)
        before = await read(one, 9)
        for _ in range(2):
            generation = a.generation
            assert a.pid is not None
            os.kill(a.pid, signal.SIGKILL)

            async def back(old: int = generation) -> bool:
                return a.generation > old

            await until(back)
            assert await read(one, 9) == before
        assert await hand_over(two, one) == 1
        assert [text_of(b) for b in await read(one, 1, before[-1].position)] == [b"late"]
        assert (await read(one, 10))[:9] == before
        assert (await one.append(anchor(b"more"))).position > before[-1].position + 1


async def test_an_outsider_can_neither_name_a_segment_nor_write_into_one(home: Path) -> None:
    async with children(home, "a", "outsider") as (a, outsider):
        _, one = await found(a, SEGMENT)
        await one.append(anchor(b"1"))
        # What is public: the chain. The outsider has all of it.
        files = (
            await a.call(
                "chain.export", {"chain": one.chain_id, "known": None, "limit_bytes": 1 << 24}
            )
        )["files"]
        args = {"chain": one.chain_id, "files": files}
        await outsider.call("chain.import", args)
        await outsider.call("chain.open", {"chain": one.chain_id})
        await until_peers(outsider, one.chain_id)
        chain = (await outsider.call("chain.create", {}))["chain"]
        contents = [(b"\x93\x01\xc4\x00\xc4\x00", "walyoff"), (chain.encode(), "walyoff_next")]
        contents.append((files[-1].partition(b"\0" * 5)[2], "walyoff"))
        for content, topic in contents:
            args = {"chain": one.chain_id, "content": content, "topics": [topic]}
            await outsider.call("chain.append", args)

            async def refused(ledger: RegisterLedger = one) -> bool:
                return bool((await ledger.statistics())["ledger"])

            await until(refused)
        # The second and third stand on the first, and end with it.
        assert len(await one.segments()) == 1
        await one.append(anchor(b"2"))
        assert [text_of(block) for block in await read(one, 2)] == [b"1", b"2"]


async def test_what_is_no_anchor_is_refused_before_it_is_written(home: Path) -> None:
    async with children(home, "a") as (a,):
        _, one = await found(a, SEGMENT)
        with pytest.raises((LedgerError, RemoteProtocolError)):
            await one.append(b"no anchor")
        with pytest.raises(LocalProtocolError):
            await one.append(b"")
        await one.append(anchor(b"1"))
        assert a.generation == 1
