"""Which channel is meant."""

from __future__ import annotations

import click

from walyoff.channel import Channel
from walyoff.cli.output import escape_line
from walyoff.cli.runtime import Failure
from walyoff.errors import LocalProtocolError
from walyoff.node import Device


def choose(device: Device, name: str | None) -> Channel:
    """The channel of a name or a DID; without one, the only channel.

    Raises:
        Failure: there is none, or it is not clear which one.
        click.UsageError: a name is needed.
    """
    channels = device.channels()
    if name is not None:
        try:
            return device.channel(name)
        except LocalProtocolError as error:
            raise Failure(str(error)) from error
    if not channels:
        raise Failure(
            "there is no channel yet: make one (`walyoff create NAME`) or join one "
            "(`walyoff join INVITATION`)"
        )
    if len(channels) > 1:
        names = ", ".join(sorted(escape_line(channel.name) for channel in channels))
        raise click.UsageError(f"say which channel: {names}")
    return channels[0]


def others(channel: Channel) -> list[str]:
    """The DIDs of the other members."""
    return [member.did for member in channel.members() if member.did != channel.me]
