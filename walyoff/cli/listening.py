"""listen: the messages, then new ones; on a terminal also a small chat.

One process owns a device's home, so the process that shows messages also sends them.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import select
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import anyio
import click

from walyoff.channel import Channel
from walyoff.cli.choosing import choose, others
from walyoff.cli.console import Console, ReaderGone
from walyoff.cli.output import escape_line, message_json, message_text, short
from walyoff.cli.reading import wait_for_input
from walyoff.cli.runtime import Failure
from walyoff.errors import LocalProtocolError
from walyoff.messages import MessageStream
from walyoff.node import Device
from walyoff.records import MAX_CONTENT

_AGE = re.compile(r"(\d{1,9})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
#: Positions are SQLite integers.
_MAX_DIGITS = 18
#: How often it is looked who came and went, here and at the other end of a pipe.
LOOK_EVERY_S = 0.5
#: A terminal hands over at most 4,096 bytes of a line.
_CHUNK = 4096
#: The line that was typed is replaced by the message that it became.
_UP_AND_ERASE = "\x1b[1A\x1b[2K"


def parse_since(text: str, now: datetime) -> int | datetime:
    """A position, an age or a time. Raises click.UsageError."""
    if text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS:
        return int(text)
    try:
        if age := _AGE.fullmatch(text):
            return now - timedelta(seconds=int(age[1]) * _SECONDS[age[2]])
        time = datetime.fromisoformat(text)
        return (time if time.tzinfo else time.astimezone()).astimezone(UTC)
    except (ValueError, OverflowError):
        raise click.UsageError(
            f"--since {text!r} is no position (17), age (10m, 2h, 3d) or time "
            "(2026-11-22T08:00)"
        ) from None


async def listen(
    console: Console,
    device: Device,
    *,
    name: str | None,
    cursor: str | None,
    since: str | None,
    anchored: bool,
    count: int | None,
    timeout: float | None,
) -> None:
    """Show messages until a count, a timeout, the end of what is typed, or a signal."""
    begin = parse_since(since, datetime.now(UTC)) if since is not None else 0
    channel = choose(device, name)
    stream = channel.messages(
        cursor=cursor, after=begin if isinstance(begin, int) else 0, anchored=anchored
    )
    earliest = begin if isinstance(begin, datetime) else None
    follower = _Follower(console, channel, stream, earliest)
    with anyio.move_on_after(math.inf if timeout is None else timeout) as deadline:
        async with anyio.create_task_group() as tasks:
            if not console.json and _is_chat():
                tasks.start_soon(_chat, console, channel, tasks.cancel_scope)
                tasks.start_soon(_presence, console, channel)
            tasks.start_soon(_watch_reader)
            await follower.run(count)
            tasks.cancel_scope.cancel()
    if deadline.cancelled_caught and count is not None and follower.shown < count:
        raise Failure(f"{follower.shown} of {count} messages came within {timeout:g} seconds")


class _Follower:
    """Prints what a stream gives, and commits what was printed."""

    def __init__(
        self,
        console: Console,
        channel: Channel,
        stream: MessageStream,
        earliest: datetime | None,
    ) -> None:
        self._console = console
        self._channel = channel
        self._stream = stream
        self._earliest = earliest
        self.shown = 0

    async def run(self, count: int | None) -> None:
        """Print until a count is reached, or cancelled."""
        printed = False
        me = self._channel.me
        try:
            async for message in self._stream:
                printed = False
                if self._earliest is None or message.time >= self._earliest:
                    self._console.result(message_json(message, me), message_text(message, me))
                    self.shown += 1
                printed = True
                if self.shown == count:
                    return
        finally:
            if printed:
                await self._commit()

    async def _commit(self) -> None:
        """Asking for the next message commits the last one; the next one is not taken."""
        with anyio.move_on_after(0, shield=True):
            await anext(self._stream, None)


async def _watch_reader() -> None:
    """Notice that nobody reads our output any more (`| head -1`) before there is any.

    Raises:
        ReaderGone: when it is so.
    """
    poll = select.poll()
    # Without events asked for, only errors are told.
    poll.register(sys.stdout.fileno(), 0)
    gone = select.POLLERR | select.POLLNVAL
    while not any(what & gone for _, what in poll.poll(0)):  # noqa: ASYNC110  (no event)
        await anyio.sleep(LOOK_EVERY_S)
    raise ReaderGone


def _is_chat() -> bool:
    """True if a person is at both ends. In the background, reading would stop the process."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    with contextlib.suppress(OSError):
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    return False


async def _chat(console: Console, channel: Channel, scope: anyio.CancelScope) -> None:
    """Send each line that is typed; the end of the input (Ctrl-D) ends the command."""
    console.note(
        f"{escape_line(channel.name)}: what you type is sent. Ctrl-D or Ctrl-C to end."
    )
    async for line in _typed(sys.stdin.fileno()):
        if not line:
            continue
        sys.stdout.write(_UP_AND_ERASE)
        try:
            await channel.send(line)
        except LocalProtocolError as error:
            console.note(f"not sent: {escape_line(str(error))}")
    scope.cancel()


async def _typed(descriptor: int) -> AsyncIterator[bytes]:
    """The lines that are typed on a terminal, without their ends."""
    rest = b""
    while True:
        await wait_for_input(descriptor)
        chunk = os.read(descriptor, _CHUNK)
        if not chunk:
            return
        *lines, rest = (rest + chunk).split(b"\n")
        # A terminal without line editing could hold back the end for ever.
        rest = rest[:MAX_CONTENT]
        for line in lines:
            yield line.strip()


async def _presence(console: Console, channel: Channel) -> None:
    """Say who comes and goes."""
    here: set[str] = set()
    while True:
        now = set(channel.peers())
        total = len(others(channel))
        for did in sorted(now - here):
            console.note(f"* {short(did)} is here ({len(now)} of {total})")
        for did in sorted(here - now):
            console.note(f"* {short(did)} has left ({len(now)} of {total})")
        here = now
        await anyio.sleep(LOOK_EVERY_S)
