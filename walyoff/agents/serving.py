"""The side that answers: requests run beside one another, and nothing more is said."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import anyio

T = TypeVar("T")
Action = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
_CHUNK = 65536


def tell(**value: Any) -> None:
    """Write one line."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


async def serve(actions: Mapping[str, Action], *, within: float = math.inf) -> None:
    """Answer, within so many seconds each, until stdin ends."""
    async with anyio.create_task_group() as tasks:
        rest = b""
        descriptor = sys.stdin.fileno()
        while True:
            await anyio.wait_readable(descriptor)
            chunk = os.read(descriptor, _CHUNK)
            if not chunk:
                break
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                tasks.start_soon(_answer, actions, json.loads(line), within)
        tasks.cancel_scope.cancel()


async def _answer(
    actions: Mapping[str, Action], request: dict[str, Any], within: float
) -> None:
    try:
        with anyio.fail_after(within):
            result = await actions[request["do"]](request)
    except Exception as error:  # whatever it was, who asked must not wait for ever
        tell(n=request["n"], ok=False, error=f"{type(error).__name__}: {error}")
    else:
        tell(n=request["n"], ok=True, **result)


async def until_signal(work: Callable[[T], Awaitable[None]], argument: T) -> None:
    """Do something, and end it in order when SIGTERM comes."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_end_on_signal, tasks.cancel_scope)
        await work(argument)
        tasks.cancel_scope.cancel()


async def _end_on_signal(scope: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            scope.cancel()


__all__ = ["Action", "serve", "tell", "until_signal"]
