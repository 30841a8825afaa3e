"""The commands members, remove, leave and renew, and their options."""

from __future__ import annotations

import click

from walyoff.cli.options import Settings, common, json_option
from walyoff.cli.runtime import start

WAIT_S = 2.0

_settings = click.make_pass_decorator(Settings, ensure=True)
_channel = click.argument("channel", required=False)


@click.command()
@_channel
@click.option(
    "--make-admin", metavar="DID", help="Let this member invite and remove (`create --admins`)."
)
@common
@json_option
@_settings
def members(settings: Settings, channel: str | None, make_admin: str | None) -> None:
    """Show the devices that belong to a channel, and who of them is an admin."""
    start(settings, "governing", "members", name=channel, make_admin=make_admin, wait=WAIT_S)


@click.command()
@click.argument("channel_did", nargs=-1, metavar="[CHANNEL] DID")
@common
@json_option
@_settings
def remove(settings: Settings, channel_did: tuple[str, ...]) -> None:
    """End the membership of a device or a person. DID is the DID, or the end of it.

    From then on it gets nothing, from anybody. What it got before it keeps. A device of a
    person is removed from the person's channel, and loses the person's groups with it.
    """
    if not 1 <= len(channel_did) <= 2:
        raise click.UsageError("say which device: walyoff remove [CHANNEL] DID")
    name = channel_did[0] if len(channel_did) == 2 else None
    start(settings, "governing", "remove", name=name, member=channel_did[-1], wait=WAIT_S)


@click.command()
@_channel
@click.option("--erase", is_flag=True, help="Erase the channel's log from this home, too.")
@common
@json_option
@_settings
def leave(settings: Settings, channel: str | None, erase: bool) -> None:
    """Leave a channel: the others are told, and its keys are deleted here."""
    start(settings, "governing", "leave", name=channel, erase=erase, wait=WAIT_S)


@click.command()
@_channel
@click.option("--own", is_flag=True, help="Those of this device's own DID instead.")
@common
@json_option
@_settings
def renew(settings: Settings, channel: str | None, own: bool) -> None:
    """Renew the control keys of a channel's identity now.

    It happens by itself when a member leaves, and after some months.
    """
    start(settings, "governing", "renew", name=channel, own=own, wait=WAIT_S)


COMMANDS = (members, remove, leave, renew)
