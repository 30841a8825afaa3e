"""invite, join, invitations."""

from __future__ import annotations

import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import anyio

from walyoff.channel import Channel
from walyoff.cli import qr
from walyoff.cli.choosing import choose
from walyoff.cli.console import Console
from walyoff.cli.devices import channel_json
from walyoff.cli.output import clock, counted, escape_line
from walyoff.cli.reading import wait_for_input
from walyoff.cli.runtime import Failure
from walyoff.errors import InvitationError
from walyoff.invitations import Purpose, grouped, parse
from walyoff.inviting import Confirm, InvitationInfo, Joiner
from walyoff.node import Device
from walyoff.tasks import background_tasks

#: How often it is looked whether a session has ended.
LOOK_EVERY_S = 0.2
#: The inviter stays so long for a new device to take over the history, and the new device
#: so long for the history to stop growing.
HAND_OVER_S = 8.0
SETTLED_S = 1.0
#: A join that takes longer waits for a person.
ASKED_S = 1.0
_YES = ("y", "yes")


async def invite(
    console: Console,
    device: Device,
    *,
    name: str | None,
    lifetime: float,
    uses: int | None,
    purpose: Purpose,
    confirm: bool,
    code: bool | None,
    code_file: Path | None,
    wait: bool,
) -> None:
    """Print an invitation; then stay until those who are invited have joined."""
    channel = choose(device, name)
    async with channel.joins() as joins:
        invitation = await channel.invite(
            lifetime=lifetime,
            uses=uses,
            purpose=purpose,
            confirm=_asking(console) if confirm else None,
        )
        if code_file is not None:
            qr.save(invitation, code_file)
        made = parse(invitation, now=0).invitation_id
        value = {
            "channel": channel.did,
            "id": made,
            "invitation": invitation,
            "expires": int(time.time() + lifetime),
            "uses": uses,
            "for": purpose,
        }
        console.result(value, grouped(invitation))
        if not console.json and (sys.stdout.isatty() if code is None else code):
            console.result({}, qr.draw(invitation))
        if not wait:
            console.note("It works while this device runs: keep `walyoff listen` running here.")
            return
        console.note("Run `walyoff join` with it on the other device. It is a secret.")
        joined: dict[str, None] = {}
        with console.step("waiting for others to join; Ctrl-C to stop"):
            with anyio.move_on_after(lifetime):
                while uses is None or len(joined) < uses:
                    joiner = await joins.receive()
                    joined[joiner.did] = None
                    _welcome(console, channel, joiner)
    if not joined:
        raise Failure("the invitation has expired and nobody has joined: make a new one")
    with console.step("handing over the history"), anyio.move_on_after(HAND_OVER_S):
        devices = {member.did for member in channel.members()}
        for did in joined:
            # An identity joins with its devices, of which one is here.
            there = await channel.wait_peer(did if did in devices else None)
            await _gone(channel, there)


def _welcome(console: Console, channel: Channel, joiner: Joiner) -> None:
    console.result(
        {
            "channel": channel.did,
            "joined": joiner.did,
            "members": len(channel.members()),
            "words": list(joiner.words),
        },
        f"{joiner.did} has joined: {escape_line(channel.name)} has "
        f"{counted(len(channel.members()), 'member')}\n"
        f"words: {' '.join(joiner.words)}",
    )


def _asking(console: Console) -> Confirm:
    """Ask the person at the terminal, one question at a time."""
    turn = anyio.Lock()

    async def ask(joiner: Joiner) -> bool:
        async with turn:
            console.result(
                {"channel": joiner.channel, "asks": joiner.did, "words": list(joiner.words)},
                None,
            )
            console.note(
                f"{joiner.did} wants to join. Both sides must show the same words:\n"
                f"    {' '.join(joiner.words)}\n"
                "Let it in? [y/N]"
            )
            return (await _line()).strip().lower() in _YES

    return ask


async def _line() -> str:
    """A line of stdin; what was typed before the question is no answer to it."""
    descriptor = sys.stdin.fileno()
    typed = b""
    while not typed.endswith(b"\n") and len(typed) < 4096:
        await wait_for_input(descriptor)
        if not (byte := os.read(descriptor, 1)):
            break
        typed += byte
    return typed.decode(errors="replace")


async def _gone(channel: Channel, did: str) -> None:
    """Wait until a device has ended its session."""
    while did in channel.peers():  # noqa: ASYNC110  (the channel has no event for it)
        await anyio.sleep(LOOK_EVERY_S)


async def join(
    console: Console,
    device: Device,
    *,
    invitation: str,
    name: str | None,
    identity: str | None = None,
) -> None:
    """Join a channel, and take over its history while the inviter is there."""
    joining = None if identity is None else choose(device, identity)
    words: list[str] = []

    async def keep(found: tuple[str, ...]) -> None:
        words[:] = found

    async def compare() -> None:
        # An answer that takes so long is one that a person gives, who looks at the words.
        while not words:  # noqa: ASYNC110  (the join has no event for it)
            await anyio.sleep(LOOK_EVERY_S)
        await anyio.sleep(ASKED_S)
        console.note(f"the inviting device must show the same words:\n    {' '.join(words)}")

    with console.step("joining"):
        async with background_tasks() as tasks:
            tasks.start_soon(compare)
            channel = await device.join(invitation, name=name, identity=joining, on_words=keep)
    with console.step("taking over the history"), anyio.move_on_after(HAND_OVER_S):
        await channel.wait_peer()
        await _settled(channel)
    status = channel.status()
    value = {**channel_json(channel), "messages": status["messages"], "words": words}
    console.result(
        value,
        f"joined {escape_line(channel.name)}, {channel.did}\n"
        f"this device is {channel.me}\n"
        f"{counted(len(channel.members()), 'member')}, "
        f"{counted(status['messages'], 'message')}\n"
        f"words: {' '.join(words)}\n"
        "next: walyoff listen",
    )


async def _settled(channel: Channel) -> None:
    """Wait until the log has not grown for a moment."""
    seen = -1
    while True:
        status = channel.status()
        if status["messages"] == seen and not status["missing"]:
            return
        seen = status["messages"]
        await anyio.sleep(SETTLED_S)


async def invitations(
    console: Console, device: Device, *, name: str | None, revoke: str | None
) -> None:
    """List the invitations that this device made, or end one."""
    channels = device.channels() if name is None else [choose(device, name)]
    if revoke is None:
        found = [(channel, i) for channel in channels for i in channel.invitations()]
        for channel, info in found:
            console.result(_json(info), _text(channel, info))
        if not found:
            console.note("no invitations: make one with `walyoff invite`")
        return
    failure: InvitationError | None = None
    for channel in channels:
        try:
            ended = await channel.revoke(revoke)
        except InvitationError as error:
            failure = error
        else:
            console.result(_json(ended), f"{ended.id} lets nobody in any more")
            return
    raise failure or Failure("there is no channel yet, and so no invitation")


def _json(info: InvitationInfo) -> dict[str, object]:
    return {
        "id": info.id,
        "channel": info.channel,
        "state": info.state,
        "for": info.purpose,
        "created": None if info.created is None else info.created.isoformat(),
        "expires": info.expires.isoformat(),
        "uses": info.uses,
        "used_by": list(info.used_by),
        "by": info.by,
        "confirm": info.confirm,
    }


def _text(channel: Channel, info: InvitationInfo) -> str:
    limit = "any number" if info.uses is None else info.uses
    made = "" if info.created is None else f"made {clock(info.created)}, "
    until = "expired" if info.expires < datetime.now(UTC) else "expires"
    return (
        f"{info.id}  {info.state:<8} {escape_line(channel.name)}  "
        f"used {len(info.used_by)} of {limit}, for {info.purpose}, {made}"
        f"{until} {clock(info.expires)}" + (", to be confirmed" if info.confirm else "")
    )
