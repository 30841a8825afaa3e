"""The side that asks: one process that answers, as whoever started it sees it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import anyio
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

from walyoff.errors import WalyoffError

T = TypeVar("T")

#: Characters of a process's stderr that are looked at when it failed.
_LAST_WORDS = 4096
#: Seconds for a process to start, and to end before it is killed.
START_S = 30.0
END_S = 10.0


class Agent:
    """A process that answers. `read` must be running; `stop` ends it."""

    #: What is raised when it does not do what it is asked.
    failure: type[WalyoffError] = WalyoffError
    #: Its longest line, in bytes, and the seconds that it has for an answer.
    max_line = 1 << 20
    answer_s = 30.0

    def __init__(self, name: str, process: Process, said: Path) -> None:
        """`said` is the file that its stderr goes to."""
        self.name = name
        #: What it said when it was ready.
        self.ready: dict[str, Any] = {}
        #: When it was started, in monotonic nanoseconds.
        self.started = time.monotonic_ns()
        self._process = process
        self._said = said
        self._answers: dict[int, dict[str, Any]] = {}
        self._count = 0
        self._ended = False
        self._stopped = False
        self._news = anyio.Event()

    async def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Ask, and wait for the answer. Raises `failure`."""
        self._count += 1
        number = self._count
        line = json.dumps({"n": number, "do": do, **arguments}) + "\n"
        try:
            if self._process.stdin is not None:
                await self._process.stdin.send(line.encode())
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise self.failure(f"{self.name} has ended{self._last_words()}") from error
        answer = await self.until(
            lambda: self._answers.pop(number, None), self.answer_s, f"did not {do}"
        )
        if not answer["ok"]:
            raise self.failure(f"{self.name} could not {do}: {answer['error']}")
        return answer

    async def wait_ready(self) -> None:
        """Wait until it can be asked. Raises `failure`."""
        await self.until(lambda: self.ready, START_S, "did not start")

    async def until(self, look: Callable[[], T | None], within: float, otherwise: str) -> T:
        """Wait until there is something to be seen. Raises `failure`."""
        try:
            with anyio.fail_after(within):
                while not (found := look()):
                    if self._ended:
                        what = "ended unexpectedly" if self.ready else "could not start"
                        raise self.failure(f"{self.name} {what}{self._last_words()}")
                    await self._news.wait()
                return found
        except TimeoutError:
            raise self.failure(f"{self.name} {otherwise} within {within:g} s") from None

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
                    value = json.loads(await lines.receive_until(b"\n", self.max_line))
                    if "n" in value:
                        self._answers[value["n"]] = value
                    else:
                        self.heard(value)
                    self._notify()
        self._ended = True
        self._notify()

    def heard(self, event: dict[str, Any]) -> None:
        """It said something by itself."""
        if event["event"] == "ready":
            self.ready = event

    def _notify(self) -> None:
        news, self._news = self._news, anyio.Event()
        news.set()

    def _last_words(self) -> str:
        """The last line on its stderr, which names the error."""
        with contextlib.suppress(OSError):
            lines = self._said.read_text(errors="replace")[-_LAST_WORDS:].split("\n")
            words = [line.strip(" |") for line in lines if line.strip(" |+-")]
            return f": {words[-1]}" if words else ""
        return ""

    async def kill(self) -> None:
        """End it as a power cut would, with all that belongs to it."""
        self._kill()
        await self._process.wait()

    async def stop(self) -> None:
        """End it in order; if it takes too long, kill it. Idempotent."""
        if self._stopped:
            return
        self._stopped = True
        with anyio.CancelScope(shield=True):
            if self._process.stdin is not None:
                await self._process.stdin.aclose()
            with contextlib.suppress(ProcessLookupError):
                # Nobody reads its stdin before it is ready.
                self._process.terminate()
            with anyio.move_on_after(END_S):
                await self._process.wait()
            # Its child process ends with it, but may need a moment; nothing is left behind.
            self._kill()
            await self._process.wait()
            if self._process.stdout is not None:
                await self._process.stdout.aclose()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)


__all__ = ["END_S", "START_S", "Agent"]
