"""The machine: what it is, and who used its processors while something was measured.

Everything is read from /proc, so on other systems than Linux it is left out.
"""

from __future__ import annotations

import os
import platform
import resource
import sys
import time
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

_PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")
#: What is worth knowing of what a measurement ran on.
_PACKAGES = ("walyoff", "anyio", "cryptography", "blake3", "msgpack", "walytis-identities")


def environment() -> dict[str, Any]:
    """What a figure depends on, beside our own code."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mib": _memory_mib(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "revision": _revision(),
    }


def _cpu_model() -> str:
    with suppress(OSError):
        for line in (_PROC / "cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor()


def _memory_mib() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _revision() -> str:
    """The commit of the checkout, if this is one; read without running anything."""
    git = Path(__file__).resolve().parents[2] / ".git"
    with suppress(OSError):
        head = (git / "HEAD").read_text().strip()
        if head.startswith("ref: "):
            return (git / head[5:]).read_text().strip()[:12]
        return head[:12]
    return ""


def descendants(pid: int) -> list[int]:
    """The processes below one, not itself."""
    parents: dict[int, list[int]] = {}
    for folder in _PROC.glob("[0-9]*"):
        fields = _stat(int(folder.name))
        if fields:
            parents.setdefault(int(fields[1]), []).append(int(folder.name))
    found: list[int] = []
    waiting = [pid]
    while waiting:
        below = parents.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; none if it is gone."""
    try:
        return (_PROC / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return []


def cpu_seconds(pid: int) -> float:
    """Processor time of a process and of its children that have ended."""
    fields = _stat(pid)
    return sum(map(int, fields[11:15])) / _TICKS if fields else 0.0


def memory_mib(pid: int) -> float:
    """What would be free if the process were not there: its share of shared pages, too."""
    with suppress(OSError):
        for line in (_PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0


def usage() -> dict[str, float]:
    """Processor time (s) and memory (MiB) of this process, and of all below it."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    below = descendants(os.getpid())
    return {
        "at": time.monotonic(),
        "cpu_s": own.ru_utime + own.ru_stime,
        "switches": own.ru_nvcsw + own.ru_nivcsw,
        "child_cpu_s": sum(map(cpu_seconds, below)),
        "memory_mib": memory_mib(os.getpid()),
        "child_memory_mib": sum(map(memory_mib, below)),
        "peak_mib": own.ru_maxrss / 1024,
    }


class Meter:
    """Watches whose processor time passes. Use it as a context around what is measured."""

    def __enter__(self) -> Meter:
        self._began = self._read()
        return self

    def __exit__(self, *_: object) -> None:
        return

    def reading(self) -> dict[str, Any]:
        """Since the context was entered; shares of all processors from 0 to 1.

        `others` is what other processes took, and `stolen` what the host gave to others.
        """
        now = self._read()
        spent, busy, ours, stolen = (b - a for a, b in zip(self._began, now, strict=True))
        whole = spent * (os.cpu_count() or 1) or 1.0
        return {
            "seconds": round(spent, 2),
            "load": [round(value, 2) for value in os.getloadavg()],
            "ours": round(max(ours, 0.0) / whole, 3),
            "others": round(max(busy - ours, 0.0) / whole, 3),
            "stolen": round(stolen / whole, 3),
        }

    def _read(self) -> tuple[float, float, float, float]:
        busy, stolen = 0.0, 0.0
        with suppress(OSError, ValueError):
            line = (_PROC / "stat").read_text().split("\n", 1)[0]
            fields = [int(value) / _TICKS for value in line.split()[1:]]
            # user, nice, system, irq and softirq; neither idle nor waiting for a disk.
            busy = sum(fields[at] for at in (0, 1, 2, 5, 6))
            stolen = fields[7]
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        own = resource.getrusage(resource.RUSAGE_SELF)
        ours = sum(e.ru_utime + e.ru_stime for e in (own, ended))
        ours += sum(map(cpu_seconds, descendants(os.getpid())))
        return time.monotonic(), busy, ours, stolen


if sys.platform != "linux":  # pragma: no cover
    raise ImportError("measurements read /proc: they need Linux")
