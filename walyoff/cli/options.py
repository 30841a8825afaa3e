"""Options that all commands share, and where the device's home is.

They may stand before or after the command's name; the last one wins.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import click

F = TypeVar("F", bound=Callable[..., object])

HOME_VARIABLE = "WALYOFF_HOME"


def default_home() -> Path:
    """`$WALYOFF_HOME`, else the folder that the XDG base directory specification gives."""
    if chosen := os.environ.get(HOME_VARIABLE):
        return Path(chosen)
    data = os.environ.get("XDG_DATA_HOME", "")
    # "All paths set in these environment variables must be absolute", else they are ignored.
    base = Path(data) if Path(data).is_absolute() else Path.home() / ".local" / "share"
    return base / "walyoff"


@dataclass(slots=True)
class Settings:
    """What the options said."""

    home_option: Path | None = None
    passphrase_file: Path | None = None
    listen: tuple[str, ...] = ()
    transports: tuple[str, ...] = ()
    verbosity: int = 0
    json: bool = False

    @property
    def home(self) -> Path:
        """The home to use."""
        return self.home_option or default_home()


def _set(
    name: str,
) -> Callable[[click.Context, click.Parameter, object], None]:
    def callback(context: click.Context, _: click.Parameter, value: object) -> None:
        if value:
            setattr(context.ensure_object(Settings), name, value)

    return callback


def verbose_option(function: F) -> F:
    """Add `--verbose`."""
    return click.option(
        "-v",
        "--verbose",
        count=True,
        expose_value=False,
        callback=_set("verbosity"),
        help="Log to stderr; twice for more.",
    )(function)


def transport_option(function: F) -> F:
    """Add `--transport`."""
    return click.option(
        "--transport",
        multiple=True,
        metavar="NAME",
        expose_value=False,
        callback=_set("transports"),
        help="How to talk: ipfs, libp2p, tcp or another that is installed; the best "
        "first, if several are given [ipfs].",
    )(function)


def common(function: F) -> F:
    """Add the options of commands on a device, to one of them or to the group."""
    for option in (
        verbose_option,
        click.option(
            "--passphrase-file",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            expose_value=False,
            callback=_set("passphrase_file"),
            help="A file whose first line protects the home's key.",
        ),
        click.option(
            "--listen",
            multiple=True,
            metavar="IP",
            expose_value=False,
            callback=_set("listen"),
            help="An address of this machine to be reached at, kept for later [127.0.0.1].",
        ),
        transport_option,
        click.option(
            "--home",
            type=click.Path(file_okay=False, path_type=Path),
            metavar="DIR",
            expose_value=False,
            callback=_set("home_option"),
            help=f"The device's folder (or {HOME_VARIABLE}).",
        ),
    ):
        function = option(function)
    return function


def as_option(function: F) -> F:
    """Add `--as`."""
    return click.option(
        "--as",
        "identity",
        metavar="CHANNEL",
        help="For the identity of one of the channels here, with all its devices.",
    )(function)


def json_option(function: F) -> F:
    """Add `--json`."""
    return click.option(
        "--json",
        "as_json",
        is_flag=True,
        expose_value=False,
        callback=_set("json"),
        help="Print JSON, one object a line.",
    )(function)
