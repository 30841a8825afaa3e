"""log and records; and reading stdin without blocking the event loop."""

from __future__ import annotations

import os
import stat
import sys

import anyio

from walyoff.cli.choosing import choose
from walyoff.cli.console import Console
from walyoff.cli.output import message_json, message_text, record_json, record_text
from walyoff.node import Device

_CHUNK = 65536


async def wait_for_input(descriptor: int) -> None:
    """Wait until a read would not block. Files never block, and cannot be waited for."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        try:
            await anyio.wait_readable(descriptor)
        except PermissionError:
            # Such as /dev/null: epoll takes only what can block.
            return


async def read_stdin(limit: int) -> bytes:
    """All of stdin, but at most `limit` bytes."""
    descriptor = sys.stdin.fileno()
    parts: list[bytes] = []
    size = 0
    while size < limit:
        await wait_for_input(descriptor)
        part = os.read(descriptor, min(_CHUNK, limit - size))
        if not part:
            break
        parts.append(part)
        size += len(part)
    return b"".join(parts)


async def log(console: Console, device: Device, *, name: str | None, last: int | None) -> None:
    """Show the newest messages, or all."""
    channel = choose(device, name)
    if last is None:
        async for message in channel.history():
            console.result(message_json(message, channel.me), message_text(message, channel.me))
        return
    for message in await channel.last(last):
        console.result(message_json(message, channel.me), message_text(message, channel.me))


async def records(console: Console, device: Device, *, name: str | None) -> None:
    """Show the metadata of all messages."""
    channel = choose(device, name)
    async for message, record in channel.records():
        console.result(
            record_json(message, record, channel.me), record_text(message, record, channel.me)
        )
