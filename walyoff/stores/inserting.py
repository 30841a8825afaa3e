"""The rows of records and contents, put into SQLite in a few steps.

Decided here: how rows become statements; never what is in them. The interpreter lock is
given up at every step and taken again after it (see `packing`), and an INSERT of a thousand
rows is one step if SQLite itself takes the rows apart: out of one blob, with the places of the
pieces in it. Rows are inserted in the order given, because contents are only ever appended.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
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


#: A content as it is stored: its number, its wrapped key, and data or the name of a file.
ContentRow = tuple[int, bytes, bytes | None, bytes | None]

#: A row's batch, `held`, and how far position and place are from its number.
_Run = tuple[int, int, int | None, int | None]


def _runs(rows: Sequence[RecordRow], key: Sequence[object]) -> Iterator[tuple[_Run, int, int]]:
    """Rows that follow one another in everything, and in `key`: where they begin and end."""
    runs: list[_Run] = [
        (
            row.batch,
            row.held,
            None if row.position is None else row.position - row.number,
            None if row.place is None else row.place - row.number,
        )
        for row in rows
    ]
    start = 0
    for (run, _), group in groupby(zip(runs, key, strict=True)):
        end = start + len(list(group))
        yield run, start, end
        start = end


def insert_records(
    connection: sqlite3.Connection,
    channel: int,
    rows: Sequence[RecordRow],
    refs: Sequence[bytes],
) -> None:
    """Insert records and their refs; the numbers follow one another. Raises sqlite3.Error."""
    for _, start, end in _runs(rows, [0] * len(rows)):
        first, count = rows[start], end - start
        if count >= _MIN_RUN:
            joined = b"".join(refs[start:end])
            connection.execute(
                _RECORD_RUN,
                (
                    *(count, first.number, joined, channel),
                    *(first.batch, first.held, first.position, first.place),
                ),
            )
        else:
            insert_rows(
                connection,
                _RECORDS,
                [
                    (r.number, ref, channel, r.batch, r.held, r.position, r.place)
                    for r, ref in zip(rows[start:end], refs[start:end], strict=True)
                ],
            )


def update_records(connection: sqlite3.Connection, rows: Iterable[RecordRow]) -> None:
    """Write records that are in the table already. Raises sqlite3.Error."""
    ordered = sorted(rows, key=lambda row: row.number)
    gaps = [row.number - at for at, row in enumerate(ordered)]
    for (_, held, position, place), start, end in _runs(ordered, gaps):
        connection.execute(
            _UPDATE_RUN,
            (held, position, place, ordered[start].number, ordered[end - 1].number),
        )


def insert_contents(connection: sqlite3.Connection, rows: Sequence[ContentRow]) -> None:
    """Insert contents in ascending order of their numbers. Raises sqlite3.Error."""
    for in_files, group in groupby(rows, lambda row: row[2] is None):
        run = list(group)
        if in_files or len(run) < _MIN_RUN:
            insert_rows(connection, "contents(record,key,data,file)", run)
        else:
            for start in range(0, len(run), _MAX_CONTENTS):
                _insert_inline(connection, run[start : start + _MAX_CONTENTS])


def _insert_inline(connection: sqlite3.Connection, rows: Sequence[ContentRow]) -> None:
    pieces: list[bytes] = []
    places: list[str] = []
    at = 0
    for number, wrapped, data, _ in rows:
        size = len(data or b"")
        places.append(f'"{number}":{at << _SIZE_BITS | size}')
        at += WRAPPED_SIZE + size
        pieces += (wrapped, data or b"")
    connection.execute(_CONTENT_RUN, (b"".join(pieces), "{" + ",".join(places) + "}"))
