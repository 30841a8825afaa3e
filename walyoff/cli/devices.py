"""init, create, invite, join, members, remove, status."""

from __future__ import annotations

import time

import anyio

from walyoff.channel import Channel
from walyoff.cli.choosing import choose, others
from walyoff.cli.console import Console
from walyoff.cli.output import escape_line, member_json, short
from walyoff.cli.runtime import Failure
from walyoff.node import Device

#: How often the list of members is looked at while an invitation waits.
LOOK_EVERY_S = 0.2
#: The inviter stays so long for a new device to take over the history, and the new device
#: so long for the history to stop growing.
HAND_OVER_S = 8.0
SETTLED_S = 1.0


async def init(console: Console, device: Device) -> None:
    """Make the device's DID, unless it has one."""
    with console.step("making the device's keys"):
        did = await device.did()
    value = {
        "home": str(device.home),
        "did": did,
        "suite": device.suite,
        "channels": len(device.channels()),
    }
    console.result(
        value,
        f"this device is {did}\n"
        f"home:  {device.home}\n"
        f"suite: {device.suite}\n"
        "next:  walyoff create NAME, or walyoff join INVITATION",
    )


async def create(console: Console, device: Device, *, name: str) -> None:
    """Make a channel."""
    with console.step("making the identity"):
        channel = await device.create_channel(name)
    console.result(
        _channel_json(channel),
        f"channel {escape_line(channel.name)} is {channel.did}\n"
        f"this device is {channel.me}\n"
        "next: walyoff invite",
    )


def _channel_json(channel: Channel) -> dict[str, object]:
    return {
        "channel": channel.did,
        "name": channel.name,
        "me": channel.me,
        "members": len(channel.members()),
    }


async def invite(
    console: Console, device: Device, *, name: str | None, lifetime: float, wait: bool
) -> None:
    """Print an invitation; then stay until somebody has joined."""
    channel = choose(device, name)
    before = set(others(channel))
    expires = time.time() + lifetime
    invitation = await channel.invite(lifetime=lifetime)
    value = {"channel": channel.did, "invitation": invitation, "expires": int(expires)}
    console.result(value, invitation)
    if not wait:
        console.note("It works while this device runs: keep `walyoff listen` running here.")
        return
    console.note("Run `walyoff join` with it on the other device. It is a secret.")
    new: set[str] = set()
    with console.step("waiting for the other device; Ctrl-C to stop"):
        with anyio.move_on_after(lifetime):
            while not new:
                await anyio.sleep(LOOK_EVERY_S)
                new = set(others(channel)) - before
    if not new:
        raise Failure("the invitation has expired and nobody has joined: make a new one")
    did = new.pop()
    console.result(
        {"channel": channel.did, "joined": did, "members": len(channel.members())},
        f"{did} has joined: {escape_line(channel.name)} has {len(channel.members())} members",
    )
    with console.step("handing over the history"), anyio.move_on_after(HAND_OVER_S):
        await channel.wait_peer(did)
        await _gone(channel, did)


async def _gone(channel: Channel, did: str) -> None:
    """Wait until a device has ended its session."""
    while did in channel.peers():  # noqa: ASYNC110  (the channel has no event for it)
        await anyio.sleep(LOOK_EVERY_S)


async def join(console: Console, device: Device, *, invitation: str, name: str | None) -> None:
    """Join a channel, and take over its history while the inviter is there."""
    with console.step("joining"):
        channel = await device.join(invitation, name=name)
    with console.step("taking over the history"), anyio.move_on_after(HAND_OVER_S):
        await channel.wait_peer()
        await _settled(channel)
    status = channel.status()
    value = {**_channel_json(channel), "messages": status["messages"]}
    console.result(
        value,
        f"joined {escape_line(channel.name)}, {channel.did}\n"
        f"this device is {channel.me}\n"
        f"{len(channel.members())} members, {status['messages']} messages\n"
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


async def _connected(console: Console, channels: list[Channel], wait: float) -> None:
    """Give other devices a moment to be found, if there are any."""
    with console.step("looking for the other devices"), anyio.move_on_after(wait):
        async with anyio.create_task_group() as tasks:
            for channel in channels:
                for did in others(channel):
                    tasks.start_soon(channel.wait_peer, did)


async def members(console: Console, device: Device, *, name: str | None, wait: float) -> None:
    """List the members of a channel."""
    channel = choose(device, name)
    await _connected(console, [channel], wait)
    peers = set(channel.peers())
    for member in channel.members():
        me = member.did == channel.me
        state = "this device" if me else "connected" if member.did in peers else "-"
        console.result(
            member_json(member, me=channel.me, connected=member.did in peers),
            f"{member.did}  {state}",
        )


async def remove(
    console: Console, device: Device, *, name: str | None, member: str, wait: float
) -> None:
    """End a membership, and tell those who are there."""
    channel = choose(device, name)
    found = [did for did in others(channel) if did.endswith(member.removeprefix("…"))]
    if len(found) != 1:
        which = "no" if not found else "more than one"
        raise Failure(f"{which} other member's DID ends in {escape_line(member)!r}")
    await _connected(console, [channel], wait)
    with console.step("removing it"):
        await channel.remove(found[0])
    with console.step("telling the others"), anyio.move_on_after(wait):
        receipts = set(channel.peers())
        while not receipts <= set(channel.informed()):
            await channel.changed()
    value = {"channel": channel.did, "removed": found[0], "members": len(channel.members())}
    console.result(
        value,
        f"{found[0]} is no member of {escape_line(channel.name)} any more, "
        f"which has {len(channel.members())} members now",
    )


async def status(console: Console, device: Device, *, wait: float) -> None:
    """Show the device and its channels."""
    await _connected(console, device.channels(), wait)
    did = await device.did()
    value = {"did": did, **device.status()}
    lines = [
        f"device     {did}",
        f"home       {device.home}",
        f"suite      {device.suite}",
        *(f"address    {escape_line(address)}" for address in device.addresses),
    ]
    for channel in device.channels():
        about = channel.status()
        peers = ", ".join(short(peer) for peer in channel.peers()) or "nobody"
        lines += [
            f"channel    {escape_line(channel.name)}  {channel.did}",
            f"           {about['members']} members, {about['messages']} messages, "
            f"{about['unanchored']} batches waiting for the ledger, "
            f"{about['missing']} contents wanted",
            f"           connected: {peers}",
        ]
        if about["faults"]:
            faults = ", ".join(f"{escape_line(k)} {v}" for k, v in about["faults"].items())
            lines.append(f"           faults of others: {faults}")
    if not device.channels():
        lines.append("no channel yet: walyoff create NAME, or walyoff join INVITATION")
    console.result(value, "\n".join(lines))
