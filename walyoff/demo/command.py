"""The command around the demo: folders, signals, the result."""

from __future__ import annotations

import shutil
import tempfile
from functools import partial
from pathlib import Path

import click

from walyoff.cli.console import Console
from walyoff.cli.options import Settings
from walyoff.cli.output import escape_line
from walyoff.cli.runtime import Failure, run
from walyoff.demo.devices import DemoError
from walyoff.demo.forgetting import ForgetStory
from walyoff.demo.story import Outcome, Story
from walyoff.demo.transcript import Transcript


def run_demo(settings: Settings, *, keep: Path | None, forget: bool = False) -> None:
    """Run the demo, or the one of forgetting.

    Raises:
        Failure: it did not go as it must.
        click.UsageError: the folder to keep is in use.
        Interrupted: by a signal; nothing is left behind.
    """
    if keep is not None and keep.exists() and any(keep.iterdir()):
        raise click.UsageError(f"--keep {keep}: the folder is not empty")
    # mkdtemp makes it for this user alone. Agents have their sockets in it: a short path.
    temporary = Path(tempfile.mkdtemp(prefix="walyoff-demo-"))
    try:
        homes = temporary
        if keep is not None:
            keep.mkdir(mode=0o700, parents=True, exist_ok=True)
            homes = keep.absolute()
        scratch = temporary / "t"
        scratch.mkdir(mode=0o700)
        run(settings, partial(_forget if forget else _demo, homes, scratch))
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if keep is not None and not settings.json:
        click.echo(f"The homes are in {escape_line(str(homes))}.", err=True)


async def _demo(homes: Path, scratch: Path, console: Console) -> None:
    transcript = Transcript(console)
    story = Story(transcript, homes, scratch)
    error = ""
    try:
        await story.run()
    except* DemoError as group:
        error = str(_first(group))
    _conclude(console, transcript, story.outcome, error)


async def _forget(homes: Path, scratch: Path, console: Console) -> None:
    """Raises Failure when something is left."""
    transcript = Transcript(console)
    story = ForgetStory(transcript, homes, scratch)
    error = ""
    try:
        await story.run()
    except* DemoError as group:
        error = str(_first(group))
    ok = story.outcome.ok and not error
    value = {**story.outcome.as_json(), "ok": ok, "total_s": round(transcript.elapsed, 3)}
    if error:
        value["error"] = error
    console.result(value, f"\n{transcript.elapsed:.1f} s in all" if ok else None)
    if not ok:
        raise Failure(f"the demo failed: {error or 'see its JSON'}; -v shows more")


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _conclude(console: Console, transcript: Transcript, outcome: Outcome, error: str) -> None:
    """Print the result. Raises Failure when it is not what it must be."""
    ok = outcome.ok and not error
    value = {**outcome.as_json(), "ok": ok, "total_s": round(transcript.elapsed, 3)}
    if error:
        value["error"] = error
    latencies = sorted(outcome.latency_ms)
    text = None
    if latencies and not error:
        text = (
            f"\n{len(outcome.good)} of {len(outcome.sent)} messages arrived and were verified; "
            f"median {latencies[len(latencies) // 2]:.1f} ms; joined in "
            f"{outcome.join_s:.2f} s, caught up in {outcome.catch_up_s:.2f} s; "
            f"{transcript.elapsed:.1f} s in all"
        )
    console.result(value, text)
    if error:
        raise Failure(f"the demo failed: {error}; -v shows more")
    if not ok:
        reasons = [
            *outcome.wrong,
            *(f"found {what} in {place}" for place, what in outcome.findings.found),
        ]
        raise Failure("the demo failed: " + ("; ".join(reasons) or "see its JSON"))
