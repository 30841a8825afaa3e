"""Delivery: from the call of `send` to the message in the other side's `async for`."""

from __future__ import annotations

import anyio

from walyoff.bench.bench import SIZE, Bench
from walyoff.bench.lab import Agent, next_run

#: Seconds between two messages, by the clock.
EVERY_S = 0.02
#: Messages before the first that counts: caches fill, imports happen.
WARM_UP = 20


async def measure(bench: Bench) -> None:
    """One message at a time; the systems take turns."""
    (count,) = bench.sizes("messages")
    bench.notes |= {"messages": count, "size": SIZE, "every_ms": EVERY_S * 1000}
    async with bench.pairs() as pairs:
        for a, b in pairs.values():
            await once(a, b, WARM_UP)
        for _ in range(bench.repeats):
            for system, (a, b) in pairs.items():
                bench.figures.add(system, await once(a, b, count))


async def once(a: Agent, b: Agent, count: int) -> dict[str, float]:
    """One repetition."""
    run = next_run()
    figures: dict[str, float] = {}
    before = [await agent.ask("usage") for agent in (a, b)]

    async def wait() -> None:
        arrived = await b.ask("expect", run=run, count=count)
        figures.update(
            {name: arrived[name] for name in ("p50_ms", "p90_ms", "p99_ms", "max_ms")}
        )

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        sent = await a.ask("latency", run=run, count=count, size=SIZE, every=EVERY_S)
    after = [await agent.ask("usage") for agent in (a, b)]
    # Processor time does not depend on what else the machine does, or hardly.
    for side, old, new in zip(("sender", "receiver"), before, after, strict=True):
        figures[f"{side}_cpu_ms"] = 1000 * (new["cpu_s"] - old["cpu_s"]) / count
        figures[f"{side}_switches"] = (new["switches"] - old["switches"]) / count
    return figures | {"send_p50_ms": sent["send_p50_ms"]}
