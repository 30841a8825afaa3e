"""One command of the command line, from its arguments to its exit code.

Decided here: exit codes, and that every failure is one clear line. 0 is done, 1 is failed,
2 is wrong usage, 128 + n is ended by signal n (130 for Ctrl-C). There is never a traceback,
unless `-v` asked for one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Sequence

import click

from walyoff.cli.commands import cli
from walyoff.cli.console import ReaderGone
from walyoff.cli.output import escape_line
from walyoff.cli.runtime import Failure, Interrupted
from walyoff.errors import (
    ChildError,
    HomeInUseError,
    NotAMemberError,
    QuotaExceededError,
    StoreError,
    TransportError,
    UnknownSuiteError,
    WalyoffError,
)

FAILED = 1
WRONG_USAGE = 2
#: What a shell says of a command that a signal ended.
SIGNALLED = 128

#: What to do, by kind of failure, where the error's own text does not say it. First match.
_ADVICE: tuple[tuple[type[WalyoffError], str], ...] = (
    (
        HomeInUseError,
        "a home has one owner at a time: end that one (Ctrl-C in its terminal), or use it, "
        "as `walyoff listen` on a terminal sends what you type",
    ),
    (ChildError, "try again; -v shows more"),
    (TransportError, "check that the other device is running, and try again"),
    (QuotaExceededError, "see walyoff attachments --quota, and walyoff gc"),
    (NotAMemberError, "ask a member for an invitation"),
    (UnknownSuiteError, "install the package that has it"),
    (StoreError, "see --home and --passphrase-file"),
)

_log = logging.getLogger("walyoff.cli")


def describe(error: BaseException) -> str:
    """One line: what went wrong and what to do. Text from outside is made harmless."""
    if isinstance(error, WalyoffError | Failure):
        advice = next((text for kind, text in _ADVICE if isinstance(error, kind)), "")
        text = str(error)
        # "problem: what to do" is how our errors are written that say it themselves.
        return escape_line(f"{text}; {advice}" if advice and ": " not in text else text)
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return escape_line(f"{where}{error.strerror}")
    return escape_line(f"this should not happen: {type(error).__name__}: {error}; see -v")


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit code."""
    try:
        code = cli.main(list(arguments), prog_name="walyoff", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except Interrupted as error:
        return SIGNALLED + error.signum
    except (KeyboardInterrupt, click.Abort):
        return SIGNALLED + signal.SIGINT
    except (ReaderGone, BrokenPipeError):
        # Whoever read our output has seen enough (`| head`). Nothing more can be written,
        # and Python would complain when it flushes at the end.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # the last place: a person gets a line, not a traceback
        _log.debug("the command failed", exc_info=error)
        click.echo(f"walyoff: {describe(error)}", err=True)
        return FAILED
    return code if isinstance(code, int) else 0


__all__ = ["FAILED", "WRONG_USAGE", "describe", "run"]
