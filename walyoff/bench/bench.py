"""One measurement under way: its options, its figures, and the JSON that comes out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from walyoff.bench.figures import Figures
from walyoff.bench.lab import OURS, Agent, Lab, Setup, open_lab
from walyoff.bench.machine import Meter, environment
from walyoff.bench.registry import Entry

#: Bytes of a message.
SIZE = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What was asked for."""

    setup: Setup = field(default_factory=Setup)
    long: bool = False
    #: None: as many as the measurement's form says.
    repeat: int | None = None
    versus: tuple[str, ...] = ()
    #: Sizes that replace those of the form, by name.
    sizes: dict[str, tuple[int, ...]] | None = None
    #: Where prepared stores are kept for the next time; None: nowhere.
    prepared: Path | None = None
    #: Where the homes are while it runs; None: the folder for temporary files.
    root: Path | None = None


class Bench:
    """What a measurement works with."""

    def __init__(self, entry: Entry, options: Options) -> None:
        self.entry = entry
        self.options = options
        self.figures = Figures()
        #: What else belongs into the result: parameters that were used, remarks.
        self.notes: dict[str, Any] = {}

    @property
    def systems(self) -> tuple[str, ...]:
        """Ours, and what it is compared with."""
        return (OURS, *self.options.versus)

    @property
    def repeats(self) -> int:
        """How often each figure is taken."""
        return self.options.repeat or self.entry.repeats[self.options.long]

    def sizes(self, name: str) -> Sequence[int]:
        """The sizes to measure with."""
        given = (self.options.sizes or {}).get(name)
        return given or self.entry.sizes[name][self.options.long]

    @asynccontextmanager
    async def lab(self) -> AsyncIterator[Lab]:
        """A place to run processes in."""
        async with open_lab(self.options.setup, root=self.options.root) as lab:
            yield lab

    @asynccontextmanager
    async def pairs(self) -> AsyncIterator[dict[str, tuple[Agent, Agent]]]:
        """A connected pair of each system. Those that wait cost the others next to nothing."""
        async with self.lab() as lab:
            yield {system: await lab.pair(system) for system in self.systems}


async def run(name_or_entry: Entry, options: Options) -> dict[str, Any]:
    """Measure; returns the result as JSON has it.

    Raises:
        BenchError: a process failed, or took too long.
    """
    bench = Bench(name_or_entry, options)
    with Meter() as meter:
        await name_or_entry.load()(bench)
        meanwhile = meter.reading()
    others = [system for system in bench.figures.systems() if system != OURS]
    setup = asdict(options.setup)
    del setup["trace"]
    return {
        "benchmark": bench.entry.name,
        "form": "long" if options.long else "short",
        **bench.figures.of(OURS),
        "versus": {other: bench.figures.of(other) for other in others},
        "ratios": {other: bench.figures.ratios(OURS, other) for other in others},
        "options": {**setup, "repeat": bench.repeats, **bench.notes},
        "environment": environment(),
        "meanwhile": meanwhile,
    }
