"""Moving, backing up and restoring a device; changing the passphrase of its home.

Decided here: in which order things become durable, so that a kill at any instant leaves the
device in one place that opens, or says how it does. An export is whole on the disk, then its
home is marked, then the file gets its name. What is unpacked becomes a home by one rename.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from walyoff import incarnations
from walyoff.errors import LocalProtocolError, StoreError
from walyoff.files import Workplace, give_name, open_private, sync_folder
from walyoff.incarnations import (
    begin_incarnation,
    check_current,
    note_exported,
    note_written,
)
from walyoff.moving import parts
from walyoff.moving.archive import BACKUP, EXPORT, ArchiveReader, ArchiveWriter
from walyoff.runtime import REAL, Runtime
from walyoff.stores import keyfile, open_store
from walyoff.stores.home import HomeLock
from walyoff.stores.vault import Vault

if TYPE_CHECKING:
    from collections.abc import Iterator

    from walyoff.channel import Channel

#: Seconds for another member to say that it has all that this device wrote.
ASK_S = 15.0

Pathlike = str | os.PathLike[str]


async def change_passphrase(home: Pathlike, old: str | None, new: str | None) -> None:
    """Set, change or remove (None) the passphrase of a home that nobody has open.

    Only the wrapping of its key changes: who has an old copy of the home and the old
    passphrase can still read that copy. A kill at any instant leaves the old passphrase or the
    new one. Takes some seconds.

    Raises:
        HomeInUseError: the device is running.
        StoreError: there is no home, or the old passphrase is wrong.
    """

    def change() -> None:
        path = _existing(home)
        lock = HomeLock(path)
        try:
            keyfile.change(path, old, new)
        finally:
            lock.release()

    await anyio.to_thread.run_sync(change)


# --------------------------------------------------------------------------- moving


async def export_device(
    home: Pathlike,
    target: Pathlike,
    *,
    file_passphrase: str,
    passphrase: str | None = None,
    with_log: bool = False,
    runtime: Runtime = REAL,
    **options: Any,
) -> None:
    """Put a device into one encrypted file, to live elsewhere: see `import_device`.

    The home refuses to open afterwards; `undo_export` takes that back. Without its log the file
    has identity, keys, channels and addresses; the members have the log. So then the device is
    opened first (`options` are those of `open_device`), and in each channel a member must say
    that it has all that the device wrote.

    Raises:
        HomeInUseError: the device is running.
        SupersededError: it lives elsewhere already.
        StoreError: the passphrase is wrong, or the file is there or cannot be written.
        LocalProtocolError: nobody else has what the device wrote; export it with its log.
    """
    path, file = _existing(home), _new_file(target)
    if not with_log:
        await _ask_others(path, passphrase, options)
    async with open_store(path, passphrase=passphrase) as store:
        await check_current(store)
        await note_written(store)
        key = await anyio.to_thread.run_sync(
            partial(keyfile.load_or_create, path, passphrase, may_create=False)
        )
        block = await anyio.to_thread.run_sync(keyfile.encode, key, file_passphrase)
        async with _workplace(file) as work:
            write = partial(
                _write, Vault(key), path, work, kind=EXPORT, key_block=block, with_log=with_log
            )
            whole = await anyio.to_thread.run_sync(write)
            try:
                await note_exported(store, runtime.wall_ms())
                _publish(whole, file)
            except BaseException:
                # There is no file for it to live in: it stays the device.
                with anyio.CancelScope(shield=True), suppress(StoreError):
                    await incarnations.undo_export(store)
                raise


async def undo_export(home: Pathlike, *, passphrase: str | None = None) -> bool:
    """Let an exported home be the device again; False if it was not exported.

    If the file was imported meanwhile, this one is told by the members, and stops.
    """
    async with open_store(_existing(home), passphrase=passphrase) as store:
        return await incarnations.undo_export(store)


async def import_device(
    source: Pathlike,
    home: Pathlike,
    *,
    file_passphrase: str,
    passphrase: str | None = None,
    alone: bool = False,
    runtime: Runtime = REAL,
) -> None:
    """Make the home of an exported device, which is this one from now on.

    `passphrase` is for the new home. Before the device writes, a member must have said what
    it wrote before; `alone` does without, if it was exported with its log.

    Raises:
        RemoteProtocolError: the file is damaged, or no export.
        StoreError: the passphrase is wrong, or there is a home already.
    """
    await _unpack(
        Path(source),
        _new_home(home),
        kind=EXPORT,
        file_passphrase=file_passphrase,
        key_file=lambda key, block: keyfile.encode(key, passphrase),
        passphrase=passphrase,
        alone=alone,
        runtime=runtime,
    )


async def take_over(
    home: Pathlike,
    *,
    passphrase: str | None = None,
    alone: bool = False,
    runtime: Runtime = REAL,
) -> None:
    """Make a home that was told of a newer copy, or was exported, the device again.

    The other copy is told so, and stops. `alone` is as in `import_device`.

    Raises SupersededError if that one has replaced the device's control keys.
    """
    async with open_store(_existing(home), passphrase=passphrase) as store:
        await begin_incarnation(store, runtime.wall_ms(), alone=alone)


# --------------------------------------------------------------------------- backups


async def backup_device(
    home: Pathlike, target: Pathlike, *, passphrase: str | None = None
) -> None:
    """Back a device up into one file, while it runs or not, consistent and encrypted.

    What protects the home's key protects the file's: without a passphrase, nothing but its
    mode does.

    Raises:
        StoreError: the passphrase is wrong, or the file is there or cannot be written.
    """
    path, file = _existing(home), _new_file(target)

    def back_up() -> None:
        # The home's owner may be at work: nothing here writes to it.
        block = keyfile.read(path)
        vault = Vault(keyfile.decode(block, passphrase, path / keyfile.KEY_NAME))
        whole = _write(vault, path, work, kind=BACKUP, key_block=block, with_log=True)
        _publish(whole, file)

    async with _workplace(file) as work:
        await anyio.to_thread.run_sync(back_up)


async def restore_device(
    source: Pathlike,
    home: Pathlike,
    *,
    passphrase: str | None = None,
    alone: bool = False,
    runtime: Runtime = REAL,
) -> None:
    """Make the home of a backup, with the passphrase that it had.

    It is the device from now on: another copy is told so by the members, and stops. Before
    it writes, a member must have said what the device wrote after the backup; `alone` does
    without, for who knows that it was nothing.

    Raises:
        RemoteProtocolError: the file is damaged, or no backup.
        StoreError: the passphrase is wrong, or there is a home already.
    """
    await _unpack(
        Path(source),
        _new_home(home),
        kind=BACKUP,
        file_passphrase=passphrase,
        key_file=lambda key, block: block,
        passphrase=passphrase,
        alone=alone,
        runtime=runtime,
    )


# ---------------------------------------------------------------------------- inside


async def _ask_others(path: Path, passphrase: str | None, options: dict[str, Any]) -> None:
    from walyoff.opening import open_device  # noqa: PLC0415 - it is heavy

    async with open_device(path, passphrase=passphrase, **options) as device:
        for channel in device.channels():
            with anyio.move_on_after(ASK_S):
                while not _somebody_has_all(channel):
                    await channel.changed()
            if not _somebody_has_all(channel):
                raise LocalProtocolError(
                    f"in {channel.name!r} no other member said that it has all that this "
                    "device wrote: try again when one is there, or export it with its log"
                )


def _somebody_has_all(channel: Channel) -> bool:
    engine = channel.engine
    own = engine.durable.get(channel.me, 0)
    if engine.reconciler.gaps(channel.me):
        return False
    for member in channel.members():
        seq, gaps = engine.confirmed.get(member.did, {}).get(channel.me, (0, frozenset()))
        if member.did in channel.peers() and seq >= own and not gaps:
            return True
    return False


def _write(
    vault: Vault, home: Path, work: Path, *, kind: int, key_block: bytes, with_log: bool
) -> Path:
    """A finished archive in a workplace, durable."""
    whole, database = work / "archive", work / "database"
    with _errors(work):
        parts.copy_database(home, database, with_log=with_log)
        descriptor = open_private(whole, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        with os.fdopen(descriptor, "wb") as out:
            writer = ArchiveWriter(out, kind=kind, key_block=key_block, key=vault.archive_key)
            parts.write_parts(
                writer, home, database, with_log=with_log, with_node=kind == BACKUP
            )
            writer.finish()
            out.flush()
            os.fsync(descriptor)
    return whole


def _publish(temporary: Path, file: Path) -> None:
    with _errors(file):
        give_name(temporary, file)


async def _unpack(
    source: Path,
    home: Path,
    *,
    kind: int,
    file_passphrase: str | None,
    key_file: Callable[[bytes, bytes], bytes],
    passphrase: str | None,
    alone: bool,
    runtime: Runtime,
) -> None:
    async with _workplace(home) as work:

        def unpack() -> None:
            with _errors(source), source.open("rb") as file:
                reader = ArchiveReader(file, kind)
                key = keyfile.decode(reader.key_block, file_passphrase, source)
                parts.read_parts(reader, Vault(key).archive_key(reader.salt), work)
                keyfile.write(work, key_file(key, reader.key_block))

        await anyio.to_thread.run_sync(unpack)
        async with open_store(work, passphrase=passphrase) as store:
            # Without its log all of the ledger is news; it is also cheap to read again.
            positions = await store.keys("ledger-position/")
            await store.put(dict.fromkeys(positions))
            await begin_incarnation(store, runtime.wall_ms(), alone=alone)
        await anyio.to_thread.run_sync(_settle, work, home)


@asynccontextmanager
async def _workplace(beside: Path) -> AsyncIterator[Path]:
    """A private folder beside what is to be, gone afterwards if it did not become it."""

    work = Workplace(beside.parent)

    def make() -> None:
        with _errors(beside.parent):
            beside.parent.mkdir(parents=True, exist_ok=True)
            work.make()

    try:
        await anyio.to_thread.run_sync(make)
        yield work.path
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(work.close)


def _settle(work: Path, home: Path) -> None:
    with _errors(home):
        if home.exists():
            home.rmdir()
        work.rename(home)
        sync_folder(home.parent)


def _existing(home: Pathlike) -> Path:
    path = Path(home)
    if not (path / "store.db").exists():
        raise StoreError(f"there is no device in {path}")
    return path


def _new_home(home: Pathlike) -> Path:
    path = Path(home).absolute()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise StoreError(f"{path} is not empty: name a folder that is not there yet")
    return path


def _new_file(target: Pathlike) -> Path:
    path = Path(target).absolute()
    if path.exists():
        raise StoreError(f"{path} is there already: name another file")
    if not path.parent.is_dir():
        raise StoreError(f"{path.parent} is no folder")
    return path


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror or error}") from error
    except sqlite3.Error as error:
        raise StoreError(f"{path}: the database failed: {error}") from error
