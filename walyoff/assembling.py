"""Putting a device together: its store, its platform and its transports, in the order in which
they depend on one another.

Decided here: what a home needs to be opened. What a device does is in `node`.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from blake3 import blake3

from walyoff import plugins
from walyoff.abc import Store, Transport, TransportFactory, TransportHost
from walyoff.importing import Importing
from walyoff.incarnations import check_current
from walyoff.runtime import REAL, Runtime
from walyoff.sealing import Sealing, all_sealed, load_sealing
from walyoff.sockets import own_addresses
from walyoff.tasks import background_tasks

if TYPE_CHECKING:
    from walyoff.node import Device
    from walyoff.platform import Platform, PlatformFactory, StoreFactory
    from walyoff.walytis.spawning import ChildProcess

#: Bytes of the temporary folder's path that leave room for a socket's name below it.
MAX_RUN_DIR = 50
#: What nobody needs before the child is there.
_REST = ("walyoff.node", "walyoff.own_keys")


@asynccontextmanager
async def assembled(
    path: Path,
    *,
    transports: Sequence[str] | Mapping[str, TransportFactory],
    listen: Sequence[str] | None,
    passphrase: str | None,
    suite: str,
    platform: PlatformFactory | None,
    store: StoreFactory | None,
    runtime: Runtime | None,
    process: ChildProcess | None,
) -> AsyncIterator[Device]:
    """The device of a home, as `open_device` says; `process` is its child, if it has one."""
    # What cannot be is not kept for later starts.
    told = own_addresses(listen or ())
    plugins.suite(suite)
    if not isinstance(transports, Mapping):
        transports = {name: plugins.transport_factory(name) for name in transports}
    async with AsyncExitStack() as stack:
        opened_store = await stack.enter_async_context(
            (store or _sqlite_store)(path, passphrase)
        )
        await check_current(opened_store)
        sealing = await load_sealing(opened_store, path)
        rest = Importing(*(() if platform else _REST))
        base = await stack.enter_async_context(
            platform(path)
            if platform
            else _walytis_platform(path, listen=told, sealing=sealing, process=process)
        )
        run_dir = _make_run_dir(path)
        stack.callback(shutil.rmtree, run_dir, ignore_errors=True)
        opened: dict[str, Transport] = {}
        for name, factory in transports.items():
            state_dir = path / "transports" / name
            # The mode is for the last folder only, so one after the other.
            for folder in (state_dir.parent, state_dir):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            host = TransportHost(
                state_dir=state_dir,
                run_dir=run_dir / name,
                ipfs=base.ipfs,
                sealer=sealing,
                listen=told or None,
            )
            host.run_dir.mkdir(mode=0o700)
            opened[name] = await stack.enter_async_context(factory(host))
        if sealing.plain:
            await all_sealed(opened_store)
        await rest.wait()
        from walyoff.node import Device  # noqa: PLC0415 - imported while the node starts
        from walyoff.own_keys import keep_own_keys  # noqa: PLC0415 - as above

        tasks = await stack.enter_async_context(background_tasks())
        device = Device(
            home=path,
            store=opened_store,
            platform=base,
            transports=opened,
            suite=suite,
            tasks=tasks,
            runtime=runtime or REAL,
        )
        await device.open_channels()
        tasks.start_soon(keep_own_keys, device)
        for transport in opened.values():
            await tasks.start(device.acceptor.listen, transport)
        yield device


def _make_run_dir(home: Path) -> Path:
    """A private folder for sockets, whose paths may have no more than 107 bytes.

    Its name belongs to the home, so what a killed process left there goes at the next start.
    """
    folder = tempfile.gettempdir()
    if len(folder.encode()) > MAX_RUN_DIR and os.access("/tmp", os.W_OK):  # noqa: S108
        folder = "/tmp"  # noqa: S108 - see below: it is ours, or it is not used
    name = blake3(str(home.resolve()).encode()).hexdigest(8)
    run_dir = Path(folder) / f"walyoff-{name}"
    try:
        run_dir.mkdir(mode=0o700)
    except FileExistsError:
        found = run_dir.lstat()
        # Others may write to the folder above: only one that is ours alone is taken over.
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            return Path(tempfile.mkdtemp(prefix="walyoff-", dir=folder))
        shutil.rmtree(run_dir)
        run_dir.mkdir(mode=0o700)
    return run_dir


def _sqlite_store(home: Path, passphrase: str | None) -> AbstractAsyncContextManager[Store]:
    from walyoff.stores import open_store  # noqa: PLC0415 - imported when it is needed

    return open_store(home, passphrase=passphrase)


def _walytis_platform(
    home: Path,
    listen: Sequence[str] | None,
    sealing: Sealing,
    process: ChildProcess | None,
) -> AbstractAsyncContextManager[Platform]:
    from walyoff.walytis.platform import open_platform  # noqa: PLC0415 - as above

    return open_platform(home, listen, sealing=sealing, process=process)


__all__ = ["assembled"]
