"""What of a home goes into an archive, and out of one into a new home.

Decided here: which files. Not in any archive are the blocks of the IPFS node, which are in the
chains' files as well, its lock and its logs. An export leaves out what belongs to the machine:
the keys and ports of node and transports. The database is copied as of one moment, and large
contents after it: a file exists before the database names it.

Blocking: runs in worker threads.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from walyoff.errors import RemoteProtocolError, StoreError
from walyoff.files import open_private, sync_folder, write_all
from walyoff.moving.archive import ArchiveReader, ArchiveWriter
from walyoff.stores import schema
from walyoff.stores.home import make_private_folder

#: Tables of the device itself; the others are the log.
_OWN_TABLES = {"checks", "settings"}
#: Keys last: a block that is written meanwhile comes back from others, and the keys that it
#: brings in do not.
_FOLDERS = ("walytis", "positions", "segments", "keys")
#: The node's settings and its sealed key.
_NODE = ("config", "identity", "version", "datastore_spec")


def copy_database(home: Path, target: Path, *, with_log: bool) -> None:
    """A consistent copy of the database, also while it is written; `target` is not there.

    Raises:
        sqlite3.Error: it could not be made.
    """
    os.close(open_private(target, os.O_RDWR | os.O_CREAT | os.O_EXCL))
    with (
        closing(_connect(home / schema.DATABASE_NAME, "rw")) as source,
        closing(_connect(target, "rw")) as copy,
    ):
        # In one step: it is one read transaction, which delays no writer.
        source.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE").fetchall()
        copy.execute("PRAGMA secure_delete = ON").fetchall()
        if not with_log:
            _forget_log(copy)
        copy.execute("VACUUM")


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    return sqlite3.connect(uri, uri=True, timeout=5.0, isolation_level=None)


def _forget_log(database: sqlite3.Connection) -> None:
    rows = database.execute(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
    ).fetchall()
    for (name,) in rows:
        if name not in _OWN_TABLES:
            database.execute(f'DELETE FROM "{name}"')  # noqa: S608 - a name of our schema


def write_parts(
    writer: ArchiveWriter, home: Path, database: Path, *, with_log: bool, with_node: bool
) -> None:
    """Add what belongs into an archive. Raises StoreError, OSError."""
    _add(writer, schema.DATABASE_NAME, database)
    paths = [path for folder in _FOLDERS for path in _files(home / folder)]
    if with_log:
        paths += [home / "cursors", *_files(home / "chunks", without="tmp")]
    if with_node:
        paths += [home / "ipfs" / name for name in _NODE]
        paths += list(_files(home / "transports"))
    for path in paths:
        name = str(path.relative_to(home))
        try:
            _add(writer, name, path)
        except FileNotFoundError:
            # Replaced or destroyed since it was listed.
            continue


def _add(writer: ArchiveWriter, name: str, path: Path) -> None:
    descriptor = open_private(path, os.O_RDONLY)
    with os.fdopen(descriptor, "rb") as file:
        writer.add(name, file, os.fstat(descriptor).st_size)


def _files(folder: Path, *, without: str = "") -> Iterator[Path]:
    """The files below a folder, but hidden ones: those are on their way to be files."""
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name == without or path.is_symlink():
            continue
        if path.is_dir():
            yield from _files(path)
        elif path.is_file():
            yield path


def read_parts(reader: ArchiveReader, key: bytes, home: Path) -> None:
    """Write all parts below a new home; durable when it returns.

    Raises:
        RemoteProtocolError: the archive is damaged, or has a part twice.
        OSError: it cannot be written.
    """
    folders = {home}
    for path, _, pieces in reader.parts(key):
        target = home / path
        for folder in reversed(target.relative_to(home).parents):
            if home / folder not in folders:
                make_private_folder(home / folder)
                folders.add(home / folder)
        try:
            descriptor = open_private(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        except (FileExistsError, IsADirectoryError):
            raise RemoteProtocolError("the file has a part twice") from None
        try:
            for piece in pieces:
                write_all(descriptor, piece)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    for folder in folders:
        sync_folder(folder)
    if not (home / schema.DATABASE_NAME).is_file():
        raise RemoteProtocolError("the file has no store")
    check_database(home / schema.DATABASE_NAME)


def check_database(path: Path) -> None:
    """Refuse a database that has what none of ours has.

    Raises:
        StoreError: it is damaged, or has tables, views or triggers of others.
    """
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as own:
        schema.prepare(own, b"")
        known = _objects(own)
    try:
        with closing(_connect(path, "ro")) as database:
            for pragma in ("trusted_schema = OFF", "cell_size_check = ON"):
                database.execute(f"PRAGMA {pragma}").fetchall()
            found = _objects(database)
            (state,) = database.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error as error:
        raise StoreError(f"the database in the file is damaged: {error}") from error
    if not found <= known or state != "ok":
        raise StoreError("the database in the file is damaged")


def _objects(database: sqlite3.Connection) -> set[tuple[str, str]]:
    return set(database.execute("SELECT type, name FROM sqlite_master").fetchall())
