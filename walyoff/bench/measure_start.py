"""A warm start: from starting a program to its first durable message, with an old home."""

from __future__ import annotations

from walyoff.bench.bench import SIZE, Bench
from walyoff.bench.lab import OURS, next_run

#: A home with some history, as homes have.
HISTORY = 1000


async def measure(bench: Bench) -> None:
    """Start, send one message, end; again and again with the same home."""
    async with bench.lab() as lab:
        home = lab.new_home("a")
        agent = await lab.start(OURS, home)
        await agent.ask("create", name="bench")
        await agent.ask("burst", run=next_run(), count=HISTORY, size=SIZE, batch=100, writers=1)
        await agent.stop()
        bench.notes["history"] = HISTORY
        for _ in range(bench.repeats):
            agent = await lab.start(OURS, home)
            sent = await agent.ask(
                "burst", run=next_run(), count=1, size=SIZE, batch=1, writers=1
            )
            ready, started = agent.ready, agent.started
            usage = await agent.ask("usage")
            await agent.stop()
            bench.figures.add(
                OURS,
                {
                    "first_send_s": (sent["ended"] - sent["began"] + ready["opened"] - started)
                    / 1e9,
                    "interpreter_s": (ready["began"] - started) / 1e9,
                    "import_s": (ready["opening"] - ready["began"]) / 1e9,
                    "open_s": (ready["opened"] - ready["opening"]) / 1e9,
                    "send_s": (sent["ended"] - sent["began"]) / 1e9,
                    "cpu_s": usage["cpu_s"],
                    "child_cpu_s": usage["child_cpu_s"],
                },
            )
