"""The process side of a measurement: requests as JSON lines on stdin, answers on stdout.

A request is `{"n": 1, "do": NAME, ...}`; its answer is `{"n": 1, "ok": true, ...}` or
`{"n": 1, "ok": false, "error": TEXT}`. Requests run beside each other. The process ends when
its stdin ends, so that it never outlives who started it. Nothing is said while something is
measured.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import anyio

Action = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
_CHUNK = 65536


def tell(**value: Any) -> None:
    """Write one line."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


async def serve(actions: Mapping[str, Action]) -> None:
    """Answer until stdin ends or SIGTERM comes."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_end_on_signal, tasks.cancel_scope)
        rest = b""
        descriptor = sys.stdin.fileno()
        while True:
            await anyio.wait_readable(descriptor)
            chunk = os.read(descriptor, _CHUNK)
            if not chunk:
                break
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                tasks.start_soon(_answer, actions, json.loads(line))
        tasks.cancel_scope.cancel()


async def _answer(actions: Mapping[str, Action], request: dict[str, Any]) -> None:
    try:
        result = await actions[request["do"]](request)
    except Exception as error:  # whatever it was, who asked must not wait for ever
        tell(n=request["n"], ok=False, error=f"{type(error).__name__}: {error}")
    else:
        tell(n=request["n"], ok=True, **result)


async def _end_on_signal(scope: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            scope.cancel()
