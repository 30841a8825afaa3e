"""Running a command: the event loop, signals, and the device that it works on.

A signal cancels the command, so that everything is closed in order: the child process ends
and the home is free again. It is not taken as a failure.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import TaskStatus

from walyoff.cli.console import Console
from walyoff.cli.options import Settings

#: What says that a folder is a device's home (`walyoff.stores`).
_DATABASE = "store.db"
#: A passphrase is at most 1,024 bytes; a file that is larger is the wrong one.
MAX_PASSPHRASE_FILE = 4096
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: Closing takes a second; people press Ctrl-C twice. Only so many mean it.
IMPATIENT = 3

_log = logging.getLogger("walyoff.cli")


class Failure(Exception):  # noqa: N818  (it is what happened to the command, not a bug)
    """The command cannot be done; the text says why and what to do."""


class Interrupted(Exception):  # noqa: N818
    """A signal ended the command, and everything was closed."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"ended by signal {signum}")
        self.signum = signum


def set_up_logging(verbosity: int) -> None:
    """Logs go to stderr when they were asked for, and nowhere else."""
    if not verbosity:
        logging.getLogger().addHandler(logging.NullHandler())
        return
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO if verbosity == 1 else logging.DEBUG,
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
    )
    # Its debug lines are about every wait of the event loop.
    logging.getLogger("asyncio").setLevel(logging.INFO)
    logging.getLogger("walyoff.cli").setLevel(logging.DEBUG)


def read_passphrase(path: Path | None) -> str | None:
    """The first line of a file. Raises Failure."""
    if path is None:
        return None
    with path.open("rb") as file:
        data = file.read(MAX_PASSPHRASE_FILE)
    try:
        passphrase = data.split(b"\n", 1)[0].rstrip(b"\r").decode()
    except UnicodeDecodeError:
        raise Failure(f"{path} is not a text file: its first line is the passphrase") from None
    if not passphrase:
        raise Failure(f"{path} is empty: its first line is the passphrase")
    return passphrase


def run(settings: Settings, command: Callable[[Console], Awaitable[None]]) -> None:
    """Run a command in an event loop.

    Raises:
        Interrupted: by a signal.
        Exception: the command's own, or what broke underneath it; never a group.
    """
    set_up_logging(settings.verbosity)
    caught: list[int] = []
    try:
        anyio.run(_supervise, settings, command, caught)
    except BaseExceptionGroup as group:
        error = _leaf(group)
        if not caught:
            raise error from group
        _log.debug("while it was being ended", exc_info=error)
    if caught:
        raise Interrupted(caught[0])


def _leaf(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first real error in a group: the one that began it."""
    for error in group.exceptions:
        return _leaf(error) if isinstance(error, BaseExceptionGroup) else error
    return group


async def _supervise(
    settings: Settings, command: Callable[[Console], Awaitable[None]], caught: list[int]
) -> None:
    console = Console(json=settings.json)
    scope = anyio.CancelScope()
    async with anyio.create_task_group() as tasks:
        await tasks.start(_watch_signals, scope, caught)
        tasks.start_soon(console.run)
        try:
            with scope:
                await command(console)
        finally:
            tasks.cancel_scope.cancel()


async def _watch_signals(
    scope: anyio.CancelScope, caught: list[int], *, task_status: TaskStatus[None]
) -> None:
    with anyio.open_signal_receiver(*SIGNALS) as signals:
        task_status.started()
        async for signum in signals:
            caught.append(int(signum))
            scope.cancel()
            if len(caught) >= IMPATIENT:
                # The child process ends with this one, and the kernel frees the home.
                os._exit(128 + signum)


def start(
    settings: Settings, module: str, function: str, *, make: bool = False, **arguments: Any
) -> None:
    """Run `walyoff.cli.MODULE.FUNCTION(console, device, **arguments)` on the open device.

    By name, because those modules import what is heavy and `--help` needs none of it.
    `make` allows the home to be made. Raises as `run`.
    """
    command = partial(
        _with_device,
        settings,
        module=module,
        function=function,
        make=make,
        arguments=arguments,
    )
    run(settings, command)


async def _with_device(
    settings: Settings,
    console: Console,
    *,
    module: str,
    function: str,
    make: bool,
    arguments: dict[str, Any],
) -> None:
    home = settings.home.expanduser()
    if not make and not (home / _DATABASE).exists():
        raise Failure(f"there is no device in {home}: make one with `walyoff init`")
    passphrase = read_passphrase(settings.passphrase_file)
    failure: Exception | None = None
    async with AsyncExitStack() as stack:
        with console.step("opening the device"):
            from walyoff.opening import DEFAULT_TRANSPORTS, open_device  # noqa: PLC0415  (heavy)

            action = getattr(importlib.import_module(f"walyoff.cli.{module}"), function)
            device = await stack.enter_async_context(
                open_device(
                    home,
                    passphrase=passphrase,
                    listen=settings.listen,
                    transports=settings.transports or DEFAULT_TRANSPORTS,
                )
            )
        # The device holds a task group, from which an error would come out in a group.
        try:
            await action(console, device, **arguments)
        except Exception as error:
            failure = error
    if failure is not None:
        raise failure
