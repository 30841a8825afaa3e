"""People with several devices, and groups of people, on real chains: seven devices in all."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import anyio
import pytest

from tests import waiting
from walyoff import Channel, Device, open_device
from walyoff.errors import InvitationError, LocalProtocolError, NotAMemberError
from walyoff.joining import request_join

pytestmark = pytest.mark.anyio

#: Seven devices on a machine with other work; longer only if something hangs.
SOON = 300.0
until = partial(waiting.until, within=SOON)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def reads(channel: Channel, *contents: bytes, within: float = SOON) -> tuple[str, ...]:
    """Wait for messages; the path of the last one's author."""
    left = set(contents)
    with anyio.fail_after(within):
        async for message in channel.messages():
            left.discard(message.content or b"")
            if not left:
                return message.path
    raise AssertionError


async def contents(channel: Channel) -> set[bytes]:
    return {m.content async for m in channel.history() if m.content is not None}


class House:
    """Real devices in one process, each with a child of its own, opened when needed."""

    def __init__(self, root: Path, stack: AsyncExitStack) -> None:
        self._root = root
        self._stack = stack
        self.devices: dict[str, Device] = {}

    async def device(self, name: str) -> Device:
        opened = open_device(self._root / name)
        self.devices[name] = await self._stack.enter_async_context(opened)
        return self.devices[name]

    def has(self, device: str, name: str) -> bool:
        return any(c.name == name for c in self.devices[device].channels())

    def channel(self, device: str, name: str) -> Channel:
        return self.devices[device].channel(name)


@asynccontextmanager
async def house(root: Path) -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        yield House(root, stack)


async def chatter(channel: Channel, sent: list[bytes], scope: anyio.CancelScope) -> None:
    """Send until cancelled; what returned is durable and must arrive everywhere."""
    with scope:
        while True:
            content = b"tick %d" % len(sent)
            await channel.send(content)
            sent.append(content)
            await anyio.sleep(1.0)


async def old_chains(device: Device, did: str) -> Any:
    """While it is entered, a device shows an identity's chains as they are now."""
    files, family = (
        await device.platform.device_files(did),
        await device.platform.family_files(did),
    )
    return mock.patch.multiple(
        device.platform,
        device_files=mock.AsyncMock(return_value=files),
        family_files=mock.AsyncMock(return_value=family),
    )


async def test_people_with_devices_in_groups_of_groups(tmp_path: Path) -> None:
    async with anyio.create_task_group() as tasks, house(tmp_path) as h:
        # One person with three devices, who is the first member of a group.
        alice = await (await h.device("alice0")).create_channel("alice")
        await (await h.device("alice1")).join(await alice.invite())
        club = await h.devices["alice0"].create_channel("club", identity=alice)
        sent: list[bytes] = []
        calm = anyio.CancelScope()
        tasks.start_soon(chatter, club, sent, calm)
        await until(lambda: h.has("alice1", "club"))
        await (await h.device("alice2")).join(await alice.invite())

        # Another one joins by one device; the second hears of the group by itself.
        bob = await (await h.device("bob0")).create_channel("bob")
        await h.devices["bob0"].join(await club.invite(), identity=bob)
        await (await h.device("bob1")).join(await bob.invite())

        # A third one has both devices when it joins, invited by a device that joined late.
        carol = await (await h.device("carol0")).create_channel("carol")
        await (await h.device("carol1")).join(await carol.invite())
        await until(lambda: h.has("alice2", "club"))
        invitation = await h.channel("alice2", "club").invite()
        await h.devices["carol0"].join(invitation, identity=carol)

        names = ["alice0", "alice1", "alice2", "bob0", "bob1", "carol0", "carol1"]
        people = {"alice": alice.did, "bob": bob.did, "carol": carol.did}
        await until(lambda: all(h.has(name, "club") for name in names))
        for name in names:
            channel = h.channel(name, "club")
            await until(lambda c=channel: len(c.members()) == 7)  # type: ignore[misc]
            await channel.send(name.encode())
        for name in names:
            channel = h.channel(name, "club")
            for author in names:
                path = await reads(channel, author.encode())
                me = h.channel(author, "club").me
                assert path == (me, people[author[:-1]], club.did)

        # Three levels: the group is a member of another one.
        union = await h.devices["carol0"].create_channel("union", identity=carol)
        await h.devices["bob0"].join(await union.invite(), identity=h.channel("bob0", "club"))
        await until(lambda: all(h.has(name, "union") for name in names))
        last = h.channel("bob1", "union")
        await last.send(b"from far below")
        for name in names:
            path = await reads(h.channel(name, "union"), b"from far below")
            # Carol's devices are in the union by two ways, bob's by one.
            assert path == (last.me, bob.did, club.did, union.did)
        with pytest.raises((InvitationError, LocalProtocolError), match=r"circle|already"):
            await h.devices["carol0"].join(await club.invite(), identity=union)

        # A device that is removed from a person gets nothing more, of any of the groups.
        lost = [h.channel("bob1", name) for name in ("bob", "club", "union")]
        others = [name for name in names if name != "bob1"]
        was = await old_chains(h.devices["bob1"], bob.did)
        await bob.remove(lost[0].me)
        counted = len(sent)
        for name in ("club", "union"):
            assert lost[0].me not in h.channel("bob0", name).peers()
            for other in others:
                await h.channel(other, name).send(b"without bob1, from " + other.encode())
        for name in ("club", "union"):
            for other in others:
                channel = h.channel(other, name)
                await reads(channel, *(b"without bob1, from " + o.encode() for o in others))
                assert lost[0].me not in {m.did for m in channel.members()}
        await until(lambda: not any(channel.peers() for channel in lost))
        await until(lambda: len(sent) > counted + 2)
        for channel in lost[1:]:
            held = await contents(channel)
            assert not any(content.startswith(b"without") for content in held)
            with pytest.raises(NotAMemberError):
                await channel.send(b"nobody hears me")
        for other in others:
            await reads(h.channel(other, "club"), *sent)
        calm.cancel()

        # Nor does it get in elsewhere by the person's chain as it was, if a member knows it.
        band = await (await h.device("dave0")).create_channel("band")
        await h.devices["carol0"].join(await band.invite(), identity=carol)
        await band.wait_peer()
        with was, pytest.raises(InvitationError, match="replaced"):
            await request_join(h.devices["bob1"], await band.invite(), identity=bob.did)
        assert band.voices() == [band.me, carol.did]
