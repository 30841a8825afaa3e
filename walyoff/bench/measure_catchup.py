"""A device that was away comes back and gets what was sent meanwhile."""

from __future__ import annotations

from walyoff.bench.bench import SIZE, Bench
from walyoff.bench.lab import Agent, Lab, is_ours, next_run
from walyoff.bench.measure_burst import WARM_UP, WRITERS, once


async def measure(bench: Bench) -> None:
    """The receiver's process ends, comes back, and is timed from its first session."""
    counts = bench.sizes("messages")
    bench.notes |= {"messages": list(counts), "size": SIZE}
    async with bench.lab() as lab:
        for count in counts:
            pairs = {system: await lab.pair(system) for system in bench.systems}
            for a, b in pairs.values():
                await once(a, b, WARM_UP, batch=1)
            for _ in range(bench.repeats):
                for system, (a, b) in pairs.items():
                    again, figures = await _once(lab, a, b, count)
                    pairs[system] = (a, again)
                    bench.figures.add(
                        system, {f"n{count}_{key}": value for key, value in figures.items()}
                    )
            for a, b in pairs.values():
                await a.stop()
                await b.stop()


async def _once(lab: Lab, a: Agent, b: Agent, count: int) -> tuple[Agent, dict[str, float]]:
    home = lab.folder / b.name
    await b.stop()
    run = next_run()
    await a.ask("burst", run=run, count=count, size=SIZE, batch=1, writers=WRITERS)
    given = await a.ask("usage")
    again = await lab.start(a.system, home)
    taken = await again.ask("usage")
    if not is_ours(a.system):
        port = (await a.ask("listen"))["port"]
        await again.ask("connect", port=port)
    arrived = await again.ask("expect", run=run, count=count)
    cpu = [
        (await agent.ask("usage"))["cpu_s"] - before["cpu_s"]
        for agent, before in ((a, given), (again, taken))
    ]
    opened = again.ready["opened"]
    # Messages may be there before the application has seen that there is a session.
    met = min(arrived["met"] or arrived["first"], arrived["first"])
    return again, {
        "messages_per_s": count / ((arrived["last"] - met) / 1e9),
        "first_after_session_s": (arrived["first"] - met) / 1e9,
        "session_after_open_s": (met - opened) / 1e9,
        "all_after_start_s": (arrived["last"] - again.started) / 1e9,
        "giver_cpu_us": 1e6 * cpu[0] / count,
        "receiver_cpu_us": 1e6 * cpu[1] / count,
    }
