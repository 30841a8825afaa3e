"""Destroying contents: no byte of them, of their keys or ciphertexts is left in the home.

Decided here: how. A row of `contents` is overwritten in its place with zeros of the same size,
which SQLite does without moving any row; it is not deleted, because what follows a deletion
moves rows of others and leaves copies of them. Rows are only ever appended (see `schema`), so
there is one copy of each. The write-ahead log has what was written lately: it is copied back
and cut to nothing. Files of large contents are overwritten and removed.

A crash between the steps leaves nothing half done: the transaction marks the record as
forgotten and destroys the keys, the log is cut at every opening, and files that no row names
are swept then. Chunks that another attachment uses stay.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from walyoff.errors import StoreError
from walyoff.stores import places
from walyoff.stores.attachments import release
from walyoff.stores.packing import chunks, marks
from walyoff.stores.schema import FORGOTTEN, HELD, PLACE
from walyoff.stores.vault import Vault


def destroy(
    connection: sqlite3.Connection, vault: Vault, channel_id: str, record_ids: Sequence[bytes]
) -> list[bytes]:
    """Mark records as forgotten and destroy keys and contents; returns the names of files.

    Inside a transaction. Raises StoreError if a record is unknown.
    """
    channel_ref = vault.ref(places.CHANNEL, b"", channel_id.encode())
    wanted = list(dict.fromkeys(record_ids))
    refs = vault.refs(places.RECORD, channel_ref, wanted)
    found: list[tuple[int, int, int]] = []
    for start, size in chunks(len(refs)):
        found += connection.execute(
            f"SELECT record, held, {PLACE} FROM records r WHERE ref IN ({marks(size)})",  # noqa: S608
            refs[start : start + size],
        ).fetchall()
    if len(found) != len(wanted):
        raise StoreError("a record that is to be forgotten is unknown")
    files: list[bytes] = []
    for record, held, place in found:
        if held == HELD:
            files += blank(connection, "record = ?", (place,))
        connection.execute(
            "UPDATE records SET held = ? WHERE record = ?",
            (FORGOTTEN, record),
        )
        connection.execute("DELETE FROM expiries WHERE record = ?", (record,))
        files += release(connection, record)
    return files


def blank(
    connection: sqlite3.Connection, which: str, values: tuple[object, ...]
) -> list[bytes]:
    """Overwrite contents, and their keys, in their places; returns the names of files."""
    files = connection.execute(
        f"SELECT file FROM contents WHERE file IS NOT NULL AND ({which})",  # noqa: S608
        values,
    ).fetchall()
    connection.execute(
        "UPDATE contents SET key = zeroblob(length(key)),"  # noqa: S608
        " data = CASE WHEN data IS NULL THEN NULL ELSE zeroblob(length(data)) END,"
        " file = CASE WHEN file IS NULL THEN NULL ELSE zeroblob(length(file)) END"
        f" WHERE {which}",
        values,
    )
    return [name for (name,) in files]


def truncate_log(connection: sqlite3.Connection) -> None:
    """Copy the write-ahead log back and cut it. Outside of a transaction.

    Raises:
        StoreError: a reader of the database is in the way; try again.
    """
    busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if busy:
        raise StoreError("the write-ahead log is being read: it is cut the next time")
