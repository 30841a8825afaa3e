"""Erasing the log of a channel: its records, contents, attachments and authors.

Decided here: what stays, which is the channel's top alone. Positions only ever grow, so a
named cursor of before does not skip what comes if the device joins again.
"""

from __future__ import annotations

import sqlite3

from walyoff.stores.destroying import blank
from walyoff.stores.schema import PLACE

_CHANNEL_TABLES = ("attachments", "expiries", "chunks", "records", "batches", "authors")


def erase(connection: sqlite3.Connection, channel_ref: bytes) -> list[bytes]:
    """Destroy a channel's contents and delete its rows, inside a transaction.

    Returns the names of the files to be destroyed after it, whose keys are gone with it.
    """
    row = connection.execute("SELECT channel FROM channels WHERE ref = ?", (channel_ref,))
    found = row.fetchone()
    if found is None:
        return []
    records = "(SELECT record FROM records WHERE channel = ?)"
    places = f"(SELECT {PLACE} FROM records r WHERE channel = ?)"  # noqa: S608
    # First in their places: what follows a deletion moves rows, and leaves copies of them.
    files = blank(connection, f"record IN {places}", found)
    chunks = "SELECT file FROM chunks WHERE channel = ?"
    files += [name for (name,) in connection.execute(chunks, found)]
    connection.execute("UPDATE chunks SET key = zeroblob(length(key)) WHERE channel = ?", found)
    connection.execute(f"DELETE FROM contents WHERE record IN {places}", found)  # noqa: S608
    connection.execute(f"DELETE FROM uses WHERE record IN {records}", found)  # noqa: S608
    for table in _CHANNEL_TABLES:
        connection.execute(f"DELETE FROM {table} WHERE channel = ?", found)  # noqa: S608
    return files


__all__ = ["erase"]
