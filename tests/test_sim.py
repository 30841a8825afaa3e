"""Whole devices in virtual time, one question each."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from tests.sim.liars import Liar
from tests.sim.virtual import Group, group, in_virtual_time, read, run
from walyoff import frames
from walyoff.abc import GuardedLedger
from walyoff.engine.delivery import LATE_AFTER
from walyoff.engine.facts import Reason
from walyoff.epochs import open_anchor
from walyoff.errors import ChildError
from walyoff.records import decode_batch
from walyoff.testing.network import LINKS, Link
from walyoff.testing.world import SimWorld


def anchors_of(g: Group, device: str) -> Counter[bytes]:
    """How often each batch is anchored on the ledger that a device holds."""
    channel = g.channels[0]
    (epoch,) = channel.engine.epochs.values()
    found = Counter[bytes]()
    for _, payload in g.world.chain(device, f"{channel.did}/ledger").blocks.values():
        anchor = open_anchor(epoch, payload)
        found.update(decode_batch(body).batch_id for body, _ in anchor.batches)
    return found


@pytest.mark.parametrize("link", LINKS)
def test_each_batch_is_anchored_once(link: str) -> None:
    async def main() -> None:
        async with group(3, replace(LINKS[link], lifetime=float("inf"))) as g:
            for n in range(30):
                for channel in g.channels:
                    await channel.send(b"%d" % n)
                await anyio.sleep(0.3)
            for channel in g.channels:
                await read(channel, 90, anchored=True)
            # Long enough for a second anchor, if somebody thought that one is missing.
            await anyio.sleep(60)
            for device in "abc":
                found = anchors_of(g, device)
                assert set(found.values()) == {1}
                assert len(found) >= 30
                assert len(g.world.chain(device, f"{g.channels[0].did}/ledger").blocks) <= 90

    run("asyncio", main)


@in_virtual_time
async def test_what_its_author_left_behind_is_anchored_by_others() -> None:
    async with group(3) as g:
        a, b, c = g.channels
        ledger = a.engine.anchors._ledger
        ledger.append = _fails  # type: ignore[method-assign]
        await (await a.send(b"hello")).wait_received(by=[b.me, c.me])
        assert await read(c, 1, anchored=True) == [b"hello"]
        assert await read(a, 1, anchored=True) == [b"hello"]
        assert anyio.current_time() > 20
        await anyio.sleep(60)
        assert sum(anchors_of(g, "b").values()) == 1


@in_virtual_time
async def test_who_has_not_all_of_the_ledger_yet_anchors_nothing_of_others() -> None:
    """What it does not find there may be on the part that is still to come."""
    whole = False

    async def is_complete() -> bool:
        await checkpoint()
        return whole

    async def learn_keys(keys: Any) -> None:
        await checkpoint()

    async with group(3) as g:
        a, b, c = g.channels
        a.engine.anchors._ledger.append = _fails  # type: ignore[method-assign]
        for channel in (b, c):
            ledger: Any = channel.engine.anchors._ledger
            ledger.is_complete, ledger.learn_keys = is_complete, learn_keys
            assert isinstance(ledger, GuardedLedger)
        await (await a.send(b"hello")).wait_received(by=[b.me, c.me])
        await anyio.sleep(200)
        assert not anchors_of(g, "b")
        # Its own it writes at once.
        await (await b.send(b"mine")).wait_received(by=[c.me])
        await anyio.sleep(2)
        assert sum(anchors_of(g, "b").values()) == 1
        whole = True
        await anyio.sleep(60)
        assert sorted(anchors_of(g, "c").values()) == [1, 1]


@in_virtual_time
async def test_a_question_about_chains_that_failed_is_asked_again() -> None:
    """The ledger's process of who has the blocks is replaced while it reads them."""
    world = SimWorld(5)
    async with world.device("b") as two:
        async with world.device("a") as one:
            a = await one.create_channel("family")
            b = await two.join(await a.invite())
            async with world.device("c") as three:
                await three.join(await a.invite())
            contents = [b"%d" % n for n in range(5)]
            await a.send_many(contents)
            assert await read(b, 5, anchored=True) == contents
        chain: Any = world.chain("b", f"{a.did}/ledger")
        whole = chain.export
        failures: list[float] = []

        async def export(known: list[str]) -> AsyncIterator[list[bytes]]:
            if not failures:
                failures.append(anyio.current_time())
                raise ChildError("it was killed")
            async for piece in whole(known):
                yield piece

        chain.export = export
        async with world.device("c") as three:
            started = anyio.current_time()
            assert await read(three.channel("family"), 5, anchored=True) == contents
            assert failures
            # Before anybody would think that they were left behind.
            assert anyio.current_time() - started < 10


async def _fails(payload: bytes) -> Any:
    await checkpoint()
    raise ChildError("the ledger is not there")


@in_virtual_time
async def test_who_comes_back_gets_the_absent_authors_messages_from_a_third() -> None:
    world = SimWorld(5)
    async with world.device("b") as two:
        async with world.device("a") as one:
            a = await one.create_channel("family")
            b = await two.join(await a.invite())
            async with world.device("c") as three:
                await three.join(await a.invite())
            # c is away now.
            contents = [b"%d" % n for n in range(50)] + [bytes([n]) * 300_000 for n in range(5)]
            receipts = await a.send_many(contents)
            await receipts[-1].wait_received(by=b.me)
        # a is away now, and what it wrote to its ledger last with it.
        async with world.device("c") as three:
            c = three.channel("family")
            started = anyio.current_time()
            assert await read(c, 55) == contents
            assert anyio.current_time() - started < 10


@pytest.mark.parametrize("link", LINKS)
def test_large_contents_arrive_over_every_link(link: str) -> None:
    async def main() -> None:
        async with group(2, replace(LINKS[link], lifetime=float("inf"))) as g:
            a, b = g.channels
            contents = [bytes([n]) * 1_000_000 for n in range(6)] + [bytes(8 * 1024 * 1024)]
            receipts = await a.send_many(contents)
            for receipt in receipts:
                await receipt.wait_received(by=b.me)
            received = [m.content async for m in b.history()]
            assert sorted(filter(None, received)) == sorted(contents)
            timeouts = b.engine.reports.get(Reason.TIMEOUT, 0)
            assert timeouts == 0, f"{timeouts} honest answers were taken for lost"

    run("asyncio", main)


@in_virtual_time
async def test_a_missing_content_delays_others_for_a_moment_only() -> None:
    async with group(3) as g:
        a, b, c = g.channels
        Liar("no contents", 1).corrupt_now(c)
        await c.send(b"never to be seen")
        await c.send(b"nor this")
        await anyio.sleep(0.01)
        started = anyio.current_time()
        await a.send(b"an answer")
        assert await read(b, 1) == [b"an answer"]
        assert anyio.current_time() - started <= LATE_AFTER + 0.1
        assert b.status()["missing"] == 2


@in_virtual_time
async def test_a_missing_content_takes_its_place_when_it_comes() -> None:
    async with group(3) as g:
        a, b, c = g.channels
        liar = Liar("no contents", 1)
        liar.corrupt_now(c)
        await c.send(b"the question")
        await anyio.sleep(0.01)
        await a.send(b"an answer")
        assert await read(b, 1) == [b"an answer"]
        liar.lie = "none any more"
        assert await read(b, 2) == [b"an answer", b"the question"]


@pytest.mark.parametrize("lie", ["equivocation", "alternative to one"])
def test_an_equivocator_is_frozen_by_all_for_good(lie: str) -> None:
    """Branches that were accepted before are kept; nothing of it is accepted after."""

    async def main() -> None:
        async with group(4) as g:
            honest, liar = g.channels[:3], g.channels[3]
            await liar.send(b"once it was honest")
            await anyio.sleep(0.1)
            Liar(lie, 1).corrupt_now(liar)
            await liar.send(b"to one this, to one that")
            await anyio.sleep(1)
            await liar.send(b"and more")
            for channel in honest:
                while liar.me not in channel.engine.reconciler.forked:
                    await channel.engine.changed()
            assert anyio.current_time() < 20
            for channel in honest:
                assert channel.status()["forked"] == [liar.me]
                reports = [r for r in channel.reports() if r.reason == Reason.FORK]
                assert [r.subject for r in reports] == [liar.me]
            before = [dict(c.engine.durable)[liar.me] for c in honest]
            for n, channel in enumerate(honest):
                await liar.send(b"hear me")
                receipt = await channel.send(b"we go on %d" % n)
                started = anyio.current_time()
                await receipt.wait_received(by=[c.me for c in honest if c is not channel])
                assert anyio.current_time() - started < 0.2
            assert [dict(c.engine.durable)[liar.me] for c in honest] == before
            logs = [
                {m.id async for m in channel.history() if m.author != liar.me}
                for channel in honest
            ]
            assert logs[0] == logs[1] == logs[2]
            assert len(logs[0]) == 3
            # After a restart it knows, with nobody there to tell.
            g.world.network.partition("e", "abcd")
        async with g.world.device("b") as device:
            assert device.channel("family").status()["forked"] == [liar.me]

    run("asyncio", main)


@in_virtual_time
async def test_a_proof_reaches_those_who_were_away() -> None:
    async with group(3) as g:
        a, b, c = g.channels
        g.world.network.partition("a", "bc")
        Liar("alternative to one", 1).corrupt_now(c)
        g.world.network.repair()
        await c.wait_peer(a.me)
        # Until they have greeted each other, so that it is pushed.
        await anyio.sleep(1)
        await c.send(b"one")
        while c.me not in a.engine.reconciler.forked:
            await a.engine.changed()
        while c.me not in b.engine.reconciler.forked:
            await b.engine.changed()
        async with g.world.device("d") as device:
            d = await device.join(await b.invite())
            while c.me not in d.engine.reconciler.forked:
                await d.engine.changed()


def make_test(lie: str, reasons: set[str]) -> None:
    """A liar is named to the application, and harms nobody."""

    async def main() -> None:
        async with group(3) as g:
            a, b, c = g.channels
            Liar(lie, 1).corrupt_now(c)
            receipts = []
            for n in range(20):
                receipts.append(await a.send(b"a%d" % n))
                await c.send(b"c%d" % n)
                await anyio.sleep(0.05)
            for receipt in receipts:
                await receipt.wait_received(by=b.me)
            found = {r.reason for r in b.reports() if r.subject.startswith(c.me[-8:])}
            found |= {r.reason for r in b.reports() if r.subject == c.me}
            assert found == reasons
            assert all(m.author != "did:sim:z" for m in await b.last(100))

    run("asyncio", main)


def test_wrong_contents_are_reported() -> None:
    make_test("wrong contents", {Reason.WRONG_CONTENT})


def test_forged_batches_are_reported() -> None:
    make_test("forgery", {Reason.WRONG_SIGNATURE})


def test_bad_signatures_are_reported() -> None:
    make_test("bad signatures", {Reason.WRONG_SIGNATURE})


def test_replays_are_not_even_a_fault() -> None:
    make_test("replay", set())


@in_virtual_time
async def test_memory_stays_bounded_under_a_skipper_and_a_claimer() -> None:
    async with group(3) as g:
        a, b, c = g.channels
        Liar("skipping", 1).corrupt_now(c)
        # It hears that its own records are not what it wrote; a liar does not mind.
        c.engine.trust.note_copy = lambda: None  # type: ignore[method-assign]
        for n in range(400):
            await c.send(b"%d" % n)
        await (await a.send(b"done")).wait_received(by=b.me)
        waiting = b.engine.inbox._waiting
        assert sum(map(len, waiting.values())) <= 64
        link = next(state for state in c.engine.links.values() if state.link.did == b.me)
        for start in range(0, 10_000, 1000):
            vector = tuple(frames.Have(f"did:sim:n{start + n}", 9) for n in range(1000))
            link.send(frames.HaveVector(vector))
        await anyio.sleep(5)
        for state in b.engine.reconciler.peers.values():
            assert len(state.heads) <= 64 + 3
        assert all(len(v) <= 64 + 3 for v in b.engine.confirmed.values())


def test_two_devices_talk_over_a_link_that_only_loses_broadcasts() -> None:
    async def main() -> None:
        async with group(2, Link(loss=1.0)) as g:
            a, b = g.channels
            await a.send(b"hello")
            assert await read(b, 1, anchored=True) == [b"hello"]
            assert anyio.current_time() < 10

    run("asyncio", main)
