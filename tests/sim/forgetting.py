"""One seed, one life of a world that forgets: `python -m tests.sim.forgetting SEED` replays it.

Members propose, agree, refuse and withdraw while they crash, are cut off, join and leave. In
the end all are there and answer what is open; then everybody must have come to the same.
"""

from __future__ import annotations

import contextlib
import logging
import random
import sys
from datetime import timedelta
from typing import Any

import anyio

from tests.sim.nodes import Node
from walyoff.engine.consent import APPROVE, PROPOSE, State, parse_consent
from walyoff.errors import WalyoffError
from walyoff.records import KIND_MESSAGE, decode_batch
from walyoff.testing.network import LINKS
from walyoff.testing.virtual import VirtualTimeLoop
from walyoff.testing.world import SimWorld

SETTLED_AFTER = 900.0
_AGREES = (PROPOSE, APPROVE)


class ForgettingWorld:
    """Three devices, a fourth that joins in the middle, and one that may be removed."""

    def __init__(self, seed: int, tasks: anyio.abc.TaskGroup) -> None:
        self.random = random.Random(seed)
        self.sim = SimWorld(seed, LINKS[list(LINKS)[self.random.randrange(len(LINKS))]])
        self.nodes = [Node(self.sim, name, tasks) for name in "abcd"]
        for node in self.nodes:
            self.sim.skew_s[node.name] = self.random.uniform(-5, 5)
            node.on_open = self._opened
        self.tasks = tasks
        self.removed: Node | None = None
        #: What nobody may lose against its will: (device, message), refused at the end.
        self.refuses = self.random.random() < 0.3
        self.policies = {
            node.name: self.random.choice(["ask", "ask", "auto", "author-only"])
            for node in self.nodes
        }

    def _opened(self, channel: Any) -> None:
        name = channel.me.rpartition(":")[2]
        self.tasks.start_soon(self._try, channel.set_forget_policy, self.policies[name])

    async def _try(self, action: Any, *arguments: Any) -> None:
        """Do what may be impossible at this moment."""
        with contextlib.suppress(WalyoffError, anyio.ClosedResourceError):
            await action(*arguments)

    async def live(self) -> None:
        a, b, c, d = self.nodes
        for node in self.nodes:
            await node.start()
        await a.create()
        for node in (b, c):
            node.join(a)
        await anyio.sleep(self.random.choice((1.0, 5.0)))
        joins = self.random.randrange(20)
        leaves = self.random.randrange(40)
        for step in range(20):
            if step == joins:
                d.join(a)
            if step == leaves and a.channel is not None and c.channel is not None:
                self.removed = c
                self.tasks.start_soon(self._try, a.channel.remove, c.did)
            await self.event()
            await anyio.sleep(self.random.choice((0.0, 0.01, 0.1, 0.5, 3.0)))
        if d._inviter is None:
            d.join(a)
        await self.settle()

    async def event(self) -> None:
        rng, network = self.random, self.sim.network
        node = rng.choice(self.nodes)
        what = rng.random()
        if what < 0.2:
            self.tasks.start_soon(node.send, [rng.randbytes(rng.choice((20, 70_000)))])
        elif what < 0.25 and node.channel is not None:
            later = timedelta(seconds=rng.choice((1, 20)))
            self.tasks.start_soon(self._expiring, node.channel, later)
        elif what < 0.7 and node.channel is not None:
            ids = [i for i, r in self.records(node).items() if r.kind == KIND_MESSAGE]
            if ids:
                message, channel = rng.choice(ids), node.channel
                act = rng.choice(
                    [channel.forget] * 3
                    + [channel.approve] * 3
                    + [channel.refuse, channel.withdraw]
                )
                self.tasks.start_soon(self._try, act, message)
        elif what < 0.82:
            if node.is_up:
                await node.crash()
            else:
                await node.start()
        elif what < 0.9:
            names = [n.name for n in self.nodes]
            rng.shuffle(names)
            cut = rng.randint(1, 3)
            network.partition(names[:cut], names[cut:])
        else:
            network.repair()

    async def _expiring(self, channel: Any, later: timedelta) -> None:
        with contextlib.suppress(WalyoffError, anyio.ClosedResourceError):
            await channel.send(b"for a time", forget_after=later)

    # -------------------------------------------------------------------- the end

    async def settle(self) -> None:
        """All are there, and answer what they are asked until nothing is open."""
        self.sim.network.repair()
        for node in self.nodes:
            if not node.is_up:
                await node.start()
        end = anyio.current_time() + SETTLED_AFTER
        while (problem := await self.problem()) is not None:
            assert anyio.current_time() < end, f"not settled: {problem}"
            await anyio.sleep(2.0)
            for node in self.members():
                await self.answer(node)
        await self.check()

    def members(self) -> list[Node]:
        did = self.nodes[0].did
        current = {
            m.did
            for node in self.nodes
            if node.did == did and node.channel is not None
            for m in node.channel.members()
        }
        return [n for n in self.nodes if n.channel is not None and n.did in current]

    async def answer(self, node: Node) -> None:
        channel = node.channel
        if channel is None:
            return
        for asked in await channel.forget_waiting():
            refuse = self.refuses and node.name == "b"
            await self._try(channel.refuse if refuse else channel.approve, asked.id)

    def data(self, node: Node) -> Any:
        return next(iter(self.sim.disk(node.name).channels.values()), None)

    def records(self, node: Node) -> dict[bytes, Any]:
        data = self.data(node)
        found: dict[bytes, Any] = {}
        for batch in data.batches.values() if data is not None else ():
            decoded = decode_batch(batch.body)
            found.update(zip(decoded.record_ids, decoded.records, strict=True))
        return found

    def agreed(self) -> set[tuple[str, bytes]]:
        """(device, message) of each agreement in any log."""
        found = set()
        for node in self.nodes:
            data = self.data(node)
            for batch in data.batches.values() if data is not None else ():
                for record in decode_batch(batch.body).records:
                    said = parse_consent(record)
                    if said is not None and said.act in _AGREES:
                        found.add((batch.author, said.message))
        return found

    async def problem(self) -> str | None:  # noqa: PLR0911
        members = self.members()
        expected = 3 if self.removed is not None else 4
        if len(members) != expected:
            return f"{len(members)} members are there, not {expected}"
        logs = [set(self.records(node)) for node in members]
        if any(log != logs[0] for log in logs):
            return "they hold different records"
        for node in members:
            assert node.channel is not None
            if await node.channel.forget_waiting():
                return f"{node.name} is asked"
            if node.channel.engine.forgetting._to_say:
                return f"{node.name} has something to say"
            for message, record in self.records(node).items():
                if record.kind != KIND_MESSAGE:
                    continue
                data = self.data(node)
                status = await node.channel.forget_status(message)
                over = status.state in (State.FORGOTTEN, State.EXPIRED)
                if over and (
                    not status.erased_here or (record.lifetime_ms == 0 and status.not_yet)
                ):
                    return f"{node.name}: not all have destroyed {message[:4].hex()}"
                if message not in data.delivered:
                    return f"{node.name} has not delivered {message[:4].hex()}"
                if not over and record.lifetime_ms:
                    return "something has not expired"
        return None

    async def check(self) -> None:
        members, agreed = self.members(), self.agreed()
        states: list[dict[bytes, State]] = []
        for node in members:
            assert node.channel is not None
            data = self.data(node)
            found = {}
            for message, record in self.records(node).items():
                if record.kind != KIND_MESSAGE:
                    continue
                status = await node.channel.forget_status(message)
                found[message] = status.state
                gone = message in data.forgotten
                assert gone == status.erased_here
                assert not (gone and message in data.contents), "taken again"
                if gone and not record.lifetime_ms and node.name != "d":
                    assert (node.did, message) in agreed, f"{node.name} had not agreed"
                if status.state not in (State.FORGOTTEN, State.EXPIRED):
                    holders = [n for n in members if message in self.data(n).contents]
                    assert len(holders) == len(members), "lost without consent"
            states.append(found)
        assert all(found == states[0] for found in states), "they do not agree"


async def _run(seed: int) -> dict[str, int]:
    async with anyio.create_task_group() as tasks:
        world = ForgettingWorld(seed, tasks)
        await world.live()
        data = world.data(world.nodes[0])
        counts = {"records": len(data.records), "forgotten": len(data.forgotten)}
        tasks.cancel_scope.cancel()
    return counts


def run_seed(seed: int) -> dict[str, int]:
    """Run a seed in virtual time on asyncio."""
    try:
        return anyio.run(_run, seed, backend_options={"loop_factory": VirtualTimeLoop})
    except BaseException as error:
        if isinstance(error, Exception):
            error.add_note(f"replay: python -m tests.sim.forgetting {seed}")
        raise


if __name__ == "__main__":
    logging.disable(logging.NOTSET if "-v" in sys.argv else logging.CRITICAL)
    print(run_seed(int(sys.argv[1])))
