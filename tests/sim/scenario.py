"""One seed, one life of a small world: `python -m tests.sim.scenario SEED` replays it."""

from __future__ import annotations

import logging
import random
import sys
from dataclasses import dataclass, field
from typing import Any

import anyio
from blake3 import blake3

from tests.sim.liars import LIES, Liar
from tests.sim.nodes import Node, check_reading
from walyoff.engine.facts import Reason
from walyoff.errors import LocalProtocolError
from walyoff.testing.network import LINKS
from walyoff.testing.virtual import VirtualTimeLoop
from walyoff.testing.world import SimWorld

#: Once everybody is there and nothing is broken, all is settled within this (virtual) time:
#: a lost anchor is written by somebody else after 40 s, a back-off ends after 90 s.
SETTLED_AFTER = 400.0
HOURS = 3600.0


@dataclass
class Plan:
    """What a seed means."""

    seed: int
    devices: int
    link: str
    lie: str | None
    events: int
    random: random.Random = field(repr=False)

    @classmethod
    def of(cls, seed: int) -> Plan:
        rng = random.Random(seed)
        devices = rng.choice((2, 2, 2, 3, 3, 3, 3, 3, 5)) if seed % 70 else 20
        lie = LIES[seed % len(LIES)] if devices > 2 and rng.random() < 0.7 else None
        link = list(LINKS)[rng.randrange(len(LINKS))]
        events = rng.randint(10, 25) if devices < 20 else 12
        return cls(seed, devices, link, lie, events, rng)


class World:
    """The nodes of a plan and what happens to them."""

    def __init__(self, plan: Plan, tasks: anyio.abc.TaskGroup) -> None:
        self.plan = plan
        self.random = plan.random
        self.sim = SimWorld(plan.seed, LINKS[plan.link])
        names = [chr(ord("a") + n) for n in range(plan.devices)]
        self.nodes = [Node(self.sim, name, tasks) for name in names]
        for name in names:
            self.sim.skew_s[name] = self.random.uniform(-5, 5) * HOURS
        self.tasks = tasks
        self.liar: Liar | None = None
        if plan.lie is not None:
            self.liar = Liar(plan.lie, plan.seed)
            self.nodes[-1].on_open = self.liar.corrupt

    @property
    def honest(self) -> list[Node]:
        return self.nodes[:-1] if self.plan.lie else self.nodes

    async def live(self) -> None:
        """From the first channel to the last check."""
        for node in self.nodes:
            await node.start()
        await self.nodes[0].create()
        for node in self.nodes[1:]:
            # Some join in the middle of what follows.
            node.join(self.nodes[0])
            await anyio.sleep(self.random.choice((0.0, 0.3, 2.0)))
        for _ in range(self.plan.events):
            await self.event()
            await anyio.sleep(self.random.choice((0.0, 0.05, 0.3, 1.0, 3.0)))
        await self.calm_down()
        await self.settle()

    async def event(self) -> None:
        rng, network = self.random, self.sim.network
        what = rng.random()
        node = rng.choice(self.nodes)
        if what < 0.6:
            count = rng.choice((1, 1, 2, 5))
            size = rng.choice((0, 20, 20, 20, 2000, 70_000, 200_000))
            contents = [rng.randbytes(size) for _ in range(count)]
            self.tasks.start_soon(node.send, contents)
        elif what < 0.75:
            if node.is_up:
                await node.crash()
            else:
                await node.start()
        elif what < 0.85:
            names = [n.name for n in self.nodes]
            rng.shuffle(names)
            cut = rng.randint(1, len(names) - 1)
            network.partition(names[:cut], names[cut:])
        elif what < 0.92:
            network.repair()
        else:
            a, b = rng.sample([n.name for n in self.nodes], 2)
            network.hold(a, b)
            self.tasks.start_soon(self.release, a, b, rng.choice((0.5, 3.0, 15.0)))

    async def release(self, a: str, b: str, after: float) -> None:
        await anyio.sleep(after)
        self.sim.network.release(a, b)

    async def calm_down(self) -> None:
        """Everybody is there, nothing is broken."""
        self.sim.network.repair()
        for node in self.nodes:
            if not node.is_up:
                await node.start()
            for other in self.nodes:
                self.sim.network.release(node.name, other.name)

    # -------------------------------------------------------------------- checks

    async def settle(self) -> None:
        end = anyio.current_time() + SETTLED_AFTER
        while (problem := self.problem()) is not None:
            if anyio.current_time() > end:
                raise AssertionError(f"not settled: {problem}")
            await anyio.sleep(1.0)
        # Nothing may come undone again, and nobody may be restless.
        await anyio.sleep(5.0)
        self.check()

    def data(self, node: Node) -> Any:
        return next(iter(self.sim.disk(node.name).channels.values()))

    def problem(self) -> str | None:
        """What is not settled yet among the honest, or None."""
        honest = {node.did for node in self.honest}
        logs: list[set[bytes]] = []
        for node in self.honest:
            if node.channel is None:
                return f"{node.name} has no channel"
            data = self.data(node)
            own = {r for r, place in data.records.items() if place.author in honest}
            if missing := own - data.delivered:
                return f"{node.name} has not delivered {len(missing)}"
            if missing := {r for r in own if r not in data.contents}:
                return f"{node.name} has no contents of {len(missing)}"
            for batch in data.batches.values():
                if batch.anchor is None and batch.author in honest:
                    return f"{node.name} knows no anchor of {batch.author} {batch.first_seq}"
            logs.append(own)
        for node, log in zip(self.honest, logs, strict=True):
            if others := set().union(*logs) - log:
                return f"{node.name} lacks {len(others)} records"
        return self.problem_of_the_liar()

    def problem_of_the_liar(self) -> str | None:
        """The liar's own records: the same everywhere, or its contradiction is known to all."""
        if self.liar is None:
            return None
        did = self.nodes[-1].did
        chains = []
        forked = []
        for node in self.honest:
            data = self.data(node)
            chains.append([i for _, i in data.firsts.get(did, [])])
            assert node.channel is not None
            forked.append(did in node.channel.engine.reconciler.forked)
        if all(forked):
            return None
        if any(forked):
            return f"the fork is known to {sum(forked)} of {len(forked)}"
        if any(chain != chains[0] for chain in chains):
            return f"different records of the liar: {[len(c) for c in chains]}"
        return None

    def check(self) -> None:
        honest = {node.did for node in self.honest}
        for node in self.honest:
            data = self.data(node)
            channel = node.channel
            assert channel is not None, f"{node.name} went away"
            assert len(set(data.log)) == len(data.log), f"{node.name}: delivered twice"
            for author in self.honest:
                lost = [r for r in author.promised if r not in data.delivered]
                assert not lost, f"{node.name} lost {len(lost)} promised by {author.name}"
            check_reading(node)
            blamed = {r.subject for r in channel.reports() if r.reason == Reason.FORK}
            assert not blamed & honest, f"{node.name} blames {blamed & honest}"
            self.check_memory(node)

    def check_memory(self, node: Node) -> None:
        """When all is settled, nothing is left in memory that grows."""
        assert node.channel is not None
        engine = node.channel.engine
        assert len(engine.recent.staged) <= 8, (
            f"{node.name}: {len(engine.recent.staged)} staged for ever"
        )
        assert engine.recent.size <= 16 * 2**20
        reconciler = engine.reconciler
        assert len(reconciler._delivery) <= 1
        liar = self.nodes[-1].did if self.liar else None
        assert all(r.author == liar for r in reconciler.open.values())

    def digest(self) -> str:
        """All that was seen, in its order: the same for a seed in every process."""
        trace = repr(self.sim.network.trace)
        for node in self.nodes:
            trace += repr([[position for position, _ in run] for run in node.read])
            trace += repr([r.reason for r in node.channel.reports()] if node.channel else None)
        return f"{blake3(trace.encode()).hexdigest(16)} {anyio.current_time():.6f}"


async def run_world(plan: Plan) -> str:
    """Live through a plan; returns the digest of what happened."""
    async with anyio.create_task_group() as tasks:
        world = World(plan, tasks)
        try:
            await world.live()
        except LocalProtocolError as error:
            raise AssertionError(str(error)) from error
        digest = world.digest()
        tasks.cancel_scope.cancel()
    return digest


def run_seed(seed: int) -> str:
    """Run a seed in virtual time on asyncio."""
    plan = Plan.of(seed)
    try:
        return anyio.run(run_world, plan, backend_options={"loop_factory": VirtualTimeLoop})
    except BaseException as error:
        print(f"\n{plan}\nreplay: python -m tests.sim.scenario {seed}", file=sys.stderr)
        if isinstance(error, Exception):
            error.add_note(f"replay: python -m tests.sim.scenario {seed}")
        raise


if __name__ == "__main__":
    logging.disable(logging.NOTSET if "-v" in sys.argv else logging.CRITICAL)
    logging.basicConfig(level=logging.INFO, format="%(name)s %(message)s")
    print(run_seed(int(sys.argv[1])))
