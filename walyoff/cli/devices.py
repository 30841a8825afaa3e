"""init, create, members, remove, status."""

from __future__ import annotations

import anyio

from walyoff.channel import Channel
from walyoff.cli.choosing import choose, others
from walyoff.cli.console import Console
from walyoff.cli.output import counted, escape_line, short
from walyoff.node import Device


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


async def create(
    console: Console, device: Device, *, name: str, identity: str | None, admins: bool
) -> None:
    """Make a channel."""
    first = None if identity is None else choose(device, identity)
    with console.step("making the identity"):
        channel = await device.create_channel(name, identity=first, admins=admins)
    console.result(
        channel_json(channel),
        f"channel {escape_line(channel.name)} is {channel.did}\n"
        f"this device is {channel.me}\n"
        "next: walyoff invite",
    )


def channel_json(channel: Channel) -> dict[str, object]:
    """A channel for machines."""
    return {
        "channel": channel.did,
        "name": channel.name,
        "me": channel.me,
        "members": len(channel.members()),
    }


async def connected(console: Console, channels: list[Channel], wait: float) -> None:
    """Give other devices a moment to be found, if there are any."""
    with console.step("looking for the other devices"), anyio.move_on_after(wait):
        async with anyio.create_task_group() as tasks:
            for channel in channels:
                for did in others(channel):
                    tasks.start_soon(channel.wait_peer, did)


async def status(console: Console, device: Device, *, wait: float) -> None:
    """Show the device and its channels."""
    await connected(console, device.channels(), wait)
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
            f"           {counted(about['members'], 'member')}, "
            f"{counted(about['messages'], 'message')}, "
            f"{about['unanchored']} waiting for the ledger, {about['missing']} wanted",
            f"           connected: {peers}",
        ]
        if about["faults"]:
            faults = ", ".join(f"{escape_line(k)} {v}" for k, v in about["faults"].items())
            lines.append(f"           faults of others: {faults}")
        if refused := about["refused_batches"]:
            whose = ", ".join(
                f"{short(did) if did else 'nobody known'} {n}" for did, n in refused.items()
            )
            lines.append(f"           refused of the register, by claimed author: {whose}")
    if not device.channels():
        lines.append("no channel yet: walyoff create NAME, or walyoff join INVITATION")
    console.result(value, "\n".join(lines))
