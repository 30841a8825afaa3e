"""Measure walytis-offchain 0.5.4 between two processes on this machine: one JSON line.

    python3 -m venv /tmp/reference
    /tmp/reference/bin/pip install -r benchmarks/reference/requirements.txt
    python benchmarks/reference/run.py /tmp/reference/bin/python --messages 5

It needs about 11 seconds for each message, so it is a measurement of its own and does not take
turns with ours. What does not arrive in time is counted as lost.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
START_S = 60.0


class Node:
    """A process of the reference."""

    def __init__(self, python: str, home: Path) -> None:
        home.mkdir()
        self._log = (home / "log").open("wb")
        self._process = subprocess.Popen(
            [python, str(HERE / "node.py"), str(home), str(HERE.parent.parent)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=home,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": ""},
        )
        self._answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(b"@"):
                self._answers.put(json.loads(line[1:]))

    def answer(self, limit: float) -> Any:
        """The next answer. Raises RuntimeError."""
        try:
            value = self._answers.get(timeout=limit)
        except queue.Empty:
            raise RuntimeError(f"no answer within {limit:g} s") from None
        if "error" in value:
            raise RuntimeError(value["error"])
        return value.get("value")

    def ask(self, do: str, **arguments: Any) -> None:
        """Begin a call."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
        self._process.stdin.flush()

    def call(self, do: str, *, wait: float = 60.0, **arguments: Any) -> Any:
        """Ask and wait."""
        self.ask(do, **arguments)
        return self.answer(wait)

    def kill(self) -> None:
        """End it, with all that belongs to it: it does not end by itself."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._log.close()


def measure(python: str, folder: Path, messages: int, limit: float) -> dict[str, Any]:
    """Join, and send some messages."""
    nodes = [Node(python, folder / name) for name in "ab"]
    a, b = nodes
    try:
        for node in nodes:
            node.answer(START_S)
        a.call("create")
        b.call("connect", addresses=a.call("addresses"))
        a.call("connect", addresses=b.call("addresses"))
        join_s = b.call("join", invitation=a.call("invite"), wait=limit)
        texts = [f"{n:04d}" + os.urandom(510).hex() for n in range(messages)]
        b.ask("expect", texts=texts, limit=limit)
        sent = a.call("send", texts=texts, wait=limit)
        came = b.answer(limit + START_S)
    finally:
        for node in nodes:
            node.kill()
    waits = [(c - s) / 1e9 for s, c in zip(sent, came, strict=True) if c]
    there = [c for c in came if c]
    return {
        "benchmark": "reference",
        "version": "walytis-offchain 0.5.4",
        "join_s": join_s,
        "sent": messages,
        "arrived": len(there),
        "delivery_s": {"median": median(waits), "all": waits} if waits else None,
        "messages_per_s": len(there) / ((max(there) - sent[0]) / 1e9) if there else 0.0,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("python", help="the interpreter of its virtual environment")
    parser.add_argument("--messages", type=int, default=5)
    parser.add_argument("--limit", type=float, default=180.0, help="seconds for any step")
    chosen = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="wr-", ignore_cleanup_errors=True) as root:
        try:
            found = measure(chosen.python, Path(root), chosen.messages, chosen.limit)
        except RuntimeError as error:
            logs = [p.read_text(errors="replace")[-600:] for p in Path(root).glob("*/log")]
            found = {"benchmark": "reference", "error": str(error), "logs": logs}
    found["seconds"] = round(time.monotonic() - began, 1)
    json.dump(found, sys.stdout)
    print()
