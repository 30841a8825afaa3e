"""The chunks of attachments: rows in the database, and one encrypted file each.

Every chunk has a key of its own, wrapped by the store key, in its row: without the row a file
is noise. A row is alive while `uses` refers to it, so forgetting an attachment is one
transaction that deletes its uses and the rows that are left without any; the files go after,
and those that a kill left are swept at the next opening, because no row names them.

Files are written and synced in threads, and only then is the row queued for the writer: the
commit of a small message never waits for a large file.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import anyio
import anyio.to_thread

from walyoff.chunkstore import WISH_DROPPED, NewAttachment, Unfinished
from walyoff.manifest import chunk_length
from walyoff.records import CHUNK_SIZE
from walyoff.stores import limits, places
from walyoff.stores.chunks import Staged
from walyoff.stores.packing import chunks, insert_rows, marks
from walyoff.stores.threads import Job
from walyoff.stores.vault import Vault

if TYPE_CHECKING:
    from walyoff.stores.sqlite import SqliteStore

T = TypeVar("T")

#: Files that are written or read at once: more only wait for the same disk.
FILES_AT_ONCE = 4
#: A use whose chunk is held, and is as long as it has to be at that place.
_HELD = (
    "FROM attachments a JOIN uses u ON u.record = a.record JOIN chunks c ON c.ref = u.ref"
    f" AND c.size = CASE WHEN u.place < a.count - 1 THEN {CHUNK_SIZE}"
    f" ELSE a.size - (a.count - 1) * {CHUNK_SIZE} END WHERE a.record = ?"
)


def register(
    connection: sqlite3.Connection,
    vault: Vault,
    channel: tuple[int, bytes],
    attachments: Sequence[tuple[int, NewAttachment]],
) -> None:
    """Note attachments by their record numbers, inside the transaction of their manifests.

    `channel` is its number and its ref. What is noted already is left as it is.
    """
    number, channel_ref = channel
    for record, attachment in attachments:
        known = connection.execute("SELECT 1 FROM attachments WHERE record = ?", (record,))
        if known.fetchone() is not None:
            continue
        refs = vault.refs(places.CHUNK, channel_ref, attachment.chunk_ids)
        insert_rows(
            connection,
            "uses(record,place,ref)",
            [(record, place, ref) for place, ref in enumerate(refs)],
        )
        connection.execute(
            "INSERT INTO attachments(record,channel,size,count,complete,wish)"
            " VALUES (?,?,?,?,0,0)",
            (record, number, attachment.size, len(refs)),
        )
        _finish(connection, record)


def release(connection: sqlite3.Connection, record: int) -> list[bytes]:
    """Forget the attachment of a record, inside a transaction.

    Returns the names of the files to be removed after it, whose keys are gone with it.
    """
    refs = _refs(connection, record)
    connection.execute("DELETE FROM uses WHERE record = ?", (record,))
    connection.execute("DELETE FROM attachments WHERE record = ?", (record,))
    return [name for name, _ in _delete_unused(connection, refs, but=record)]


def _refs(connection: sqlite3.Connection, record: int) -> list[bytes]:
    rows = connection.execute("SELECT DISTINCT ref FROM uses WHERE record = ?", (record,))
    return [ref for (ref,) in rows]


def _delete_unused(
    connection: sqlite3.Connection, refs: Sequence[bytes], *, but: int
) -> list[tuple[bytes, int]]:
    """Delete those chunks that no record but one uses; returns their files and sizes.

    An attachment that was dropped keeps nothing, though it takes part in what others keep.
    """
    gone: list[tuple[bytes, int]] = []
    for start, size in chunks(len(refs)):
        rows = connection.execute(
            f"DELETE FROM chunks WHERE ref IN ({marks(size)}) AND NOT EXISTS"  # noqa: S608
            " (SELECT 1 FROM uses u LEFT JOIN attachments a ON a.record = u.record"
            " WHERE u.ref = chunks.ref AND u.record <> ?"
            f" AND coalesce(a.wish, 0) <> {WISH_DROPPED}) RETURNING file, size",
            (*refs[start : start + size], but),
        )
        gone += rows.fetchall()
    return gone


def _finish(connection: sqlite3.Connection, record: int) -> bool:
    (held,) = connection.execute(f"SELECT count(*) {_HELD}", (record,)).fetchone()
    done = connection.execute(
        "UPDATE attachments SET complete = 1 WHERE record = ? AND count = ?", (record, held)
    )
    return done.rowcount > 0


class SqliteChunkStore:
    """`walyoff.chunkstore.ChunkStore`. Holds nothing: any number may exist for a channel."""

    def __init__(self, store: SqliteStore, channel_id: str) -> None:
        self._store = store
        self._id = channel_id
        self._vault = store.vault
        self._channel_ref = self._vault.ref(places.CHANNEL, b"", channel_id.encode())

    def __repr__(self) -> str:
        return f"<SqliteChunkStore of {self._store!r}>"

    def new_draft(self) -> int:
        """See `walyoff.chunkstore.ChunkStore`."""
        return self._store.new_draft()

    # -------------------------------------------------------------------- writing

    async def adopt(self, draft: int, place: int, chunk_id: bytes) -> bool:
        """See `walyoff.chunkstore.ChunkStore`."""
        ref = self._chunk_ref(chunk_id)

        def work(connection: sqlite3.Connection) -> bool:
            done = connection.execute(
                "INSERT OR IGNORE INTO uses(record,place,ref)"
                " SELECT ?, ?, ref FROM chunks WHERE ref = ?",
                (-draft, place, ref),
            )
            return done.rowcount > 0

        return await self._store.write(Job(work))

    async def put(
        self, chunk_id: bytes, data: bytes, *, draft: tuple[int, int] | None = None
    ) -> bool:
        """See `walyoff.chunkstore.ChunkStore`."""
        limits.check_chunk(data)
        store, ref = self._store, self._chunk_ref(chunk_id)
        files = store.files
        staged = await self._in_thread(files.stage_chunk, data, places.CHUNK_DATA + ref)
        used = False

        def work(connection: sqlite3.Connection) -> bool:
            nonlocal used
            used = False
            if draft is not None:
                connection.execute(
                    "INSERT OR IGNORE INTO uses(record,place,ref) VALUES (?,?,?)",
                    (-draft[0], draft[1], ref),
                )
            elif not connection.execute("SELECT 1 FROM uses WHERE ref = ?", (ref,)).fetchone():
                return False
            done = connection.execute(
                "INSERT OR IGNORE INTO chunks(ref,channel,size,key,file) VALUES (?,?,?,?,?)",
                (ref, self._number(connection), len(data), staged.wrapped, staged.name),
            )
            used = done.rowcount > 0
            return True

        def settle(committed: bool) -> None:
            (files.committed if committed and used else files.discard)(staged)

        try:
            job = Job(work, settle=settle)
            queued = store.queue(job)
        except BaseException:
            files.discard(staged)
            raise
        # Queued: from here the writer settles it, whatever becomes of this call.
        return await queued

    async def end_draft(self, draft: int) -> None:
        """See `walyoff.chunkstore.ChunkStore`."""

        def work(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM uses WHERE record = ?", (-draft,))

        with anyio.CancelScope(shield=True):
            await self._store.write(Job(work))

    async def finish(self, record_id: bytes) -> bool:
        """See `walyoff.chunkstore.ChunkStore`."""
        return await self._on_record(record_id, False, _finish)

    async def wish(self, record_id: bytes, value: int) -> None:
        """See `walyoff.chunkstore.ChunkStore`."""

        def work(connection: sqlite3.Connection, record: int) -> None:
            connection.execute(
                "UPDATE attachments SET wish = ? WHERE record = ?", (value, record)
            )

        await self._on_record(record_id, None, work)

    async def drop(self, record_id: bytes) -> int:
        """See `walyoff.chunkstore.ChunkStore`."""

        def work(connection: sqlite3.Connection, record: int) -> list[tuple[bytes, int]]:
            gone = _delete_unused(connection, _refs(connection, record), but=record)
            connection.execute(
                f"UPDATE attachments SET complete = 0, wish = {WISH_DROPPED} WHERE record = ?",  # noqa: S608
                (record,),
            )
            return gone

        return await self._removed(self._on_record(record_id, [], work))

    async def destroy(self, record_id: bytes) -> None:
        """See `walyoff.chunkstore.ChunkStore`."""

        def work(connection: sqlite3.Connection, record: int) -> list[tuple[bytes, int]]:
            return [(name, 0) for name in release(connection, record)]

        await self._removed(self._on_record(record_id, [], work))

    async def collect(self) -> tuple[int, int]:
        """See `walyoff.chunkstore.ChunkStore`."""

        def work(connection: sqlite3.Connection) -> list[tuple[bytes, int]]:
            return connection.execute(
                "DELETE FROM chunks WHERE channel = ? AND NOT EXISTS"
                " (SELECT 1 FROM uses u WHERE u.ref = chunks.ref) RETURNING file, size",
                (self._number(connection),),
            ).fetchall()

        with anyio.CancelScope(shield=True):
            gone = await self._store.write(Job(work))
            await self._in_thread(self._store.files.remove, [name for name, _ in gone])
        return len(gone), sum(size for _, size in gone)

    async def _removed(self, deleting: Awaitable[list[tuple[bytes, int]]]) -> int:
        """Remove the files whose rows were deleted; returns their bytes."""
        with anyio.CancelScope(shield=True):
            gone = await deleting
            await self._in_thread(self._store.files.remove, [name for name, _ in gone])
        return sum(size for _, size in gone)

    async def _on_record(
        self, record_id: bytes, default: T, work: Callable[[sqlite3.Connection, int], T]
    ) -> T:
        """Do something with the number of a record in a transaction; the default without."""
        limits.check_hash(record_id, "record hash")
        ref = self._vault.ref(places.RECORD, self._channel_ref, record_id)

        def found(connection: sqlite3.Connection) -> T:
            row = connection.execute(
                "SELECT record FROM records WHERE ref = ?", (ref,)
            ).fetchone()
            return default if row is None else work(connection, row[0])

        return await self._store.write(Job(found))

    def _number(self, connection: sqlite3.Connection) -> int:
        """The number of the channel, which may have nothing yet."""
        connection.execute(
            "INSERT OR IGNORE INTO channels(ref, top) VALUES (?, 0)", (self._channel_ref,)
        )
        row = connection.execute(
            "SELECT channel FROM channels WHERE ref = ?", (self._channel_ref,)
        ).fetchone()
        return int(row[0])

    # -------------------------------------------------------------------- reading

    async def held(self, record_id: bytes) -> bytes | None:
        """See `walyoff.chunkstore.ChunkStore`."""
        ref = self._vault.ref(places.RECORD, self._channel_ref, record_id)

        def query(connection: sqlite3.Connection) -> bytes | None:
            row = connection.execute(
                "SELECT a.record, a.count FROM records r JOIN attachments a"
                " ON a.record = r.record WHERE r.ref = ?",
                (ref,),
            ).fetchone()
            if row is None:
                return None
            bits = bytearray(-(-row[1] // 8))
            for (place,) in connection.execute(f"SELECT u.place {_HELD}", (row[0],)).fetchall():
                bits[place // 8] |= 1 << place % 8
            return bytes(bits)

        return await self._store.read(query)

    async def read(self, record_id: bytes, place: int) -> bytes | None:
        """See `walyoff.chunkstore.ChunkStore`."""
        limits.check_number(place, "place of a chunk")
        ref = self._vault.ref(places.RECORD, self._channel_ref, record_id)

        def query(connection: sqlite3.Connection) -> tuple[bytes, bytes, bytes, int] | None:
            row = connection.execute(
                "SELECT c.ref, c.key, c.file, c.size, a.size FROM records r"
                " JOIN attachments a ON a.record = r.record"
                " JOIN uses u ON u.record = r.record AND u.place = ?"
                " JOIN chunks c ON c.ref = u.ref WHERE r.ref = ?",
                (place, ref),
            ).fetchone()
            if row is None or row[3] != chunk_length(row[4], place):
                return None
            return row[0], row[1], row[2], row[3]

        found = await self._store.read(query)
        if found is None:
            return None
        chunk_ref, wrapped, name, size = found
        read = self._store.files.read_chunk
        return await self._in_thread(
            read, Staged(name, wrapped), places.CHUNK_DATA + chunk_ref, size, record_id
        )

    async def unfinished(self, limit: int) -> list[Unfinished]:
        """See `walyoff.chunkstore.ChunkStore`."""
        limits.check_limit(limit)

        def query(connection: sqlite3.Connection) -> list[Unfinished]:
            rows = connection.execute(
                "SELECT a.record, a.size, a.count, a.wish FROM attachments a"
                " JOIN channels c ON c.channel = a.channel"
                " WHERE c.ref = ? AND a.complete = 0 ORDER BY a.record LIMIT ?",
                (self._channel_ref, limit),
            ).fetchall()
            ids = self._store.reading(connection, self._id).record_ids([row[0] for row in rows])
            return [
                Unfinished(record_id=ids[record], size=size, count=count, wish=wish)
                for record, size, count, wish in rows
            ]

        return await self._store.read(query)

    async def total(self) -> int:
        """See `walyoff.chunkstore.ChunkStore`."""

        def query(connection: sqlite3.Connection) -> int:
            row = connection.execute(
                "SELECT coalesce(sum(k.size), 0) FROM chunks k"
                " JOIN channels c ON c.channel = k.channel WHERE c.ref = ?",
                (self._channel_ref,),
            ).fetchone()
            return int(row[0])

        return await self._store.read(query)

    async def positions(self, limit: int) -> list[int]:
        """See `walyoff.chunkstore.ChunkStore`."""
        limits.check_limit(limit)

        def query(connection: sqlite3.Connection) -> list[int]:
            rows = connection.execute(
                "SELECT r.position FROM attachments a JOIN records r ON r.record = a.record"
                " JOIN channels c ON c.channel = a.channel"
                " WHERE c.ref = ? AND r.position IS NOT NULL ORDER BY r.position DESC LIMIT ?",
                (self._channel_ref, limit),
            ).fetchall()
            return [position for (position,) in rows]

        return await self._store.read(query)

    def _chunk_ref(self, chunk_id: bytes) -> bytes:
        limits.check_hash(chunk_id, "chunk id")
        return self._vault.ref(places.CHUNK, self._channel_ref, chunk_id)

    async def _in_thread(self, function: Callable[..., T], *arguments: object) -> T:
        """Not in the threads that sign: those must not wait for a disk."""
        return await anyio.to_thread.run_sync(
            partial(function, *arguments), limiter=self._store.file_limiter
        )
