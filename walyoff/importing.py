"""Imports that take tenths of a second, away from the event loop.

A module that is there already costs nothing, and no thread either.
"""

from __future__ import annotations

import importlib
import sys
import threading
from contextlib import suppress

import anyio.to_thread


class Importing:
    """Modules that a thread imports from now on; `wait` until it has."""

    def __init__(self, *names: str) -> None:
        self._missing = [name for name in names if name not in sys.modules]
        self._thread = threading.Thread(target=self._load, name="import", daemon=True)
        if self._missing:
            self._thread.start()

    async def wait(self) -> None:
        """Until all are there. An error comes again, and out, when one of them is imported."""
        if self._missing:
            await anyio.to_thread.run_sync(self._thread.join)

    def _load(self) -> None:
        with suppress(Exception):
            for name in self._missing:
                importlib.import_module(name)


__all__ = ["Importing"]
