"""members, remove, leave, renew: who belongs to an identity, and who may say so."""

from __future__ import annotations

from collections.abc import Callable

import anyio

from walyoff.channel import Channel
from walyoff.cli.choosing import choose, others
from walyoff.cli.console import Console
from walyoff.cli.devices import connected
from walyoff.cli.output import counted, escape_line, member_json
from walyoff.cli.runtime import Failure
from walyoff.node import Device

#: A block goes to those who are connected within so many seconds.
TELL_S = 1.0


async def members(
    console: Console, device: Device, *, name: str | None, make_admin: str | None, wait: float
) -> None:
    """List the members of a channel, after naming an admin if that is wished."""
    channel = choose(device, name)
    await connected(console, [channel], wait)
    if make_admin is not None:
        did = _direct(channel, make_admin)
        with console.step("naming an admin"):
            await channel.make_admin(did)
        # They ask for the block at once, and nobody says when they have it.
        with console.step("telling the others"):
            await anyio.sleep(TELL_S if channel.peers() else 0)
    peers = set(channel.peers())
    for member in channel.members():
        me = member.did == channel.me
        state = "this device" if me else "connected" if member.did in peers else "-"
        of = "".join(f" of {did}" for did in member.path[1:])
        role = "  admin" if member.role == "admin" else ""
        console.result(
            member_json(member, me=channel.me, connected=member.did in peers),
            f"{member.did}{of}  {state}{role}",
        )


def _direct(channel: Channel, end: str) -> str:
    """The direct member whose DID ends so. Raises Failure."""
    voices = dict.fromkeys(member.voice for member in channel.members())
    return _one([did for did in voices if did.endswith(end.removeprefix("…"))], end)


def _one(found: list[str], end: str) -> str:
    if len(found) != 1:
        which = "no" if not found else "more than one"
        raise Failure(f"{which} other member's DID ends in {escape_line(end)!r}")
    return found[0]


async def _tell(
    console: Console, channel: Channel, wait: float, told: Callable[[], list[str]]
) -> None:
    """Stay until those who are connected have what this device said."""
    with console.step("telling the others"), anyio.move_on_after(wait):
        while not set(channel.peers()) <= set(told()):
            await channel.changed()


async def remove(
    console: Console, device: Device, *, name: str | None, member: str, wait: float
) -> None:
    """End a membership, and tell those who are there."""
    channel = choose(device, name)
    # A device, or a person with all devices.
    known = dict.fromkeys([*others(channel), *channel.voices()])
    did = _one([did for did in known if did.endswith(member.removeprefix("…"))], member)
    await connected(console, [channel], wait)
    with console.step("removing it"):
        await channel.remove(did)
    await _tell(console, channel, wait, channel.informed)
    value = {"channel": channel.did, "removed": did, "members": len(channel.members())}
    console.result(
        value,
        f"{did} is no member of {escape_line(channel.name)} any more, "
        f"which has {counted(len(channel.members()), 'member')} now",
    )


async def leave(
    console: Console, device: Device, *, name: str | None, erase: bool, wait: float
) -> None:
    """Leave a channel."""
    channel = choose(device, name)
    await connected(console, [channel], wait)
    value = {"channel": channel.did, "left": channel.me, "erased": erase}
    with console.step("leaving"):
        await channel.leave(erase=erase)
    log = "and its log is erased here" if erase else "its log stays in this home"
    console.result(
        value,
        f"this device has left {escape_line(channel.name)}: its keys are deleted, {log}\n"
        "to come back it needs a new invitation",
    )


async def renew(
    console: Console, device: Device, *, name: str | None, own: bool, wait: float
) -> None:
    """Renew control keys: of an identity, or of the device's own DID."""
    if own:
        with console.step("renewing this device's keys"):
            await device.renew_keys()
        did = await device.did()
        console.result({"did": did}, f"the control keys of {did} are new")
        return
    channel = choose(device, name)
    await connected(console, [channel], wait)
    with console.step("renewing the identity's control keys"):
        await channel.renew_control_keys()
    await _tell(console, channel, 4 * wait, channel.keys_given)
    console.result(
        {"channel": channel.did},
        f"the control keys of {escape_line(channel.name)} are new: the other members get "
        "them when they meet this device, or one another",
    )
