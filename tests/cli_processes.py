"""Running `walyoff` commands as processes, with bounded time, and seeing what they leave."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.waiting import MOST, Deadline

WALYOFF = [sys.executable, "-m", "walyoff.cli"]
#: Seconds, of free time, for a line of output or for the end.
BOUND_S = 60.0


class Command:
    """One running command, in a session of its own, as in a terminal of its own."""

    def __init__(self, arguments: tuple[str, ...], *, stdin: int = subprocess.DEVNULL) -> None:
        self.process = subprocess.Popen(
            [*WALYOFF, *arguments],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "PYTHONFAULTHANDLER": "1"},
        )
        self._buffer = b""

    def line(self, timeout: float = BOUND_S) -> str:
        """The next line of its output. Fails when it ends or takes too long."""
        deadline = Deadline(timeout)
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        while b"\n" not in self._buffer:
            left = deadline.left()
            ready, _, _ = select.select([descriptor], [], [], left)
            if not ready and deadline.left():
                continue
            assert ready, f"no line within {timeout} s"
            chunk = os.read(descriptor, 65536)
            assert chunk, f"it ended: {self.process.stderr and self.process.stderr.read()!r}"
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line.decode()

    def json(self, timeout: float = BOUND_S) -> dict[str, Any]:
        """The next line as an object."""
        value = json.loads(self.line(timeout))
        assert isinstance(value, dict)
        return value

    def end(self, signum: int | None = None, timeout: float = BOUND_S) -> tuple[int, str, str]:
        """Send a signal, if one is given; wait for the end: (code, rest of output, stderr)."""
        if signum is not None:
            # To the whole group, as a terminal does.
            os.killpg(self.process.pid, signum)
        try:
            out, err = self.process.communicate(timeout=MOST * timeout)
        except subprocess.TimeoutExpired:
            # What it waits for is in the last lines of its standard error.
            self.process.send_signal(signal.SIGABRT)
            out, err = self.process.communicate(timeout=MOST * timeout)
            raise AssertionError(f"it did not end: {err.decode(errors='replace')}") from None
        return self.process.returncode, (self._buffer + out).decode(), err.decode()


@contextmanager
def running(*arguments: str, stdin: int = subprocess.DEVNULL) -> Iterator[Command]:
    """A command that runs meanwhile, and is killed at the latest at the end."""
    command = Command(arguments, stdin=stdin)
    try:
        yield command
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(command.process.pid, signal.SIGKILL)
        command.process.wait(timeout=MOST * BOUND_S)
        for stream in (command.process.stdout, command.process.stderr):
            if stream is not None:
                stream.close()


def walyoff(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end."""
    return subprocess.run(
        [*WALYOFF, *arguments],
        input=stdin,
        capture_output=True,
        timeout=MOST * BOUND_S,
        check=False,
    )


def objects(*arguments: str, stdin: bytes = b"") -> list[dict[str, Any]]:
    """What a command that succeeds prints with `--json`, and nothing on stderr."""
    result = walyoff(*arguments, "--json", stdin=stdin)
    assert result.returncode == 0, result.stderr.decode()
    # No notes and no progress with --json.
    assert result.stderr == b""
    return [json.loads(line) for line in result.stdout.splitlines()]


def failure(result: subprocess.CompletedProcess[bytes]) -> str:
    """The error of a command that failed: one line, and no traceback."""
    assert result.returncode == 1, result.stderr
    # On a slow machine there are lines before it that say what takes so long.
    *steps, text = result.stderr.decode().splitlines()
    assert all(step.endswith(" ...") for step in steps), steps
    assert text.startswith("walyoff: "), text
    return text


def processes_of(home: Path) -> list[str]:
    """The processes whose command line or environment names a folder."""
    name = str(home).encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            about = (entry / "cmdline").read_bytes()
            if name in about or name in (entry / "environ").read_bytes():
                found.append(f"{entry.name}: {about!r}")
    return found


def gone(home: Path, within: float = 5.0) -> list[str]:
    """What is left of a home's processes after a moment; empty when all is well."""
    deadline = Deadline(within)
    while (found := processes_of(home)) and deadline.left():
        time.sleep(0.05)
    return found
