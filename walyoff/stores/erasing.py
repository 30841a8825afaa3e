"""Erasing the log of a channel: its records, contents, attachments and authors.

Decided here: what stays, which is the channel's top alone. Positions only ever grow, so a
named cursor of before does not skip what comes if the device joins again.
"""

from __future__ import annotations

import sqlite3

from walyoff.stores.schema import PLACE

_CHANNEL_TABLES = ("attachments", "expiries", "chunks", "records", "batches", "authors")


def erase(connection: sqlite3.Connection, channel_ref: bytes) -> list[bytes]:
    """Delete a channel's rows, inside a transaction.

    Returns the names of the files to be removed after it, whose keys are gone with it.
    """
    row = connection.execute("SELECT channel FROM channels WHERE ref = ?", (channel_ref,))
    found = row.fetchone()
    if found is None:
        return []
    records = "(SELECT record FROM records WHERE channel = ?)"
    places = f"(SELECT {PLACE} FROM records r WHERE channel = ?)"  # noqa: S608
    files = connection.execute(
        f"SELECT file FROM contents WHERE file IS NOT NULL AND record IN {places}"  # noqa: S608
        " UNION SELECT file FROM chunks WHERE channel = ?",
        (found[0], found[0]),
    ).fetchall()
    connection.execute(f"DELETE FROM contents WHERE record IN {places}", found)  # noqa: S608
    connection.execute(f"DELETE FROM uses WHERE record IN {records}", found)  # noqa: S608
    for table in _CHANNEL_TABLES:
        connection.execute(f"DELETE FROM {table} WHERE channel = ?", found)  # noqa: S608
    return [name for (name,) in files]


__all__ = ["erase"]
