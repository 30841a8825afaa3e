"""Copies of one device: moved, restored, and run where they should not be."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import anyio
import anyio.abc
import pytest

from tests.sim.virtual import in_virtual_time
from walyoff import Channel, Device, SupersededError, plugins
from walyoff.certificates import Certificate, encode
from walyoff.cli.console import Console
from walyoff.cli.runtime import Failure
from walyoff.cli.sending import _may_write
from walyoff.engine.facts import FetchBatches
from walyoff.engine.reconciler import Reconciler
from walyoff.engine.resuming import MAX_FAILURES, Resuming
from walyoff.incarnations import (
    EARLIEST_MS,
    begin_incarnation,
    check_current,
    note_exported,
    undo_export,
)
from walyoff.testing.memory import MemoryDisk, MemoryStore
from walyoff.testing.network import LAN
from walyoff.testing.platform import SimIdentity
from walyoff.testing.virtual import SimRuntime
from walyoff.testing.world import SimWorld
from walyoff.trust import Standing
from walyoff.wire import pack, unpack

SOON = 60.0


async def holds(channel: Channel, contents: set[bytes]) -> None:
    """Wait, in virtual time, until a device holds exactly these messages."""
    with anyio.fail_after(SOON):
        while {m.content async for m in channel.history()} != contents:  # noqa: ASYNC110
            await anyio.sleep(0.1)


class Copies:
    """Devices that start and stop, each in a task of its own, and what ended them."""

    def __init__(self, world: SimWorld, tasks: anyio.abc.TaskGroup) -> None:
        self.world = world
        self._tasks = tasks
        self._scopes: dict[str, tuple[anyio.CancelScope, anyio.Event]] = {}
        self.errors: dict[str, BaseException] = {}
        self.device: dict[str, Device] = {}

    async def start(self, name: str) -> Channel:
        """Open a device; returns its channel."""
        await self.open(name)
        (channel,) = self.device[name].channels()
        return channel

    async def open(self, name: str) -> Device:
        """Open a device."""
        return await self._tasks.start(self._run, name)  # type: ignore[no-any-return]

    async def _run(self, name: str, *, task_status: anyio.abc.TaskStatus[Device]) -> None:
        ended = anyio.Event()
        try:
            with anyio.CancelScope() as scope:
                async with self.world.device(name) as device:
                    self._scopes[name] = (scope, ended)
                    self.device[name] = device
                    task_status.started(device)
                    await anyio.sleep_forever()
        except* SupersededError as group:
            error: BaseException = group
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            self.errors[name] = error
            if name not in self._scopes:
                raise error from None
        finally:
            self._scopes.pop(name, None)
            ended.set()

    async def stop(self, name: str) -> None:
        """End a device."""
        scope, ended = self._scopes[name]
        scope.cancel()
        await ended.wait()

    async def superseded(self, name: str) -> None:
        """Wait until a device stops by itself, because it is told why."""
        with anyio.fail_after(SOON):
            if name in self._scopes:
                await self._scopes[name][1].wait()
        assert isinstance(self.errors.pop(name), SupersededError)

    def backup(self, name: str) -> MemoryDisk:
        """What a backup of a device has."""
        return copy.deepcopy(self.world.disk(name))

    def copied(self, disk: MemoryDisk, name: str) -> MemoryStore:
        """The store of a device of that name with what a backup has."""
        target = self.world.disk(name)
        target.values, target.channels = copy.deepcopy((disk.values, disk.channels))
        # A backup has the chains too; in a world they have their places by device.
        for (device, chain), blocks in list(self.world.chains.items()):
            if device == "b":
                mine = self.world.chain(name, chain)
                mine.blocks, mine.order = dict(blocks.blocks), list(blocks.order)
                mine.children = set(blocks.children)
        return MemoryStore(target)

    async def restore(self, disk: MemoryDisk, name: str) -> None:
        """Make a device of that name from a backup; it is not opened yet."""
        now_ms = SimRuntime(1).wall_ms()
        await begin_incarnation(self.copied(disk, name), now_ms)


@asynccontextmanager
async def devices(*names: str) -> AsyncIterator[tuple[Copies, dict[str, Channel]]]:
    """Running devices in one channel, each with one message that all have."""
    async with anyio.create_task_group() as tasks:
        copies = Copies(SimWorld(1, LAN), tasks)
        opened = {name: await copies.open(name) for name in names}
        first = await opened[names[0]].create_channel("family")
        channels = {names[0]: first}
        for name in names[1:]:
            channels[name] = await opened[name].join(await first.invite())
        for name, channel in channels.items():
            receipt = await channel.send(f"from {name}".encode())
            if others := [c.me for c in channels.values() if c is not channel]:
                await receipt.wait_received(by=others)
        yield copies, channels
        tasks.cancel_scope.cancel()


def unharmed(*channels: Channel) -> None:
    """Nobody was found to have contradicted itself."""
    for channel in channels:
        assert channel.status()["forked"] == []


def said(*more: bytes) -> set[bytes]:
    """What was said in all, with what a and b said at first."""
    return {b"from a", b"from b", *more}


@in_virtual_time
async def test_a_restored_device_learns_what_it_said_before_it_says_more() -> None:
    async with devices("a", "b", "c") as (copies, channels):
        a, b, c = channels["a"], channels["b"], channels["c"]
        disk = copies.backup("b")
        await (await b.send(b"after the backup")).wait_received(by=[a.me, c.me])
        await copies.stop("b")
        await copies.restore(disk, "b2")
        again = await copies.start("b2")
        assert again.me == b.me
        assert again.status()["resuming"]
        assert again.engine.reconciler.resuming
        # Its own words come back, and it goes on from there.
        assert (await again.send(b"after the restoring")).seq == 3
        assert not again.status()["resuming"]
        for one in (a, c, again):
            await holds(one, said(b"from c", b"after the backup", b"after the restoring"))
        unharmed(a, c, again)


@in_virtual_time
async def test_a_restored_device_says_nothing_while_nobody_is_there() -> None:
    async with devices("a", "b") as (copies, channels):
        disk = copies.backup("b")
        await (await channels["b"].send(b"after the backup")).wait_received()
        await copies.stop("b")
        await copies.stop("a")
        await copies.restore(disk, "b2")
        again = await copies.start("b2")
        with anyio.move_on_after(300) as waited:
            await again.send(b"too early")
        assert waited.cancelled_caught
        # The command line says what to do.
        with pytest.raises(Failure, match="takeover --alone"):
            await _may_write(Console(json=True), again)
        # That was cancelled, and yet may be sent: it is the second that it says.
        await copies.start("a")
        assert (await again.send(b"in time")).seq == 4


@in_virtual_time
async def test_who_says_that_nothing_is_missing_is_believed() -> None:
    async with devices("a", "b") as (copies, channels):
        disk = copies.backup("b")
        await copies.stop("b")
        await copies.stop("a")
        await copies.restore(disk, "b2")
        again = await copies.start("b2")
        await again.resume_alone()
        assert (await again.send(b"alone")).seq == 2
        await holds(await copies.start("a"), said(b"alone"))
        del channels


@in_virtual_time
async def test_a_restored_device_that_nobody_shares_a_channel_with_goes_on_at_once() -> None:
    async with devices("b") as (copies, channels):
        await channels["b"].send(b"a note")
        disk = copies.backup("b")
        await copies.stop("b")
        await copies.restore(disk, "b2")
        assert (await (await copies.start("b2")).send(b"another")).seq == 3


@in_virtual_time
async def test_the_old_copy_is_told_and_stops_and_does_not_open_again() -> None:
    async with devices("a", "b") as (copies, channels):
        await copies.restore(copies.backup("b"), "b2")
        moved = await copies.start("b2")
        await moved.send(b"from the new one")
        await copies.superseded("b")
        with pytest.raises(SupersededError, match="walyoff takeover"):
            await copies.start("b")
        await holds(channels["a"], said(b"from the new one"))
        unharmed(channels["a"], moved)


@in_virtual_time
async def test_a_copy_whose_control_keys_were_replaced_is_not_told_to_take_over() -> None:
    """Nor does it do so: others would go on with the one that has the newer keys."""
    async with devices("a", "b") as (copies, channels):
        me, certify = channels["b"].me, SimIdentity.certify

        async def certify_by_what_is_here(identity: SimIdentity, body: bytes) -> bytes:
            if identity._device == "b":
                return copies.world.sign(me, body, 1)
            return await certify(identity, body)

        with mock.patch.object(SimIdentity, "certify", certify_by_what_is_here):
            await copies.stop("b")
            await copies.restore(copies.backup("b"), "b2")
            moved = await copies.start("b2")
            await copies.device["b2"].renew_keys()
            await (await moved.send(b"by newer keys")).wait_received(by=channels["a"].me)
            await copies.start("b")
            await copies.superseded("b")
        store = MemoryStore(copies.world.disk("b"))
        with pytest.raises(SupersededError, match="replaced the device's control") as told:
            await copies.start("b")
        assert "takeover" not in str(told.value)
        for alone in (False, True):
            with pytest.raises(SupersededError, match="join with a new home"):
                await begin_incarnation(store, SimRuntime(1).wall_ms(), alone=alone)
        unharmed(channels["a"], moved)


@in_virtual_time
async def test_two_copies_that_share_nobody_meet_and_the_older_one_stops() -> None:
    async with devices("b") as (copies, channels):
        await copies.restore(copies.backup("b"), "b2")
        moved = await copies.start("b2")
        await copies.superseded("b")
        assert (await moved.send(b"alone again")).seq == 2
        assert channels["b"].did == moved.did


@in_virtual_time
async def test_of_two_copies_from_one_file_the_later_one_counts() -> None:
    async with devices("a", "b") as (copies, channels):
        disk = copies.backup("b")
        await copies.stop("b")
        await copies.restore(disk, "b2")
        await anyio.sleep(5)
        await copies.restore(disk, "b3")
        third = await copies.start("b3")
        await third.send(b"from the third")
        await copies.start("b2")
        await copies.superseded("b2")
        for channel in (channels["a"], third):
            await holds(channel, said(b"from the third"))
            unharmed(channel)


@in_virtual_time
async def test_a_copy_that_was_told_can_take_over_whatever_its_clock_says() -> None:
    async with devices("a", "b") as (copies, channels):
        await copies.restore(copies.backup("b"), "b2")
        await (await (await copies.start("b2")).send(b"from the new one")).wait_received()
        await copies.superseded("b")
        await copies.stop("b2")
        await begin_incarnation(MemoryStore(copies.world.disk("b")), 1)
        again = await copies.start("b")
        await again.send(b"back again")
        await holds(channels["a"], said(b"from the new one", b"back again"))
        await copies.start("b2")
        await copies.superseded("b2")
        unharmed(channels["a"], again)


@in_virtual_time
async def test_what_an_old_copy_said_in_the_dark_counts_for_nobody() -> None:
    async with devices("a", "b", "c") as (copies, channels):
        a, b, c = channels["a"], channels["b"], channels["c"]
        await copies.restore(copies.backup("b"), "b2")
        # The old one is cut off, so nobody can tell it.
        copies.world.network.partition(["a", "c", "b2"], ["b"])
        await b.send(b"said in the dark")
        moved = await copies.start("b2")
        await moved.send(b"from the new one")
        await holds(c, said(b"from c", b"from the new one"))
        copies.world.network.repair()
        await copies.superseded("b")
        await anyio.sleep(SOON)
        for channel in (a, c, moved):
            await holds(channel, said(b"from c", b"from the new one"))
        unharmed(a, c, moved)


@in_virtual_time
async def test_who_had_an_old_copys_words_harms_nobody_else_by_showing_them() -> None:
    async with devices("a", "b", "c") as (copies, channels):
        a, b, c = channels["a"], channels["b"], channels["c"]
        await copies.restore(copies.backup("b"), "b2")
        copies.world.network.partition(["a", "b2"], ["b", "c"])
        await (await b.send(b"said in the dark")).wait_received(by=c.me)
        moved = await copies.start("b2")
        await (await moved.send(b"from the new one")).wait_received(by=a.me)
        copies.world.network.repair()
        await copies.superseded("b")
        await anyio.sleep(SOON)
        # It took the one before it heard of the other: to it they contradict each other.
        assert c.status()["forked"] == [b.me]
        unharmed(a, moved)
        await moved.send(b"and more")
        await holds(a, said(b"from c", b"from the new one", b"and more"))


@in_virtual_time
async def test_a_copy_is_told_in_its_session_and_when_it_comes_back() -> None:
    """Nothing was said and nothing anchored since, and the copies never meet."""
    async with devices("a", "b") as (copies, _):
        await copies.restore(copies.backup("b"), "b2")
        copies.world.network.hold("b", "b2")
        disk = copies.backup("b")
        await copies.start("b2")
        await copies.superseded("b")
        # A backup of then, opened as it is: nobody noted in it that it was taken over from.
        copies.world.network.hold("b3", "b2")
        copies.copied(disk, "b3")
        await copies.start("b3")
        await copies.superseded("b3")


def test_only_a_restored_device_asks_for_its_own_records() -> None:
    for resuming in (False, True):
        reconciler = Reconciler(channel="did:c", author="did:me", heads=[], seed=1)
        reconciler.resuming = resuming
        reconciler.peer_joined("p", "did:p", {"did:me": (3, frozenset())}, 0.0)
        asked = [o for o in reconciler.orders() if isinstance(o, FetchBatches)]
        assert asked == ([FetchBatches("p", "did:me", 1)] if resuming else [])


def test_a_member_that_claims_more_is_waited_for_while_it_may_give_it() -> None:
    def complete(held: int, *claims: int, failures: int = 0, needed: int = 2) -> bool:
        member = SimpleNamespace(did="did:p")
        peers = {
            str(n): SimpleNamespace(
                did="did:p", heads={"did:me": claim}, put_off={"did:me": (failures, 0.0)}
            )
            for n, claim in enumerate(claims)
        }
        engine: Any = SimpleNamespace(
            me="did:me",
            durable={"did:me": held},
            reconciler=SimpleNamespace(peers=peers),
            trust=SimpleNamespace(
                admits=lambda did: True,
                identity=SimpleNamespace(
                    membership=SimpleNamespace(
                        current=lambda: [member, SimpleNamespace(did="did:me")]
                    )
                ),
            ),
        )
        resuming = Resuming(engine)
        resuming._needed = needed
        return resuming._complete()

    assert complete(2, 2)
    assert complete(3, 1, 3)
    assert not complete(2)
    assert not complete(1, 1)
    assert not complete(2, 2, 3)
    # A liar holds nobody up for ever, but its word alone is no word either.
    assert complete(2, 2, 3, failures=MAX_FAILURES)
    assert not complete(2, 3, failures=MAX_FAILURES)


@in_virtual_time
async def test_a_copied_home_is_found_out_by_its_own_words() -> None:
    """Nobody raised an incarnation: a folder was copied, and both run."""
    async with devices("a", "b") as (copies, channels):
        copies.copied(copies.backup("b"), "b2")
        await (await channels["b"].send(b"said by one")).wait_received()
        await copies.stop("b")
        await copies.start("b2")
        await copies.superseded("b2")
        unharmed(channels["a"])


@in_virtual_time
async def test_an_exported_home_opens_again_only_when_it_is_taken_back() -> None:
    async with devices("a", "b") as (copies, channels):
        await copies.stop("b")
        store = MemoryStore(copies.world.disk("b"))
        await note_exported(store, 1_800_000_000_000)
        with pytest.raises(SupersededError, match="walyoff export --undo"):
            await copies.start("b")
        assert await undo_export(store)
        assert not await undo_export(store)
        await check_current(store)
        back = await copies.start("b")
        # Nothing was imported: it goes on at once.
        assert not back.status()["resuming"]
        await back.send(b"here again")
        await holds(channels["a"], said(b"here again"))


DAY_MS = 24 * 3600 * 1000


async def claim(copies: Copies, b: Channel, number: int, generation: int) -> bytes:
    """A certificate for b's DID by somebody who has control keys of it."""
    cipher = plugins.suite("classic-1")
    now = SimRuntime(1).wall_ms()
    certificate = Certificate(
        channel=b.did,
        member=b.me,
        suite="classic-1",
        key_types=cipher.key_types,
        sign_public=cipher.new_sign_key().public,
        seal_public=cipher.new_seal_key().public,
        not_before_ms=now - DAY_MS,
        not_after_ms=now + DAY_MS,
        incarnation=number,
    )
    return encode(certificate, copies.world.sign(b.me, certificate.body(), generation))


@in_virtual_time
async def test_an_incarnation_of_the_future_is_none() -> None:
    async with devices("a", "b") as (copies, channels):
        a, b = channels["a"], channels["b"]
        ahead = await claim(copies, b, SimRuntime(1).wall_ms() + 2 * DAY_MS, 1)
        for channel in (a, b):
            await channel.engine.trust.add(ahead)
            assert channel.engine.trust.incarnation(b.me) == 0
        await anyio.sleep(SOON)
        await (await b.send(b"still here")).wait_received(by=a.me)
        # What may be a clock's error counts, and whoever takes over then comes after it.
        later = await claim(copies, b, SimRuntime(1).wall_ms() + DAY_MS // 2, 1)
        await a.engine.trust.add(later)
        await copies.superseded("b")
        await begin_incarnation(MemoryStore(copies.world.disk("b")), SimRuntime(1).wall_ms())
        again = await copies.start("b")
        await again.send(b"back again")
        await holds(a, said(b"still here", b"back again"))


@in_virtual_time
async def test_who_has_control_keys_that_a_device_replaced_does_not_stop_it() -> None:
    async with devices("a", "b") as (copies, channels):
        a, b = channels["a"], channels["b"]
        await copies.device["b"].renew_keys()
        await (await b.send(b"by newer keys")).wait_received(by=a.me)
        stolen = await claim(copies, b, SimRuntime(1).wall_ms() + DAY_MS // 2, 1)
        for channel in (a, b):
            trusted = await channel.engine.trust.add(stolen)
            assert channel.engine.trust.superseded(trusted.certificate)
            assert channel.engine.trust.taken_over(trusted.certificate)
            # Nor does it write where the device wrote.
            assert channel.engine.trust.overruled(trusted.certificate, 2)
        await anyio.sleep(SOON)
        await (await b.send(b"still here")).wait_received(by=a.me)
        unharmed(a, b)
        # Both know it after a start, too.
        await copies.stop("a")
        again = await copies.start("a")
        assert again.engine.trust.standing(b.me).generation == 2
        assert again.engine.trust.superseded(trusted.certificate)


@in_virtual_time
async def test_a_device_shows_its_newer_control_keys_when_older_ones_are_used() -> None:
    """They were used before the device had a certificate by the newer ones here."""
    async with devices("a", "b") as (copies, channels):
        a, b = channels["a"], channels["b"]
        copies.world.generations[b.me] = 2
        stolen = await claim(copies, b, SimRuntime(1).wall_ms() + DAY_MS // 2, 1)
        await a.engine.trust.add(stolen)
        await anyio.sleep(SOON)
        await (await b.send(b"still here")).wait_received(by=a.me)
        assert a.engine.trust.standing(b.me).generation == 2
        unharmed(a, b)


def test_numbers_that_are_no_times_are_given_up_at_a_takeover() -> None:
    now = EARLIEST_MS + DAY_MS

    async def begin(known: int, at: int) -> int:
        store = MemoryStore(MemoryDisk())
        await store.put({"device": b"did:x", "superseded": known.to_bytes(8)})
        return await begin_incarnation(store, at)

    assert anyio.run(begin, 1 << 50, now) == now
    assert anyio.run(begin, now + DAY_MS, now) == now + DAY_MS + 1
    # A clock that never ran says nothing.
    assert anyio.run(begin, now, 1) == now + 1


@in_virtual_time
async def test_what_an_earlier_version_noted_of_copies_still_counts() -> None:
    async with devices("a", "b") as (copies, channels):
        a, b = channels["a"], channels["b"]
        await copies.restore(copies.backup("b"), "b2")
        await (await (await copies.start("b2")).send(b"from the new one")).wait_received()
        await copies.superseded("b")
        key = f"incarnation/{a.did}/{b.me}"
        number, proof, first, generation = unpack(copies.world.disk("a").values[key], 256)
        assert generation == 1
        await copies.stop("a")
        far = f"incarnation/{a.did}/did:other"
        copies.world.disk("a").values[key] = pack([number, proof, first])
        copies.world.disk("a").values[far] = pack([1 << 50, proof, 0])
        again = await copies.start("a")
        assert again.engine.trust.standing(b.me) == Standing(1, number, proof, first)
        assert again.engine.trust.incarnation("did:other") == 0
