"""`SqliteStore`: the device's durable store on SQLite.

Two threads with a connection each. The writer takes all calls that wait and commits them
together, so that one fsync serves many; the reader works on snapshots and never waits for a
commit. The event loop only checks arguments and waits.
"""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread

from walyoff.stores import limits, places
from walyoff.stores.attachments import FILES_AT_ONCE
from walyoff.stores.channel import SqliteChannelStore
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
