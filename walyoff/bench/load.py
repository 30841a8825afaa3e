"""The messages of a measurement, and the tally of those that arrived.

A message begins with the number of its run and the moment at which it was sent, by the
machine's monotonic clock, which all processes share. Nothing else of a measurement crosses
while it runs, so its own cost per message is one `unpack` and one `append`.
"""

from __future__ import annotations

import os
import struct
import time
from array import array
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

#: Run, then nanoseconds.
HEADER = struct.Struct(">QQ")
#: Random bytes that payloads are cut from, so that nothing on the way could compress them.
_POOL_BYTES = 1 << 20
_STEP = 977
MIN_SIZE = HEADER.size
MAX_SIZE = 64 * 1024

_pool = b""


def payload(run: int, size: int, number: int) -> bytes:
    """A message of `size` bytes (16 to 65,536) of a run, stamped with this moment."""
    global _pool  # noqa: PLW0603  (made once, when it is first needed)
    if not _pool:
        _pool = os.urandom(_POOL_BYTES)
    start = number * _STEP % (_POOL_BYTES - MAX_SIZE)
    return HEADER.pack(run, time.monotonic_ns()) + _pool[start : start + size - MIN_SIZE]


async def chunks(size: int) -> AsyncIterator[bytes]:
    """So many bytes in pieces of 1 MiB, none of which was ever seen before."""
    seed = os.urandom(16)
    body = os.urandom(_POOL_BYTES)
    for at in range(0, size, _POOL_BYTES):
        head = seed + at.to_bytes(8, "big")
        yield (head + body[len(head) :])[: size - at]


def quantile(ordered: list[int], share: float) -> float:
    """The value below which a share (0 to 1) of the values lies: the nearest rank."""
    if not ordered:
        return 0.0
    return float(ordered[min(len(ordered) - 1, max(0, round(share * len(ordered)) - 1))])


class Tally:
    """What arrived of one run."""

    def __init__(self) -> None:
        self.count = 0
        #: Monotonic nanoseconds; 0 before anything arrived.
        self.first = 0
        self.last = 0
        self._waits = array("q")
        self._wanted = 0
        self._tell: Callable[[], object] = bool

    def when(self, wanted: int, tell: Callable[[], object]) -> None:
        """Call something once so many messages are here, from where the last one is noted."""
        self._wanted, self._tell = wanted, tell
        if self.count >= wanted:
            tell()

    def note(self, now: int, sent: int) -> None:
        """One message arrived that was sent at a moment."""
        if not self.count:
            self.first = now
        self.count += 1
        self.last = now
        self._waits.append(now - sent)
        if self.count == self._wanted:
            self._tell()

    def summary(self) -> dict[str, Any]:
        """Counts, moments in nanoseconds, and quantiles of the delivery in milliseconds."""
        ordered = sorted(self._waits)
        return {
            "count": self.count,
            "first": self.first,
            "last": self.last,
            **{
                name: round(quantile(ordered, share) / 1e6, 4)
                for name, share in (("p50_ms", 0.5), ("p90_ms", 0.9), ("p99_ms", 0.99))
            },
            "max_ms": round((ordered[-1] if ordered else 0) / 1e6, 4),
        }


class Tallies:
    """The tallies of all runs. `take` is the hot path."""

    def __init__(self) -> None:
        self._tallies: dict[int, Tally] = {}

    def __getitem__(self, run: int) -> Tally:
        tally = self._tallies.get(run)
        if tally is None:
            tally = self._tallies[run] = Tally()
        return tally

    def take(self, content: bytes | memoryview, now: int) -> Tally:
        """Note a message that arrived; returns the tally of its run."""
        run, sent = HEADER.unpack_from(content)
        tally = self[run]
        tally.note(now, sent)
        return tally


def shares(count: int, parts: int) -> Iterable[range]:
    """The numbers from 0 to `count` in `parts` ranges of about the same length."""
    return (range(part, count, parts) for part in range(min(parts, count)))
