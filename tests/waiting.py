"""Waiting for what tells nobody, and times that mean the same on a busy machine.

Decided here: when a wait is given up, and what of a time counts. Tests share the machine with
others, and start more processes than it has processors. So times count only while no process
on the machine waits for a processor (`free_time`, by the kernel's pressure figures), up to a
factor: who hangs for so long hangs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import anyio

#: Seconds after which something hangs, on a machine with other work too.
HANGS_AFTER = 120.0
#: A wait may take so many times longer when the machine is busy all the while.
MOST = 5
EVERY_S = 0.02
_PRESSURE = Path("/proc/pressure/cpu")


class Moment:
    """A moment; between two lies so much free time, or a part of all time if that is more.

    A part, because a machine may be busy for ever, with what is measured as well.
    """

    def __init__(self, now: float, free: float) -> None:
        self._now, self._free = now, free

    def __sub__(self, before: Moment) -> float:
        return max(self._free - before._free, (self._now - before._now) / MOST)


def free_time() -> Moment:
    """This moment, by a clock that stands while any process waits for a processor."""
    now = time.monotonic()
    try:
        some = _PRESSURE.read_text().partition("\n")[0]
    except OSError:
        # Nobody knows, so it is taken to be busy.
        return Moment(now, now / MOST)
    return Moment(now, now - int(some.rpartition("=")[2]) / 1e6)


class Deadline:
    """The end of a wait for so many seconds, of free time."""

    def __init__(self, seconds: float) -> None:
        self._began = free_time()
        self._seconds = seconds

    def left(self) -> float:
        """Seconds after which to look again: 0 when it has passed."""
        return max(self._seconds - (free_time() - self._began), 0.0)


async def until(condition: Callable[[], object], *, within: float = HANGS_AFTER) -> None:
    """Wait until a condition holds. Raises TimeoutError."""
    with anyio.fail_after(within):
        while not condition():  # noqa: ASYNC110 - it changes for many reasons
            await anyio.sleep(EVERY_S)
