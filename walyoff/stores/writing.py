"""What a `ChannelStore.write` does inside the transaction, in the writer's thread.

A write is worked out completely before its first INSERT: which batches, contents and
positions are new. What it finds wrong raises, and the caller of `apply` rolls back.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from walyoff.abc import NewBatch, StoredContent
from walyoff.chunkstore import NewAttachment
from walyoff.errors import StoreError
from walyoff.stores import places
from walyoff.stores.attachments import register
from walyoff.stores.chunks import MAX_INLINE, Staged
from walyoff.stores.inserting import (
    ContentRow,
    RecordRow,
    insert_contents,
    insert_records,
    update_records,
)
from walyoff.stores.packing import chunks, insert_rows, marks, packed_query
from walyoff.stores.schema import FORGOTTEN, HELD, MISSING
from walyoff.stores.settings import put_settings
from walyoff.stores.vault import KEY_RANDOM_SIZE, Vault


@dataclass(slots=True, kw_only=True, eq=False)
class Write:
    """The arguments of one call, and what became of its files."""

    channel_id: str
    batches: Sequence[NewBatch]
    contents: Sequence[tuple[bytes, StoredContent]]
    deliver: Sequence[bytes]
    signatures: Sequence[tuple[bytes, bytes]]
    anchors: Sequence[tuple[bytes, str]]
    attachments: Sequence[NewAttachment]
    expiries: Sequence[tuple[bytes, int]]
    values: Mapping[str, bytes | None]
    #: The files of large contents, by record hash.
    staged: dict[bytes, Future[Staged]]
    used: list[Staged] = field(default_factory=list)


class Writing:
    """Applies one write. Made for each, in the writer's thread."""

    def __init__(self, connection: sqlite3.Connection, vault: Vault, write: Write) -> None:
        self._connection = connection
        self._vault = vault
        self._write = write
        self._channel_ref = vault.ref(places.CHANNEL, b"", write.channel_id.encode())
        self._prefix = places.content_prefix(self._channel_ref)
        self._records: dict[bytes, RecordRow] = {}
        self._batch_rows: list[tuple[object, ...]] = []
        self._new_batches: dict[bytes, int] = {}
        self._content_rows: list[ContentRow] = []
        #: Per author's ref: its number, and its newest sequence number after this write.
        self._heads: dict[bytes, tuple[int, int]] = {}

    def apply(self) -> int:
        """Do it; returns the highest position. Raises StoreError, sqlite3.Error, OSError."""
        write = self._write
        write.used.clear()
        self._find_channel()
        given: list[tuple[bytes, StoredContent]] = []
        signatures, anchors = list(write.signatures), list(write.anchors)
        for batch in write.batches:
            given += [
                (record_id, content)
                for record_id, content in zip(batch.record_ids, batch.contents, strict=True)
                if content is not None
            ]
            if not self._add_batch(batch):
                # It is here already; what it brings in addition may be new all the same.
                if batch.signature is not None:
                    signatures.append((batch.batch_id, batch.signature))
                if batch.anchor is not None:
                    anchors.append((batch.batch_id, batch.anchor))
        given += write.contents
        self._find_records([record_id for record_id, _ in given])
        self._find_records(write.deliver)
        self._find_records([attachment.record_id for attachment in write.attachments])
        self._find_records([record_id for record_id, _ in write.expiries])
        self._random = os.urandom(KEY_RANDOM_SIZE * len(given))
        for record_id, content in given:
            self._add_content(record_id, content)
        self._deliver()
        self._insert()
        register(
            self._connection,
            self._vault,
            (self._channel, self._channel_ref),
            [
                (record.number, attachment)
                for attachment in write.attachments
                if (record := self._records[attachment.record_id]).held != FORGOTTEN
            ],
        )
        self._update_batches("signature", places.SIGNATURE, signatures)
        self._update_batches("anchor", places.ANCHOR, [(i, a.encode()) for i, a in anchors])
        put_settings(self._connection, self._vault, write.values)
        return self._top

    def _find_channel(self) -> None:
        row = self._connection.execute(
            "SELECT channel, top, (SELECT max(batch) FROM batches),"
            " (SELECT max(record) FROM records), (SELECT max(record) FROM contents)"
            " FROM channels WHERE ref = ?",
            (self._channel_ref,),
        ).fetchone()
        if row is None:
            self._connection.execute(
                "INSERT INTO channels(ref, top) VALUES (?, 0)", (self._channel_ref,)
            )
            self._find_channel()
            return
        self._channel: int
        self._top: int
        self._channel, self._top, last_batch, last_record, last_place = row
        self._last_place: int = last_place or 0
        self._old_top = self._top
        self._next_batch = (last_batch or 0) + 1
        self._next_record = (last_record or 0) + 1

    def _add_batch(self, batch: NewBatch) -> bool:
        """Take a batch up unless it is here."""
        vault, connection, channel_ref = self._vault, self._connection, self._channel_ref
        ref = vault.ref(places.BATCH, channel_ref, batch.batch_id)
        author_ref = vault.ref(places.AUTHOR, channel_ref, batch.author.encode())
        if ref in self._new_batches:
            return False
        there, author, seq = connection.execute(
            "SELECT b.batch, a.author, a.seq FROM (SELECT 1)"
            " LEFT JOIN batches b ON b.ref = ? LEFT JOIN authors a ON a.ref = ?",
            (ref, author_ref),
        ).fetchone()
        if there is not None:
            return False
        number, record, count = self._next_batch, self._next_record, len(batch.record_ids)
        if author_ref in self._heads:
            author, seq = self._heads[author_ref]
        if batch.first_seq != (seq or 0) + 1:
            raise StoreError(
                f"batch of records {batch.first_seq} to {batch.first_seq + count - 1}"
                f" does not continue a head at {seq or 0}"
            )
        if author is None:
            author = connection.execute(
                "INSERT INTO authors(channel, ref, did, seq, batch) VALUES (?,?,?,0,0)",
                (
                    self._channel,
                    author_ref,
                    vault.seal(batch.author.encode(), places.DID + author_ref),
                ),
            ).lastrowid
        self._heads[author_ref] = (author, batch.first_seq + count - 1)
        self._next_batch, self._next_record = number + 1, record + count
        self._new_batches[ref] = number
        ids = batch.batch_id + b"".join(batch.record_ids)
        place = places.ids_place(channel_ref, author_ref, ref, batch.first_seq, count)
        signature, anchor = batch.signature, batch.anchor
        self._batch_rows.append(
            (
                number,
                self._channel,
                author,
                batch.first_seq,
                count,
                record,
                ref,
                vault.seal(ids, place),
                vault.seal(batch.body, places.BODY + ref),
                None if signature is None else vault.seal(signature, places.SIGNATURE + ref),
                None if anchor is None else vault.seal(anchor.encode(), places.ANCHOR + ref),
            )
        )
        for record_id in batch.record_ids:
            if record_id in self._records:
                raise StoreError(f"record {record_id[:8].hex()} appears twice")
            self._records[record_id] = RecordRow(record, number, MISSING, None, True)
            record += 1
        return True

    def _find_records(self, record_ids: Sequence[bytes]) -> None:
        """Look up what this write does not know yet."""
        unknown = [i for i in dict.fromkeys(record_ids) if i not in self._records]
        refs = self._vault.refs(places.RECORD, self._channel_ref, unknown)
        by_ref = dict(zip(refs, unknown, strict=True))
        for start, size in chunks(len(refs)):
            query = packed_query(
                ("record", "batch", "held", "position", "place"),
                ("ref",),
                f"FROM records WHERE ref IN ({marks(size)})",
            )
            for number, batch, held, position, place, ref in query.rows(
                self._connection, refs[start : start + size]
            ):
                self._records[by_ref.pop(ref)] = RecordRow(
                    number,
                    batch,
                    held,
                    None if position < 0 else position,
                    False,
                    place=None if place < 0 else place,
                )
        for record_id in by_ref.values():
            raise StoreError(f"record {record_id[:8].hex()} is unknown")

    def _add_content(self, record_id: bytes, content: StoredContent) -> None:
        record = self._records[record_id]
        if record.held != MISSING:
            return
        record.held, record.changed = HELD, True
        # At the end, always: see `schema`.
        at_end = max(record.number, self._last_place + 1)
        if at_end != record.number:
            record.place = at_end
        self._last_place = at_end
        if len(content.data) <= MAX_INLINE:
            at = len(self._content_rows) * KEY_RANDOM_SIZE
            wrapped, sealed = self._vault.encrypt_content(
                content, self._prefix + record_id, self._random[at : at + KEY_RANDOM_SIZE]
            )
            self._content_rows.append((at_end, wrapped, sealed, None))
        else:
            staged = self._write.staged[record_id].result()
            self._write.used.append(staged)
            self._content_rows.append((at_end, staged.wrapped, None, staged.name))

    def _deliver(self) -> None:
        for record_id in self._write.deliver:
            record = self._records[record_id]
            if record.position is None:
                self._top += 1
                record.position, record.changed = self._top, True

    def _insert(self) -> None:
        connection = self._connection
        insert_rows(
            connection,
            "batches(batch,channel,author,first_seq,count,first_record,"
            "ref,ids,body,signature,anchor)",
            self._batch_rows,
        )
        new = {i: record for i, record in self._records.items() if record.new}
        refs = self._vault.refs(places.RECORD, self._channel_ref, new)
        channel = self._channel
        try:
            insert_records(connection, channel, list(new.values()), refs)
        except sqlite3.IntegrityError:
            raise StoreError("a record of the batch belongs to another batch") from None
        insert_contents(connection, self._content_rows)
        update_records(
            connection, (r for r in self._records.values() if r.changed and not r.new)
        )
        connection.executemany(
            "INSERT OR IGNORE INTO expiries(record, channel, due) VALUES (?, ?, ?)",
            [
                (record.number, channel, due)
                for record, due in ((self._records[i], due) for i, due in self._write.expiries)
                if record.held != FORGOTTEN
            ],
        )
        if self._top != self._old_top:
            connection.execute(
                "UPDATE channels SET top = ? WHERE channel = ?", (self._top, channel)
            )

    def _update_batches(
        self, column: str, place: bytes, values: Sequence[tuple[bytes, bytes]]
    ) -> None:
        """Set a sealed column where it is still empty."""
        for batch_id, value in values:
            ref = self._vault.ref(places.BATCH, self._channel_ref, batch_id)
            done = self._connection.execute(
                f"UPDATE batches SET {column} = ? WHERE ref = ? AND {column} IS NULL",  # noqa: S608
                (self._vault.seal(value, place + ref), ref),
            ).rowcount
            if not done:
                row = self._connection.execute("SELECT 1 FROM batches WHERE ref = ?", (ref,))
                if row.fetchone() is None:
                    raise StoreError(f"batch {batch_id[:8].hex()} is unknown")
