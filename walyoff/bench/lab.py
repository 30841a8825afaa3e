"""The side that measures: starts processes, asks them, and ends them with all they left.

A `Lab` is a private folder with the homes of everything that runs in it. What is measured
is a `System`: pairs of processes of ours, or of what ours is compared with; both answer the
same requests, so a measurement is written once.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import Process, TaskGroup
from anyio.streams.buffered import BufferedByteReceiveStream

from walyoff.errors import WalyoffError

OURS = "walyoff"
RAW = "raw"
#: Ours as well, but as it is in another checkout: `tree:PATH`. For comparing two states.
TREE = "tree:"

#: An agent's longest line: a trace of some thousand messages.
MAX_LINE = 64 << 20
_LAST_WORDS = 4096
#: Seconds for an agent to start, to answer, and to end before it is killed.
START_S = 30.0
ANSWER_S = 300.0
END_S = 10.0

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


class Agent:
    """A process that answers."""

    def __init__(self, name: str, system: str, process: Process, said: Path) -> None:
        self.name = name
        self.system = system
        self.ready: dict[str, Any] = {}
        #: When it was started, in monotonic nanoseconds.
        self.started = time.monotonic_ns()
        self._process = process
        self._said = said
        self._answers: dict[int, dict[str, Any]] = {}
        self._count = 0
        self._ended = False
        self._news = anyio.Event()
        self.gone = anyio.Event()

    async def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Ask, and wait for the answer. Raises BenchError."""
        self._count += 1
        number = self._count
        line = json.dumps({"n": number, "do": do, **arguments}) + "\n"
        try:
            if self._process.stdin is not None:
                await self._process.stdin.send(line.encode())
            with anyio.fail_after(ANSWER_S):
                while number not in self._answers:
                    await self._changed()
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise BenchError(f"{self.name} has ended{self._last_words()}") from error
        except TimeoutError:
            raise BenchError(f"{self.name} did not {do} within {ANSWER_S:g} s") from None
        answer = self._answers.pop(number)
        if not answer["ok"]:
            raise BenchError(f"{self.name} could not {do}: {answer['error']}")
        return answer

    async def wait_ready(self) -> None:
        """Wait until it can be asked. Raises BenchError."""
        try:
            with anyio.fail_after(START_S):
                while not self.ready:
                    await self._changed()
        except TimeoutError:
            raise BenchError(f"{self.name} did not start within {START_S:g} s") from None

    async def _changed(self) -> None:
        if self._ended:
            raise BenchError(f"{self.name} ended unexpectedly{self._last_words()}")
        await self._news.wait()

    async def read(self) -> None:
        """Take what it says until it ends."""
        if self._process.stdout is not None:
            lines = BufferedByteReceiveStream(self._process.stdout)
            with contextlib.suppress(
                anyio.EndOfStream,
                anyio.IncompleteRead,
                anyio.ClosedResourceError,
                anyio.BrokenResourceError,
            ):
                while True:
                    value = json.loads(await lines.receive_until(b"\n", MAX_LINE))
                    if "n" in value:
                        self._answers[value["n"]] = value
                    else:
                        self.ready = value
                    self._notify()
        self._ended = True
        self._notify()

    def _notify(self) -> None:
        news, self._news = self._news, anyio.Event()
        news.set()

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = self._said.read_text(errors="replace")[-_LAST_WORDS:].split("\n")
            words = [line.strip(" |") for line in lines if line.strip(" |+-")]
            return f": {words[-1]}" if words else ""
        return ""

    async def stop(self) -> None:
        """End it in order; if it takes too long, kill it, with all that belongs to it."""
        if self.gone.is_set():
            return
        self.gone.set()
        with anyio.CancelScope(shield=True):
            if self._process.stdin is not None:
                await self._process.stdin.aclose()
            with anyio.move_on_after(END_S):
                await self._process.wait()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.wait()
            if self._process.stdout is not None:
                await self._process.stdout.aclose()


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
