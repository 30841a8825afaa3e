"""send: store a message, then see who has it."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path

import anyio
import click

from walyoff.channel import Channel
from walyoff.cli.choosing import choose, others
from walyoff.cli.console import Console
from walyoff.cli.output import counted
from walyoff.cli.reading import read_stdin
from walyoff.cli.runtime import Failure
from walyoff.cli.sending_files import send_file
from walyoff.errors import PayloadTooLargeError
from walyoff.messages import Receipt
from walyoff.node import Device
from walyoff.records import MAX_CONTENT

#: Devices of a channel that run find each other well within this.
NOBODY_S = 3.0
#: A moved or restored device waits so long for a member's word before it gives up.
RESUME_S = 30.0


async def send(
    console: Console,
    device: Device,
    *,
    arguments: tuple[str, ...],
    topics: tuple[str, ...],
    file: Path | None,
    wait: float,
    forget_after: float | None = None,
) -> None:
    """Send one message."""
    lifetime = None if forget_after is None else timedelta(seconds=forget_after)
    channel, text = _sort_out(device, arguments, file)
    await _may_write(console, channel)
    if file is not None:
        await send_file(
            console, channel, text, file=file, topics=topics, wait=wait, forget_after=lifetime
        )
        return
    content = await _content(text)
    receipt = await channel.send(content, topics=topics, forget_after=lifetime)
    expected = others(channel)
    if wait:
        with console.step("waiting for the other devices"), anyio.move_on_after(wait):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(receipt.wait_anchored)
                if expected:
                    tasks.start_soon(_received, channel, receipt)
    received = sorted(set(receipt.received_by()) & set(expected))
    value = {
        "id": receipt.id.hex(),
        "channel": channel.did,
        "seq": receipt.seq,
        "topics": list(topics),
        "size": len(content),
        "stored": True,
        "others": len(expected),
        "received_by": received,
        "anchored": receipt.anchored,
    }
    console.result(value, _say(receipt, len(received), len(expected), waited=bool(wait)))


async def _may_write(console: Console, channel: Channel) -> None:
    """Wait until a moved or restored device knows what it said. Raises Failure."""
    with console.step("asking the members what this device wrote"):
        with anyio.move_on_after(RESUME_S):
            while channel.status()["resuming"]:
                await channel.changed()
    if channel.status()["resuming"]:
        raise Failure(
            "this device was moved or restored, and no member said yet what it wrote before: "
            "try again when one is there (if nothing was written after the file was made: "
            "walyoff takeover --alone)"
        )


def _sort_out(
    device: Device, arguments: tuple[str, ...], file: Path | None
) -> tuple[Channel, str]:
    """Which of the arguments is the channel and which is the text."""
    if len(arguments) == 2:
        return choose(device, arguments[0]), arguments[1]
    if not arguments:
        return choose(device, None), "" if file is not None else "-"
    only = arguments[0]
    named = any(only in (channel.name, channel.did) for channel in device.channels())
    if named or file is not None:
        return choose(device, only), "" if file is not None else "-"
    if len(device.channels()) > 1:
        # It is a channel that is not there, or a text without a channel: both are told.
        raise click.UsageError(f"{only!r} is no channel here; or say which one to send it to")
    return choose(device, None), only


async def _content(text: str) -> bytes:
    if text != "-":
        if not text:
            raise click.UsageError("there is nothing to send")
        return os.fsencode(text)
    if sys.stdin.isatty():
        raise click.UsageError("there is nothing to send: give a TEXT, --file, or use a pipe")
    content = await read_stdin(MAX_CONTENT + 1)
    if len(content) > MAX_CONTENT:
        # The rest was not read, so its size is not known.
        raise PayloadTooLargeError(len(content), MAX_CONTENT, "message")
    if not content:
        raise click.UsageError("there is nothing to send: stdin is empty")
    return content


async def _received(channel: Channel, receipt: Receipt) -> None:
    """Wait until those who are connected have it; not long if nobody is."""
    with anyio.move_on_after(NOBODY_S):
        await channel.wait_peer()
    if peers := channel.peers():
        await receipt.wait_received(peers)


def _say(receipt: Receipt, received: int, expected: int, *, waited: bool) -> str:
    parts = ["stored"]
    if not expected:
        parts.append("no other device is in the channel yet")
    elif received:
        have = "has" if received == 1 else "have"
        parts.append(f"{received} of {counted(expected, 'device')} {have} it")
    elif waited:
        parts.append("no other device has it yet: it goes out when they run at the same time")
    if receipt.anchored:
        parts.append("anchored")
    elif waited:
        parts.append("not on the ledger yet")
    return "; ".join(parts)
