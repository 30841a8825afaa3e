"""The rows of records and contents, put into SQLite in a few steps.

Decided here: how rows become statements; never what is in them. The interpreter lock is
given up at every step and taken again after it (see `packing`), and an INSERT of a thousand
rows is one step if SQLite itself takes the rows apart: out of one blob, with the places of the
pieces in it. Rows are inserted in the order given, because contents are only ever appended.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from walyoff.stores.packing import insert_rows
from walyoff.stores.vault import REF_SIZE, WRAPPED_SIZE

#: Fewer rows than this are not worth a statement of their own.
_MIN_RUN = 8
#: Rows of contents in one statement: with the largest inline contents that is 64 MiB.
_MAX_CONTENTS = 1024
#: A piece of the blob: where it begins, and in so many low bits how long it is.
_SIZE_BITS = 20

_RECORDS = "records(record,ref,channel,batch,held,position,place)"
_RECORD_RUN = (
    "WITH RECURSIVE n(i) AS (VALUES (0) UNION ALL SELECT i + 1 FROM n WHERE i + 1 < ?1)"  # noqa: S608
    f" INSERT INTO {_RECORDS} SELECT ?2 + i, substr(?3, i * {REF_SIZE} + 1, {REF_SIZE}),"
    " ?4, ?5, ?6, ?7 + i, ?8 + i FROM n"
)
_CONTENT_RUN = (
    "INSERT INTO contents(record,key,data)"  # noqa: S608
    f" SELECT CAST(key AS INTEGER), substr(?1, (value >> {_SIZE_BITS}) + 1, {WRAPPED_SIZE}),"
    f" substr(?1, (value >> {_SIZE_BITS}) + {WRAPPED_SIZE + 1}, value & {2**_SIZE_BITS - 1})"
    " FROM json_each(?2)"
)
#: NULL and a number is NULL.
_UPDATE_RUN = (
    "UPDATE records SET held = ?1, position = record + ?2, place = record + ?3"
    " WHERE record BETWEEN ?4 AND ?5"
)


@dataclass(slots=True)
class RecordRow:
    """A record that a write touches, as it will be."""

    number: int
    #: Its row in `batches`.
    batch: int
    held: int
    position: int | None
    #: Not in the table yet.
    new: bool
    changed: bool = False
    #: Where its content is, if not at its own number.
    place: int | None = None

    def run(self) -> tuple[int, int, int | None, int | None]:
        """Its batch, `held`, and how far position and place are from its number.

        Equal for records that follow one another in everything.
        """
        number, position, place = self.number, self.position, self.place
        return (
            self.batch,
            self.held,
            None if position is None else position - number,
            None if place is None else place - number,
        )


@dataclass(slots=True)
class ContentRow:
    """A content as it is stored: either data or the name of a file."""

    number: int
    wrapped: bytes
    data: bytes | None
    file: bytes | None = None


def insert_records(
    connection: sqlite3.Connection, channel: int, rows: Iterable[tuple[RecordRow, bytes]]
) -> None:
    """Insert records and their refs; the numbers follow one another. Raises sqlite3.Error."""
    for _, group in groupby(rows, lambda row: row[0].run()):
        run = list(group)
        first, count = run[0][0], len(run)
        if count >= _MIN_RUN:
            refs = b"".join([ref for _, ref in run])
            connection.execute(
                _RECORD_RUN,
                (
                    *(count, first.number, refs, channel),
                    *(first.batch, first.held, first.position, first.place),
                ),
            )
        else:
            insert_rows(
                connection,
                _RECORDS,
                [
                    (r.number, ref, channel, r.batch, r.held, r.position, r.place)
                    for r, ref in run
                ],
            )


def update_records(connection: sqlite3.Connection, rows: Iterable[RecordRow]) -> None:
    """Write records that are in the table already. Raises sqlite3.Error."""
    ordered = enumerate(sorted(rows, key=lambda row: row.number))
    for _, group in groupby(ordered, lambda item: (item[1].number - item[0], item[1].run())):
        run = [row for _, row in group]
        _, held, position, place = run[0].run()
        connection.execute(_UPDATE_RUN, (held, position, place, run[0].number, run[-1].number))


def insert_contents(connection: sqlite3.Connection, rows: Sequence[ContentRow]) -> None:
    """Insert contents in ascending order of their numbers. Raises sqlite3.Error."""
    for in_files, group in groupby(rows, lambda row: row.data is None):
        run = list(group)
        if in_files or len(run) < _MIN_RUN:
            insert_rows(
                connection,
                "contents(record,key,data,file)",
                [(row.number, row.wrapped, row.data, row.file) for row in run],
            )
        else:
            for start in range(0, len(run), _MAX_CONTENTS):
                _insert_inline(connection, run[start : start + _MAX_CONTENTS])


def _insert_inline(connection: sqlite3.Connection, rows: Sequence[ContentRow]) -> None:
    pieces: list[bytes] = []
    places: list[str] = []
    at = 0
    for row in rows:
        data = row.data or b""
        places.append(f'"{row.number}":{at << _SIZE_BITS | len(data)}')
        at += WRAPPED_SIZE + len(data)
        pieces += (row.wrapped, data)
    connection.execute(_CONTENT_RUN, (b"".join(pieces), "{" + ",".join(places) + "}"))
