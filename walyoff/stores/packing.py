"""Many rows through few calls into SQLite.

Python's sqlite3 gives up the interpreter lock at every step and takes it again after: each
row costs a wait for whatever runs in the event loop's thread (milliseconds, when that is
busy). So rows are written with multi-row INSERTs and read as one row, in which SQLite has
put all integers into one text and all blobs of a column end to end.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import chain
from typing import Any

#: Row counts of the prepared statements: few, so that each is compiled once.
_SIZES = (64, 8, 1)


def chunks(count: int) -> Iterator[tuple[int, int]]:
    """(start, size) pieces of a number of rows, in sizes for which there are statements."""
    start = 0
    for size in _SIZES:
        while count - start >= size:
            yield start, size
            start += size


@cache
def _insert_sql(table: str, width: int, rows: int) -> str:
    values = "(" + ",".join("?" * width) + ")"
    return f"INSERT INTO {table} VALUES " + ",".join([values] * rows)  # noqa: S608


def insert_rows(
    connection: sqlite3.Connection, table: str, rows: Sequence[tuple[Any, ...]]
) -> None:
    """Insert rows into a table (`name(columns)`, never outside input)."""
    for start, size in chunks(len(rows)):
        piece = rows[start : start + size]
        sql = _insert_sql(table, len(piece[0]), size)
        connection.execute(sql, tuple(chain.from_iterable(piece)))


@cache
def marks(count: int) -> str:
    """`?,?,?` for an IN list."""
    return ",".join("?" * count)


class PackedQuery:
    """A SELECT whose rows are fetched in one step."""

    def __init__(self, integers: Sequence[str], blobs: Sequence[str], source: str) -> None:
        """Expressions for integers and for blobs over the rows of `source`.

        A result may not exceed SQLite's limit of 10**9 bytes.
        """
        columns = [f"{name} AS i{number}" for number, name in enumerate(integers)]
        columns += [f"{name} AS b{number}" for number, name in enumerate(blobs)]
        numbers = [f"coalesce(i{n},-1)" for n in range(len(integers))]
        numbers += [f"coalesce(length(b{n}),-1)" for n in range(len(blobs))]
        # group_concat copies the bytes of blobs as they are, and skips NULLs. Were that to
        # change, nothing would authenticate: the values are all sealed.
        packed = ["group_concat('['||" + "||','||".join(numbers) + "||']')"]
        packed += [f"CAST(group_concat(b{n},'') AS BLOB)" for n in range(len(blobs))]
        self._sql = f"SELECT {', '.join(packed)} FROM (SELECT {', '.join(columns)} {source})"  # noqa: S608
        self._integers = len(integers)
        self._blobs = len(blobs)

    def rows(
        self, connection: sqlite3.Connection, parameters: Sequence[Any]
    ) -> list[list[Any]]:
        """The rows: integers (-1 for NULL), then blobs (None for NULL)."""
        packed = connection.execute(self._sql, parameters).fetchone()
        if packed[0] is None:
            return []
        rows: list[list[Any]] = json.loads(f"[{packed[0]}]")
        for number in range(self._blobs):
            column, data, at = self._integers + number, packed[1 + number], 0
            for row in rows:
                size = row[column]
                if size < 0:
                    row[column] = None
                else:
                    row[column] = data[at : at + size]
                    at += size
        return rows


@cache
def packed_query(integers: tuple[str, ...], blobs: tuple[str, ...], source: str) -> PackedQuery:
    """The PackedQuery of these parts, made once."""
    return PackedQuery(integers, blobs, source)
