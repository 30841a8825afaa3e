"""How many handshakes there are at a time, and from whom.

Decided here: which handshake makes room for a new one, and when a source has to wait. A
handshake that is meant costs milliseconds of signatures; one that says nothing costs memory.
Whoever makes many of either is in the way of its own handshakes alone. No I/O, no clock.

A source is what the transport says of the far end: a hint, since nobody is authenticated yet.
Where it says nothing all share what there is, and nobody has to wait.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

#: Handshakes in progress: each costs milliseconds of signatures and some memory.
MAX_HANDSHAKES = 32
#: And of one source: a device that starts again dials a few channels at once.
MAX_PER_SOURCE = 8
#: A source that failed so often within `WINDOW_S` seconds is not listened to until they end.
MAX_FAILURES = 32
WINDOW_S = 10.0
#: Sources whose failures are remembered; the longest ago are forgotten first.
MAX_SOURCES = 1024


@dataclass(eq=False, slots=True)
class Handshake:
    """One handshake in progress. `give_up` ends it."""

    source: str
    give_up: Callable[[], None] = field(repr=False)


@dataclass(slots=True)
class _Failures:
    until: float
    count: int = 0


class Handshakes:
    """The handshakes, or whatever else costs, that others have begun with this device."""

    def __init__(self, limit: int = MAX_HANDSHAKES, per_source: int = MAX_PER_SOURCE) -> None:
        self._limit = limit
        self._per_source = per_source
        #: In progress, the oldest first.
        self._running: dict[Handshake, None] = {}
        self._failures: OrderedDict[str, _Failures] = OrderedDict()

    def __len__(self) -> int:
        return len(self._running)

    def begin(
        self, source: str, give_up: Callable[[], None], *, now: float
    ) -> Handshake | None:
        """A handshake from a source begins; None if it has to wait.

        Where there is no room the oldest of this source, or of the one that has most, is
        given up. An empty source is any.
        """
        failures = self._failures.get(source)
        if failures and failures.count >= MAX_FAILURES and now < failures.until:
            return None
        per: dict[str, list[Handshake]] = {}
        for running in self._running:
            per.setdefault(running.source, []).append(running)
        if source and len(per.get(source, ())) >= self._per_source:
            self._give_up(per[source][0])
        elif len(self._running) >= self._limit:
            # An honest one takes milliseconds, so the oldest is the least likely to be one.
            self._give_up(max(per.values(), key=len)[0])
        handshake = Handshake(source, give_up)
        self._running[handshake] = None
        return handshake

    def _give_up(self, handshake: Handshake) -> None:
        del self._running[handshake]
        handshake.give_up()

    def end(self, handshake: Handshake, *, failed: bool, now: float) -> None:
        """A handshake is over, one way or the other."""
        self._running.pop(handshake, None)
        source = handshake.source
        if not failed or not source:
            self._failures.pop(source, None)
            return
        failures = self._failures.get(source)
        if failures is None or now >= failures.until:
            failures = self._failures[source] = _Failures(now + WINDOW_S)
        failures.count += 1
        self._failures.move_to_end(source)
        if len(self._failures) > MAX_SOURCES:
            self._failures.popitem(last=False)


__all__ = ["MAX_HANDSHAKES", "MAX_PER_SOURCE", "Handshake", "Handshakes"]
