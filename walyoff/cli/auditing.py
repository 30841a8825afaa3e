"""The commands `audit` and `graph`: they read the home as it lies on disk."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import anyio
import click

from walyoff.cli.console import Console
from walyoff.cli.options import Settings, common, json_option
from walyoff.cli.output import escape_line
from walyoff.cli.runtime import Failure, read_passphrase, run

_settings = click.make_pass_decorator(Settings, ensure=True)
_channel = click.argument("channel", required=False)
#: Findings that people are shown; --json has all.
MAX_SHOWN = 50


@click.command()
@_channel
@common
@json_option
@_settings
def audit(settings: Settings, channel: str | None) -> None:
    """Check everything that was ever written to a channel, as far as this device has it.

    Blocks, signatures, hash chains, and the commitments of held contents; nothing is
    changed. The device must not be running. Fails if anything is wrong.
    """
    run(settings, functools.partial(_audit, settings, name=channel))


async def _audit(settings: Settings, console: Console, *, name: str | None) -> None:
    from walyoff.audit import audit as check  # noqa: PLC0415  (heavy)

    bar = _Bar(shown=not settings.json)
    report = await check(
        settings.home.expanduser(),
        name,
        passphrase=read_passphrase(settings.passphrase_file),
        progress=bar.show,
    )
    bar.end()
    lines = [f"{escape_line(report.name)}: " + ("sound" if report.sound else "NOT sound")]
    lines += [f"{count:>9}  {what}" for what, count in report.counts.items()]
    lines += [f"{n:>9}  refused on the identity: {why}" for why, n in report.refused.items()]
    for finding in report.findings[:MAX_SHOWN]:
        lines.append(escape_line(f"  ! {finding.kind}: {finding.where}: {finding.detail}"))
    if len(report.findings) > MAX_SHOWN:
        lines.append(f"  ! and {len(report.findings) - MAX_SHOWN} more: --json has all")
    console.result(report.as_json(), "\n".join(lines))
    if not report.sound:
        raise Failure(f"{len(report.findings)} things are wrong in {report.name!r}")


@click.command()
@_channel
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Where the SVG goes [CHANNEL.svg].",
)
@common
@json_option
@_settings
def graph(settings: Settings, channel: str | None, out: Path | None) -> None:
    """Draw the blocks of a channel as SVG: segments, authors, anchors.

    The device must not be running.
    """
    run(settings, functools.partial(_graph, settings, name=channel, out=out))


async def _graph(
    settings: Settings, console: Console, *, name: str | None, out: Path | None
) -> None:
    from walyoff.audit import audit as check  # noqa: PLC0415  (heavy)
    from walyoff.graph import draw  # noqa: PLC0415

    bar = _Bar(shown=not settings.json)
    report = await check(
        settings.home.expanduser(),
        name,
        passphrase=read_passphrase(settings.passphrase_file),
        progress=bar.show,
        contents=False,
    )
    bar.end()
    svg = await anyio.to_thread.run_sync(draw, report.segments, report.name)
    safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in report.name)
    path = out or Path(f"{safe}.svg")
    await anyio.Path(path).write_text(svg, encoding="utf-8")
    blocks = sum(len(segment.raw.blocks) for segment in report.segments)
    console.result(
        {"file": str(path), "segments": len(report.segments), "blocks": blocks},
        f"{path}: {blocks} blocks in {len(report.segments)} segments",
    )


class _Bar:
    """A progress bar on stderr; told from any thread, drawn when a percent has passed."""

    def __init__(self, *, shown: bool) -> None:
        self._shown = shown and sys.stderr.isatty()
        self._percent = -1

    def show(self, done: int, of: int) -> None:
        percent = 100 * done // of
        if self._shown and percent != self._percent:
            self._percent = percent
            filled = percent * 30 // 100
            bar = "█" * filled + "░" * (30 - filled)
            click.echo(f"\r{bar} {percent:3} %  {done}/{of}", nl=False, err=True)

    def end(self) -> None:
        if self._shown and self._percent >= 0:
            click.echo("\r\x1b[2K", nl=False, err=True)


__all__ = ["audit", "graph"]
