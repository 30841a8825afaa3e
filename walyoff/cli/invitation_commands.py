"""The commands about invitations and their options. What they do is in `inviting`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from walyoff.cli.options import Settings, as_option, common, json_option
from walyoff.cli.runtime import start

#: An invitation is valid for a day, unless it is said otherwise.
LIFETIME_S = 24 * 3600.0
#: An invitation has at most 2,048 characters, and people add spaces and line ends.
MAX_INVITATION = 8192
#: As `walyoff.issued` has it, which is not imported for `--help`.
MAX_USES = 1024
_UNLIMITED = "unlimited"

_settings = click.make_pass_decorator(Settings, ensure=True)
_channel = click.argument("channel", required=False)


class _Uses(click.ParamType[int | None]):
    name = "uses"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        if value in (_UNLIMITED, 0):
            return 0
        return click.IntRange(1, MAX_USES).convert(str(value), param, ctx)  # type: ignore[arg-type]


@click.command()
@_channel
@click.option(
    "--lifetime",
    type=click.FloatRange(min=1),
    default=LIFETIME_S,
    show_default=True,
    metavar="S",
    help="Seconds until it expires.",
)
@click.option(
    "--uses",
    type=_Uses(),
    default=1,
    show_default=True,
    metavar="N|unlimited",
    help="How many may join with it.",
)
@click.option(
    "--for",
    "purpose",
    type=click.Choice(["any", "device", "identity"]),
    default="any",
    show_default=True,
    help="Who may join with it.",
)
@click.option(
    "--confirm",
    is_flag=True,
    help="Ask here, with words to compare, before anybody is let in.",
)
@click.option(
    "--qr/--no-qr", "code", default=None, help="Show a QR code, as on a terminal by default."
)
@click.option(
    "--qr-file",
    "code_file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the QR code to a new .svg or .png file.",
)
@click.option("--no-wait", is_flag=True, help="Do not wait for others to join.")
@common
@json_option
@_settings
def invite(
    settings: Settings,
    *,
    channel: str | None,
    lifetime: float,
    uses: int,
    purpose: str,
    confirm: bool,
    code: bool | None,
    code_file: Path | None,
    no_wait: bool,
) -> None:
    """Print an invitation, and wait until somebody has joined with it.

    The invitation is a secret, good for one device unless --uses says otherwise. This device
    must be running when it is used: here, or in `walyoff listen`. Six words are shown here
    and at the one who joins; if they are the same, nobody is in between.
    """
    if confirm and no_wait:
        raise click.UsageError("--confirm waits here for the question: leave --no-wait out")
    start(
        settings,
        "inviting",
        "invite",
        name=channel,
        lifetime=lifetime,
        uses=uses or None,
        purpose=purpose,
        confirm=confirm,
        code=code,
        code_file=code_file,
        wait=not no_wait,
    )


@click.command()
@click.argument("invitation", nargs=-1, required=True)
@click.option("--name", help="What to call the channel here.")
@as_option
@common
@json_option
@_settings
def join(
    settings: Settings, invitation: tuple[str, ...], name: str | None, identity: str | None
) -> None:
    """Join a channel. INVITATION may be `-`: then it is read from stdin.

    With --as an identity joins, with all its devices of now and later.

    Spaces, dashes and capitals do not matter. Other users of this machine can see the
    arguments of commands, but not stdin.
    """
    from walyoff.invitations import parse  # noqa: PLC0415  (only this command needs it)

    text = " ".join(invitation)
    if text == "-":
        text = sys.stdin.read(MAX_INVITATION)
    # What is mistyped or long expired is told at once, and no home is made for it.
    parse(text, now=time.time())
    start(
        settings, "inviting", "join", make=True, invitation=text, name=name, identity=identity
    )


@click.command()
@_channel
@click.option(
    "--revoke", metavar="ID", help="End one: its id, the beginning of it, or the string."
)
@common
@json_option
@_settings
def invitations(settings: Settings, channel: str | None, revoke: str | None) -> None:
    """Show the invitations that this device has made, or end one of them."""
    start(settings, "inviting", "invitations", name=channel, revoke=revoke)
