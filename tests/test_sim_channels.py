"""Making and joining channels: at once, twice, broken off; and one that fails alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import anyio
import pytest

from tests.sim.virtual import group, in_virtual_time, read
from tests.test_certificates import CERTIFICATE
from walyoff import granting
from walyoff.certificates import encode
from walyoff.engine.links import LinkServer
from walyoff.errors import InvitationError, LocalProtocolError, StoreError, WalyoffError
from walyoff.platform import Foundation
from walyoff.testing.memory import MemoryStore
from walyoff.testing.platform import SimPlatform
from walyoff.testing.world import SimWorld


@in_virtual_time
async def test_of_two_channels_of_one_name_made_at_once_there_is_one() -> None:
    async with SimWorld(1).device("a") as device:
        problems: list[str] = []

        async def make() -> None:
            try:
                await device.create_channel("family")
            except LocalProtocolError as error:
                problems.append(str(error))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(make)
            tasks.start_soon(make)
        assert len(device.channels()) == 1
        assert len(problems) == 1


@in_virtual_time
async def test_a_device_has_one_did_whoever_needs_it_first() -> None:
    world = SimWorld(1)
    made = 0
    create = SimPlatform.create_device

    async def counted(self: SimPlatform) -> str:
        nonlocal made
        made += 1
        await anyio.sleep(0.1)
        return f"{await create(self)}{made}"

    async with world.device("a") as device:
        device.platform.create_device = counted.__get__(device.platform)  # type: ignore[method-assign]
        found: list[str] = []

        async def ask() -> None:
            found.append(await device.did())

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(ask)
        assert len(set(found)) == 1


@in_virtual_time
async def test_a_join_that_fails_late_leaves_nothing_open() -> None:
    world = SimWorld(1)
    async with world.device("a") as a, world.device("b") as b:
        channel = await a.create_channel("family")
        opened = 0
        adopt = b.platform.adopt

        @asynccontextmanager
        async def counted(grant: bytes, *, device: str) -> AsyncIterator[Foundation]:
            nonlocal opened
            async with adopt(grant, device=device) as foundation:
                opened += 1
                try:
                    yield foundation
                finally:
                    opened -= 1

        b.platform.adopt = counted  # type: ignore[method-assign]
        invitation = await channel.invite()
        put = b.store.put

        async def full(values: dict[str, bytes | None]) -> None:
            if any(key.startswith("epochs/") for key in values):
                raise StoreError("the disk is full")
            await put(values)

        b.store.put = full  # type: ignore[method-assign]
        with pytest.raises(StoreError):
            await b.join(invitation)
        await anyio.sleep(1)
        assert opened == 0
        b.store.put = put  # type: ignore[method-assign]
        joined = await b.join(invitation)
        assert opened == 1
        await channel.send(b"hello")
        assert await read(joined, 1) == [b"hello"]


@in_virtual_time
async def test_a_join_needs_not_carry_all_certificates_and_never_too_much() -> None:
    world = SimWorld(1)
    async with world.device("a") as a, world.device("b") as b, world.device("c") as c:
        channel = await a.create_channel("family")
        trust = channel.engine.trust
        own = channel.engine.credentials
        every = trust.all_encoded

        async def many() -> list[bytes]:
            # Of many devices over many years.
            return [own.encoded] * 20_000 + await every()

        trust.all_encoded = many  # type: ignore[method-assign]
        await channel.send(b"hello")
        theirs = await b.join(await channel.invite())
        assert await read(theirs, 1) == [b"hello"]

        async def huge(did: str) -> bytes:
            return bytes(granting.MAX_WHOLE + 1)

        a.platform.grant = huge  # type: ignore[method-assign]
        with pytest.raises(InvitationError, match="more to hand over"):
            await c.join(await channel.invite())
        # Who is connected stays so.
        assert channel.peers() == [theirs.me]


def test_the_newest_certificates_are_granted_first(monkeypatch: pytest.MonkeyPatch) -> None:
    last = 2 * 10**12
    encoded = [encode(replace(CERTIFICATE, not_after_ms=last + n), b"s") for n in range(5)]
    monkeypatch.setattr(granting, "MAX_CERTIFICATES_SIZE", 2 * len(encoded[0]))
    assert granting._newest([*encoded[3:], *encoded[:3]]) == (encoded[4], encoded[3])


@in_virtual_time
async def test_a_fault_in_one_session_ends_no_other() -> None:
    async with group(3) as g:
        a, b, c = g.channels
        receive = LinkServer._receive
        broken = 0

        async def faulty(self: LinkServer, *args: Any) -> None:
            nonlocal broken
            if self._engine.me == a.me and self._state.link.did == b.me and not broken:
                broken += 1
                raise KeyError("a bug")
            await receive(self, *args)

        LinkServer._receive = faulty  # type: ignore[assignment, method-assign]
        try:
            await b.send(b"from b")
            assert await read(c, 1) == [b"from b"]
            assert await read(a, 1) == [b"from b"]
            assert broken
            # It connects again, and goes on.
            await a.send(b"from a")
            assert await read(b, 2) == [b"from b", b"from a"]
        finally:
            LinkServer._receive = receive  # type: ignore[method-assign]


@in_virtual_time
async def test_epochs_and_places_that_could_not_be_stored_are_stored_later() -> None:
    async with group(2) as g:
        a, b = g.channels
        store = g.devices[1].store
        assert isinstance(store, MemoryStore)
        put = store.put

        async def full(values: dict[str, bytes | None]) -> None:
            raise StoreError("the disk is full")

        store.put = full  # type: ignore[method-assign]
        await a.send(b"one")
        # The block is read, and its place cannot be written down.
        await anyio.sleep(30)
        store.put = put  # type: ignore[method-assign]
        await anyio.sleep(30)
        await a.send(b"two")
        assert await read(b, 2) == [b"one", b"two"]
        place = await store.get(f"ledger-position/{b.did}")
        assert place is not None
        assert int.from_bytes(place, "big") >= 1


@in_virtual_time
async def test_a_closed_channel_says_so() -> None:
    world = SimWorld(1)
    async with world.device("a") as device:
        channel = await device.create_channel("family")
        receipt = await channel.send(b"one")
        stream = channel.messages()
        await anext(stream)
    for call in (
        channel.send(b"two"),
        anext(stream),
        receipt.wait_received(),
        channel.changed(),
    ):
        with pytest.raises((anyio.ClosedResourceError, WalyoffError)):
            await call


@in_virtual_time
async def test_channels_of_one_device_have_nothing_in_common() -> None:
    world = SimWorld(1)
    async with world.device("a") as a, world.device("b") as b:
        for n in range(50):
            theirs = await b.join(await (await a.create_channel(f"c{n}")).invite())
            assert theirs.name == f"c{n}"
        for n in range(50):
            await a.channel(f"c{n}").send(b"%d" % n)
        for n in range(50):
            assert await read(b.channel(f"c{n}"), 1) == [b"%d" % n]
    async with world.device("b") as b:
        assert len(b.channels()) == 50
        for n in range(50):
            assert await read(b.channel(f"c{n}"), 1) == [b"%d" % n]
