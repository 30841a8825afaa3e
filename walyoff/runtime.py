"""Time, randomness and threads, in one place so that a simulation can replace them.

Everything above the store and the transports asks a `Runtime` for these, so a whole device
runs in virtual time from a seed, with no line of it changed.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

import anyio

from walyoff.threads import Attempts, run_in_thread

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Runtime:
    """The real thing."""

    def now(self) -> float:
        """Monotonic seconds, the event loop's own clock."""
        return anyio.current_time()

    def wall_ms(self) -> int:
        """Milliseconds since 1970 by this device's clock, which may be wrong."""
        return time.time_ns() // 1_000_000

    def random_bytes(self, size: int) -> bytes:
        """Unpredictable bytes, for keys, salts and nonces."""
        return os.urandom(size)

    def jitter(self) -> float:
        """A number from 0 up to 1, for back-off; need not be unpredictable."""
        return random.random()  # noqa: S311

    def seed(self) -> int:
        """A seed for a state machine's own jitter."""
        return int.from_bytes(self.random_bytes(8), "big")

    async def in_thread(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """Run what takes milliseconds of CPU away from the event loop."""
        return await run_in_thread(function, *args)

    def attempts(self, function: Callable[[*Ts], T], *args: *Ts) -> Attempts[T]:
        """Begin what takes a random time of CPU in a thread; see there."""
        return Attempts(function, *args)


#: What every device uses outside of a simulation.
REAL = Runtime()
