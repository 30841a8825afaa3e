"""Waiting for what tells nobody: it is looked at again and again, in real or virtual time."""

from __future__ import annotations

from collections.abc import Callable

import anyio

#: Seconds after which something hangs, on a machine with other work too.
HANGS_AFTER = 90.0
EVERY_S = 0.02


async def until(condition: Callable[[], object], *, within: float = HANGS_AFTER) -> None:
    """Wait until a condition holds. Raises TimeoutError."""
    with anyio.fail_after(within):
        while not condition():  # noqa: ASYNC110 - it changes for many reasons
            await anyio.sleep(EVERY_S)
