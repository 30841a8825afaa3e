"""`SqliteChannelStore`: the part of the store that belongs to one channel.

Decided here: nothing but arguments. What is read is decided in `reading`, what is written in
`writing`, and when, in `sqlite`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

from walyoff.abc import Head, LogEntry, NewBatch, StoredBatch, StoredContent
from walyoff.chunkstore import NewAttachment
from walyoff.stores import limits, places
from walyoff.stores.attachments import SqliteChunkStore
from walyoff.stores.reading import Reading
from walyoff.stores.threads import Job
from walyoff.stores.writing import Write

if TYPE_CHECKING:
    from walyoff.stores.sqlite import SqliteStore

T = TypeVar("T")


class SqliteChannelStore:
    """`walyoff.abc.ChannelStore`. Holds nothing: any number may exist for one channel."""

    def __init__(self, store: SqliteStore, channel_id: str) -> None:
        self._store = store
        self._id = channel_id

    def __repr__(self) -> str:
        return f"<SqliteChannelStore of {self._store!r}>"

    async def write(
        self,
        *,
        batches: Sequence[NewBatch] = (),
        contents: Sequence[tuple[bytes, StoredContent]] = (),
        deliver: Sequence[bytes] = (),
        signatures: Sequence[tuple[bytes, bytes]] = (),
        anchors: Sequence[tuple[bytes, str]] = (),
        attachments: Sequence[NewAttachment] = (),
        expiries: Sequence[tuple[bytes, int]] = (),
        values: Mapping[str, bytes | None] = MappingProxyType({}),
    ) -> int:
        """Write all of it or nothing; see `walyoff.abc.ChannelStore.write`.

        Raises:
            LocalProtocolError: an argument is not well formed; nothing was queued.
            StoreError: a batch does not continue its author's head, a hash is unknown, or
                the store cannot be written; nothing was written.
        """
        # Own copies: the caller may change its lists while the write is on its way.
        write = Write(
            channel_id=self._id,
            batches=tuple(batches),
            contents=tuple(contents),
            deliver=tuple(deliver),
            signatures=tuple(signatures),
            anchors=tuple(anchors),
            attachments=tuple(attachments),
            expiries=tuple(expiries),
            values=dict(values),
            staged={},
        )
        limits.check_settings(write.values)
        for record_id, due in write.expiries:
            limits.check_hash(record_id, "record hash")
            limits.check_number(due, "time")
        size = limits.check_write(
            write.batches, write.contents, write.deliver, write.signatures, write.anchors
        ) + limits.check_attachments(write.attachments)
        return await self._store.write_channel(write, size)

    @property
    def chunks(self) -> SqliteChunkStore:
        """The chunks of the channel's attachments."""
        return SqliteChunkStore(self._store, self._id)

    async def _read(self, query: Callable[[Reading], T]) -> T:
        store, channel_id = self._store, self._id
        return await store.read(lambda connection: query(store.reading(connection, channel_id)))

    async def heads(self) -> list[Head]:
        """The head of each device, in order of first appearance."""
        return await self._read(Reading.heads)

    async def top(self) -> int:
        """The highest position; 0 when the log is empty."""
        return await self._read(Reading.top)

    async def log(
        self, *, after: int, limit: int, newest_first: bool = False
    ) -> list[LogEntry]:
        """A page of the log. Raises StoreError if a content does not authenticate."""
        limits.check_number(after, "position")
        limits.check_limit(limit)
        return await self._read(lambda reading: reading.log(after, limit, newest_first))

    async def batches(self, author: str, first_seq: int, last_seq: int) -> list[StoredBatch]:
        """The batches of a range, at most 64."""
        limits.check_name(author, "author")
        limits.check_number(first_seq, "sequence number")
        limits.check_number(last_seq, "sequence number")
        return await self._read(lambda reading: reading.batches(author, first_seq, last_seq))

    async def batch(self, batch_id: bytes) -> StoredBatch | None:
        """One batch, or None if it is not here."""
        limits.check_hash(batch_id, "batch hash")
        return await self._read(lambda reading: reading.batch(batch_id))

    async def contents(self, record_ids: Sequence[bytes]) -> list[StoredContent | None]:
        """The contents of records, None where not held (or the record is not known)."""
        wanted = tuple(record_ids)
        limits.check_hashes(wanted, "record hash")
        return await self._read(lambda reading: reading.contents(wanted))

    async def missing(self, limit: int) -> list[tuple[str, int, bytes]]:
        """Records without content, in the order in which they were written."""
        limits.check_limit(limit)
        return await self._read(lambda reading: reading.missing(limit))

    async def undelivered(self) -> list[tuple[str, int, bytes]]:
        """Records with content, or forgotten, and without position, in the order of writing."""
        return await self._read(Reading.undelivered)

    async def forget(self, record_ids: Sequence[bytes]) -> None:
        """Destroy contents for good; see `walyoff.abc.ChannelStore.forget`."""
        wanted = tuple(record_ids)
        for record_id in wanted:
            limits.check_hash(record_id, "record hash")
        await self._store.destroy(self._id, wanted)

    async def expired(self, now_ms: int, limit: int) -> list[bytes]:
        """Records that are due to be forgotten."""
        limits.check_number(now_ms, "time")
        limits.check_limit(limit)
        return await self._read(lambda reading: reading.expired(now_ms, limit))

    async def next_expiry(self) -> int | None:
        """When the next record is due, in ms."""
        return await self._read(Reading.next_expiry)

    async def find(self, record_ids: Sequence[bytes]) -> list[LogEntry | None]:
        """Entries of records, without their contents."""
        wanted = tuple(record_ids)
        for record_id in wanted:
            limits.check_hash(record_id, "record hash")
        return await self._read(lambda reading: reading.find(wanted))

    async def beginning(self, digits: str, limit: int) -> list[bytes]:
        """Hashes of records that begin with such digits, the newest first."""
        found: list[bytes] = []
        below = places.MAX_INTEGER
        while below and len(found) < limit:
            page = partial(Reading.beginning, digits=digits, below=below)
            matching, below = await self._read(page)
            found += matching
        return found[:limit]

    async def unsigned(self) -> list[StoredBatch]:
        """Batches without a signature, oldest first."""
        return await self._read(Reading.unsigned)

    async def unanchored(self, limit: int) -> list[StoredBatch]:
        """Signed batches without an anchor, oldest first."""
        limits.check_limit(limit)
        return await self._read(lambda reading: reading.unanchored(limit))

    async def get_cursor(self, name: str) -> int:
        """The position of a cursor; 0 for a new one."""
        limits.check_name(name, "cursor name")
        marked = self._store.marked(self._store.cursor_ref(self._id, name))

        def query(reading: Reading) -> int:
            # A mark beyond the log is of another state of this home, such as a newer one
            # than the backup that the database came from.
            return max(reading.cursor(name), min(marked, reading.top()))

        return await self._read(query)

    def mark_cursor(self, name: str, position: int) -> None:
        """Note a cursor at once; see `walyoff.abc.ChannelStore.mark_cursor`."""
        limits.check_name(name, "cursor name")
        limits.check_number(position, "position")
        self._store.mark(self._store.cursor_ref(self._id, name), position)

    async def set_cursor(self, name: str, position: int) -> None:
        """Move a cursor forward; a lower position changes nothing."""
        limits.check_name(name, "cursor name")
        limits.check_number(position, "position")
        ref = self._store.cursor_ref(self._id, name)

        def work(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT INTO cursors(ref, position) VALUES (?, ?) ON CONFLICT(ref)"
                " DO UPDATE SET position = max(position, excluded.position)",
                (ref, position),
            )

        await self._store.write(Job(work))


__all__ = ["SqliteChannelStore"]
