"""One writer as fast as it can, until the other side has delivered everything."""

from __future__ import annotations

import anyio

from walyoff.bench.bench import SIZE, Bench
from walyoff.bench.lab import Agent, next_run

#: Calls of `send` that are awaited at the same time.
WRITERS = 1000
#: Messages in a call of `send_many`, and such calls at the same time.
BATCH = 100
BATCH_WRITERS = 10
WARM_UP = 200


async def measure(bench: Bench) -> None:
    """Single sends, and batches; the systems take turns."""
    counts = bench.sizes("messages")
    bench.notes |= {
        "messages": list(counts),
        "size": SIZE,
        "writers": WRITERS,
        "batch": BATCH,
        "batch_writers": BATCH_WRITERS,
    }
    async with bench.pairs() as pairs:
        for a, b in pairs.values():
            await once(a, b, WARM_UP, batch=1)
        for count in counts:
            for _ in range(bench.repeats):
                for batch, name in ((1, "single"), (BATCH, "many")):
                    for system, (a, b) in pairs.items():
                        figures = await once(a, b, count, batch=batch)
                        prefix = f"{name}_{count}_"
                        bench.figures.add(
                            system, {prefix + key: value for key, value in figures.items()}
                        )


async def once(a: Agent, b: Agent, count: int, *, batch: int) -> dict[str, float]:
    """One repetition."""
    run = next_run()
    figures: dict[str, float] = {}
    writers = WRITERS if batch == 1 else BATCH_WRITERS
    async with anyio.create_task_group() as tasks:

        async def wait() -> None:
            figures.update(await b.ask("expect", run=run, count=count))

        tasks.start_soon(wait)
        before = await b.ask("usage")
        sent = await a.ask(
            "burst", run=run, count=count, size=SIZE, batch=batch, writers=writers
        )
    after = await b.ask("usage")
    seconds = (figures["last"] - sent["began"]) / 1e9
    return {
        "messages_per_s": count / seconds,
        "sent_per_s": count / ((sent["ended"] - sent["began"]) / 1e9),
        "sender_cpu_us": 1e6 * sent["cpu_s"] / count,
        "receiver_cpu_us": 1e6 * (after["cpu_s"] - before["cpu_s"]) / count,
    }
