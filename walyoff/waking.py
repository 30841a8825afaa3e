"""The way back from a thread into the event loop.

The one place that knows how event loops are woken: in one call, where anyio's own way from a
thread waits for an answer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol, cast

import anyio
import anyio.lowlevel


class _TrioToken(Protocol):
    def run_sync_soon(self, function: Callable[[], None], /) -> None: ...


class Waker:
    """Sets the events of finished jobs in the event loop, in one hop for many."""

    def __init__(self) -> None:
        native = anyio.lowlevel.current_token().native_token
        if isinstance(native, asyncio.AbstractEventLoop):
            self._post: Callable[[Callable[[], None]], object] = native.call_soon_threadsafe
        else:
            self._post = cast(_TrioToken, native).run_sync_soon
        self._finished: deque[anyio.Event] = deque()
        self._posted = False

    def wake(self, events: list[anyio.Event]) -> None:
        """Called by any thread; returns at once."""
        self._finished.extend(events)
        if not self._posted:
            self._posted = True
            try:
                self._post(self._drain)
            except RuntimeError:
                # The event loop is closed (trio.RunFinishedError is a RuntimeError too):
                # nobody waits any more.
                self._finished.clear()

    def _drain(self) -> None:
        # First the mark, then the events: one that is added in between posts again.
        self._posted = False
        finished = self._finished
        while finished:
            finished.popleft().set()
