"""The demo's side of its two agents: starting, asking, stopping them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import Process, TaskStatus
from anyio.streams.buffered import BufferedByteReceiveStream

from walyoff.errors import WalyoffError

#: An agent's longest line: a list of message ids.
MAX_LINE = 1 << 20
#: Characters of an agent's stderr that are looked at when it failed.
MAX_LAST_WORDS = 4096
#: Seconds for an agent to start, to answer, and to end before it is killed.
START_S = 30.0
ANSWER_S = 40.0
END_S = 10.0


class DemoError(WalyoffError):
    """A step of the demo failed."""


class Agent:
    """One running agent. Get one from `start_agent`."""

    def __init__(self, name: str, process: Process, said: Path) -> None:
        self.name = name
        self._said = said
        self.did = ""
        self._process = process
        self._answers: dict[int, dict[str, Any]] = {}
        self._count = 0
        self._ended = False
        self._news = anyio.Event()
        #: What came in, in the order of coming.
        self.messages: list[dict[str, Any]] = []

    async def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Ask the agent and wait for its answer. Raises DemoError."""
        self._count += 1
        number = self._count
        line = json.dumps({"n": number, "do": do, **arguments}) + "\n"
        if self._process.stdin is None or self._ended:
            raise DemoError(f"{self.name} has ended")
        try:
            await self._process.stdin.send(line.encode())
            with anyio.fail_after(ANSWER_S):
                while number not in self._answers:
                    await self._changed()
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise DemoError(f"{self.name} has ended") from error
        except TimeoutError:
            raise DemoError(f"{self.name} did not {do} within {ANSWER_S:g} s") from None
        answer = self._answers.pop(number)
        if not answer["ok"]:
            raise DemoError(f"{self.name} could not {do}: {answer['error']}")
        return answer

    async def wait_message(self, message_id: str, *, timeout: float) -> dict[str, Any]:
        """Wait until a message came, and return it. Raises DemoError."""
        try:
            with anyio.fail_after(timeout):
                while True:
                    for message in self.messages:
                        if message["id"] == message_id:
                            return message
                    await self._changed()
        except TimeoutError:
            raise DemoError(
                f"a message did not come to {self.name} within {timeout:g} s"
            ) from None

    async def _changed(self) -> None:
        if self._ended:
            raise DemoError(f"{self.name} ended unexpectedly{self._last_words()}")
        await self._news.wait()

    async def read(self, *, task_status: TaskStatus[None]) -> None:
        """Take what the agent says until it ends; started when the agent is ready."""
        ready = False
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
                    if value.get("event") == "ready":
                        self.did = value["did"]
                        ready = True
                        task_status.started()
                    elif value.get("event") == "message":
                        self.messages.append(value)
                    else:
                        self._answers[value["n"]] = value
                    self._notify()
        self._ended = True
        self._notify()
        if not ready:
            raise DemoError(f"{self.name} could not start{self._last_words()}")

    def _last_words(self) -> str:
        """The last line on its stderr, which names the error."""
        with contextlib.suppress(OSError):
            lines = self._said.read_text(errors="replace")[-MAX_LAST_WORDS:].split("\n")
            words = [line.strip(" |") for line in lines if line.strip(" |+-")]
            return f": {words[-1]}" if words else ""
        return ""

    def _notify(self) -> None:
        news, self._news = self._news, anyio.Event()
        news.set()

    async def kill(self) -> None:
        """End it as a power cut would, with all that belongs to it."""
        self._end_group(signal.SIGKILL)
        await self._process.wait()

    async def stop(self) -> None:
        """End it in order; if it takes too long, kill it."""
        if self._process.stdin is not None:
            await self._process.stdin.aclose()
        with contextlib.suppress(ProcessLookupError):
            # It reads its stdin only between requests, and may be in the middle of one.
            self._process.terminate()
        with anyio.move_on_after(END_S):
            await self._process.wait()
        # Its child process ends with it, but may need a moment; nothing may be left behind.
        self._end_group(signal.SIGKILL)
        await self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                await stream.aclose()

    def _end_group(self, signum: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signum)


@asynccontextmanager
async def start_agent(name: str, home: Path, temporary: Path) -> AsyncIterator[Agent]:
    """Run an agent while the context is open. Raises DemoError if it does not start."""
    said = temporary / f"{name}.err"
    with said.open("ab") as stderr:
        process = await _run(home, temporary, stderr.fileno())
    agent = Agent(name, process, said)
    try:
        async with anyio.create_task_group() as tasks:
            with anyio.fail_after(START_S):
                await tasks.start(agent.read)
            try:
                yield agent
            finally:
                tasks.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            await agent.stop()


async def _run(home: Path, temporary: Path, stderr: int) -> Process:
    return await anyio.open_process(
        [sys.executable, "-m", "walyoff.demo.agent", "--home", str(home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        # What it leaves behind when it is killed is removed with the demo's own folder.
        env={**os.environ, "TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"},
        # Ctrl-C is for the demo, which ends its agents itself.
        start_new_session=True,
    )
