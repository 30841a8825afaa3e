"""Checks of a transport's broadcasts: unreliable, but not without rules."""

from __future__ import annotations

import os

import anyio
import pytest

from walyoff.abc import Broadcast
from walyoff.errors import PayloadTooLargeError
from walyoff.testing.transport_base import (
    TransportChecks,
    drain,
)


class BroadcastChecks(TransportChecks):
    """Any single broadcast may be lost, so what must arrive is repeated until it does."""

    async def test_broadcasts_reach_every_subscriber_of_the_topic(self) -> None:
        async with self.heard("topic") as (a, b, heard), a.subscribe("topic") as second:
            payload = await self.until_heard(b, heard, "topic")
            for _ in range(3):
                await b.broadcast("topic", payload)
            got = await second.receive()
            assert isinstance(got, Broadcast)
            assert isinstance(got.sender, str)
            assert got.sender

    async def test_own_broadcasts_are_filtered_out(self) -> None:
        async with self.heard("topic") as (_, b, heard), b.subscribe("topic") as own:
            await self.until_heard(b, heard, "topic")
            await b.broadcast("topic", b"mine")
            with anyio.move_on_after(self.quiet) as scope:
                got = await own.receive()
            assert scope.cancelled_caught, f"heard itself: {got}"

    async def test_topics_are_apart(self) -> None:
        async with self.heard("topic") as (a, b, heard), a.subscribe("other") as other:
            for topic in ("topi", "topics", "topic/other", "Topic"):
                await b.broadcast(topic, b"elsewhere")
            await self.until_heard(b, heard, "topic")
            with anyio.move_on_after(self.quiet) as scope:
                got = await other.receive()
            assert scope.cancelled_caught, f"heard another topic: {got}"
            assert all(item.payload != b"elsewhere" for item in drain(heard))

    async def test_the_largest_broadcast_passes_and_a_larger_one_is_refused(self) -> None:
        async with self.heard("topic") as (_, b, heard):
            limit = b.max_broadcast
            await self.until_heard(b, heard, "topic", os.urandom(limit))
            with pytest.raises(PayloadTooLargeError) as caught:
                await b.broadcast("topic", bytes(limit + 1))
            assert (caught.value.size, caught.value.limit) == (limit + 1, limit)
            await self.until_heard(b, heard, "topic", b"" if limit == 0 else b"x")

    async def test_a_consumer_that_does_not_keep_up_loses_the_oldest(self) -> None:
        async with self.heard("topic") as (a, b, heard), a.subscribe("topic") as second:
            await self.until_heard(b, heard, "topic")
            for number in range(self.flood_broadcasts):
                await b.broadcast("topic", b"%d" % number)
            # Another one that reads tells when it is over: the first time others may still be
            # on their way, the second time none is.
            for payload in (b"late", b"newest"):
                await self.until_heard(b, second, "topic", payload)
                await anyio.sleep(self.quiet)
            got = [item.payload for item in drain(heard)]
            assert b"newest" in got
            assert len(got) < self.flood_broadcasts, "what waits is not bounded"

    async def test_a_broadcast_to_nobody_returns(self) -> None:
        async with self.bounded(), self.open_transports() as (a, _):
            for _ in range(20):
                await a.broadcast("topic", bytes(min(a.max_broadcast, 10)))

    async def test_without_broadcasts_sending_is_refused_and_listening_is_silent(self) -> None:
        async with self.bounded(), self.open_transports() as (a, b):
            if a.max_broadcast:
                pytest.skip("this transport has broadcasts")
            async with a.subscribe("topic") as heard:
                with pytest.raises(PayloadTooLargeError):
                    await b.broadcast("topic", b"x")
                with anyio.move_on_after(self.quiet) as scope:
                    await heard.receive()
                assert scope.cancelled_caught

    async def test_subscribing_again_works_after_leaving(self) -> None:
        async with self.heard("topic") as (a, b, heard):
            await self.until_heard(b, heard, "topic")
            for _ in range(2):
                async with a.subscribe("again") as stream:
                    await self.until_heard(b, stream, "again")
                drain(stream)
                with pytest.raises((anyio.ClosedResourceError, anyio.EndOfStream)):
                    await stream.receive()

    async def test_a_consumer_that_closes_early_harms_nobody(self) -> None:
        async with self.heard("topic") as (a, b, heard), a.subscribe("topic") as closed:
            await closed.aclose()
            await self.until_heard(b, heard, "topic", b"first")
            await self.until_heard(b, heard, "topic", b"second")

    async def test_cancelled_broadcasts_leave_the_transport_usable(self) -> None:
        async with self.heard("topic") as (_, b, heard):
            for turn in range(20):
                with anyio.move_on_after(turn * 0.0002):
                    await b.broadcast("topic", b"cancelled")
            await self.until_heard(b, heard, "topic", b"whole")
