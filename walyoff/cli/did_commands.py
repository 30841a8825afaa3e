"""The commands about DIDs and their options. What they do is in `identifying`."""

from __future__ import annotations

import click

from walyoff.cli.options import Settings, common, json_option
from walyoff.cli.runtime import start

_settings = click.make_pass_decorator(Settings, ensure=True)


@click.group()
def did() -> None:
    """Show identities as W3C DIDs."""


@did.command()
@click.argument("channel", required=False)
@common
@json_option
@_settings
def show(settings: Settings, channel: str | None) -> None:
    """Show the DID document of a channel's identity: controllers, keys, and their purposes.

    With --json it is the document itself (DID Core 1.0), for any W3C software.
    """
    start(settings, "identifying", "show", name=channel)
