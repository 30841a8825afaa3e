"""`walyoff bench`: the short forms of the measurements, for users."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from walyoff.bench.registry import BENCHMARKS, Entry
from walyoff.cli.options import Settings, json_option, transport_option, verbose_option

if TYPE_CHECKING:
    from walyoff.bench.bench import Options
    from walyoff.cli.console import Console

_settings = click.make_pass_decorator(Settings, ensure=True)


@click.group()
def bench() -> None:
    """Measure this machine: short forms, each in under 45 seconds.

    Two devices run in homes of their own, which are removed afterwards. Ratios to what is
    measured in the same run (`--vs`) say more than absolute figures, which depend on what
    else the machine does; `others` says how much of it that was.
    """


def _command(entry: Entry) -> click.Command:
    @verbose_option
    @transport_option
    @json_option
    @_settings
    def callback(settings: Settings, /, **given: Any) -> None:
        _start(settings, entry, **given)

    options: list[click.Parameter] = [
        click.Option(["--suite"], default="hybrid-1", show_default=True, help="Their keys."),
        click.Option(
            ["--repeat"],
            type=click.IntRange(1, 100),
            default=entry.repeats[0],
            show_default=True,
            help="How often.",
        ),
    ]
    if entry.versus:
        options.append(
            click.Option(
                ["--vs", "versus"],
                type=click.Choice(entry.versus),
                multiple=True,
                help="Compare, alternating in the same run; `raw` is the limit.",
            )
        )
    command = click.command(entry.name, help=f"Measure: {entry.summary}.")(callback)
    command.params[:0] = options
    return command


for _entry in BENCHMARKS.values():
    bench.add_command(_command(_entry))


def _start(
    settings: Settings,
    entry: Entry,
    *,
    suite: str,
    repeat: int,
    versus: tuple[str, ...] = (),
) -> None:
    from walyoff import plugins  # noqa: PLC0415  (only when something is measured)
    from walyoff.bench.bench import Options  # noqa: PLC0415
    from walyoff.bench.lab import Setup  # noqa: PLC0415
    from walyoff.cli.runtime import run  # noqa: PLC0415

    # Theirs is an option of all commands.
    transport = (settings.transports or ("ipfs",))[0]
    # What is not installed is told at once.
    plugins.transport_factory(transport)
    plugins.suite(suite)
    setup = Setup(transport=transport, suite=suite)
    options = Options(setup=setup, repeat=repeat, versus=versus)
    run(settings, partial(_measure, entry, options))


async def _measure(entry: Entry, options: Options, console: Console) -> None:
    from walyoff.bench.bench import run  # noqa: PLC0415
    from walyoff.bench.figures import table  # noqa: PLC0415
    from walyoff.bench.lab import BenchError  # noqa: PLC0415
    from walyoff.cli.runtime import Failure  # noqa: PLC0415

    failure = ""
    value: dict[str, Any] = {}
    with console.step(f"measuring {entry.name}"):
        try:
            value = await run(entry, dataclasses.replace(options))
        except* BenchError as group:
            error: BaseException = group
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            failure = str(error)
    if failure:
        raise Failure(f"the measurement failed: {failure}")
    meanwhile = value["meanwhile"]
    text = (
        f"{table(value)}\n\nother processes took {100 * meanwhile['others']:.0f} % of the "
        f"processors meanwhile; {meanwhile['seconds']:g} s in all"
    )
    console.result(value, text)
