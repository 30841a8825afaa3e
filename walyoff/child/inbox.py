"""A queue with a place for each sender, worked off by a few threads.

What a stranger sends must not delay what a member sends: each sender has one item in work at
a time, in its own order, and senders take turns. So a sender whose items hang holds up one
thread and itself.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable

#: Items that wait for one sender, the oldest dropped, and senders that have items waiting.
MAX_WAITING = 64
MAX_SENDERS = 256
#: Threads: as many senders' items can hang before others wait.
THREADS = 4
#: Threads beside them for preferred senders: strangers can be as many as they like.
RESERVED = 2
#: Senders that are preferred; the one that showed itself longest ago is forgotten.
MAX_PREFERRED = 256


class Inbox:
    """Calls a function with (sender, item) on threads of its own, until closed."""

    def __init__(self, name: str, work: Callable[[str, bytes], None]) -> None:
        self._name = name
        self._work = work
        self._changed = threading.Condition()
        self._waiting: OrderedDict[str, deque[bytes]] = OrderedDict()
        self._active: set[str] = set()
        self._preferred: OrderedDict[str, None] = OrderedDict()
        self._threads = 0
        self._idle = 0
        self._closed = False
        #: Items that were dropped.
        self.dropped = 0

    def put(self, sender: str, item: bytes) -> None:
        """Take an item; never waits."""
        with self._changed:
            if self._closed:
                return
            queue = self._waiting.get(sender)
            if queue is None:
                if len(self._waiting) >= MAX_SENDERS:
                    strangers = (s for s in self._waiting if s not in self._preferred)
                    oldest = next(strangers, next(iter(self._waiting)))
                    self.dropped += len(self._waiting.pop(oldest))
                queue = self._waiting[sender] = deque()
            if len(queue) >= MAX_WAITING:
                queue.popleft()
                self.dropped += 1
            queue.append(item)
            # A thread that was woken but has not run yet still counts as idle, and so does
            # what it was woken for as waiting.
            runnable = sum(sender not in self._active for sender in self._waiting)
            if runnable > self._idle and self._threads < THREADS + RESERVED:
                self._threads += 1
                threading.Thread(target=self._run, daemon=True, name=self._name).start()
            self._changed.notify()

    def prefer(self, sender: str) -> None:
        """Serve a sender that brought something of use before strangers."""
        with self._changed:
            self._preferred[sender] = None
            self._preferred.move_to_end(sender)
            if len(self._preferred) > MAX_PREFERRED:
                self._preferred.popitem(last=False)
            self._changed.notify()

    def close(self) -> None:
        """Drop what waits, and end the threads after what they are at. Idempotent."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._idle += 1
                while not self._closed and (sender := self._next()) is None:
                    self._changed.wait()
                self._idle -= 1
                if self._closed or sender is None:
                    return
                queue = self._waiting[sender]
                item = queue.popleft()
                if not queue:
                    del self._waiting[sender]
                else:
                    self._waiting.move_to_end(sender)
                self._active.add(sender)
            try:
                self._work(sender, item)
            finally:
                with self._changed:
                    self._active.discard(sender)
                    self._changed.notify()

    def _next(self) -> str | None:
        strangers = sum(sender not in self._preferred for sender in self._active)
        found = None
        for sender in self._waiting:
            if sender in self._active:
                continue
            if sender in self._preferred:
                return sender
            if found is None and strangers < THREADS:
                found = sender
        return found
