"""People, their devices and a group, for many seeds: joins, leavings, crashes, partitions."""

from __future__ import annotations

import random
from collections.abc import Callable

import anyio
import pytest
from anyio.abc import TaskGroup, TaskStatus

from walyoff import Channel, Device
from walyoff.errors import WalyoffError
from walyoff.testing.network import LINKS
from walyoff.testing.virtual import VirtualTimeLoop
from walyoff.testing.world import SimWorld

SEEDS = range(10)
SETTLED_AFTER = 400.0
GROUP = "club"


class Node:
    """A device that can crash and come back, and holds on to its channels."""

    def __init__(self, world: SimWorld, name: str, tasks: TaskGroup) -> None:
        self.name = name
        self.did = f"did:sim:{name}"
        self.device: Device | None = None
        self._world = world
        self._tasks = tasks
        self._scope = anyio.CancelScope()
        self._ended = anyio.Event()

    def channel(self, name: str) -> Channel | None:
        if self.device is None:
            return None
        return next((c for c in self.device.channels() if c.name == name), None)

    async def start(self) -> None:
        self._ended = anyio.Event()
        await self._tasks.start(self._run)

    async def _run(self, *, task_status: TaskStatus[None]) -> None:
        try:
            with anyio.CancelScope() as self._scope:
                async with self._world.device(self.name) as self.device:
                    task_status.started()
                    await anyio.sleep_forever()
        finally:
            self.device = None
            self._ended.set()

    async def crash(self) -> None:
        self._scope.cancel()
        await self._ended.wait()


class Town:
    """Some people, each an identity with devices, and a group of them."""

    def __init__(self, seed: int, tasks: TaskGroup) -> None:
        self.random = random.Random(seed)
        self.world = SimWorld(seed, LINKS[self.random.choice(list(LINKS))])
        self.tasks = tasks
        self.nodes: dict[str, Node] = {}
        self.people = ["alice", "bob", "carol"][: self.random.choice((2, 3, 3))]
        self.promised: list[tuple[str, bytes]] = []
        #: Who was taken out of a person or of the group, for good.
        self.out: set[str] = set()

    async def node(self, name: str) -> Node:
        node = self.nodes[name] = Node(self.world, name, self.tasks)
        await node.start()
        return node

    def devices(self, person: str) -> list[Node]:
        return [
            node
            for name, node in self.nodes.items()
            if name.startswith(person) and name not in self.out
        ]

    async def live(self) -> None:
        rng = self.random
        club: Channel | None = None
        for person in self.people:
            node = await self.node(f"{person}0")
            assert node.device is not None
            own = await node.device.create_channel(person)
            if club is None:
                club = await node.device.create_channel(GROUP, identity=own)
            else:
                await self.retry(node.name, GROUP, club, own)
            for number in range(1, rng.choice((1, 2, 3))):
                await self.add(person, number)
        for _ in range(rng.randint(8, 16)):
            await self.event()
            await anyio.sleep(rng.choice((0.0, 0.1, 0.5, 2.0)))
        self.world.network.repair()
        for node in self.nodes.values():
            if node.device is None:
                await node.start()
        await self.settle()

    async def retry(self, name: str, channel: str, at: Channel, own: Channel | None) -> bool:
        """Join, as often as it takes on a bad link."""
        for _ in range(20):
            device = self.nodes[name].device
            if device is None:
                return False
            try:
                await device.join(await at.invite(), identity=own)
            except (WalyoffError, anyio.ClosedResourceError):
                await anyio.sleep(0.5)
            else:
                return True
        return False

    async def add(self, person: str, number: int) -> None:
        """A new device for a person, by one that is there."""
        inviting = [c for n in self.devices(person) if (c := n.channel(person)) is not None]
        if inviting:
            node = await self.node(f"{person}{number}")
            if not await self.retry(node.name, person, self.random.choice(inviting), None):
                self.out.add(node.name)

    async def event(self) -> None:
        rng, network = self.random, self.world.network
        node = rng.choice(list(self.nodes.values()))
        what = rng.random()
        if what < 0.5:
            if (channel := node.channel(GROUP)) is not None and node.name not in self.out:
                content = rng.randbytes(12)
                try:
                    await channel.send(content)
                except WalyoffError:
                    return
                self.promised.append((node.name, content))
        elif what < 0.65:
            if node.device is None:
                await node.start()
            else:
                await node.crash()
        elif what < 0.75:
            person = rng.choice(self.people)
            await self.add(person, sum(n.startswith(person) for n in self.nodes))
        elif what < 0.85:
            await self.remove(rng.choice(self.people))
        elif what < 0.93:
            names = list(self.nodes)
            rng.shuffle(names)
            cut = rng.randint(0, len(names))
            network.partition(names[:cut], names[cut:])
        else:
            network.repair()

    async def remove(self, person: str) -> None:
        """Another device of the person removes one."""
        # One that is in the group as well: where nobody is left who is, nobody can hand it on.
        there = [n for n in self.devices(person) if n.channel(GROUP) and n.channel(person)]
        if len(there) < 2:
            return
        remover, removed = self.random.sample(there, 2)
        channel = remover.channel(person)
        assert channel is not None
        try:
            await channel.remove(removed.did)
        except WalyoffError:
            return
        self.out.add(removed.name)

    # -------------------------------------------------------------------- checks

    async def settle(self) -> None:
        end = anyio.current_time() + SETTLED_AFTER
        while (problem := await self.problem()) is not None:
            if anyio.current_time() > end:
                raise AssertionError(f"not settled: {problem}")
            await anyio.sleep(2.0)

    async def problem(self) -> str | None:
        """What those who belong to the group do not agree about yet."""
        members = [n for p in self.people for n in self.devices(p)]
        logs = set()
        for node in members:
            channel = node.channel(GROUP)
            if channel is None:
                return f"{node.name} is not in the group"
            held = {m.id: m.content async for m in channel.history()}
            logs.add(frozenset(held))
            if problem := self.problem_of(channel, members, set(held.values())):
                return f"{node.name} {problem}"
        epochs = {c.engine.rotation.usable() for n in members if (c := n.channel(GROUP))}
        if len(epochs) > 1:
            return f"{len(epochs)} epochs to write under"
        return f"{len(logs)} different logs" if len(logs) > 1 else None

    def problem_of(
        self, channel: Channel, members: list[Node], held: set[bytes | None]
    ) -> str | None:
        known, names = sorted(m.did for m in channel.members()), sorted(n.did for n in members)
        if known != names:
            return f"takes {known} for members, not {names}"
        if lost := [c for name, c in self.promised if name not in self.out and c not in held]:
            return f"lacks {len(lost)} messages of those who are there"
        epoch = channel.engine.rotation.usable()
        if epoch is None:
            return "has no epoch to write under"
        for out in self.out:
            gone = self.nodes[out].channel(GROUP)
            if gone is not None and epoch.epoch_id in gone.engine.epochs:
                return f"writes under an epoch that {out} has, who was removed"
        return None


async def live(seed: int) -> None:
    async with anyio.create_task_group() as tasks:
        await Town(seed, tasks).live()
        tasks.cancel_scope.cancel()


def run(main: Callable[..., object], seed: int) -> None:
    anyio.run(main, seed, backend_options={"loop_factory": VirtualTimeLoop})  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", SEEDS)
def test_those_who_belong_to_it_agree_in_the_end(seed: int) -> None:
    run(live, seed)
