"""The commands about DIDs and their options. What they do is in `identifying`."""

from __future__ import annotations

from pathlib import Path

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


@did.command("export-stock")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.argument("channel", required=False)
@common
@json_option
@_settings
def export_stock(settings: Settings, folder: Path, channel: str | None) -> None:
    """Write a channel's identity into a new FOLDER that stock walytis-identities opens.

    It holds the control keys, and the key that unlocks them: keep it as safe as this home.
    """
    start(settings, "stocking", "export", name=channel, folder=folder)


_stock_file = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("adopt-stock")
@click.argument("name")
@click.option(
    "--chains",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="The data folder of stock Walytis (WALYTIS_BETA_DATA_DIR).",
)
@click.option("--member", type=_stock_file, required=True, help="The member's key store.")
@click.option("--group", type=_stock_file, required=True, help="The group's key store.")
@click.option(
    "--unlock",
    type=_stock_file,
    required=True,
    help="The key that opens both, as JSON of its serialise_private().",
)
@common
@json_option
@_settings
def adopt_stock(
    settings: Settings, *, name: str, chains: Path, member: Path, group: Path, unlock: Path
) -> None:
    """Open a group of stock walytis-identities as channel NAME, in a new home.

    This device is then the group's member. One device adopts; others join by an invitation.
    """
    start(
        settings, "stocking", "adopt", make=True,
        name=name, chains=chains, member=member, group=group, unlock=unlock,
    )  # fmt: skip
