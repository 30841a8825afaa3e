"""Finding each other: newcomers, and words about others' addresses that are not true."""

from __future__ import annotations

import functools
from typing import Any

import anyio
import pytest
from anyio.abc import ByteStream
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.sim.virtual import group, in_virtual_time, run
from tests.waiting import until
from walyoff import Channel, Device
from walyoff.discovery import MAX_SAID, NONCE_SIZE, VERSION
from walyoff.testing.world import SimWorld
from walyoff.wire import pack


def forged(device: Device, channel: Channel, member: str, addresses: list[str]) -> bytes:
    """A presence in the name of another, as any member can make it."""
    nonce = device.runtime.random_bytes(NONCE_SIZE)
    key = channel.engine.anchors.newest_epoch().derive("broadcast")
    presence = pack([VERSION, member, device.runtime.wall_ms(), addresses])
    return nonce + AESGCM(key).encrypt(nonce, presence, None)


@in_virtual_time
async def test_a_newcomer_is_let_in_also_while_its_inviter_reaches_nobody() -> None:
    world = SimWorld(3)
    async with world.device("a") as a, world.device("b") as b, world.device("c") as c:
        inviting = await a.create_channel("family")
        older = await b.join(await inviting.invite())
        await older.wait_peer(inviting.me)
        world.network.partition({"a"}, {"b"})
        newer = await c.join(await inviting.invite())
        dialled = 0
        connect = c.connect_stream

        async def counted(address: str) -> ByteStream:
            nonlocal dialled
            dialled += 1
            return await connect(address)

        c.connect_stream = counted  # type: ignore[method-assign]
        # Long enough that every back-off has grown.
        await anyio.sleep(200)
        # It introduced itself, by the block that made it a member.
        assert newer.me in {member.did for member in older.members()}
        assert newer.me in older.peers()
        assert dialled < 40, "not asking all the time"


@pytest.mark.parametrize("lie", ["nowhere", "at the liar"])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_member_that_lies_about_addresses_keeps_nobody_apart(backend: str, lie: str) -> None:
    run(backend, functools.partial(lie_about_addresses, lie))


async def lie_about_addresses(lie: str) -> None:
    async with group(3) as g:
        a, b, c = g.channels
        liar = g.devices[2]
        (transport,) = liar._transports.values()

        async def talk() -> None:
            n = 0
            while True:
                n += 1
                false = [f"sim:nowhere-{n}"] if lie == "nowhere" else liar.addresses
                for member in (a.me, b.me):
                    word = forged(liar, c, member, false)
                    await transport.broadcast(c.state.topic, word)
                await anyio.sleep(0.2)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(talk)
            await anyio.sleep(10)
            g.world.network.partition({"a"}, {"b"})
            # Longer than either side takes to notice.
            await anyio.sleep(30)
            assert b.me not in a.peers()
            g.world.network.repair()
            with anyio.fail_after(60):
                await a.wait_peer(b.me)
            tasks.cancel_scope.cancel()


@in_virtual_time
async def test_what_is_said_of_a_member_is_bounded() -> None:
    async with group(2) as g:
        a, b = g.channels
        (transport,) = g.devices[0]._transports.values()
        for n in range(3 * MAX_SAID):
            word = forged(g.devices[0], a, a.me, [f"sim:{n}"])
            await transport.broadcast(a.state.topic, word)
            await anyio.sleep(0.1)
        assert b.peers() == [a.me]


@in_virtual_time
async def test_where_a_device_is_is_kept_also_if_it_leaves_while_that_is_stored() -> None:
    world = SimWorld(1)
    async with world.device("a") as a:
        channel = await a.create_channel("family")
        remember, done = a.address_book.remember, anyio.Event()

        async def slowly(*arguments: Any) -> None:
            await anyio.sleep(1)
            await remember(*arguments)
            done.set()

        async with world.device("b") as b:
            theirs = await b.join(await channel.invite())
            a.address_book.remember = slowly  # type: ignore[assignment, method-assign]
            await until(lambda: theirs.me in channel.connections.heard_addresses)
        with anyio.fail_after(10):
            await done.wait()
        assert theirs.me in await a.address_book.of(channel.did)
