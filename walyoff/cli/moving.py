"""passphrase, export, import, backup, restore, takeover: what is done to a whole home.

They need no running device, so they do not open one (but `export` asks the members first).
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from walyoff.cli.console import Console
from walyoff.cli.options import Settings, common, json_option
from walyoff.cli.output import escape_line
from walyoff.cli.runtime import Failure, read_passphrase, run

_settings = click.make_pass_decorator(Settings, ensure=True)
_PASSPHRASE_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_FILE = click.Path(dir_okay=False, path_type=Path)
_alone = click.option(
    "--alone",
    is_flag=True,
    help="Write on at once, without a member's word on what this device wrote before. Only "
    "for who knows that it wrote nothing after the file was made.",
)
_file_passphrase = click.option(
    "--file-passphrase-file",
    type=_PASSPHRASE_FILE,
    help="A file whose first line is the passphrase of FILE; asked for on a terminal.",
)


def _ask(path: Path | None, what: str, option: str, *, twice: bool) -> str:
    """A passphrase from a file, or from a person. Raises Failure."""
    if path is not None:
        return read_passphrase(path) or ""
    if not sys.stdin.isatty():
        raise Failure(f"there is no terminal to ask at: give the {what} with {option}")
    return str(
        click.prompt(what.capitalize(), hide_input=True, confirmation_prompt=twice, err=True)
    )


def _home_passphrase(settings: Settings) -> str | None:
    return read_passphrase(settings.passphrase_file)


def _do(
    settings: Settings,
    label: str,
    work: Callable[[], Awaitable[Any]],
    text: str,
    **value: str | bool,
) -> None:
    """Do something while it is shown, and say that it is done."""

    async def command(console: Console) -> None:
        with console.step(label):
            await work()
        console.result({**value, "home": str(settings.home.expanduser())}, text)

    run(settings, command)


@click.command()
@click.option(
    "--new-passphrase-file",
    type=_PASSPHRASE_FILE,
    help="A file whose first line is the new passphrase; asked for on a terminal.",
)
@click.option("--remove", is_flag=True, help="Let the home open without a passphrase.")
@common
@json_option
@_settings
def passphrase(settings: Settings, new_passphrase_file: Path | None, remove: bool) -> None:
    """Set, change or remove the passphrase of this device's home.

    The old one is in --passphrase-file, if there is one. Copies and backups of the home that
    were made before keep the old one.
    """
    if remove and new_passphrase_file is not None:
        raise click.UsageError("--remove and --new-passphrase-file exclude each other")
    from walyoff.moving.homes import change_passphrase  # noqa: PLC0415  (heavy)

    old = _home_passphrase(settings)
    new = (
        None
        if remove
        else _ask(new_passphrase_file, "new passphrase", "--new-passphrase-file", twice=True)
    )
    work = partial(change_passphrase, settings.home.expanduser(), old, new)
    done = "removed" if remove else "set"
    _do(settings, "wrapping the key", work, f"the passphrase is {done}", passphrase=not remove)


@click.command("export")
@click.argument("file", type=_FILE, required=False)
@click.option("--with-log", is_flag=True, help="All messages too; else the members have them.")
@click.option("--undo", is_flag=True, help="Make this the device again after all.")
@_file_passphrase
@common
@json_option
@_settings
def export(
    settings: Settings,
    file: Path | None,
    with_log: bool,
    undo: bool,
    file_passphrase_file: Path | None,
) -> None:
    """Put this device into one encrypted FILE, to live on another machine.

    Afterwards it does not open here any more: it is moved, not copied.
    """
    from walyoff.moving import homes  # noqa: PLC0415  (heavy)

    home, secret = settings.home.expanduser(), _home_passphrase(settings)
    if undo == (file is not None):
        raise click.UsageError("name a FILE, or say --undo")
    if file is None:

        async def undone() -> None:
            if not await homes.undo_export(home, passphrase=secret):
                raise Failure("this device was not exported")

        _do(settings, "opening the home", undone, "this is the device again", undone=True)
        return
    options: dict[str, Any] = {"listen": settings.listen}
    if settings.transports:
        options["transports"] = settings.transports
    work = partial(
        homes.export_device,
        home,
        file,
        file_passphrase=_ask(
            file_passphrase_file, "passphrase of the file", "--file-passphrase-file", twice=True
        ),
        passphrase=secret,
        with_log=with_log,
        **options,
    )
    text = (
        f"the device is in {escape_line(str(file))}, and does not open here any more\n"
        f"next: walyoff import {escape_line(str(file))}, where it is to live"
    )
    _do(settings, "exporting", work, text, file=str(file))


@click.command("import")
@click.argument("file", type=_FILE)
@_file_passphrase
@_alone
@common
@json_option
@_settings
def import_(
    settings: Settings, file: Path, file_passphrase_file: Path | None, alone: bool
) -> None:
    """Make this machine's home from an exported device.

    --passphrase-file is for the new home.
    """
    from walyoff.moving.homes import import_device  # noqa: PLC0415  (heavy)

    work = partial(
        import_device,
        file,
        settings.home.expanduser(),
        file_passphrase=_ask(
            file_passphrase_file,
            "passphrase of the file",
            "--file-passphrase-file",
            twice=False,
        ),
        passphrase=_home_passphrase(settings),
        alone=alone,
    )
    _do(settings, "importing", work, "the device lives here now\nnext: walyoff listen")


@click.command()
@click.argument("file", type=_FILE)
@common
@json_option
@_settings
def backup(settings: Settings, file: Path) -> None:
    """Back this device up into one FILE, encrypted as its home is. It may be running.

    Without a passphrase the key of the home is in the file: keep it as safe as the home.
    """
    from walyoff.moving.homes import backup_device  # noqa: PLC0415  (heavy)

    home, secret = settings.home.expanduser(), _home_passphrase(settings)
    work = partial(backup_device, home, file, passphrase=secret)
    done = f"the backup is {escape_line(str(file))}"
    _do(settings, "backing up", work, done, file=str(file))


@click.command()
@click.argument("file", type=_FILE)
@_alone
@common
@json_option
@_settings
def restore(settings: Settings, file: Path, alone: bool) -> None:
    """Make a home from a backup. The passphrase is that of the home that was backed up.

    From then on this is the device: a copy that still runs elsewhere is told so, and stops.
    """
    from walyoff.moving.homes import restore_device  # noqa: PLC0415  (heavy)

    home, secret = settings.home.expanduser(), _home_passphrase(settings)
    work = partial(restore_device, file, home, passphrase=secret, alone=alone)
    _do(settings, "restoring", work, "the device is restored\nnext: walyoff listen")


@click.command()
@_alone
@common
@json_option
@_settings
def takeover(settings: Settings, alone: bool) -> None:
    """Make this home the device again, after another copy took over or was exported.

    The other copy is told so, and stops. It is refused if that one has replaced the device's
    control keys, which this home does not have.
    """
    from walyoff.moving.homes import take_over  # noqa: PLC0415  (heavy)

    home, secret = settings.home.expanduser(), _home_passphrase(settings)
    work = partial(take_over, home, passphrase=secret, alone=alone)
    _do(settings, "taking over", work, "this is the device now\nnext: walyoff listen")


COMMANDS = (passphrase, export, import_, backup, restore, takeover)
