"""The queries of a `ChannelStore`, in the reader's thread, each in one snapshot.

Everything sealed is authenticated on the way out, so a damaged or swapped row raises
StoreError; it never gives wrong bytes.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from walyoff.abc import Head, LogEntry, StoredBatch, StoredContent
from walyoff.errors import StoreError
from walyoff.stores import places
from walyoff.stores.chunks import ChunkFiles
from walyoff.stores.packing import chunks, marks, packed_query
from walyoff.stores.schema import FORGOTTEN, HELD, PLACE
from walyoff.stores.vault import Vault, damaged

#: The most batches that one `batches` call returns.
MAX_BATCHES = 64
#: Entries fetched in one step: 256 contents of 64 KiB are 16 MiB.
_PAGE = 256
_HASH = places.HASH_SIZE
_FORWARD = ("r.position > ?", "ASC")
_BACKWARD = ("r.position < ?", "DESC")


@dataclass(slots=True)
class _Batch:
    """The index of a batch: who, where, and the hashes."""

    author: str
    first_seq: int
    first_record: int
    anchored: bool
    batch_id: bytes
    record_ids: list[bytes]

    def record(self, number: int) -> tuple[int, bytes]:
        """(sequence number, hash) of the record with a row number."""
        index = number - self.first_record
        if index < 0:
            raise StoreError("the store is damaged: a record is in the wrong batch")
        return self.first_seq + index, self.record_ids[index]


class Reading:
    """The queries on one channel. Stateless: made for each call."""

    def __init__(
        self, connection: sqlite3.Connection, vault: Vault, files: ChunkFiles, channel_id: str
    ) -> None:
        self._connection = connection
        self._vault = vault
        self._files = files
        self._ref = vault.ref(places.CHANNEL, b"", channel_id.encode())
        self._prefix = places.content_prefix(self._ref)
        row = connection.execute(
            "SELECT channel, top FROM channels WHERE ref = ?", (self._ref,)
        ).fetchone()
        # Row numbers start at 1: a channel that is not there yet has no rows anywhere.
        self._channel: int
        self._top: int
        self._channel, self._top = row or (0, 0)

    def top(self) -> int:
        """The highest position."""
        return self._top

    def heads(self) -> list[Head]:
        """The head of each author."""
        indexes = self._indexes(
            "FROM authors a JOIN batches b ON b.batch = a.batch AND b.author = a.author"
            " WHERE a.channel = ? ORDER BY a.author",
            (self._channel,),
        )
        return [
            Head(
                author=index.author,
                seq=index.first_seq + len(index.record_ids) - 1,
                record_id=index.record_ids[-1],
                batch_id=index.batch_id,
            )
            for index in indexes.values()
        ]

    def log(self, after: int, limit: int, newest_first: bool) -> list[LogEntry]:
        """A page of the log."""
        condition, order = _BACKWARD if newest_first else _FORWARD
        if newest_first and after == 0:
            after = places.MAX_INTEGER
        entries: list[LogEntry] = []
        indexes: dict[int, _Batch] = {}
        while len(entries) < limit:
            query = packed_query(
                ("position", "r.record", "batch", "held", "file IS NOT NULL"),
                ("key", "data"),
                f"FROM records r LEFT JOIN contents c ON c.record = {PLACE}"
                f" WHERE channel = ? AND {condition} ORDER BY position {order} LIMIT ?",
            )
            size = min(_PAGE, limit - len(entries))
            rows = query.rows(self._connection, (self._channel, after, size))
            rows.sort(reverse=newest_first)
            self._add_indexes(indexes, (row[2] for row in rows))
            for position, number, batch, held, is_file, wrapped, sealed in rows:
                index = indexes[batch]
                seq, record_id = index.record(number)
                content = None
                if held == HELD:
                    content = self._content(record_id, wrapped, sealed, is_file)
                entries.append(
                    LogEntry(
                        position=position,
                        author=index.author,
                        seq=seq,
                        record_id=record_id,
                        batch_id=index.batch_id,
                        anchored=index.anchored,
                        content=content,
                        forgotten=held == FORGOTTEN,
                    )
                )
            if len(rows) < size:
                break
            after = rows[-1][0]
        return entries

    def _content(
        self, record_id: bytes, wrapped: bytes | None, sealed: bytes | None, is_file: int
    ) -> StoredContent:
        if wrapped is None:
            raise damaged(record_id)
        place = self._prefix + record_id
        if is_file:
            return self._files.read(wrapped, place, record_id)
        if sealed is None:
            raise damaged(record_id)
        return self._vault.decrypt_content(wrapped, sealed, place, record_id)

    def contents(self, record_ids: Sequence[bytes]) -> list[StoredContent | None]:
        """The contents of records."""
        wanted = list(dict.fromkeys(record_ids))
        refs = self._vault.refs(places.RECORD, self._ref, wanted)
        by_ref = dict(zip(refs, wanted, strict=True))
        found: dict[bytes, StoredContent] = {}
        for start, size in chunks(len(refs)):
            query = packed_query(
                ("file IS NOT NULL",),
                ("ref", "key", "data"),
                f"FROM records r JOIN contents c ON c.record = {PLACE}"
                f" WHERE held = {HELD} AND ref IN ({marks(size)})",
            )
            rows = query.rows(self._connection, refs[start : start + size])
            for is_file, ref, wrapped, sealed in rows:
                record_id = by_ref[ref]
                found[record_id] = self._content(record_id, wrapped, sealed, is_file)
        return [found.get(record_id) for record_id in record_ids]

    def missing(self, limit: int) -> list[tuple[str, int, bytes]]:
        """Records without content."""
        return self._named(f"held = 0 ORDER BY record LIMIT {int(limit)}")

    def undelivered(self) -> list[tuple[str, int, bytes]]:
        """Records with content, or forgotten, and without a position."""
        return self._named("held > 0 AND position IS NULL ORDER BY record")

    def expired(self, now_ms: int, limit: int) -> list[bytes]:
        """Records that are due to be forgotten."""
        rows = self._connection.execute(
            "SELECT e.record, r.batch FROM expiries e JOIN records r ON r.record = e.record"
            " WHERE e.channel = ? AND due <= ? ORDER BY due LIMIT ?",
            (self._channel, now_ms, limit),
        ).fetchall()
        indexes: dict[int, _Batch] = {}
        self._add_indexes(indexes, (batch for _, batch in rows))
        return [indexes[batch].record(number)[1] for number, batch in rows]

    def next_expiry(self) -> int | None:
        """When the next record is due."""
        row = self._connection.execute(
            "SELECT min(due) FROM expiries WHERE channel = ?", (self._channel,)
        ).fetchone()
        return None if row[0] is None else int(row[0])

    def find(self, record_ids: Sequence[bytes]) -> list[LogEntry | None]:
        """Entries of records, without their contents."""
        wanted = list(dict.fromkeys(record_ids))
        refs = self._vault.refs(places.RECORD, self._ref, wanted)
        found: dict[bytes, LogEntry] = {}
        indexes: dict[int, _Batch] = {}
        for start, size in chunks(len(refs)):
            query = packed_query(
                ("record", "batch", "held", "position"),
                (),
                f"FROM records r WHERE ref IN ({marks(size)})",
            )
            rows = query.rows(self._connection, refs[start : start + size])
            self._add_indexes(indexes, (row[1] for row in rows))
            for number, batch, held, position in rows:
                index = indexes[batch]
                seq, record_id = index.record(number)
                found[record_id] = LogEntry(
                    position=max(position, 0),
                    author=index.author,
                    seq=seq,
                    record_id=record_id,
                    batch_id=index.batch_id,
                    anchored=index.anchored,
                    content=None,
                    forgotten=held == FORGOTTEN,
                )
        return [found.get(record_id) for record_id in record_ids]

    def beginning(self, digits: str, below: int) -> tuple[list[bytes], int]:
        """Hashes that begin so, of a page of batches below a row, and the page's lowest row.

        The row is 0 when there are no more.
        """
        indexes = self._indexes(
            "FROM batches b JOIN authors a ON a.author = b.author"
            " WHERE b.channel = ? AND b.batch < ? ORDER BY b.batch DESC LIMIT ?",
            (self._channel, below, _PAGE),
        )
        found = [
            record_id
            for _, index in sorted(indexes.items(), reverse=True)
            for record_id in reversed(index.record_ids)
            if record_id.hex().startswith(digits)
        ]
        return found, min(indexes) if len(indexes) == _PAGE else 0

    def record_ids(self, numbers: Sequence[int]) -> dict[int, bytes]:
        """The hashes of records by their row numbers."""
        batches: dict[int, int] = {}
        for start, size in chunks(len(numbers)):
            query = packed_query(
                ("record", "batch"), (), f"FROM records WHERE record IN ({marks(size)})"
            )
            batches |= dict(query.rows(self._connection, numbers[start : start + size]))
        indexes: dict[int, _Batch] = {}
        self._add_indexes(indexes, batches.values())
        return {number: indexes[batches[number]].record(number)[1] for number in numbers}

    def _named(self, condition: str) -> list[tuple[str, int, bytes]]:
        query = packed_query(
            ("record", "batch"), (), f"FROM records WHERE channel = ? AND {condition}"
        )
        rows = sorted(query.rows(self._connection, (self._channel,)))
        indexes: dict[int, _Batch] = {}
        self._add_indexes(indexes, (batch for _, batch in rows))
        return [
            (indexes[batch].author, *indexes[batch].record(number)) for number, batch in rows
        ]

    def batches(self, author: str, first_seq: int, last_seq: int) -> list[StoredBatch]:
        """Batches of a range."""
        ref = self._vault.ref(places.AUTHOR, self._ref, author.encode())
        return self._batches(
            "a.ref = ?1 AND b.first_seq + b.count > ?2 AND b.first_seq <= ?3"
            " AND b.first_seq >= coalesce((SELECT max(x.first_seq) FROM batches x"
            " WHERE x.author = a.author AND x.first_seq <= ?2), 0)"
            " ORDER BY b.first_seq",
            (ref, first_seq, last_seq),
            MAX_BATCHES,
        )

    def batch(self, batch_id: bytes) -> StoredBatch | None:
        """One batch."""
        ref = self._vault.ref(places.BATCH, self._ref, batch_id)
        found = self._batches("b.ref = ?", (ref,), 1)
        return found[0] if found else None

    def unsigned(self) -> list[StoredBatch]:
        """Batches without a signature."""
        condition = "b.channel = ? AND b.signature IS NULL ORDER BY b.batch"
        return self._batches(condition, (self._channel,), -1)

    def unanchored(self, limit: int) -> list[StoredBatch]:
        """Signed batches without an anchor."""
        condition = "b.channel = ? AND b.anchor IS NULL AND b.signature IS NOT NULL"
        return self._batches(condition + " ORDER BY b.batch", (self._channel,), limit)

    def cursor(self, name: str) -> int:
        """The position of a cursor."""
        ref = self._vault.ref(places.CURSOR, self._ref, name.encode())
        row = self._connection.execute(
            "SELECT position FROM cursors WHERE ref = ?", (ref,)
        ).fetchone()
        return 0 if row is None else int(row[0])

    def _add_indexes(self, indexes: dict[int, _Batch], numbers: Iterable[int]) -> None:
        """Read the indexes that are not there yet."""
        wanted = [number for number in dict.fromkeys(numbers) if number not in indexes]
        for start, size in chunks(len(wanted)):
            source = (
                "FROM batches b JOIN authors a ON a.author = b.author"
                f" WHERE b.batch IN ({marks(size)})"
            )
            indexes |= self._indexes(source, wanted[start : start + size])
        if any(number not in indexes for number in wanted):
            raise StoreError("the store is damaged: a batch is missing")

    def _indexes(self, source: str, parameters: Sequence[Any]) -> dict[int, _Batch]:
        query = packed_query(
            ("b.batch", "first_seq", "count", "first_record", "anchor IS NOT NULL"),
            ("did", "a.ref", "b.ref", "ids"),
            source,
        )
        indexes: dict[int, _Batch] = {}
        dids: dict[bytes, str] = {}
        for row in query.rows(self._connection, parameters):
            number, first_seq, count, first_record, anchored, did, author_ref, ref, ids = row
            if author_ref not in dids:
                dids[author_ref] = self._did(did, author_ref)
            plain = self._ids(ids, author_ref, ref, first_seq, count)
            indexes[number] = _Batch(
                author=dids[author_ref],
                first_seq=first_seq,
                first_record=first_record,
                anchored=bool(anchored),
                batch_id=plain[:_HASH],
                record_ids=[plain[at : at + _HASH] for at in range(_HASH, len(plain), _HASH)],
            )
        return indexes

    def _batches(
        self, condition: str, parameters: Sequence[Any], limit: int
    ) -> list[StoredBatch]:
        # Few rows with large values: fetched one by one.
        rows = self._connection.execute(
            "SELECT a.did, a.ref, b.ref, first_seq, count, ids, body, signature, anchor"  # noqa: S608
            f" FROM batches b JOIN authors a ON a.author = b.author WHERE {condition}"
            f" LIMIT {int(limit)}",
            parameters,
        ).fetchall()
        unseal = self._vault.unseal
        found: list[StoredBatch] = []
        for did, author_ref, ref, first_seq, count, ids, body, signature, anchor in rows:
            plain = self._ids(ids, author_ref, ref, first_seq, count)
            batch_id = plain[:_HASH]
            what = f"batch {batch_id[:8].hex()}"
            if signature is not None:
                signature = unseal(signature, places.SIGNATURE + ref, what)  # noqa: PLW2901
            if anchor is not None:
                anchor = unseal(anchor, places.ANCHOR + ref, what).decode()  # noqa: PLW2901
            found.append(
                StoredBatch(
                    author=self._did(did, author_ref),
                    first_seq=first_seq,
                    count=count,
                    batch_id=batch_id,
                    body=unseal(body, places.BODY + ref, what),
                    signature=signature,
                    anchor=anchor,
                    record_ids=tuple(
                        plain[at : at + _HASH] for at in range(_HASH, len(plain), _HASH)
                    ),
                )
            )
        return found

    def _did(self, sealed: bytes, author_ref: bytes) -> str:
        return self._vault.unseal(sealed, places.DID + author_ref, "an author").decode()

    def _ids(
        self, sealed: bytes, author_ref: bytes, ref: bytes, first_seq: int, count: int
    ) -> bytes:
        place = places.ids_place(self._ref, author_ref, ref, first_seq, count)
        return self._vault.unseal(sealed, place, "a batch")
