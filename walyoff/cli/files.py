"""The commands for attachments, and their options."""

from __future__ import annotations

from pathlib import Path

import click

from walyoff.cli.options import Settings, common, json_option
from walyoff.cli.runtime import start
from walyoff.cli.sizes import Size

LAST = 50
#: Seconds without a byte after which `fetch` and `save` give up.
PATIENCE_S = 30.0

_settings = click.make_pass_decorator(Settings, ensure=True)
_timeout = click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=PATIENCE_S,
    show_default=True,
    metavar="S",
    help="Give up when nothing came for so long; the same again goes on.",
)


def _split(arguments: tuple[str, ...], most: int) -> tuple[str | None, list[str]]:
    """The channel, if it is there, and the rest."""
    return (
        (arguments[0], list(arguments[1:]))
        if len(arguments) > most
        else (
            None,
            list(arguments),
        )
    )


@click.command()
@click.argument("channel", required=False)
@click.option(
    "--last", type=click.IntRange(min=1), default=LAST, show_default=True, metavar="N"
)
@click.option(
    "--fetch",
    type=click.Choice(["all", "small", "none"]),
    help="From now on fetch all, small ones, or none before they are asked for.",
)
@click.option("--small", type=Size(), metavar="SIZE", help="The largest that is small.")
@click.option(
    "--quota", type=Size(), metavar="SIZE", help="Keep at most so much here; 0: no limit."
)
@common
@json_option
@_settings
def attachments(
    settings: Settings,
    *,
    channel: str | None,
    last: int,
    fetch: str | None,
    small: int | None,
    quota: int | None,
) -> None:
    """Show the files that came with messages; set which are fetched by themselves."""
    start(
        settings,
        "attachments",
        "attachments",
        name=channel,
        last=last,
        fetch=fetch,
        small=small,
        quota=quota,
    )


@click.command()
@click.argument("channel_id", nargs=-1, required=True, metavar="[CHANNEL] ID")
@_timeout
@common
@json_option
@_settings
def fetch(settings: Settings, channel_id: tuple[str, ...], timeout: float) -> None:
    """Get all of an attachment. ID is how `walyoff attachments` shows it, or its beginning."""
    if len(channel_id) > 2:
        raise click.UsageError("say which one: walyoff fetch [CHANNEL] ID")
    name, (wanted,) = _split(channel_id, 1)
    start(settings, "attachments", "fetch", name=name, wanted=wanted, timeout=timeout)


@click.command()
@click.argument("channel_id", nargs=-1, required=True, metavar="[CHANNEL] ID")
@click.option(
    "--to",
    "path",
    type=click.Path(path_type=Path),
    default=Path(),
    metavar="PATH",
    help="A file, or the folder for it [here].",
)
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@_timeout
@common
@json_option
@_settings
def save(
    settings: Settings,
    *,
    channel_id: tuple[str, ...],
    path: Path,
    force: bool,
    timeout: float,
) -> None:
    """Get all of an attachment, and write it to a file."""
    if len(channel_id) > 2:
        raise click.UsageError("say which one: walyoff save [CHANNEL] ID [--to PATH]")
    name, (wanted,) = _split(channel_id, 1)
    start(
        settings,
        "attachments",
        "save",
        name=name,
        wanted=wanted,
        path=path.absolute(),
        force=force,
        timeout=timeout,
    )


@click.command()
@click.argument("channel", required=False)
@click.option(
    "--keep",
    type=Size(),
    metavar="SIZE",
    help="Drop the oldest files of others until so much is left [the quota]. They can be "
    "fetched again from whoever has them.",
)
@common
@json_option
@_settings
def gc(settings: Settings, channel: str | None, keep: int | None) -> None:
    """Free space: what broken-off sends left, and what is above the quota."""
    start(settings, "attachments", "collect", name=channel, keep=keep)


COMMANDS = (attachments, fetch, save, gc)
