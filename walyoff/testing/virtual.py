"""Virtual time: whole devices run for hours in seconds, and the same way every time.

`VirtualTimeLoop` is an asyncio event loop whose clock jumps to the next timer as soon as
nothing is ready. Use it with anyio as `backend_options={"loop_factory": VirtualTimeLoop}`.
On trio, `trio.testing.MockClock(autojump_threshold=0)` does the same. Nothing in virtual
time may use threads or real sockets: use `SimRuntime`, `SimNetwork` and `MemoryStore`.
"""

from __future__ import annotations

import asyncio  # the one place that is about an asyncio event loop itself
import random
import selectors
from collections.abc import Callable
from typing import Any, TypeVar, TypeVarTuple

from walyoff.runtime import Runtime
from walyoff.threads import Attempts

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

#: 2026-01-01 in milliseconds since 1970: where virtual wall clocks begin.
EPOCH_MS = 1_767_225_600_000


class DeadlockError(RuntimeError):
    """Nothing is ready and no timer is set: nobody will ever wake."""


class _JumpingSelector(selectors.DefaultSelector):
    """Never waits: a wait for a timer becomes a jump of the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        if ready:
            return ready
        if timeout is None:
            raise DeadlockError("nothing is ready and no timer is set")
        self.now += max(timeout, 0.0)
        return []


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time, which starts at 0."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)
        # Timers due within a resolution count as due; a jump lands exactly on the timer.
        self._clock_resolution = 1e-9

    def time(self) -> float:
        """Virtual seconds."""
        return self._jumping.now

    def stand_still(self, seconds: float) -> None:
        """Let time pass in which nothing runs, as in a process that is suspended."""
        self._jumping.now += seconds


class SimRuntime(Runtime):
    """A device's time and randomness from a seed; slow functions run at once."""

    def __init__(self, seed: int, *, skew_s: float = 0.0) -> None:
        self._random = random.Random(seed)  # noqa: S311 - repeatable, that is the point
        self._skew_ms = int(skew_s * 1000)

    def wall_ms(self) -> int:
        """Virtual time since 2026, as wrong as this device's clock is."""
        return EPOCH_MS + int(self.now() * 1000) + self._skew_ms

    def random_bytes(self, size: int) -> bytes:
        """Repeatable bytes: for simulation only."""
        return self._random.randbytes(size)

    def jitter(self) -> float:
        """Repeatable jitter."""
        return self._random.random()

    async def in_thread(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """Run it here and now: a thread would not know of virtual time."""
        return function(*args)

    def attempts(self, function: Callable[[*Ts], T], *args: *Ts) -> Attempts[T]:
        """The same: one attempt, which has ended."""
        return _Done(function(*args))


class _Done(Attempts[T]):
    def __init__(self, value: T) -> None:
        self._value = value

    def again(self) -> bool:
        return False

    async def value(self) -> T:
        return self._value
