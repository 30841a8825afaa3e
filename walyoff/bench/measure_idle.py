"""What a device costs that has nothing to do but to stay in touch."""

from __future__ import annotations

import anyio

from walyoff.bench.bench import Bench
from walyoff.bench.lab import OURS
from walyoff.bench.measure_burst import WARM_UP, once

#: After the last message anchors are written and told, which is not idleness yet.
SETTLE_S = 8.0


async def measure(bench: Bench) -> None:
    """Two connected devices; each is a repetition of its own."""
    (seconds,) = bench.sizes("seconds")
    bench.notes |= {"seconds": seconds, "settle_s": SETTLE_S}
    async with bench.lab() as lab:
        pair = await lab.pair(OURS)
        await once(*pair, WARM_UP, batch=1)
        await anyio.sleep(SETTLE_S)
        for _ in range(bench.repeats):
            before = [await agent.ask("usage") for agent in pair]
            await anyio.sleep(seconds)
            after = [await agent.ask("usage") for agent in pair]
            for old, new in zip(before, after, strict=True):
                spent = new["at"] - old["at"]
                device = (new["cpu_s"] - old["cpu_s"]) / spent
                child = (new["child_cpu_s"] - old["child_cpu_s"]) / spent
                bench.figures.add(
                    OURS,
                    {
                        "core_percent": 100 * (device + child),
                        "device_core_percent": 100 * device,
                        "child_core_percent": 100 * child,
                        "memory_mib": new["memory_mib"] + new["child_memory_mib"],
                        "device_memory_mib": new["memory_mib"],
                        "child_memory_mib": new["child_memory_mib"],
                    },
                )
