"""How tests talk with the processes that they start: Python literals, one on each line.

The processes are started as scripts, so this module is imported by path there.
"""

from __future__ import annotations

import ast
import os
from collections.abc import AsyncIterator
from typing import Any

import anyio

STDIN = 0


def write(message: dict[str, Any]) -> None:
    """Say something to the test; whole or, when the process is killed, not at all."""
    os.write(1, repr(message).encode("unicode_escape") + b"\n")


def read(line: bytes) -> dict[str, Any]:
    """The inverse of what `write` and the test write."""
    value: dict[str, Any] = ast.literal_eval(line.decode("unicode_escape"))
    return value


async def requests() -> AsyncIterator[dict[str, Any]]:
    """What the test says, until it closes its end."""
    held = b""
    while True:
        await anyio.wait_readable(STDIN)
        data = os.read(STDIN, 1 << 20)
        if not data:
            return
        *lines, held = (held + data).split(b"\n")
        for line in lines:
            yield read(line)
