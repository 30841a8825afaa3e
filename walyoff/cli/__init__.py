"""The command line: `walyoff`.

Decided here: what holds of the process from its first moment to its last: Ctrl-C ends it at
once and quietly where no command is there to end in order, and no crash writes down what is in
its memory. What takes time to import is imported after that. Exit codes are decided in
`walyoff.cli.running`.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType

#: What a shell says of a command that Ctrl-C ended.
INTERRUPTED = 128 + signal.SIGINT


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit code."""
    from walyoff.cli import running  # noqa: PLC0415  (takes a tenth of a second)

    return running.run(arguments)


def main() -> None:
    """The entry point of the script."""
    _on_interrupt(_end)
    import resource  # noqa: PLC0415  (a shared library)

    # Keys are in the memory of this process: a crash writes none of them down.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    import walyoff.cli.running  # noqa: F401, PLC0415

    code: int = INTERRUPTED
    try:
        # A command closes what it has opened.
        _on_interrupt(signal.default_int_handler)
        code = run(sys.argv[1:])
        _on_interrupt(_end)
    except KeyboardInterrupt:
        _on_interrupt(_end)
    sys.exit(code)


def _on_interrupt(handler: Callable[[int, FrameType | None], object]) -> None:
    # Scripts start commands in the background so that Ctrl-C does not concern them.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, handler)


def _end(signum: int, frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)


__all__ = ["INTERRUPTED", "main", "run"]
