"""Opening a device, and what of it goes on at the same time.

Decided here: the child process starts first, because it needs the longest. While it imports, so
does this process, and the store is opened; while its node starts, the rest is imported. So
`open_device` imports what takes time, in threads. What a home needs is in `assembling`.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from walyoff.importing import Importing
from walyoff.walytis.spawning import start_early

if TYPE_CHECKING:
    from walyoff.abc import TransportFactory
    from walyoff.node import Device
    from walyoff.platform import PlatformFactory, StoreFactory
    from walyoff.runtime import Runtime
    from walyoff.walytis.spawning import ChildProcess

DEFAULT_SUITE = "hybrid-1"
DEFAULT_TRANSPORTS = ("ipfs",)
#: What opening the store and greeting the child needs.
_FIRST = ("walyoff.assembling", "walyoff.stores", "walyoff.walytis.platform")


@asynccontextmanager
async def open_device(
    home: str | os.PathLike[str],
    *,
    transports: Sequence[str] | Mapping[str, TransportFactory] = DEFAULT_TRANSPORTS,
    listen: Sequence[str] | None = None,
    passphrase: str | None = None,
    suite: str = DEFAULT_SUITE,
    platform: PlatformFactory | None = None,
    store: StoreFactory | None = None,
    runtime: Runtime | None = None,
) -> AsyncIterator[Device]:
    """Open the device that lives in a home folder, which is made if it is not there.

    `transports` names installed transports, the best first, or maps names to factories.
    `listen` are the IP addresses of this machine at which others reach it (0.0.0.0 is all of
    them); they are kept for later starts, and it is 127.0.0.1 alone until something else was
    said. `passphrase` protects the home's key; the same one is needed ever after. `suite` is
    for keys that this device makes from now on. `platform`, `store` and `runtime` are for
    simulations.

    Raises:
        HomeInUseError: another process has it open.
        SupersededError: the device lives elsewhere now. Also later, out of the context, when a
            member says so.
        StoreError: the passphrase is wrong, or the home cannot be used.
        UnknownSuiteError: the suite is not installed.
        LocalProtocolError: one of `listen` is no IP address of this machine.
        WalyoffError: a transport is not installed or cannot be opened.
    """
    path = Path(home)
    async with AsyncExitStack() as stack:
        process: ChildProcess | None = None
        if platform is None:
            process = await stack.enter_async_context(_early_process(path))
            await Importing(*_FIRST).wait()
            await anyio.to_thread.run_sync(_load_plugins, suite, transports)
        from walyoff.assembling import assembled  # noqa: PLC0415 - it takes time

        device = await stack.enter_async_context(
            assembled(
                path,
                transports=transports,
                listen=listen,
                passphrase=passphrase,
                suite=suite,
                platform=platform,
                store=store,
                runtime=runtime,
                process=process,
            )
        )
        yield device


def _load_plugins(suite: str, transports: Sequence[str] | Mapping[str, object]) -> None:
    """Look them up among the installed distributions, which are read for it."""
    from walyoff import plugins  # noqa: PLC0415 - imported in a thread before

    plugins.suite(suite)
    if not isinstance(transports, Mapping):
        for name in transports:
            plugins.transport_factory(name)


@asynccontextmanager
async def _early_process(home: Path) -> AsyncIterator[ChildProcess | None]:
    """The child of a home that had one before; it ends with the context at the latest."""
    with anyio.CancelScope(shield=True):
        process = await anyio.to_thread.run_sync(start_early, home)
    try:
        yield process
    finally:
        if process is not None:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(process.reap, 0.0)


__all__ = ["DEFAULT_SUITE", "DEFAULT_TRANSPORTS", "open_device"]
