"""Checks of a transport's streams: order, ends, back-pressure, cancellation."""

from __future__ import annotations

import os
from contextlib import (
    suppress,
)

import anyio
import pytest

from walyoff.testing.transport_base import (
    ENDED,
    MEGABYTE,
    TransportChecks,
    expect,
    receive_all,
    receive_exactly,
    same,
    send_in_pieces,
)


class StreamChecks(TransportChecks):
    """One stream, or some at once."""

    async def test_either_side_can_open_a_stream(self) -> None:
        async with self.open_transports() as (a, b), a.listen() as at_a, b.listen() as at_b:
            for source, target, accepting in ((a, b, at_b), (b, a, at_a)):
                async with await self.connected(source, target, accepting) as (near, far):
                    await near.send(b"question")
                    assert await receive_exactly(far, 8) == b"question"
                    await far.send(b"answer")
                    assert await receive_exactly(near, 6) == b"answer"

    async def test_bytes_arrive_whole_and_in_order_both_ways_at_once(self) -> None:
        blobs = [os.urandom(MEGABYTE + 17) for _ in range(2)]
        async with self.stream() as (near, far), anyio.create_task_group() as tasks:
            tasks.start_soon(send_in_pieces, near, blobs[0], 70_001)
            tasks.start_soon(send_in_pieces, far, blobs[1], 1_009)
            tasks.start_soon(expect, far, blobs[0])
            await expect(near, blobs[1])

    async def test_a_receive_gives_from_one_byte_up_to_what_was_asked_for(self) -> None:
        async with self.stream() as (near, far):
            for sender, receiver in ((near, far), (far, near)):
                await sender.send(bytes(range(100)))
                got = b""
                while len(got) < 100:
                    part = await receiver.receive(7)
                    assert 1 <= len(part) <= 7
                    got += part
                assert got == bytes(range(100))

    async def test_streams_do_not_mix(self) -> None:
        count = 20

        async def talk(number: int) -> None:
            async with await b.connect(a.addresses[0]) as stream:
                for turn in range(5):
                    text = b"%04d %04d" % (number, turn)
                    await stream.send(text)
                    same(await receive_exactly(stream, len(text)), text)

        async with self.echoing() as (a, b), anyio.create_task_group() as talkers:
            for number in range(count):
                talkers.start_soon(talk, number)

    async def test_a_reader_that_stops_holds_the_sender(self) -> None:
        """Otherwise a peer that does not read fills this device's memory."""
        piece = os.urandom(256 * 1024)
        handed_over = 0
        async with self.stream() as (near, _):
            while handed_over < self.too_much:
                with anyio.move_on_after(1) as scope:
                    await near.send(piece)
                if scope.cancelled_caught:
                    break
                handed_over += len(piece)
        assert handed_over < self.too_much, "nobody reads, and all of it was taken over"

    # ---------------------------------------------------------------------------- ends

    async def test_closing_ends_both_directions(self) -> None:
        async with self.stream() as (near, far):
            await near.aclose()
            with pytest.raises(ENDED):
                await far.receive()
            # What goes out first may fill buffers before the end is noticed.
            with pytest.raises(ENDED):
                await send_in_pieces(far, bytes(self.too_much), 65_536)

    async def test_a_waiting_receive_notices_the_other_sides_end(self) -> None:
        async with self.stream() as (near, far), anyio.create_task_group() as tasks:

            async def wait_for_end() -> None:
                with pytest.raises(ENDED):
                    await far.receive()

            tasks.start_soon(wait_for_end)
            await anyio.sleep(0.05)
            await near.aclose()

    async def test_what_arrives_before_an_end_is_a_beginning_of_what_was_sent(self) -> None:
        blob = os.urandom(50_000)
        async with self.stream() as (near, far):
            await near.send(blob)
            await near.aclose()
            got = bytearray()
            with pytest.raises(ENDED):
                await receive_all(far, got)
            assert blob.startswith(bytes(got))

    async def test_a_stream_that_was_closed_here_says_so(self) -> None:
        async with self.stream() as (near, _):
            await near.aclose()
            await near.aclose()
            with pytest.raises(anyio.ClosedResourceError):
                await near.receive()
            with pytest.raises(anyio.ClosedResourceError):
                await near.send(b"x")

    async def test_a_waiting_receive_ends_when_the_stream_is_closed_here(self) -> None:
        async with self.stream() as (near, _), anyio.create_task_group() as tasks:

            async def wait_for_end() -> None:
                with pytest.raises((*ENDED, anyio.ClosedResourceError)):
                    await near.receive()

            tasks.start_soon(wait_for_end)
            await anyio.sleep(0.05)
            await near.aclose()

    async def test_a_stream_can_be_closed_by_force(self) -> None:
        async with self.stream() as (near, far):
            await anyio.aclose_forcefully(near)
            with pytest.raises(ENDED):
                await far.receive()

    # -------------------------------------------------------------------- cancellation

    async def test_a_cancelled_receive_loses_nothing(self) -> None:
        blob = os.urandom(200_000)
        async with self.stream() as (near, far), anyio.create_task_group() as tasks:
            tasks.start_soon(send_in_pieces, near, blob, 997)
            got = bytearray()
            turn = 0
            while len(got) < len(blob):
                turn += 1
                with anyio.CancelScope() as scope:
                    if turn % 2:
                        # Cancelled before it begins: the data may be there already.
                        scope.cancel()
                    else:
                        scope.deadline = anyio.current_time() + (turn % 7) * 0.0005
                    got += await far.receive(1_000 + turn % 3_000)
                if turn % 50 == 0 and len(got) < len(blob):
                    got += await far.receive()
            same(bytes(got), blob)

    async def test_a_cancelled_send_leaves_the_stream_usable_or_closed(self) -> None:
        blob, tail = os.urandom(self.too_much), b"after the cancelled one"
        async with self.stream() as (near, far):
            with anyio.move_on_after(0.2) as scope:
                await near.send(blob)
            if not scope.cancelled_caught:
                # It went out whole, which is one of the two things allowed.
                same(await receive_exactly(far, len(blob)), blob)
                return
            got = bytearray()

            async def read() -> None:
                with suppress(*ENDED):
                    while not got.endswith(tail):
                        got.extend(await far.receive(MEGABYTE))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read)
                try:
                    await near.send(tail)
                except (anyio.ClosedResourceError, anyio.BrokenResourceError):
                    await near.aclose()
            if got.endswith(tail):
                del got[-len(tail) :]
            assert blob.startswith(bytes(got))

    async def test_cancelled_connects_leave_the_transport_usable(self) -> None:
        async with self.echoing() as (a, b):
            for turn in range(10):
                with anyio.move_on_after(turn * 0.002):
                    await (await b.connect(a.addresses[0])).aclose()
            async with await b.connect(a.addresses[0]) as stream:
                await stream.send(b"x")
                assert await stream.receive() == b"x"
