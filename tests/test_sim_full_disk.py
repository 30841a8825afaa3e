"""A store that cannot write: a clear error at once, nothing half done, and on it goes later."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from unittest import mock

import anyio
import pytest

from walyoff import StoreError
from walyoff.channel import Channel
from walyoff.engine import committing
from walyoff.engine.removals import Statement
from walyoff.records import Record, chain_start, make_batch
from walyoff.testing.virtual import VirtualTimeLoop
from walyoff.testing.world import SimWorld
from walyoff.trust import Trust


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    anyio.run(scenario, backend_options={"loop_factory": VirtualTimeLoop})


async def contents(channel: Channel) -> list[bytes | None]:
    return [message.content async for message in channel.history()]


async def settled(channel: Channel, expected: set[bytes]) -> None:
    with anyio.fail_after(120):
        while set(await contents(channel)) != expected:
            await channel.changed()


def test_a_sender_with_a_full_disk_is_told_and_goes_on_when_there_is_room() -> None:
    async def scenario() -> None:
        world = SimWorld(3)
        async with world.device("alice") as alice, world.device("bob") as bob:
            family = await alice.create_channel("family")
            theirs = await bob.join(await family.invite())
            await family.send(b"before")
            world.disk("alice").full = True
            for _ in range(5):
                with pytest.raises(StoreError, match="no space"):
                    await family.send(b"never was")
                await anyio.sleep(1)
            world.disk("alice").full = False
            with anyio.fail_after(60):
                while True:
                    try:
                        receipt = await family.send(b"after")
                        break
                    except StoreError:
                        await anyio.sleep(1)
                await receipt.wait_received(by=theirs.me)
                await receipt.wait_anchored()
            assert await contents(family) == [b"before", b"after"]
            assert await contents(theirs) == [b"before", b"after"]
            assert theirs.status()["forked"] == []

    run(scenario)


def test_a_receiver_with_a_full_disk_gets_everything_when_there_is_room() -> None:
    async def scenario() -> None:
        world = SimWorld(4)
        async with world.device("alice") as alice, world.device("bob") as bob:
            family = await alice.create_channel("family")
            theirs = await bob.join(await family.invite())
            sent = set()
            for n in range(40):
                world.disk("bob").full = 10 <= n < 30
                content = b"%d" % n
                await family.send(content)
                sent.add(content)
                await anyio.sleep(0.5)
            await settled(theirs, sent)
            assert await contents(theirs) == sorted(sent, key=int)
            receipt = await theirs.send(b"thanks")
            await receipt.wait_received(by=family.me)

    run(scenario)


def test_a_device_with_a_full_disk_still_gives_what_it_holds() -> None:
    async def scenario() -> None:
        world = SimWorld(5)
        async with world.device("alice") as alice, world.device("bob") as bob:
            family = await alice.create_channel("family")
            theirs = await bob.join(await family.invite())
            await anyio.sleep(5)
            world.network.partition({"alice"}, {"bob"})
            await family.send(b"before")
            await anyio.sleep(30)
            world.disk("alice").full = True
            world.network.repair()
            await settled(theirs, {b"before"})
            # And this is no session after the other, each of which ends with the greeting.
            (session,) = family.connections.sessions()
            await anyio.sleep(30)
            assert family.connections.sessions() == [session]

    run(scenario)


def test_a_receiver_that_waits_for_its_store_is_not_held_up_when_that_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(committing, "MAX_UNCOMMITTED", 1000)

    async def scenario() -> None:
        world = SimWorld(6)
        async with world.device("alice") as alice, world.device("bob") as bob:
            family = await alice.create_channel("family")
            theirs = await bob.join(await family.invite())
            await family.send(b"before")
            await settled(theirs, {b"before"})
            # A session whose other tasks have nothing to write that could fail, and end it.
            await anyio.sleep(5)
            # More comes while the first of it is on its way to the disk.
            world.disk("bob").sync_s = 1.0
            world.disk("bob").full = True
            sent = {b"%d" % n * 600 for n in range(10)}
            for content in sent:
                await family.send(content)
            await anyio.sleep(20)
            world.disk("bob").full = False
            world.disk("bob").sync_s = 0.001
            await settled(theirs, {b"before", *sent})

    run(scenario)


def test_both_disks_full_at_times_lose_nothing_that_was_confirmed() -> None:
    async def scenario() -> None:
        world = SimWorld(5)
        async with world.device("alice") as alice, world.device("bob") as bob:
            family = await alice.create_channel("family")
            theirs = await bob.join(await family.invite())
            confirmed: set[bytes] = set()

            async def write(channel: Channel, name: bytes) -> None:
                for n in range(60):
                    content = b"%s %d" % (name, n)
                    try:
                        await channel.send(content)
                    except StoreError:
                        await anyio.sleep(0.3)
                    else:
                        confirmed.add(content)
                    await anyio.sleep(0.2)

            async def fill() -> None:
                for n in range(12):
                    await anyio.sleep(1.3)
                    world.disk(("alice", "bob")[n % 2]).full = n % 4 < 2
                world.disk("alice").full = world.disk("bob").full = False

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(write, family, b"a")
                tasks.start_soon(write, theirs, b"b")
                tasks.start_soon(fill)
            await settled(family, confirmed)
            await settled(theirs, confirmed)
            assert family.status()["forked"] == theirs.status()["forked"] == []

    run(scenario)


def test_who_left_while_the_disk_was_full_is_stated_when_there_is_room() -> None:
    async def scenario() -> None:
        world = SimWorld(7)
        async with (
            world.device("alice") as alice,
            world.device("bob") as bob,
            world.device("carol") as carol,
        ):
            family = await alice.create_channel("family")
            theirs = await bob.join(await family.invite())
            hers = await carol.join(await family.invite())
            await hers.send(b"before")
            await settled(theirs, {b"before"})
            world.disk("bob").full = True
            with pytest.raises(StoreError):
                await theirs.send(b"never was")
            await family.remove(hers.me)
            await anyio.sleep(30)
            assert theirs.engine.removals.pending()
            world.disk("bob").full = False
            with anyio.fail_after(120):
                await theirs.engine.removals.wait_stated()
            stated = theirs.engine.reconciler.heads[theirs.me]
            assert stated.seq >= 1

    run(scenario)


def test_what_the_store_refuses_before_a_batch_is_made_is_told_to_the_sender(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        world = SimWorld(8)
        async with world.device("alice") as alice:
            family = await alice.create_channel("family")
            with monkeypatch.context() as patch, anyio.fail_after(20):
                # As the first batch after a device was moved does on a full disk.
                async def began(*_: object) -> None:
                    raise StoreError("no space")

                patch.setattr(Trust, "began", began)
                with pytest.raises(StoreError, match="no space"):
                    await family.send(b"never was")
            await family.send(b"after")
            assert await contents(family) == [b"after"]

    run(scenario)


def test_what_was_heard_of_who_left_and_not_stored_is_stored_when_it_is_heard_again() -> None:
    async def scenario() -> None:
        world = SimWorld(9)
        async with world.device("alice") as alice:
            family = await alice.create_channel("family")
            removals = family.engine.removals
            statement = Statement(bytes(16), 1, 7, bytes(32))
            world.disk("alice").full = True
            with pytest.raises(StoreError):
                await removals._learn(statement)
            world.disk("alice").full = False
            await removals._learn(statement)
            keys = await family.engine.trust.store.keys("removal/")
            assert [key.rpartition("/")[2] for key in keys] == [bytes(16).hex()]

    run(scenario)


def test_a_proof_that_was_not_stored_is_stored_when_it_comes_again() -> None:
    async def scenario() -> None:
        world = SimWorld(10)
        async with world.device("alice") as alice:
            family = await alice.create_channel("family")
            engine = family.engine
            one, other = (
                make_batch(
                    channel=family.did,
                    author="did:sim:liar",
                    certificate_id=bytes(32),
                    first_seq=1,
                    prev=chain_start(family.did, "did:sim:liar"),
                    seen=[],
                    records=[Record(time_ms, 0, (), 0, bytes(32))],
                ).body
                for time_ms in (1, 2)
            )
            world.disk("alice").full = True
            with pytest.raises(StoreError):
                await engine.forks.convict((one, b"signed"), (other, b"signed"))
            assert "did:sim:liar" in engine.reconciler.forked
            world.disk("alice").full = False
            assert await engine.forks.convict((one, b"signed"), (other, b"signed"))
            assert len(await engine.trust.store.keys("fork/")) == 1

    run(scenario)


def test_a_message_that_is_stored_is_sent_although_the_next_write_fails() -> None:
    async def scenario() -> None:
        world = SimWorld(11)
        async with world.device("alice") as alice, world.device("bob") as bob:
            family = await alice.create_channel("family")
            theirs = await bob.join(await family.invite())
            engine = family.engine
            signing, may_sign = engine.signing, anyio.Event()

            class Slow:
                def __init__(self, batch_id: bytes) -> None:
                    self._attempts = signing(batch_id)

                def again(self) -> bool:
                    return False

                async def value(self) -> bytes:
                    await may_sign.wait()
                    return await self._attempts.value()

            with mock.patch.object(engine, "signing", Slow):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(family.send, b"stored")
                    while await contents(family) != [b"stored"]:
                        await family.changed()
                    world.disk("alice").full = True
                    await theirs.send(b"what alice cannot write")
                    await anyio.sleep(1)
                    may_sign.set()
            world.disk("alice").full = False
            await settled(theirs, {b"stored", b"what alice cannot write"})
            await settled(family, {b"stored", b"what alice cannot write"})

    run(scenario)


def test_the_place_in_the_register_is_not_stored_before_what_it_brought() -> None:
    async def scenario() -> None:
        world = SimWorld(12)
        async with world.device("alice") as alice, world.device("bob") as bob:
            family = await alice.create_channel("family")
            theirs = await bob.join(await family.invite())
            await (await family.send(b"first")).wait_anchored()
            await anyio.sleep(30)
            store, may_write = theirs.engine.store, anyio.Event()
            write, anchors = store.write, theirs.engine.anchors
            noted: list[int] = []

            async def slowly(**facts: Any) -> int:
                await may_write.wait()
                return await write(**facts)

            before = anchors.committed
            with (
                mock.patch.object(store, "write", slowly),
                mock.patch.object(anchors, "_on_position", noted.append),
            ):
                await (await family.send(b"second")).wait_anchored()
                await anyio.sleep(30)
                assert anchors.position > before
                assert noted == []
                may_write.set()
                await anyio.sleep(30)
                assert max(noted) == anchors.committed == anchors.position

    run(scenario)
