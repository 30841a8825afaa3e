"""A warm start: from starting a program to its first durable message, with an old home.

Processor times are also told as shares of what importing the library takes: that hardly
depends on what else the machine does, so it shows when a start does more than it did.
"""

from __future__ import annotations

from pathlib import Path

from anyio import to_thread

from walyoff.bench.bench import SIZE, Bench
from walyoff.bench.lab import Lab, is_ours, next_run
from walyoff.bench.measure_import import once as import_once

#: A home with some history, as homes have.
HISTORY = 1000


async def measure(bench: Bench) -> None:
    """Start, send one message, end; again and again with the same home, in turns."""
    bench.notes["history"] = HISTORY
    await to_thread.run_sync(import_once)
    async with bench.lab() as lab:
        systems = [system for system in bench.systems if is_ours(system)]
        homes = {system: await _home(lab, system) for system in systems}
        for _ in range(bench.repeats):
            for system, home in homes.items():
                figures = await once(lab, system, home)
                _, _, imported_ms, _ = await to_thread.run_sync(import_once)
                for side in ("cpu", "child_cpu"):
                    figures[f"{side}_to_import"] = 1000 * figures[f"{side}_s"] / imported_ms
                bench.figures.add(system, figures)


async def _home(lab: Lab, system: str) -> Path:
    home = lab.new_home("a")
    agent = await lab.start(system, home)
    await agent.ask("create", name="bench")
    await agent.ask("burst", run=next_run(), count=HISTORY, size=SIZE, batch=100, writers=1)
    await agent.stop()
    return home


async def once(lab: Lab, system: str, home: Path) -> dict[str, float]:
    """One repetition."""
    agent = await lab.start(system, home)
    sent = await agent.ask("burst", run=next_run(), count=1, size=SIZE, batch=1, writers=1)
    ready, started = agent.ready, agent.started
    usage = await agent.ask("usage")
    await agent.stop()
    took_ns = sent["ended"] - sent["began"]
    return {
        "first_send_s": (took_ns + ready["opened"] - started) / 1e9,
        "interpreter_s": (ready["began"] - started) / 1e9,
        "import_s": (ready["opening"] - ready["began"]) / 1e9,
        "open_s": (ready["opened"] - ready["opening"]) / 1e9,
        "send_s": took_ns / 1e9,
        "cpu_s": usage["cpu_s"],
        "child_cpu_s": usage["child_cpu_s"],
    }
