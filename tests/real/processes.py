"""Devices and outsiders as operating-system processes, and the little world they live in.

A `World` is a folder: each process has its home in it, and its `HOME`, `TMPDIR` and working
folder are folders of their own, so that whatever is written elsewhere shows.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.real.wire import read
from tests.waiting import MOST, Deadline

SCRIPTS = Path(__file__).parent
#: Seconds, of free time: for an answer, and for a process to begin or to end.
CALL_TIME = 20.0
START_TIME = 30.0
END_TIME = 10.0


class FailedError(Exception):
    """A process answered with an error; `kind` is the name of its class."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind
        self.text = text


class Process:
    """A script that answers requests. Its answers are read by a thread."""

    def __init__(self, script: str, arguments: list[str], *, world: World, name: str) -> None:
        self.name = name
        self.home = world.homes / name
        self.log_path = world.root / f"{name}.log"
        self._condition = threading.Condition()
        self._answers: dict[int, dict[str, Any]] = {}
        self.events: list[dict[str, Any]] = []
        self._ended = False
        self._next = 0
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(SCRIPTS / script), str(self.home), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=world.cwd,
                env=world.environment,
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __repr__(self) -> str:
        return f"<Process {self.name} {self.pid}>"

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> str:
        """What it wrote to its standard error, in all its lives."""
        return self.log_path.read_text(errors="replace")

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            # A killed process may leave half a line.
            if line.endswith(b"\n"):
                message = read(line)
                with self._condition:
                    if "id" in message:
                        self._answers[message["id"]] = message
                    else:
                        self.events.append(message)
                    self._condition.notify_all()
        with self._condition:
            self._ended = True
            self._condition.notify_all()

    # ---------------------------------------------------------------------- talking

    def ask(self, do: str, **args: Any) -> int:
        """Begin a call; `answer` waits for its end."""
        self._next += 1
        line = repr({"id": self._next, "do": do, "args": args}).encode("unicode_escape")
        assert self._process.stdin is not None
        self._process.stdin.write(line + b"\n")
        self._process.stdin.flush()
        return self._next

    def answer(self, number: int, *, limit: float = CALL_TIME) -> Any:
        """The value of a call. Raises FailedError, TimeoutError, EOFError."""
        with self._condition:
            self._wait(lambda: number in self._answers, limit, f"call {number}")
            message = self._answers.pop(number)
        if "error" in message:
            raise FailedError(*message["error"])
        return message["value"]

    def call(self, do: str, *, limit: float = CALL_TIME, **args: Any) -> Any:
        """Ask and wait."""
        return self.answer(self.ask(do, **args), limit=limit)

    def event(self, name: str, *, limit: float = CALL_TIME, count: int = 1) -> dict[str, Any]:
        """Wait for the `count`-th event of a name."""

        def found() -> list[dict[str, Any]]:
            return [event for event in self.events if event["event"] == name]

        with self._condition:
            self._wait(lambda: len(found()) >= count, limit, f"event {name}")
            return found()[count - 1]

    def all_events(self, name: str) -> list[dict[str, Any]]:
        """All events of a name that were read so far."""
        with self._condition:
            return [event for event in self.events if event["event"] == name]

    def _wait(self, condition: Callable[[], bool], limit: float, what: str) -> None:
        deadline = Deadline(limit)
        while not condition():
            if self._ended:
                raise EOFError(f"{self.name} ended before {what}:\n{self.log[-3000:]}")
            left = deadline.left()
            if not left:
                text = f"{self.name}: no {what} in {limit:g} s"
                raise TimeoutError(f"{text}:\n{self.log[-3000:]}")
            self._condition.wait(left)

    # ------------------------------------------------------------------------ ending

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def wait(self, limit: float = END_TIME) -> int:
        """Wait for the end; returns the exit code."""
        code = self._process.wait(MOST * limit)
        self._reader.join(MOST * limit)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        return code

    def kill(self) -> None:
        """SIGKILL, whatever it is doing. All that it said before has been read after this."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self.wait()

    def close(self, limit: float = END_TIME) -> int:
        """End it in order: its input ends, and it leaves its contexts."""
        if self._process.poll() is None and self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        return self.wait(limit)


class Device(Process):
    """A device; once `ready` it has been opened."""

    def ready(self, limit: float = START_TIME) -> Device:
        """Wait until it is open. Raises FailedError if it could not be opened."""
        with self._condition:
            self._wait(lambda: bool(self.events), limit, "start")
            first = self.events[0]
        if first["event"] == "failed":
            self.wait()
            raise FailedError(*first["error"])
        return self

    @property
    def seconds(self) -> float:
        """How long opening took."""
        return float(self.event("ready")["seconds"])

    def child(self) -> int:
        """The process id of its child."""
        return int(self.call("child")["pid"])

    def sent(self) -> list[tuple[str, int, bytes]]:
        """(id, sequence number, content) of each message that its flood has confirmed."""
        return [e["message"] for e in self.all_events("sent")]


class World:
    """Some processes and their homes; everything ends and goes with the context."""

    def __init__(self) -> None:
        # A short path: a Unix socket's name has 107 bytes at most.
        self.root = Path(tempfile.mkdtemp(prefix="wo-"))
        self.homes = self.root / "homes"
        self.cwd = self.root / "cwd"
        for folder in ("homes", "cwd", "t", "h"):
            (self.root / folder).mkdir()
        self.environment = os.environ | {
            "HOME": str(self.root / "h"),
            "TMPDIR": str(self.root / "t"),
        }
        self.processes: list[Process] = []

    def __enter__(self) -> World:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self.processes:
            process.kill()
        # The children notice within a moment, and may write until then.
        time.sleep(0.6)
        if "WALYOFF_TESTS_KEEP" not in os.environ:
            shutil.rmtree(self.root, ignore_errors=True)

    def begin(self, name: str, *options: str) -> Device:
        """Start a device without waiting for it."""
        process = Device("device.py", list(options), world=self, name=name)
        self.processes.append(process)
        return process

    def start(self, name: str, *options: str) -> Device:
        """Start a device and wait until it is open. Raises FailedError."""
        return self.begin(name, *options).ready()

    def outsider(self, name: str = "outsider") -> Process:
        """Start a node that is nobody: a child process without a device."""
        process = Process("outsider.py", [], world=self, name=name)
        self.processes.append(process)
        process.event("ready", limit=START_TIME)
        return process

    def pair(self, a: str = "a", b: str = "b", *options: str) -> tuple[Device, Device]:
        """Two devices of one channel."""
        first, second = self.begin(a, *options), self.begin(b, *options)
        first.ready().call("create", name="family")
        second.ready().call("join", invitation=first.call("invite"), limit=60)
        first.call("wait_peer")
        return first, second


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that does not run."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def alive(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def eventually(condition: Callable[[], Any], limit: float = 15.0) -> Any:
    """Wait until a condition is true; returns its value."""
    deadline = Deadline(limit)
    while not (value := condition()):
        if not deadline.left():
            raise TimeoutError(f"not within {limit:g} s")
        time.sleep(0.05)
    return value
