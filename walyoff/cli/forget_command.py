"""The command `forget`: its options. What it does is in `walyoff.cli.forgetting`."""

from __future__ import annotations

import click

from walyoff.cli.options import Settings, common, json_option
from walyoff.cli.runtime import start

#: Seconds that the command waits for the others to answer.
WAIT_S = 5.0
#: As `walyoff.forgetting.POLICIES`, which is not imported for `--help`.
POLICIES = ("ask", "auto", "author-only")


@click.command()
@click.argument("channel_id", nargs=-1, metavar="[CHANNEL] [ID]")
@click.option("--reason", default="", metavar="TEXT", help="Why; it is kept for ever.")
@click.option("--approve", "act", flag_value="approve", help="Agree to a request.")
@click.option("--refuse", "act", flag_value="refuse", help="Do not agree to a request.")
@click.option("--withdraw", "act", flag_value="withdraw", help="Take back what you said.")
@click.option("--status", "act", flag_value="status", help="Only show how far it is.")
@click.option(
    "--policy",
    type=click.Choice(POLICIES),
    help="Who answers requests on this device from now on.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=WAIT_S,
    show_default=True,
    metavar="S",
    help="How long to wait for the others.",
)
@common
@json_option
@click.make_pass_decorator(Settings, ensure=True)
def forget(
    settings: Settings,
    *,
    channel_id: tuple[str, ...],
    reason: str,
    act: str | None,
    policy: str | None,
    timeout: float,
) -> None:
    """Ask all members to forget a message, or answer; without ID, show the open requests.

    When all members agree, every device destroys its copy for good; the record stays, with
    who agreed and when. ID is how `walyoff log` shows the message, or the beginning of its id.
    """
    if len(channel_id) > 2:
        raise click.UsageError("too many arguments: walyoff forget [CHANNEL] [ID]")
    start(
        settings,
        "forgetting",
        "forget",
        arguments=channel_id,
        reason=reason,
        act=act,
        policy=policy,
        wait=timeout,
    )
