"""A long history: what it costs to open it, to send after it, and in memory."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from anyio import to_thread

from walyoff.bench.bench import SIZE, Bench
from walyoff.bench.lab import OURS, Agent, Lab, next_run
from walyoff.bench.prepare import CONTENT_BYTES, extend
from walyoff.stores import open_store

#: Sends that are timed one after another, and such that share batches.
SENDS = 100
BURST = 1000


async def measure(bench: Bench) -> None:
    """The same home grows; the smallest history is what the others are compared with."""
    sizes = sorted(bench.sizes("records"))
    bench.notes |= {"records": sizes, "content_bytes": CONTENT_BYTES, "sends": SENDS}
    async with bench.lab() as lab:
        home = lab.new_home("a")
        agent = await lab.start(OURS, home)
        await agent.ask("create", name="bench")
        await agent.stop()
        homes = {}
        for size in sizes:
            began = time.monotonic()
            await _prepare(bench, home, size)
            bench.notes[f"prepared_{size}_s"] = round(time.monotonic() - began, 1)
            if len(sizes) > 1:
                homes[size] = await to_thread.run_sync(_copy, home, lab.new_home("h"))
            else:
                homes[size] = home
        await _warm(lab, homes[sizes[0]])
        for _ in range(bench.repeats):
            base: dict[str, float] = {}
            for size in sizes:
                figures = await _once(lab, homes[size])
                base = base or figures
                figures |= {
                    f"{name}_ratio": figures[name] / base[name]
                    for name in ("send_ms", "send_cpu_us", "burst_cpu_us")
                }
                bench.figures.add(
                    OURS, {f"n{size}_{key}": value for key, value in figures.items()}
                )


async def _prepare(bench: Bench, home: Path, size: int) -> None:
    await extend(home, size)


def _copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target, symlinks=True)
    return target


async def _warm(lab: Lab, home: Path) -> None:
    agent = await lab.start(OURS, home)
    await agent.stop()


async def _once(lab: Lab, home: Path) -> dict[str, float]:
    began = time.monotonic()
    async with open_store(home) as store:
        (key,) = await store.keys("channel/")
        channel = store.channel(key.partition("/")[2])
        # What a channel asks for when it is opened.
        await channel.heads()
        await channel.top()
        await channel.unsigned()
        await channel.undelivered()
        await channel.unanchored(1000)
        await channel.missing(1000)
    store_s = time.monotonic() - began
    agent = await lab.start(OURS, home)
    opened = (agent.ready["opened"] - agent.ready["opening"]) / 1e9
    await _send(agent, SENDS, writers=1)
    before = await agent.ask("usage")
    sent = await _send(agent, SENDS, writers=1)
    many = await _send(agent, BURST, writers=BURST)
    await agent.stop()
    return {
        "open_s": opened,
        "store_open_s": store_s,
        "send_ms": sent["seconds"] * 1000 / SENDS,
        "send_cpu_us": sent["cpu_s"] * 1e6 / SENDS,
        "burst_cpu_us": many["cpu_s"] * 1e6 / BURST,
        "burst_per_s": BURST / many["seconds"],
        "memory_mib": before["memory_mib"],
    }


async def _send(agent: Agent, count: int, *, writers: int) -> dict[str, float]:
    sent = await agent.ask(
        "burst", run=next_run(), count=count, size=SIZE, batch=1, writers=writers
    )
    return {"seconds": (sent["ended"] - sent["began"]) / 1e9, "cpu_s": sent["cpu_s"]}
