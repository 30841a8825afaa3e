"""The console of one command: results on stdout, notes and progress on stderr.

On a terminal a long step is a line that moves; elsewhere it is one plain line, and only when
the step turns out to be long. With `--json` there are no notes at all.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import anyio
import click

from walyoff.cli.output import dump

FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
EVERY_S = 0.1
#: A step that takes longer is mentioned where nothing can move.
LONG_S = 5.0
_ERASE = "\r\x1b[2K"


class ReaderGone(Exception):  # noqa: N818  (not a failure: they have seen enough)
    """Whoever read our output has closed it, as `| head` does."""


class Console:
    """Prints for one command. `run` draws the progress, in a task of its own."""

    def __init__(self, *, json: bool) -> None:
        self.json = json
        self._moving = not json and sys.stderr.isatty()
        self._label: str | None = None
        #: How far the step is, while there is more to say of it than that it goes on.
        self.detail: str | None = None
        self._begun = 0.0
        self._drawn = False
        self._work = anyio.Event()

    def result(self, value: Mapping[str, Any], text: str | None) -> None:
        """Print a result, at once: as JSON, or the text (None: nothing) for people.

        Raises:
            ReaderGone: nobody reads it any more.
        """
        line = dump(value) if self.json else text
        if line is not None:
            self._erase()
            try:
                click.echo(line)
                sys.stdout.flush()
            except BrokenPipeError as error:
                raise ReaderGone from error

    def note(self, text: str) -> None:
        """Tell people what is going on. Not for machines."""
        if not self.json:
            self._erase()
            click.echo(text, err=True)

    @contextmanager
    def step(self, label: str) -> Iterator[None]:
        """Show that something is under way. Steps do not nest."""
        self._label, self._begun = label, anyio.current_time()
        self._work.set()
        try:
            yield
        finally:
            self._label = self.detail = None
            self._erase()

    def _erase(self) -> None:
        if self._drawn:
            self._drawn = False
            sys.stderr.write(_ERASE)
            sys.stderr.flush()

    async def run(self) -> None:
        """Draw until cancelled."""
        count = 0
        mentioned: str | None = None
        said = 0.0
        while True:
            if self._label is None:
                self._work = anyio.Event()
                await self._work.wait()
            await anyio.sleep(EVERY_S)
            label, spent = self._label, anyio.current_time() - self._begun
            if label is None:
                continue
            if self._moving:
                count += 1
                frame = FRAMES[count % len(FRAMES)]
                text = label if self.detail is None else f"{label}  {self.detail}"
                sys.stderr.write(f"{_ERASE}{frame} {text} ({spent:.0f} s)")
                sys.stderr.flush()
                self._drawn = True
            elif spent > LONG_S and label != mentioned:
                mentioned = label
                said = spent
                self.note(f"{label} ...")
            elif self.detail is not None and spent - said > LONG_S:
                said = spent
                self.note(f"{label}  {self.detail}")
