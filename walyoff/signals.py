"""Waking tasks of one event loop again and again, with an event only when somebody waits.

An event of anyio is set once, and making one takes as long as waking a task. Whoever tells
news a thousand times a second mostly tells them to nobody.
"""

from __future__ import annotations

import anyio


class News:
    """Wakes everybody who waits when it is told, and nobody who comes later."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event: anyio.Event | None = None

    def tell(self) -> None:
        """Wake those who wait."""
        event, self._event = self._event, None
        if event is not None:
            event.set()

    async def wait(self) -> None:
        """Wait until it is told the next time."""
        if self._event is None:
            self._event = anyio.Event()
        await self._event.wait()


class Work:
    """Says that there is something to do, to the one task that does it."""

    __slots__ = ("_event", "_there")

    def __init__(self) -> None:
        self._event: anyio.Event | None = None
        self._there = False

    def set(self) -> None:
        """There is something to do, however often it is said."""
        self._there = True
        if self._event is not None:
            self._event.set()

    async def wait(self) -> None:
        """Wait until there is something to do, and take it on: it is not said any more.

        Returns at once if it was said before. A wait that is cancelled takes nothing.
        """
        if not self._there:
            event = self._event = anyio.Event()
            try:
                await event.wait()
            finally:
                self._event = None
        self._there = False


__all__ = ["News", "Work"]
