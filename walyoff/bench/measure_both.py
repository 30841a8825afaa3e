"""Both sides write as fast as they can, until both have delivered everything."""

from __future__ import annotations

import anyio

from walyoff.bench.bench import SIZE, Bench
from walyoff.bench.lab import Agent, next_run
from walyoff.bench.measure_burst import WARM_UP, WRITERS
from walyoff.bench.measure_burst import once as one_way


async def measure(bench: Bench) -> None:
    """Single sends from both sides; the rate is the sum."""
    (count,) = bench.sizes("messages")
    bench.notes |= {"messages_each": count, "size": SIZE, "writers": WRITERS}
    async with bench.pairs() as pairs:
        for a, b in pairs.values():
            await one_way(a, b, WARM_UP, batch=1)
            await one_way(b, a, WARM_UP, batch=1)
        for _ in range(bench.repeats):
            for system, (a, b) in pairs.items():
                bench.figures.add(system, await _once(a, b, count))


async def _once(a: Agent, b: Agent, count: int) -> dict[str, float]:
    began: list[int] = []
    ended: list[int] = []

    async def write(agent: Agent, run: int) -> None:
        answer = await agent.ask(
            "burst", run=run, count=count, size=SIZE, batch=1, writers=WRITERS
        )
        began.append(answer["began"])

    async def wait(agent: Agent, run: int) -> None:
        ended.append((await agent.ask("expect", run=run, count=count))["last"])

    runs = next_run(), next_run()
    async with anyio.create_task_group() as tasks:
        for (source, target), run in zip(((a, b), (b, a)), runs, strict=True):
            tasks.start_soon(wait, target, run)
            tasks.start_soon(write, source, run)
    return {"messages_per_s": 2 * count / ((max(ended) - min(began)) / 1e9)}
