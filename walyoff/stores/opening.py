"""Opening a home: folder, lock, key, database, files; and undoing it when one step fails.

Blocking: runs in a worker thread.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from walyoff.errors import StoreError
from walyoff.files import open_private
from walyoff.stores import keyfile, places, schema
from walyoff.stores.chunks import CHUNKS_NAME, ChunkFiles
from walyoff.stores.destroying import truncate_log
from walyoff.stores.home import HomeLock, make_private_folder
from walyoff.stores.marks import CursorMarks
from walyoff.stores.threads import as_store_error
from walyoff.stores.vault import Vault


@dataclass(slots=True)
class OpenHome:
    """What opening gives: everything that must be closed again."""

    path: Path
    lock: HomeLock
    vault: Vault
    files: ChunkFiles
    marks: CursorMarks
    writer: sqlite3.Connection
    reader: sqlite3.Connection


def open_home(path: Path, passphrase: str | None) -> OpenHome:
    """Open a home or make a new one.

    Raises:
        HomeInUseError: it has an owner.
        StoreError: anything else that makes it unusable.
    """
    try:
        with ExitStack() as undo:
            make_private_folder(path)
            lock = HomeLock(path)
            undo.callback(lock.release)
            database = path / schema.DATABASE_NAME
            fresh = not database.exists() or database.stat().st_size == 0
            if fresh and (path / CHUNKS_NAME).exists():
                # It is made after the database. An empty database here would have every
                # file in it swept away, and a restored one would find nothing.
                raise StoreError(f"{database} is missing: the store cannot be read")
            vault = Vault(keyfile.load_or_create(path, passphrase, may_create=fresh))
            # SQLite would create it with the umask's mode; its -wal and -shm copy ours.
            os.close(open_private(database, os.O_RDWR | os.O_CREAT))
            writer = schema.connect(database)
            undo.callback(writer.close)
            check = schema.prepare(writer, vault.seal(places.CHECK, places.CHECK))
            try:
                vault.unseal(check, places.CHECK, "")
            except StoreError:
                raise StoreError(f"the key in {path} is not the key of its store") from None
            # Drafts of attachments end with the run that sent them.
            writer.execute("DELETE FROM uses WHERE record < 0")
            # What a crash left in the log goes into the database, where it is destroyed if it
            # was forgotten, before anything is read.
            truncate_log(writer)
            reader = schema.connect(database)
            undo.callback(reader.close)
            reader.execute("PRAGMA query_only = ON")
            files = ChunkFiles(path, vault)
            undo.callback(files.close)
            marks = CursorMarks(path, vault)
            undo.callback(marks.close)
            files.sweep(database)
            undo.pop_all()
    except Exception as error:
        mapped = as_store_error(error)
        if mapped is error:
            raise
        raise mapped from error
    return OpenHome(path, lock, vault, files, marks, writer, reader)
