"""adopt-stock and did export-stock: identities shared with stock walytis-identities."""

from __future__ import annotations

from pathlib import Path

from walyoff.cli.choosing import choose
from walyoff.cli.console import Console
from walyoff.cli.output import counted, escape_line
from walyoff.node import Device
from walyoff.stock import adopt_stock, export_stock


async def adopt(
    console: Console,
    device: Device,
    *,
    name: str,
    chains: Path,
    member: Path,
    group: Path,
    unlock: Path,
) -> None:
    """Open a stock group as a channel."""
    with console.step("reading the identity"):
        channel = await adopt_stock(
            device, name=name, chains=chains, member=member, group=group, unlock=unlock
        )
    value = {
        "channel": channel.did,
        "name": channel.name,
        "me": channel.me,
        "members": len(channel.members()),
    }
    console.result(
        value,
        f"channel {escape_line(channel.name)} is {channel.did}\n"
        f"this device is {channel.me}\n"
        f"{counted(len(channel.members()), 'member')}; next: walyoff invite",
    )


async def export(console: Console, device: Device, *, name: str | None, folder: Path) -> None:
    """Write an identity for stock software."""
    channel = choose(device, name)
    with console.step("writing the identity"):
        await export_stock(device, channel, folder)
    console.result(
        {"channel": channel.did, "folder": str(folder)},
        f"{escape_line(channel.name)} is in {escape_line(str(folder))}: whoever has the folder "
        "has its keys",
    )
