"""The commands and their options. What they do is in the modules that they name.

Nothing heavy is imported here: `walyoff --help` answers at once.
"""

from __future__ import annotations

from pathlib import Path

import click

from walyoff import __version__
from walyoff.bench.command import bench
from walyoff.cli import files, moving
from walyoff.cli.auditing import audit, graph
from walyoff.cli.did_commands import adopt_stock, did
from walyoff.cli.forget_command import forget
from walyoff.cli.governing_commands import COMMANDS as GOVERNING
from walyoff.cli.invitation_commands import invitations, invite, join
from walyoff.cli.options import Settings, as_option, common, json_option, verbose_option
from walyoff.cli.runtime import start

#: Seconds that `send` waits for others and for the ledger.
SEND_WAIT_S = 5.0
STATUS_WAIT_S = 2.0
LAST = 20

_settings = click.make_pass_decorator(Settings, ensure=True)
_channel = click.argument("channel", required=False)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 96},
    epilog="CHANNEL is a name or a DID; it may be left out when there is exactly one. "
    "Exit codes: 0 done, 1 failed, 2 wrong usage.",
)
@common
@click.version_option(__version__, prog_name="walyoff")
def cli() -> None:
    """Encrypted messages between the devices of a Walytis Identity, without servers.

    \b
    On one device:    walyoff create family
                      walyoff invite
    On the other one: walyoff join INVITATION
    On both:          walyoff listen
    """


@cli.command()
@common
@json_option
@_settings
def init(settings: Settings) -> None:
    """Make this device: its home, its keys, its DID."""
    start(settings, "devices", "init", make=True)


@cli.command()
@click.argument("name")
@as_option
@click.option("--admins", is_flag=True, help="Only admins may invite and remove members.")
@common
@json_option
@_settings
def create(settings: Settings, name: str, identity: str | None, admins: bool) -> None:
    """Make a new identity with this device, or one of its channels, as its first member."""
    options = {"identity": identity, "admins": admins}
    start(settings, "devices", "create", make=True, name=name, **options)


@cli.command()
@click.argument("channel_text", nargs=-1, metavar="[CHANNEL] [TEXT|-]")
@click.option("--topic", "-t", "topics", multiple=True, help="A topic; may be repeated.")
@click.option(
    "--file",
    "-f",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Send a file of any size; TEXT is its caption.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=SEND_WAIT_S,
    show_default=True,
    metavar="S",
    help="How long to wait for other devices and the ledger.",
)
@click.option("--no-wait", is_flag=True, help="Only store it.")
@click.option(
    "--forget-after",
    type=click.FloatRange(min=0.001),
    metavar="S",
    help="Every device destroys it after so many seconds.",
)
@common
@json_option
@_settings
def send(
    settings: Settings,
    *,
    channel_text: tuple[str, ...],
    topics: tuple[str, ...],
    file: Path | None,
    timeout: float,
    no_wait: bool,
    forget_after: float | None,
) -> None:
    """Send a message, and say who has it. Without TEXT, or with `-`, it is stdin."""
    if len(channel_text) > 2:
        raise click.UsageError("too many arguments: put the text in quotes")
    start(
        settings,
        "sending",
        "send",
        arguments=channel_text,
        topics=topics,
        file=file,
        wait=0.0 if no_wait else timeout,
        forget_after=forget_after,
    )


@cli.command()
@_channel
@click.option("--cursor", metavar="NAME", help="Go on where NAME stopped, and remember.")
@click.option(
    "--since", metavar="WHEN", help="A position (17), an age (10m, 2h, 3d) or a time (ISO)."
)
@click.option("--anchored", is_flag=True, help="Hold back what is not on the ledger yet.")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after N messages.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    metavar="S",
    help="End after S seconds; a failure if --count was not reached.",
)
@common
@json_option
@_settings
def listen(
    settings: Settings,
    *,
    channel: str | None,
    cursor: str | None,
    since: str | None,
    anchored: bool,
    count: int | None,
    timeout: float | None,
) -> None:
    """Show the messages and then new ones as they come; on a terminal, send what you type."""
    if cursor is not None and since is not None:
        raise click.UsageError("--cursor and --since exclude each other")
    start(
        settings,
        "listening",
        "listen",
        name=channel,
        cursor=cursor,
        since=since,
        anchored=anchored,
        count=count,
        timeout=timeout,
    )


@cli.command()
@_channel
@click.option(
    "--last",
    type=click.IntRange(min=1),
    default=LAST,
    show_default=True,
    metavar="N",
    help="How many of the newest.",
)
@click.option("--all", "everything", is_flag=True, help="All of them.")
@common
@json_option
@_settings
def log(settings: Settings, channel: str | None, last: int, everything: bool) -> None:
    """Show the newest messages that this device has."""
    start(settings, "reading", "log", name=channel, last=None if everything else last)


@cli.command()
@_channel
@common
@json_option
@_settings
def records(settings: Settings, channel: str | None) -> None:
    """Show the metadata of all messages, with the commitments to their contents."""
    start(settings, "reading", "records", name=channel)


@cli.command()
@common
@json_option
@_settings
def status(settings: Settings) -> None:
    """Show this device, its channels, and who is connected."""
    start(settings, "devices", "status", wait=STATUS_WAIT_S)


@cli.command()
@click.option(
    "--keep",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Keep the homes of the devices in DIR.",
)
@click.option(
    "--forget",
    is_flag=True,
    help="Three devices agree to forget a message, and nothing is left of it.",
)
@verbose_option
@json_option
@_settings
def demo(settings: Settings, keep: Path | None, forget: bool) -> None:
    """Watch two devices on this machine meet, talk, and catch up. Takes some seconds."""
    from walyoff.demo.command import run_demo  # noqa: PLC0415  (only this command needs it)

    run_demo(settings, keep=keep, forget=forget)


for command in (*moving.COMMANDS, *files.COMMANDS):
    cli.add_command(command)
cli.add_command(bench)
cli.add_command(audit)
cli.add_command(graph)
for command in (adopt_stock, did, invite, join, invitations, forget, *GOVERNING):
    cli.add_command(command)
