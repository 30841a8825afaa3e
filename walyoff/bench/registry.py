"""What can be measured, by name. Nothing is imported before it is run."""

from __future__ import annotations

import importlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from walyoff.bench.bench import Bench

Measure = Callable[["Bench"], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Entry:
    """One measurement."""

    name: str
    summary: str
    #: Repetitions in the short and in the long form.
    repeats: tuple[int, int]
    #: What it can be compared with in the same run.
    versus: tuple[str, ...] = ()
    #: Sizes by name: of the short form, of the long form.
    sizes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)

    def load(self) -> Measure:
        """The function that measures it."""
        module = importlib.import_module(f"walyoff.bench.measure_{self.name}")
        return cast(Measure, module.measure)


_RAW = ("raw",)
ENTRIES = (
    Entry("join", "a device joins by an invitation", (1, 5)),
    Entry(
        "latency",
        "from send to the other side's `async for`, one message of 1 KiB every 20 ms",
        (3, 5),
        _RAW,
        {"messages": ((150,), (500,))},
    ),
    Entry(
        "burst",
        "one writer, until the other side has everything: single sends, and send_many by 100",
        (3, 5),
        _RAW,
        {"messages": ((2000,), (2000, 20000))},
    ),
    Entry(
        "both",
        "both sides write at the same time",
        (3, 5),
        _RAW,
        {"messages": ((1000,), (5000,))},
    ),
    Entry(
        "catchup",
        "a device that was away gets what was sent meanwhile",
        (2, 5),
        _RAW,
        {"messages": ((2000,), (2000, 10000))},
    ),
    Entry(
        "big",
        "opening, sending and memory with a long history",
        (1, 3),
        (),
        {"records": ((1000, 100_000), (1000, 10_000, 100_000, 1_000_000))},
    ),
    Entry(
        "fanout",
        "one writer and several receivers",
        (1, 3),
        (),
        {"receivers": ((2,), (2, 5, 10)), "messages": ((1000,), (2000,))},
    ),
    Entry("attachment", "a file: stored by one device, fetched by another; memory", (1, 3),
          (), {"mib": ((64,), (64, 1024))}),
    Entry("idle", "processor and memory of a device that has nothing to do", (1, 1), (),
          {"seconds": ((15,), (60,))}),
    Entry("ledger", "the register after many batches: block, start, join, catching up", (1, 1),
          (), {"batches": ((2500,), (100_000,)), "segment": ((16,), (256,))}),
    Entry("missed", "all blocks of a register, handed to a device that has none", (1, 3),
          (), {"blocks": ((1024,), (9984,)), "segment": ((64,), (256,))}),
    Entry("import", "importing the library", (5, 20)),
    Entry("transport", "a transport by itself: round trip, throughput, broadcasts", (2, 5),
          ("tcp",), {"rounds": ((400,), (2000,)), "mib": ((32,), (256,))}),
    Entry("start", "from starting a program to its first send, on a home that exists", (3, 10)),
)  # fmt: skip
BENCHMARKS = {entry.name: entry for entry in ENTRIES}
