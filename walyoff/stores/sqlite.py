"""`SqliteStore`: the device's durable store on SQLite.

Two threads with a connection each. The writer takes all calls that wait and commits them
together, so that one fsync serves many; the reader works on snapshots and never waits for a
commit. The event loop only checks arguments and waits.
"""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread

from walyoff.abc import Head, LogEntry, NewBatch, StoredBatch, StoredContent
from walyoff.chunkstore import NewAttachment
from walyoff.stores import limits, places
from walyoff.stores.attachments import FILES_AT_ONCE, SqliteChunkStore
from walyoff.stores.chunks import MAX_INLINE, ChunkFiles, Staged
from walyoff.stores.committing import Committer, read_group
from walyoff.stores.destroying import destroy, truncate_log
from walyoff.stores.erasing import erase
from walyoff.stores.opening import OpenHome, open_home
from walyoff.stores.reading import Reading
from walyoff.stores.settings import put_settings
from walyoff.stores.threads import Job, Worker
from walyoff.stores.vault import Vault
from walyoff.stores.writing import Write, Writing
from walyoff.waking import Waker

T = TypeVar("T")

#: Reads that share a wake-up: few, because each has its answer before the next begins.
_READ_GROUP = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStatistics:
    """Counts since the store was opened."""

    writes: int
    #: Groups of writes that shared a transaction and its fsync.
    commits: int
    reads: int


class SqliteStore:
    """`walyoff.abc.Store` in a home folder. Made by `open_store`."""

    def __init__(self, home: OpenHome) -> None:
        self._home = home
        self._vault = home.vault
        self._files = home.files
        #: How many files of attachments are written or read at a time.
        self.file_limiter = anyio.CapacityLimiter(FILES_AT_ONCE)
        self._drafts = itertools.count(1)
        #: Files that no row names any more, and that are to be overwritten.
        self._doomed: list[bytes] = []
        committer = Committer()
        waker = Waker()
        self._writer = Worker(
            "walyoff-write", waker, home.writer, committer.run, idle=committer.idle
        )
        self._reader = Worker("walyoff-read", waker, home.reader, read_group, group=_READ_GROUP)

    def __repr__(self) -> str:
        counts = self.statistics()
        return (
            f"<SqliteStore {self._home.path}"
            f" [{counts.writes} writes in {counts.commits} commits, {counts.reads} reads]>"
        )

    def statistics(self) -> StoreStatistics:
        """What was done since the store was opened."""
        return StoreStatistics(
            writes=self._writer.jobs, commits=self._writer.groups, reads=self._reader.jobs
        )

    async def get(self, key: str) -> bytes | None:
        """A setting. Raises StoreError if it was altered."""
        limits.check_name(key, "setting key")
        ref = self._vault.ref(places.SETTING, b"", key.encode())

        def work(connection: sqlite3.Connection) -> bytes | None:
            row = connection.execute(
                "SELECT value FROM settings WHERE ref = ?", (ref,)
            ).fetchone()
            if row is None:
                return None
            return self._vault.unseal(row[0], places.SETTING_VALUE + ref, "a setting")

        return await self.read(work)

    async def put(self, values: dict[str, bytes | None]) -> None:
        """Write settings, all or none.

        Raises:
            LocalProtocolError: an empty or too long key, or too large a value.
            StoreError: nothing was written.
        """
        limits.check_settings(values)
        given = dict(values)
        vault = self._vault

        def work(connection: sqlite3.Connection) -> None:
            put_settings(connection, vault, given)

        size = sum(len(value or b"") for value in given.values())
        await self.write(Job(work, size=size))

    async def keys(self, prefix: str) -> list[str]:
        """The names of settings. Reads all names: they are sealed one by one."""

        def work(connection: sqlite3.Connection) -> list[str]:
            rows = connection.execute("SELECT ref, name FROM settings").fetchall()
            unseal, place = self._vault.unseal, places.SETTING_NAME
            names = [unseal(name, place + ref, "a setting").decode() for ref, name in rows]
            return sorted(name for name in names if name.startswith(prefix))

        return await self.read(work)

    def channel(self, channel_id: str) -> SqliteChannelStore:
        """The part of a channel; costs nothing. Raises LocalProtocolError for a bad id."""
        limits.check_name(channel_id, "channel id")
        return SqliteChannelStore(self, channel_id)

    async def erase(self, channel_id: str) -> None:
        """Delete the log of a channel; see `walyoff.abc.Store`."""
        limits.check_name(channel_id, "channel id")
        ref = self._vault.ref(places.CHANNEL, b"", channel_id.encode())

        def work(connection: sqlite3.Connection) -> list[bytes]:
            return erase(connection, ref)

        await self._destroy(work)

    async def aclose(self) -> None:
        """Finish what was queued and release the home. Idempotent, not cancellable."""
        with anyio.CancelScope(shield=True):
            # The writer last: the last connection to close tidies the write-ahead log.
            await self._reader.aclose()
            await self._writer.aclose()
            await anyio.to_thread.run_sync(self._files.close)
        self._home.marks.close()
        self._home.lock.release()

    # For the channels.

    @property
    def vault(self) -> Vault:
        """The keys of this store."""
        return self._vault

    @property
    def files(self) -> ChunkFiles:
        """The files of large contents and of chunks."""
        return self._files

    def new_draft(self) -> int:
        """A number for an attachment that begins to be sent in this run."""
        return next(self._drafts)

    def queue(self, job: Job[T]) -> Awaitable[T]:
        """Queue something for the writer at once; awaiting only waits for it."""
        self._writer.submit(job)
        return self._writer.wait(job)

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do something in a snapshot in the reader's thread."""
        await anyio.lowlevel.checkpoint_if_cancelled()
        return await self._reader.call(Job(work))

    async def write(self, job: Job[T]) -> T:
        """Do something in a transaction in the writer's thread."""
        await anyio.lowlevel.checkpoint_if_cancelled()
        return await self._writer.call(job)

    async def write_channel(self, write: Write, size: int) -> int:
        """Stage the files of a write, and queue it."""
        await anyio.lowlevel.checkpoint_if_cancelled()
        self._writer.check_open()
        vault, files = self._vault, self._files
        self._stage(write)

        def work(connection: sqlite3.Connection) -> int:
            return Writing(connection, vault, write).apply()

        def settle(committed: bool) -> None:
            used = {staged.name for staged in write.used}
            for future in write.staged.values():
                if future.exception() is None:
                    staged = future.result()
                    kept = committed and staged.name in used
                    (files.committed if kept else files.discard)(staged)

        # From staging to queueing there is no await: no file is left without its job.
        return await self._writer.call(Job(work, settle=settle, size=size))

    def _stage(self, write: Write) -> None:
        """Begin to write the files of large contents, beside what the writer does now."""
        given = list(write.contents)
        for batch in write.batches:
            pairs = zip(batch.record_ids, batch.contents, strict=True)
            given += [
                (record_id, content) for record_id, content in pairs if content is not None
            ]
        prefix: bytes | None = None
        staged: dict[bytes, Future[Staged]] = write.staged
        for record_id, content in given:
            if len(content.data) > MAX_INLINE and record_id not in staged:
                if prefix is None:
                    ref = self._vault.ref(places.CHANNEL, b"", write.channel_id.encode())
                    prefix = places.content_prefix(ref)
                staged[record_id] = self._files.stage(content, prefix + record_id)

    async def destroy(self, channel_id: str, record_ids: Sequence[bytes]) -> None:
        """Destroy contents: rows, files, and what the write-ahead log has of them."""
        vault = self._vault

        def work(connection: sqlite3.Connection) -> list[bytes]:
            return destroy(connection, vault, channel_id, record_ids)

        await self._destroy(work)

    async def _destroy(self, work: Callable[[sqlite3.Connection], list[bytes]]) -> None:
        """Do it, and destroy the files that it names and what the write-ahead log has."""
        files = self._files
        # Once begun it is not left half done; what fails is done by the next call.
        with anyio.CancelScope(shield=True):
            self._doomed += await self.write(Job(work))
            if names := tuple(self._doomed):
                # In the reader's thread: what it began before still saw them, and is done.
                await self.read(lambda _: files.destroy(names))
                done = set(names)
                # Several may be at it: what others have added since is still to be done.
                self._doomed[:] = [name for name in self._doomed if name not in done]
            await self.write(Job(truncate_log, outside=True))

    def cursor_ref(self, channel_id: str, name: str) -> bytes:
        """The keyed name of a channel's cursor."""
        channel_ref = self._vault.ref(places.CHANNEL, b"", channel_id.encode())
        return self._vault.ref(places.CURSOR, channel_ref, name.encode())

    def marked(self, ref: bytes) -> int:
        """Where a cursor was marked last; 0 if it was not."""
        return self._home.marks.get(ref)

    def mark(self, ref: bytes, position: int) -> None:
        """Mark where a cursor is. Raises anyio.ClosedResourceError."""
        self._writer.check_open()
        self._home.marks.set(ref, position)

    def reading(self, connection: sqlite3.Connection, channel_id: str) -> Reading:
        """The queries of a channel on a snapshot."""
        return Reading(connection, self._vault, self._files, channel_id)


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


@asynccontextmanager
async def open_store(
    home: Path, *, passphrase: str | None = None
) -> AsyncIterator[SqliteStore]:
    """Open the store in a home folder, or make a new one; leaving the context closes it.

    With a passphrase the store key is wrapped by Argon2id, which takes about a second and
    256 MiB. A home keeps the protection that it was made with.

    Raises:
        HomeInUseError: another store has this home open; the text names the process id.
        StoreError: wrong or missing passphrase, a newer version, damage, or no access.
    """
    store = SqliteStore(await anyio.to_thread.run_sync(open_home, Path(home), passphrase))
    try:
        yield store
    finally:
        await store.aclose()
