"""Contents that are too large for the database: one encrypted file each.

The file of a content is named after its key, which is fresh for each write, and that of a
chunk of an attachment at random, so a name is never used twice and a file never changes.
Files exist before the transaction that refers to them commits; what a crash leaves without a
reference is swept at the next start.
"""

from __future__ import annotations

import itertools
import os
import re
import sqlite3
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from walyoff.abc import StoredContent
from walyoff.errors import StoreError
from walyoff.files import FOLDER_MODE, open_private, sync_folder, write_all
from walyoff.stores.direct import write_direct
from walyoff.stores.home import make_private_folder
from walyoff.stores.schema import connect
from walyoff.stores.threads import as_store_error
from walyoff.stores.vault import (
    FILE_NAME_SIZE,
    SEGMENT,
    TAG_SIZE,
    Vault,
    damaged,
    decrypt_chunk,
    decrypt_segments,
    encrypt_chunk,
    encrypt_segments,
)

CHUNKS_NAME = "chunks"
_TEMPORARY = "tmp"
#: Contents above this many bytes become files; SQLite is faster below about this size.
MAX_INLINE = 64 * 1024
#: One content, in bytes; larger things are the caller's to cut.
MAX_CONTENT = 2**30
#: And its file, with what sealing adds.
_MAX_FILE = MAX_CONTENT + 256 + (MAX_CONTENT // SEGMENT + 2) * TAG_SIZE
#: How many files are encrypted and synced at once; more only wait for the same disk.
_STAGERS = 4
#: So many chunks of attachments that follow one another lie in one folder.
_FOLDER_RUN = 256
#: How long opening waits for the sweep, in seconds; a longer one goes on beside the work.
_SWEEP_PATIENCE = 0.2
_ZEROS = bytes(SEGMENT)
#: The first byte of the names in it.
_FOLDER_NAME = re.compile("[0-9a-f]{2}")


@dataclass(frozen=True, slots=True)
class Staged:
    """A file that would survive a power loss: its name, and its wrapped key."""

    name: bytes
    wrapped: bytes


class ChunkFiles:
    """The files under HOME/chunks. Methods may be called from any thread."""

    def __init__(self, home: Path, vault: Vault) -> None:
        """Raises StoreError if the folder cannot be made."""
        self._root = home / CHUNKS_NAME
        self._vault = vault
        make_private_folder(self._root)
        make_private_folder(self._root / _TEMPORARY)
        self._pool = ThreadPoolExecutor(_STAGERS, "walyoff-chunks")
        # Names that are written now, and not yet committed: the sweep leaves them alone.
        self._in_flight: set[str] = set()
        self._chunk_numbers = itertools.count()
        self._first_folder = os.urandom(1)[0]
        self._stop = threading.Event()
        self._sweeper: threading.Thread | None = None

    def stage(self, content: StoredContent, place: bytes) -> Future[Staged]:
        """Begin to write a file. It must be given to `commit` or `discard` afterwards."""
        return self._pool.submit(self._stage, content, place)

    def _stage(self, content: StoredContent, place: bytes) -> Staged:
        key, wrapped = self._vault.new_key(place)
        staged = Staged(self._vault.file_name(key), wrapped)
        name = staged.name.hex()
        self._in_flight.add(name)
        temporary, path = self._root / _TEMPORARY / name, self._path(staged.name)
        try:
            descriptor = open_private(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            try:
                for piece in encrypt_segments(key, content, place):
                    write_all(descriptor, piece)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            self._make_folder(path.parent)
            temporary.rename(path)
            # Here and not in the writer: these wait for the disk side by side.
            sync_folder(path.parent)
        except BaseException:
            for leftover in (temporary, path):
                with suppress(OSError):
                    leftover.unlink(missing_ok=True)
            self._in_flight.discard(name)
            raise
        return staged

    def stage_chunk(self, data: bytes, place: bytes) -> Staged:
        """Write a chunk of an attachment; as `stage`, but blocking.

        The file has its name from the start, because nothing refers to it before its row does.
        """
        key, wrapped = self._vault.new_key(place)
        staged = Staged(self._chunk_name(), wrapped)
        sealed = encrypt_chunk(key, data, place)
        self._in_flight.add(staged.name.hex())
        try:
            path = self._path(staged.name)
            self._make_folder(path.parent)
            descriptor = open_private(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            try:
                if not write_direct(descriptor, sealed):
                    write_all(descriptor, sealed)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            sync_folder(path.parent)
        except OSError as error:
            self.discard(staged)
            raise as_store_error(error) from error
        except BaseException:
            self.discard(staged)
            raise
        return staged

    def _chunk_name(self) -> bytes:
        """A fresh name. Those of one time share a folder, whose sync then serves many."""
        number = next(self._chunk_numbers)
        return bytes((self._first_folder + number // _FOLDER_RUN & 0xFF,)) + os.urandom(
            FILE_NAME_SIZE - 1
        )

    def read_chunk(
        self, staged: Staged, place: bytes, size: int, record_id: bytes
    ) -> bytes | None:
        """A chunk of so many bytes; None if its file is gone.

        Raises:
            StoreError: it does not authenticate, or cannot be read.
        """
        key = self._vault.open_key(staged.wrapped, place, record_id)
        try:
            descriptor = open_private(self._path(staged.name), os.O_RDONLY)
            with os.fdopen(descriptor, "rb", buffering=0) as file:
                sealed = file.read(size + TAG_SIZE + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise as_store_error(error) from error
        return decrypt_chunk(key, sealed, place, record_id)

    def remove(self, names: Iterable[bytes]) -> None:
        """Remove files that no transaction refers to any more; a sweep does what fails."""
        for name in names:
            with suppress(OSError):
                self._path(name).unlink(missing_ok=True)

    def _make_folder(self, folder: Path) -> None:
        with suppress(FileExistsError):
            folder.mkdir(mode=FOLDER_MODE)
            sync_folder(self._root)

    def committed(self, staged: Staged) -> None:
        """A transaction refers to the file now."""
        self._in_flight.discard(staged.name.hex())

    def discard(self, staged: Staged) -> None:
        """No transaction will ever refer to the file."""
        with suppress(OSError):
            self._path(staged.name).unlink(missing_ok=True)
        self._in_flight.discard(staged.name.hex())

    def destroy(self, names: Sequence[bytes]) -> None:
        """Overwrite and remove files. Raises OSError; then call it again.

        A copying file system or a flash disk may keep the old blocks: what they held cannot
        be read any more, as its key is destroyed first.
        """
        for name in names:
            path = self._path(name)
            with suppress(FileNotFoundError):
                descriptor = open_private(path, os.O_WRONLY)
                try:
                    left = os.fstat(descriptor).st_size
                    while left:
                        left -= os.write(descriptor, _ZEROS[: min(left, len(_ZEROS))])
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
                path.unlink()
                sync_folder(path.parent)

    def read(self, wrapped: bytes, place: bytes, record_id: bytes) -> StoredContent:
        """The content of a file. Raises StoreError that names the record."""
        key = self._vault.open_key(wrapped, place, record_id)
        try:
            descriptor = open_private(self._path(self._vault.file_name(key)), os.O_RDONLY)
            with os.fdopen(descriptor, "rb") as file:
                size = os.fstat(descriptor).st_size
                if size > _MAX_FILE:
                    raise damaged(record_id)
                sealed = file.read(size)
        except FileNotFoundError:
            raise StoreError(f"the content of record {record_id[:8].hex()} is lost") from None
        return decrypt_segments(key, memoryview(sealed), place, record_id)

    def sweep(self, database: Path) -> None:
        """Remove what no transaction refers to; returns when done or after a moment."""
        self._sweeper = threading.Thread(
            target=self._sweep, args=(database,), name="walyoff-sweep", daemon=True
        )
        self._sweeper.start()
        self._sweeper.join(_SWEEP_PATIENCE)

    def _sweep(self, database: Path) -> None:
        # Not being able to sweep now is no reason to fail: the next start tries again.
        with suppress(OSError, sqlite3.Error), closing(connect(database)) as connection:
            for folder in sorted(os.listdir(self._root)):
                if folder != _TEMPORARY and not _FOLDER_NAME.fullmatch(folder):
                    # Not ours, such as what a file manager leaves.
                    continue
                if not (self._root / folder).is_dir():
                    continue
                listed = {
                    entry.name: entry.path
                    for entry in os.scandir(self._root / folder)
                    if entry.is_file(follow_symlinks=False)
                }
                prefix = "" if folder == _TEMPORARY else folder
                # In this order: what left the set since has been committed, so it shows in
                # a query that begins after.
                keep = set(self._in_flight)
                if prefix:
                    keep |= self._referred(connection, prefix)
                for name in listed.keys() - {known[len(prefix) :] for known in keep}:
                    os.unlink(listed[name])
                if self._stop.is_set():
                    return
                # The sweep is never urgent; the event loop's thread is.
                time.sleep(0)

    @staticmethod
    def _referred(connection: sqlite3.Connection, prefix: str) -> set[str]:
        low = bytes.fromhex(prefix)
        high = low + b"\xff" * 64
        found: set[str] = set()
        for table in ("contents", "chunks"):
            query = f"SELECT file FROM {table} WHERE file >= ? AND file <= ?"  # noqa: S608
            found |= {bytes(row[0]).hex() for row in connection.execute(query, (low, high))}
        return found

    def close(self) -> None:
        """Wait for what was begun. Idempotent."""
        self._stop.set()
        self._pool.shutdown()
        if self._sweeper is not None:
            self._sweeper.join()

    def _path(self, name: bytes) -> Path:
        text = name.hex()
        return self._root / text[:2] / text[2:]
