"""What every `walyoff.abc.Ledger` must do: inherit `LedgerConformance`, give `open_ledgers`.

    class TestMyLedger(LedgerConformance):
        @asynccontextmanager
        async def open_ledgers(self):
            async with my_ledger("a") as a, my_ledger("b") as b:
                yield a, b

The two are one register, seen by two devices. The module that inherits it chooses the event
loops with an `anyio_backend` fixture. Survival of a kill is not checked here: it needs a
process of its own.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress

import anyio
import pytest
from anyio.abc import ObjectReceiveStream

from walyoff.abc import Block, Ledger
from walyoff.errors import LocalProtocolError, PayloadTooLargeError


@pytest.mark.anyio
class LedgerConformance:
    """The behavioural checks. Each gets a ledger of its own, new or with old blocks in it."""

    #: Seconds within which anything that happens at all happens.
    patience: float = 60.0
    #: Seconds of silence after which nothing more is expected.
    quiet: float = 0.3
    #: Blocks of the checks about many of them.
    many: int = 60

    def open_ledgers(self) -> AbstractAsyncContextManager[tuple[Ledger, Ledger]]:
        """Open one register for two devices: what one appends reaches the other."""
        raise NotImplementedError

    # --------------------------------------------------------------------- appending

    async def test_an_appended_block_is_what_was_given(self) -> None:
        async with self._ledger() as (ledger, start):
            payload = os.urandom(1000)
            block = await ledger.append(payload)
            assert isinstance(block, Block)
            assert block.payload == payload
            assert block.ref
            assert block.position > start
            async with ledger.blocks(start) as stream:
                assert await self._next(stream) == block

    async def test_positions_grow(self) -> None:
        async with self._ledger() as (ledger, _):
            positions = [(await ledger.append(b"%d" % n)).position for n in range(5)]
            assert positions == sorted(set(positions))

    async def test_the_same_payload_twice_makes_two_blocks(self) -> None:
        async with self._ledger() as (ledger, start):
            one, two = await ledger.append(b"same"), await ledger.append(b"same")
            assert one.ref != two.ref
            assert one.position != two.position
            assert await self._read(ledger, start, 2) == [one, two]

    async def test_an_empty_payload_is_refused(self) -> None:
        async with self._ledger() as (ledger, start):
            with pytest.raises(LocalProtocolError):
                await ledger.append(b"")
            after = await ledger.append(b"after")
            assert await self._read(ledger, start, 1) == [after]

    async def test_the_largest_payload_passes_and_a_larger_one_is_refused(self) -> None:
        async with self._ledger() as (ledger, start):
            limit = ledger.max_payload
            assert limit > 0
            with pytest.raises(PayloadTooLargeError) as caught:
                await ledger.append(bytes(limit + 1))
            assert (caught.value.size, caught.value.limit) == (limit + 1, limit)
            payload = os.urandom(limit)
            await ledger.append(payload)
            (block,) = await self._read(ledger, start, 1)
            assert block.payload == payload

    async def test_appends_at_the_same_time_are_all_written(self) -> None:
        written: list[Block] = []

        async def append(number: int) -> None:
            written.append(await ledger.append(b"%d" % number))

        async with self._ledger() as (ledger, start):
            async with anyio.create_task_group() as tasks:
                for number in range(8):
                    tasks.start_soon(append, number)
            assert {block.payload for block in written} == {b"%d" % n for n in range(8)}
            assert len({block.ref for block in written}) == 8
            read = await self._read(ledger, start, 8)
            assert {block.ref: block for block in read} == {b.ref: b for b in written}

    async def test_a_cancelled_append_is_whole_or_absent(self) -> None:
        async with self._ledger() as (ledger, start):
            tried = []
            for turn in range(12):
                payload = b"%d %s" % (turn, os.urandom(50))
                tried.append(payload)
                with anyio.move_on_after(turn * 0.003):
                    await ledger.append(payload)
            last = await ledger.append(b"last")
            read: list[Block] = []
            async with ledger.blocks(start) as stream:
                while not read or read[-1].ref != last.ref:
                    read.append(await self._next(stream))
            assert {block.payload for block in read} <= {*tried, b"last"}

    # ----------------------------------------------------------------------- reading

    async def test_all_history_comes_in_the_order_of_positions(self) -> None:
        async with self._ledger() as (ledger, start):
            written = [await ledger.append(b"%d" % n) for n in range(10)]
            read = await self._read(ledger, start, 10)
            assert read == written
            assert [b.position for b in read] == sorted({b.position for b in read})

    async def test_reading_begins_after_the_given_position(self) -> None:
        async with self._ledger() as (ledger, _):
            written = [await ledger.append(b"%d" % n) for n in range(5)]
            for index, block in enumerate(written[:-1]):
                read = await self._read(ledger, block.position, 4 - index)
                assert read == written[index + 1 :]
            async with ledger.blocks(written[-1].position) as stream:
                with anyio.move_on_after(self.quiet) as scope:
                    got = await stream.receive()
                assert scope.cancelled_caught, f"came although it is not after: {got}"
                fresh = await ledger.append(b"fresh")
                assert await self._next(stream) == fresh

    async def test_there_is_no_gap_between_history_and_live(self) -> None:
        written: list[Block] = []

        async def append_on() -> None:
            for number in range(self.many):
                written.append(await ledger.append(b"%d" % number))

        async with self._ledger() as (ledger, start), anyio.create_task_group() as tasks:
            tasks.start_soon(append_on)
            # Readers that begin at any time.
            for _ in range(4):
                await anyio.sleep(0.02)
                async with ledger.blocks(start) as stream:
                    half = [await self._next(stream) for _ in range(self.many // 2)]
            async with ledger.blocks(start) as stream:
                read = [await self._next(stream) for _ in range(self.many)]
            assert read == written
            assert read[: len(half)] == half

    async def test_a_reader_that_waits_gets_what_is_appended_later(self) -> None:
        async with self._ledger() as (ledger, start), ledger.blocks(start) as stream:
            with anyio.move_on_after(self.quiet) as scope:
                await stream.receive()
            assert scope.cancelled_caught
            block = await ledger.append(b"later")
            assert await self._next(stream) == block

    async def test_a_slow_reader_misses_nothing_and_stops_nobody(self) -> None:
        async with self._ledger() as (ledger, start), ledger.blocks(start) as slow:
            written = []
            async with ledger.blocks(start) as stream:
                for number in range(self.many):
                    written.append(await ledger.append(b"%d" % number))
                    assert await self._next(stream) == written[-1]
            assert [await self._next(slow) for _ in written] == written

    async def test_a_cancelled_receive_loses_nothing(self) -> None:
        async with self._ledger() as (ledger, start):
            written = [await ledger.append(b"%d" % n) for n in range(20)]
            read: list[Block] = []
            async with ledger.blocks(start) as stream:
                with anyio.fail_after(self.patience):
                    for turn in range(100_000):
                        with anyio.CancelScope() as scope:
                            if turn % 2:
                                scope.cancel()
                            else:
                                scope.deadline = anyio.current_time() + turn % 5 * 0.002
                            read.append(await stream.receive())
                        if len(read) == len(written):
                            break
            assert read == written

    async def test_leaving_ends_the_stream_and_another_may_follow(self) -> None:
        async with self._ledger() as (ledger, start):
            first = await ledger.append(b"first")
            await ledger.append(b"second")
            for _ in range(3):
                async with ledger.blocks(start) as stream:
                    assert await self._next(stream) == first
                await self._end(stream)

    async def test_a_reader_that_closes_early_harms_nobody(self) -> None:
        async with (
            self._ledger() as (ledger, start),
            ledger.blocks(start) as stream,
            ledger.blocks(start) as closed,
        ):
            await closed.aclose()
            block = await ledger.append(b"block")
            assert await self._next(stream) == block

    # ------------------------------------------------------------------- two devices

    async def test_what_one_device_appends_reaches_the_other(self) -> None:
        async with self._bounded(), self.open_ledgers() as (a, b):
            for source, target in ((a, b), (b, a)):
                async with target.blocks() as stream:
                    payload = os.urandom(100)
                    block = await source.append(payload)
                    got = await self._until(stream, payload)
                    # Names are the ledger's; positions are each device's own.
                    assert got.ref == block.ref

    async def test_parents_come_before_children_on_both_devices(self) -> None:
        """Each appends only when it has seen the other's: so each is the next one's parent."""
        talk = [b"%d %s" % (n, os.urandom(8)) for n in range(8)]
        async with self._bounded(), self.open_ledgers() as (a, b):
            async with a.blocks() as at_a, b.blocks() as at_b:
                for number, payload in enumerate(talk):
                    source, stream = ((a, at_b), (b, at_a))[number % 2]
                    await source.append(payload)
                    await self._until(stream, payload)
            for ledger in (a, b):
                seen: list[bytes] = []
                async with ledger.blocks() as stream:
                    while not set(talk) <= set(seen):
                        seen.append((await self._next(stream)).payload)
                first_seen = [seen.index(payload) for payload in talk]
                assert first_seen == sorted(first_seen)

    async def test_both_devices_get_what_both_append_at_once(self) -> None:
        count = 6

        async def append_all(ledger: Ledger, name: bytes) -> None:
            for number in range(count):
                await ledger.append(b"%s %d" % (name, number))

        wanted = {b"%s %d" % (name, n) for name in (b"a", b"b") for n in range(count)}
        async with self._bounded(), self.open_ledgers() as (a, b):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(append_all, a, b"a")
                tasks.start_soon(append_all, b, b"b")
            for ledger in (a, b):
                seen: list[bytes] = []
                async with ledger.blocks() as stream:
                    while not wanted <= set(seen):
                        seen.append((await self._next(stream)).payload)
                for name in (b"a", b"b"):
                    own = [seen.index(b"%s %d" % (name, n)) for n in range(count)]
                    assert own == sorted(own)

    # ----------------------------------------------------------------------- helpers

    @asynccontextmanager
    async def _bounded(self) -> AsyncIterator[None]:
        with anyio.fail_after(self.patience * 2):
            yield

    @asynccontextmanager
    async def _ledger(self) -> AsyncIterator[tuple[Ledger, int]]:
        """One ledger, and the position after which a check's own blocks begin."""
        async with self._bounded(), self.open_ledgers() as (ledger, _):
            start = (await ledger.append(b"the check begins")).position
            yield ledger, start

    async def _next(self, stream: ObjectReceiveStream[Block]) -> Block:
        with anyio.fail_after(self.patience):
            return await stream.receive()

    async def _end(self, stream: ObjectReceiveStream[Block]) -> None:
        """What waits may still come, and then the stream has ended."""
        with anyio.fail_after(self.patience):
            with suppress(anyio.ClosedResourceError, anyio.EndOfStream):
                while True:
                    await stream.receive()

    async def _until(self, stream: ObjectReceiveStream[Block], payload: bytes) -> Block:
        while (block := await self._next(stream)).payload != payload:
            pass
        return block

    async def _read(self, ledger: Ledger, after: int, count: int) -> list[Block]:
        """The first blocks after a position, without repetitions; no other may come."""
        read: list[Block] = []
        async with ledger.blocks(after) as stream:
            while len(read) < count:
                block = await self._next(stream)
                if block not in read:
                    read.append(block)
            others = []
            with anyio.move_on_after(self.quiet / 10):
                while True:
                    others.append(await stream.receive())
        assert all(block in read for block in others), f"nobody appended these: {others}"
        return read


__all__ = ["LedgerConformance"]
