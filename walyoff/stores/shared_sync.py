"""One sync of a folder for all who wait for it.

Decided here: that a file counts as findable after a sync of its folder that began when the
file was there. Each sync waits for the disk as long as that of a file of a megabyte does, so
those that would wait for the same one, in different threads, share the next.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from pathlib import Path

from walyoff.files import sync_folder


class _Turn:
    """A sync that has not begun, and those who wait for it."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.error: OSError | None = None


class SharedSync:
    """Syncs folders. To be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next: dict[Path, _Turn] = {}
        #: Held while a folder is synced.
        self._busy: defaultdict[Path, threading.Lock] = defaultdict(threading.Lock)
        #: How many were asked for, and done.
        self.asked = 0
        self.done = 0

    def sync(self, folder: Path) -> None:
        """Return when what is in the folder now survives a power loss. Raises OSError."""
        with self._lock:
            self.asked += 1
            turn, leads = self._next.get(folder), False
            if turn is None:
                turn, leads = _Turn(), True
                self._next[folder] = turn
            busy = self._busy[folder]
        if not leads:
            turn.done.wait()
            if turn.error is not None:
                raise OSError(*turn.error.args) from turn.error
            return
        with busy:
            with self._lock:
                # Who comes from here on may be too late for this one.
                del self._next[folder]
                self.done += 1
            try:
                sync_folder(folder)
            except OSError as error:
                turn.error = error
                raise
            finally:
                turn.done.set()


__all__ = ["SharedSync"]
