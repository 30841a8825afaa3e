"""The side that measures: starts processes, asks them, and ends them with all they left.

A `Lab` is a private folder with the homes of everything that runs in it. What is measured
is a `System`: pairs of processes of ours, or of what ours is compared with; both answer the
same requests, so a measurement is written once.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import Process, TaskGroup

from walyoff.agents import asking as agents
from walyoff.errors import WalyoffError

OURS = "walyoff"
RAW = "raw"
#: Ours as well, but as it is in another checkout: `tree:PATH`. For comparing two states.
TREE = "tree:"

_runs = itertools.count(1)


class BenchError(WalyoffError):
    """A measurement could not be made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """How devices are set up."""

    transport: str = "ipfs"
    suite: str = "hybrid-1"
    backend: str = "asyncio"
    trace: bool = False


def is_ours(system: str) -> bool:
    """True for devices, of this or another checkout."""
    return system == OURS or system.startswith(TREE)


def _paths(system: str) -> dict[str, str]:
    """Where a process finds the packages of another checkout, before the installed ones."""
    if not system.startswith(TREE):
        return {}
    root = Path(system.removeprefix(TREE)).resolve()
    return {
        "PYTHONPATH": os.pathsep.join(map(str, (root, root / "transports", root / "codecs")))
    }


def installed_environment() -> dict[str, str]:
    """The environment for a process of ours as users have it.

    Installing a package compiles it. Where that was not done, and bytecode is not to be kept,
    each start compiles all modules anew, which takes longer than all the rest of a start.
    """
    return {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


def next_run() -> int:
    """A number for the messages of one repetition."""
    return next(_runs)


class Agent(agents.Agent):
    """A process of the lab."""

    failure = BenchError
    #: A trace of some thousand messages.
    max_line = 64 << 20
    answer_s = 300.0

    def __init__(self, name: str, system: str, process: Process, said: Path) -> None:
        super().__init__(name, process, said)
        self.system = system


class Lab:
    """Runs agents. Get one from `open_lab`."""

    def __init__(self, folder: Path, setup: Setup, tasks: TaskGroup) -> None:
        self.folder = folder
        self.setup = setup
        self._tasks = tasks
        self._agents: list[Agent] = []
        self._names = itertools.count(1)

    def new_home(self, name: str) -> Path:
        """A folder that is not there yet, for a device."""
        return self.folder / f"{name}{next(self._names)}"

    async def start(self, system: str, home: Path) -> Agent:
        """Start an agent and wait until it can be asked. Raises BenchError."""
        agent = await self.begin(system, home)
        await agent.wait_ready()
        return agent

    async def begin(self, system: str, home: Path) -> Agent:
        """Start an agent."""
        scratch = self.folder / "t"
        scratch.mkdir(mode=0o700, exist_ok=True)
        said = self.folder / f"{home.name}.err"
        with said.open("ab") as stderr:
            process = await anyio.open_process(
                [sys.executable, "-m", *self._command(system), "--home", str(home)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr.fileno(),
                # Python looks for modules where it is started, before anywhere else.
                cwd=self.folder,
                env={
                    **installed_environment(),
                    **_paths(system),
                    "TMPDIR": str(scratch),
                    "PYTHONUNBUFFERED": "1",
                },
                start_new_session=True,
            )
        agent = Agent(home.name, system, process, said)
        self._agents.append(agent)
        self._tasks.start_soon(agent.read)
        return agent

    def _command(self, system: str) -> list[str]:
        setup = self.setup
        if system == RAW:
            return ["walyoff.bench.raw", "--suite", setup.suite]
        command = ["walyoff.bench.agent", "--suite", setup.suite, "--backend", setup.backend]
        command += ["--transport", setup.transport]
        return [*command, "--trace"] if setup.trace else command

    async def pair(self, system: str) -> tuple[Agent, Agent]:
        """Two agents that are connected and can send to each other. Raises BenchError."""
        first = await self.begin(system, self.new_home("a"))
        second = await self.begin(system, self.new_home("b"))
        for agent in (first, second):
            await agent.wait_ready()
        if is_ours(system):
            await first.ask("create", name="bench")
            await self.join(first, second)
        else:
            port = (await first.ask("listen"))["port"]
            await second.ask("connect", port=port)
        for agent in (first, second):
            await agent.ask("peer")
        return first, second

    async def join(self, inviting: Agent, joining: Agent) -> dict[str, Any]:
        """Let a device join a channel of another one."""
        invitation = (await inviting.ask("invite"))["invitation"]
        return await joining.ask("join", invitation=invitation)

    async def close(self) -> None:
        """End all agents, at the same time."""
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as tasks:
                for agent in self._agents:
                    tasks.start_soon(agent.stop)


@asynccontextmanager
async def open_lab(setup: Setup, *, root: Path | None = None) -> AsyncIterator[Lab]:
    """A lab in a folder that is removed afterwards, with everything that ran in it."""
    # Sockets have their places below it, whose names have 107 bytes at most.
    folder = Path(tempfile.mkdtemp(prefix="walyoff-bench-", dir=root))
    try:
        async with anyio.create_task_group() as tasks:
            lab = Lab(folder, setup, tasks)
            try:
                yield lab
            finally:
                await lab.close()
                tasks.cancel_scope.cancel()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
