"""A small chat between devices: one file, and the public interface of walyoff alone.

    python chat.py alice --create family        makes the channel
    python chat.py bob --join EA6RP-PNMHW-…     joins it by an invitation
    python chat.py alice                        goes on where it stopped

A device is a folder. What is typed is sent to all devices; /invite prints an invitation,
/members says who belongs to the channel, /quit (or the end of the input) ends the program.
Messages that come while it does not run are shown when it is started again.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import AsyncIterator

import anyio

import walyoff

HELP = "what you type is sent; /invite, /members, /quit"


def say(text: str) -> None:
    """One line; what others wrote must not reach the terminal as commands to it."""
    print("".join(c if c.isprintable() else "?" for c in text), flush=True)


def name(channel: walyoff.Channel, *path: str) -> str:
    """Who it is: the ends of the DIDs from the device up to the member of the channel."""
    if path[0] == channel.me:
        return "you"
    return "/".join(f"…{did[-6:]}" for did in path if did != channel.did)


async def typed() -> AsyncIterator[str]:
    """The lines of the input, until it ends."""
    rest = b""
    while True:
        await anyio.wait_readable(sys.stdin)
        data = os.read(sys.stdin.fileno(), 4096)
        if not data:
            return
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield line.decode(errors="replace").strip()


async def show(channel: walyoff.Channel) -> None:
    """Print messages, those first that came while nobody looked."""
    async for message in channel.messages(cursor="chat"):
        text = (message.content or b"").decode(errors="replace")
        say(f"{message.time.astimezone():%H:%M}  {name(channel, *message.path)}: {text}")


async def watch_joins(channel: walyoff.Channel) -> None:
    """Say who joins by our invitations, with the words that both sides compare."""
    async with channel.joins() as joins:
        async for joiner in joins:
            say(f"* {name(channel, joiner.did)} has joined; words: {' '.join(joiner.words)}")


async def watch_peers(channel: walyoff.Channel) -> None:
    """Say who comes and goes."""
    before: set[str] = set()
    while True:
        now = set(channel.peers())
        for did in sorted(now - before):
            say(f"* {name(channel, did)} is here")
        for did in sorted(before - now):
            say(f"* {name(channel, did)} has left")
        before = now
        await channel.changed()


async def talk(channel: walyoff.Channel) -> None:
    """Do what is typed."""
    async for line in typed():
        try:
            if line == "/quit":
                return
            if line == "/invite":
                say(f"* invitation: {await channel.invite()}")
            elif line == "/members":
                for member in channel.members():
                    say(f"* member: {name(channel, *(member.path or (member.did,)))}")
            elif line.startswith("/"):
                say(f"* {HELP}")
            elif line:
                await channel.send(line.encode())
        except walyoff.WalyoffError as error:
            say(f"* {error}")


async def compare(words: tuple[str, ...]) -> None:
    """Called in the middle of a join, as soon as the two devices talk."""
    say(f"* words: {' '.join(words)}")


async def main(options: argparse.Namespace) -> None:
    """Open the device and its channel, and chat."""
    async with walyoff.open_device(options.home) as device:
        if options.create:
            channel = await device.create_channel(options.create)
        elif options.join:
            channel = await device.join(options.join, on_words=compare)
        elif device.channels():
            channel = device.channels()[0]
        else:
            raise SystemExit("there is no channel yet: --create NAME or --join INVITATION")
        say(f"* {channel.name}: {HELP}")
        async with anyio.create_task_group() as tasks:
            for watch in (show, watch_joins, watch_peers):
                tasks.start_soon(watch, channel)
            await talk(channel)
            tasks.cancel_scope.cancel()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A small chat between devices.")
    parser.add_argument("home", help="the folder of this device")
    parser.add_argument("--create", metavar="NAME", help="make a channel")
    parser.add_argument("--join", metavar="INVITATION", help="join a channel")
    try:
        anyio.run(main, parser.parse_args())
    except walyoff.WalyoffError as error:
        sys.exit(f"chat: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
