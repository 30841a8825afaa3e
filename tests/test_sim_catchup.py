"""Catching up in virtual time, where nothing takes any but distance: what is counted is how
often the far side is waited for.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import anyio
import pytest

from tests.sim.virtual import group, in_virtual_time, read
from walyoff import Channel, frames
from walyoff.engine.announcing import MAX_TAIL, claim
from walyoff.engine.answering import FIRST_PIECE
from walyoff.engine.asking import RANGE_BYTES
from walyoff.errors import RemoteProtocolError, StoreError
from walyoff.records import MAX_RECORDS
from walyoff.testing import network
from walyoff.testing.network import Link
from walyoff.testing.world import SimWorld

LATENCY = 0.025
ROUND_TRIP = 2 * LATENCY
#: In bytes per second: slow enough that a batch takes longer than a round trip.
SLOW = 2_000_000
SIZE = 1000
#: The register says nothing of the history before the session is over.
NEVER = 1e6
#: Bytes of a message on the wire, roughly: content, salt, record, and their frames.
ON_WIRE = 1200


async def caught_up(
    link: Link, sizes: Sequence[int], *, append_s: float = NEVER
) -> list[tuple[float, int]]:
    """When each message was delivered of a history that was missed, after the session was
    there, and its number. Writing a block takes `append_s`.
    """
    with pytest.MonkeyPatch.context() as patch:
        # What is counted are our round trips, not those of the transport's own window.
        patch.setattr(network, "WINDOW", 64 * 1024 * 1024)
        return await _caught_up(SimWorld(1, link, append_s=append_s), sizes)


async def _caught_up(world: SimWorld, sizes: Sequence[int]) -> list[tuple[float, int]]:
    found: list[tuple[float, int]] = []

    async def read(channel: Channel) -> None:
        async for message in channel.messages():
            if message.author != channel.me and message.seq > 1:
                found.append((anyio.current_time(), message.seq))
                if len(found) == len(sizes):
                    break

    async with world.device("a") as a:
        here = await a.create_channel("family")
        async with world.device("b") as b:
            there = await b.join(await here.invite())
            await there.wait_peer(here.me)
            receipt = await here.send(b"hello")
            await receipt.wait_received(there.me)
        for start in range(0, len(sizes), MAX_RECORDS):
            await here.send_many([bytes(size) for size in sizes[start : start + MAX_RECORDS]])
        async with world.device("b") as b, anyio.create_task_group() as tasks:
            (there,) = b.channels()
            tasks.start_soon(read, there)
            await there.wait_peer(here.me)
            met = anyio.current_time()
    return [(when - met, seq) for when, seq in found]


@in_virtual_time
async def test_a_long_history_takes_few_round_trips() -> None:
    count = 12 * MAX_RECORDS
    assert count * SIZE > 1.4 * RANGE_BYTES
    arrived = await caught_up(Link(latency=LATENCY), [SIZE] * count)
    assert [seq for _, seq in arrived] == list(range(2, count + 2))
    # One for the first request, and one because not all of it is granted at once.
    assert arrived[0][0] < 1.5 * ROUND_TRIP
    assert arrived[-1][0] < 3 * ROUND_TRIP


@in_virtual_time
async def test_a_long_answer_goes_on_without_a_pause() -> None:
    link = Link(latency=LATENCY, bandwidth=20_000_000)
    world = SimWorld(1, link, append_s=NEVER)
    arrived = await _caught_up(world, [SIZE] * 12 * MAX_RECORDS)
    # What is under way lasts for longer than a round trip: nothing is waited for in between.
    waits = [late[0] - early[0] for early, late in pairwise(arrived)]
    assert max(waits) < 0.8 * ROUND_TRIP


@in_virtual_time
async def test_what_the_register_named_takes_a_round_trip_for_some_thousand() -> None:
    count = 8 * MAX_RECORDS
    arrived = await caught_up(Link(latency=LATENCY), [SIZE] * count, append_s=0.001)
    assert sorted(seq for _, seq in arrived) == list(range(2, count + 2))
    assert arrived[-1][0] < 5 * ROUND_TRIP


@in_virtual_time
async def test_the_first_messages_of_a_full_batch_do_not_wait_for_its_last() -> None:
    arrived = await caught_up(Link(latency=LATENCY, bandwidth=SLOW), [SIZE] * MAX_RECORDS)
    assert [seq for _, seq in arrived] == list(range(2, MAX_RECORDS + 2))
    whole = MAX_RECORDS * ON_WIRE / SLOW
    # The records of the batch come first, and a piece of its contents with them.
    assert arrived[0][0] < 2 * ROUND_TRIP + whole / 2
    assert arrived[-1][0] > whole * SIZE / ON_WIRE
    # In pieces, as they come: the time between two that follow is never that of a batch.
    waits = [late[0] - early[0] for early, late in pairwise(arrived)]
    assert max(waits) < 2 * FIRST_PIECE * ON_WIRE / SLOW


@in_virtual_time
async def test_batches_and_large_contents_come_side_by_side() -> None:
    sizes = [100_000 if n % 20 == 0 else SIZE for n in range(200)]
    arrived = await caught_up(Link(latency=LATENCY), sizes)
    assert sorted(seq for _, seq in arrived) == list(range(2, len(sizes) + 2))
    # One for the batches, one for what does not travel with them.
    assert arrived[-1][0] < 3 * ROUND_TRIP


@in_virtual_time
async def test_an_author_of_whom_a_peer_holds_nothing_keeps_nobody_waiting() -> None:
    """It is in the vector of a device that has heard of it, with no record."""
    async with group(2) as g:
        a, _ = g.channels
        (server,) = a.connections.servers()
        server._answers.greeted([frames.Have("did:sim:new", 0)])
        assert not server._answers._is_behind()
        server._answers.greeted([frames.Have("did:sim:new", 1)])
        assert server._answers._is_behind()


@in_virtual_time
async def test_a_damaged_content_keeps_no_other_one_back() -> None:
    world = SimWorld(1)
    async with world.device("a") as a:
        here = await a.create_channel("family")
        async with world.device("b") as b:
            await (await b.join(await here.invite())).wait_peer(here.me)
        receipts = [await here.send(b"%d" % n) for n in range(5)]
        store = here.engine.store
        read = type(store).contents

        async def contents(self: object, record_ids: Sequence[bytes]) -> object:
            if self is store and receipts[2].id in record_ids:
                raise StoreError("the content is damaged")
            return await read(self, record_ids)  # type: ignore[arg-type]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(store), "contents", contents)
            async with world.device("b") as b:
                (there,) = b.channels()
                found = []
                async for message in there.messages():
                    found.append(message.content)
                    if len(found) == 4:
                        break
        assert sorted(c for c in found if c) == [b"0", b"1", b"3", b"4"]


def test_of_a_batch_that_is_coming_in_only_what_has_come_is_claimed() -> None:
    coming = list(range(129, 1025))
    assert claim("x", 1024, coming) == frames.Have("x", 128, ())
    assert claim("x", 1024, [7, *coming]) == frames.Have("x", 128, (7,))
    # What is not durable yet is no gap of what is.
    assert claim("x", 100, coming) == frames.Have("x", 100, ())
    # Few are named, so that others hear of the records.
    few = list(range(1025 - MAX_TAIL, 1025))
    assert claim("x", 1024, few) == frames.Have("x", 1024, tuple(few))
    # Of more than can be named the newest are.
    many = list(range(1, 1000, 2))
    assert claim("x", 1024, many) == frames.Have("x", 1024, tuple(many[-frames.MAX_GAPS :]))


@in_virtual_time
async def test_what_is_pushed_before_new_keys_are_known_counts_when_they_are() -> None:
    """They came with the ledger, and nobody who is connected tells of them."""
    async with group(2) as g:
        a, b = g.channels
        identity: Any = b.foundation.identity
        verify = identity.verify

        async def without_the_keys(did: str, body: bytes, signature: bytes) -> int:
            if await verify(did, body, signature) > 1:
                raise RemoteProtocolError("the control keys did not sign this", reason="x")
            return 1

        identity.verify = without_the_keys
        await g.devices[0].renew_keys()
        await a.send(b"by the next keys")
        await anyio.sleep(3)
        assert b.status()["messages"] == 0
        identity.verify = verify
        with anyio.fail_after(10):
            assert await read(b, 1) == [b"by the next keys"]
        with anyio.fail_after(120):
            assert await read(b, 1, anchored=True) == [b"by the next keys"]
