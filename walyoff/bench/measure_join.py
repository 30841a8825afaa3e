"""Joining: from the call of `join` until the channel is there, and until messages come."""

from __future__ import annotations

from walyoff.bench.bench import SIZE, Bench
from walyoff.bench.lab import OURS, next_run


async def measure(bench: Bench) -> None:
    """A fresh device for each repetition, joining the same channel."""
    async with bench.lab() as lab:
        inviting = await lab.start(OURS, lab.new_home("a"))
        await inviting.ask("create", name="bench")
        for _ in range(bench.repeats):
            joining = await lab.start(OURS, lab.new_home("b"))
            # Its DID is made once in the life of a device, and not a part of joining.
            await joining.ask("did")
            joined = await lab.join(inviting, joining)
            met = await joining.ask("peer")
            await inviting.ask("peer", did=joined["me"])
            run = next_run()
            await inviting.ask("burst", run=run, count=1, size=SIZE, batch=1, writers=1)
            await joining.ask("expect", run=run, count=1)
            bench.figures.add(
                OURS,
                {
                    "join_s": (joined["ended"] - joined["began"]) / 1e9,
                    "first_session_s": (met["at"] - joined["began"]) / 1e9,
                },
            )
            await joining.stop()
