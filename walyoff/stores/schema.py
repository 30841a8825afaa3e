"""The tables, and how a connection to them is set up.

What a query needs is in a small index of its own, most of them partial, so that neither
opening nor asking "what is missing?" ever looks at all records.

Refs are keyed hashes; columns marked `sealed` hold ciphertext. In clear stand only numbers:
how many channels, authors and records there are, their order, and their sizes.
"""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from pathlib import Path

from walyoff.errors import StoreError

DATABASE_NAME = "store.db"
#: records.held: whether the content is in `contents`. What is forgotten stays so.
MISSING, HELD, FORGOTTEN = 0, 1, 2
#: Homes before this version may have copies of rows in their pages: they are written anew.
_APPEND_ONLY = 3

#: The row of a record's content (see `_FORGETTING`).
PLACE = "coalesce(r.place, r.record)"

_TABLES = """
CREATE TABLE checks(sealed BLOB NOT NULL);

CREATE TABLE settings(
    ref BLOB PRIMARY KEY, name BLOB NOT NULL /* sealed */, value BLOB NOT NULL /* sealed */
) WITHOUT ROWID;

CREATE TABLE channels(
    channel INTEGER PRIMARY KEY, ref BLOB NOT NULL UNIQUE, top INTEGER NOT NULL
);

/* An author in one channel, and its head: seq, and the batch that ends with it. */
CREATE TABLE authors(
    author INTEGER PRIMARY KEY, channel INTEGER NOT NULL, ref BLOB NOT NULL UNIQUE,
    did BLOB NOT NULL /* sealed */, seq INTEGER NOT NULL, batch INTEGER NOT NULL
);

CREATE INDEX authors_by_channel ON authors(channel);

/* The record numbers of a batch are first_record and the following. */
CREATE TABLE batches(
    batch INTEGER PRIMARY KEY, channel INTEGER NOT NULL, author INTEGER NOT NULL,
    first_seq INTEGER NOT NULL, count INTEGER NOT NULL, first_record INTEGER NOT NULL,
    ref BLOB NOT NULL UNIQUE,
    ids BLOB NOT NULL /* sealed: the batch's hash and its records' hashes */,
    body BLOB NOT NULL /* sealed */, signature BLOB /* sealed */, anchor BLOB /* sealed */
);

CREATE TRIGGER head AFTER INSERT ON batches BEGIN
    UPDATE authors SET seq = NEW.first_seq + NEW.count - 1, batch = NEW.batch
        WHERE author = NEW.author;
END;

CREATE UNIQUE INDEX batches_by_seq ON batches(author, first_seq);

CREATE INDEX batches_unsigned ON batches(channel, batch) WHERE signature IS NULL;

CREATE INDEX batches_unanchored ON batches(channel, batch)
    WHERE anchor IS NULL AND signature IS NOT NULL;

CREATE TABLE records(
    record INTEGER PRIMARY KEY, ref BLOB NOT NULL UNIQUE, channel INTEGER NOT NULL,
    batch INTEGER NOT NULL, held INTEGER NOT NULL, position INTEGER
);

CREATE UNIQUE INDEX records_by_position ON records(channel, position)
    WHERE position IS NOT NULL;

CREATE INDEX records_missing ON records(channel, record) WHERE held = 0;

CREATE INDEX records_undelivered ON records(channel, record)
    WHERE held = 1 AND position IS NULL;

/* Either data (sealed) or the name of a file. */
CREATE TABLE contents(
    record INTEGER PRIMARY KEY, key BLOB NOT NULL /* wrapped */, data BLOB, file BLOB
);

CREATE INDEX contents_by_file ON contents(file) WHERE file IS NOT NULL;

CREATE TABLE cursors(ref BLOB PRIMARY KEY, position INTEGER NOT NULL) WITHOUT ROWID
"""

_ATTACHMENTS = """
/* Large contents: size in bytes, number of chunks, whether all of them are here, and what
   somebody wished in place of the channel's policy: 1 fetch, -1 dropped. */
CREATE TABLE attachments(
    record INTEGER PRIMARY KEY, channel INTEGER NOT NULL, size INTEGER NOT NULL,
    count INTEGER NOT NULL, complete INTEGER NOT NULL, wish INTEGER NOT NULL
);

CREATE INDEX attachments_open ON attachments(channel, record) WHERE complete = 0;

/* The chunks of each attachment in order, held or not. A negative record is an attachment
   that is being sent and has no record yet. */
CREATE TABLE uses(
    record INTEGER NOT NULL, place INTEGER NOT NULL, ref BLOB NOT NULL,
    PRIMARY KEY(record, place)
) WITHOUT ROWID;

CREATE INDEX uses_by_ref ON uses(ref);

/* The chunks that are here. One that nothing uses is left of a send that was broken off. */
CREATE TABLE chunks(
    chunk INTEGER PRIMARY KEY /* at the end, always: see _FORGETTING */,
    ref BLOB NOT NULL UNIQUE, channel INTEGER NOT NULL, size INTEGER NOT NULL,
    key BLOB NOT NULL /* wrapped */, file BLOB NOT NULL UNIQUE
);

CREATE INDEX chunks_by_channel ON chunks(channel, size)
"""

_FORGETTING = """
/* Where a record's content is in `contents`, if not at the record's own number: contents are
   only ever appended there. SQLite leaves copies of rows in pages that it splits, also with
   secure_delete, and it splits none for a row at the end. */
ALTER TABLE records ADD COLUMN place INTEGER;

/* Records that are to be forgotten at a time (ms since 1970), and are not yet. */
CREATE TABLE expiries(
    record INTEGER PRIMARY KEY, channel INTEGER NOT NULL, due INTEGER NOT NULL
);

CREATE INDEX expiries_by_due ON expiries(channel, due);

DROP INDEX records_undelivered;

CREATE INDEX records_undelivered ON records(channel, record)
    WHERE held > 0 AND position IS NULL
"""

#: What makes each version of the tables from the one before. A step that was in a release is
#: never changed, only followed by another.
_STEPS = (_TABLES, _ATTACHMENTS, _FORGETTING)
VERSION = len(_STEPS)

_PRAGMAS = (
    "PRAGMA journal_mode = WAL",
    # A commit that returned survives a power loss, and not only a crash of the process.
    "PRAGMA synchronous = FULL",
    "PRAGMA secure_delete = ON",
    "PRAGMA temp_store = MEMORY",
    "PRAGMA trusted_schema = OFF",
    "PRAGMA cell_size_check = ON",
    # A mapped file turns a read error into SIGBUS.
    "PRAGMA mmap_size = 0",
    # Checkpoints are made by the writer when nobody waits for it.
    "PRAGMA wal_autocheckpoint = 0",
    f"PRAGMA journal_size_limit = {64 * 2**20}",
    f"PRAGMA cache_size = -{8 * 1024}",
)
_STATEMENTS = 256


def connect(path: Path) -> sqlite3.Connection:
    """A connection in autocommit mode, usable from one thread at a time, any thread.

    Raises:
        sqlite3.Error: the file is no usable database.
    """
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        uri=True,
        timeout=5.0,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=_STATEMENTS,
    )
    try:
        for pragma in _PRAGMAS:
            connection.execute(pragma).fetchall()
    except BaseException:
        connection.close()
        raise
    return connection


def prepare(connection: sqlite3.Connection, check: bytes) -> bytes:
    """Make the tables, or bring those of an older version up to date.

    Returns the sealed check value of the store. `check` is stored when the tables are made,
    in the same transaction.

    Raises:
        StoreError: the store was written by a newer version of this library.
        sqlite3.Error: anything else.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > VERSION:
        raise StoreError(
            f"the store has version {version}, newer than {VERSION}: update this program"
        )
    if version < 0:
        raise StoreError(f"the store is damaged: version {version}")
    if version < VERSION:
        connection.execute("BEGIN IMMEDIATE")
        try:
            for step in _STEPS[version:]:
                for statement in step.split(";\n\n"):
                    connection.execute(statement)
            if version == 0:
                connection.execute("INSERT INTO checks VALUES (?)", (check,))
            connection.execute(f"PRAGMA user_version = {VERSION}")
            connection.execute("COMMIT")
        except BaseException:
            connection.close()
            raise
        if 0 < version < _APPEND_ONLY:
            # Without room for it the copies stay until the next version; all else works.
            with suppress(sqlite3.OperationalError):
                connection.execute("VACUUM")
    row = connection.execute("SELECT sealed FROM checks").fetchone()
    if row is None or not isinstance(row[0], bytes):
        raise StoreError("the store is damaged: it has no check value")
    return row[0]
