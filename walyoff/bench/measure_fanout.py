"""One writer and several receivers, each with its own session and its own copy."""

from __future__ import annotations

import anyio

from walyoff.bench.bench import SIZE, Bench
from walyoff.bench.lab import OURS, Agent, next_run
from walyoff.bench.measure_burst import BATCH, BATCH_WRITERS, WRITERS


async def measure(bench: Bench) -> None:
    """The same devices throughout: more of them join for each size."""
    (count,) = bench.sizes("messages")
    receivers = sorted(bench.sizes("receivers"))
    bench.notes |= {"messages": count, "size": SIZE, "receivers": receivers}
    async with bench.lab() as lab:
        writer = await lab.start(OURS, lab.new_home("a"))
        await writer.ask("create", name="bench")
        others: list[Agent] = []
        for number in receivers:
            while len(others) < number:
                joining = await lab.start(OURS, lab.new_home("b"))
                await lab.join(writer, joining)
                others.append(joining)
            await writer.ask("peers", count=number)
            for _ in range(bench.repeats):
                figures = {
                    **await _once(writer, others, count, batch=1),
                    **await _once(writer, others, count, batch=BATCH),
                }
                bench.figures.add(
                    OURS, {f"to_{number}_{key}": value for key, value in figures.items()}
                )


async def _once(
    writer: Agent, receivers: list[Agent], count: int, *, batch: int
) -> dict[str, float]:
    run = next_run()
    ended: list[int] = []

    async def wait(agent: Agent) -> None:
        ended.append((await agent.ask("expect", run=run, count=count))["last"])

    async with anyio.create_task_group() as tasks:
        for receiver in receivers:
            tasks.start_soon(wait, receiver)
        sent = await writer.ask(
            "burst",
            run=run,
            count=count,
            size=SIZE,
            batch=batch,
            writers=WRITERS if batch == 1 else BATCH_WRITERS,
        )
    name = "single" if batch == 1 else "many"
    return {
        f"{name}_messages_per_s": count / ((max(ended) - sent["began"]) / 1e9),
        f"{name}_writer_cpu_us": 1e6 * sent["cpu_s"] / count,
    }
