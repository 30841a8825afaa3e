"""A store in memory that forgets what was not synced when its device crashes."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import anyio

from walyoff.abc import (
    Head,
    LogEntry,
    NewBatch,
    StoredBatch,
    StoredContent,
)
from walyoff.chunkstore import NewAttachment
from walyoff.errors import HomeInUseError, StoreError
from walyoff.testing.memory_chunks import ChunkData, MemoryChunkStore

#: As many as `ChannelStore.batches` returns at most.
MAX_BATCHES = 64


@dataclass(slots=True)
class _Place:
    author: str
    seq: int
    batch_id: bytes


@dataclass(slots=True)
class _Data:
    batches: dict[bytes, StoredBatch] = field(default_factory=dict)
    firsts: dict[str, list[tuple[int, bytes]]] = field(default_factory=dict)
    records: dict[bytes, _Place] = field(default_factory=dict)
    order: dict[bytes, tuple[bytes, ...]] = field(default_factory=dict)
    contents: dict[bytes, StoredContent] = field(default_factory=dict)
    log: list[bytes] = field(default_factory=list)
    delivered: set[bytes] = field(default_factory=set)
    heads: dict[str, Head] = field(default_factory=dict)
    cursors: dict[str, int] = field(default_factory=dict)
    chunks: ChunkData = field(default_factory=ChunkData)
    forgotten: set[bytes] = field(default_factory=set)
    expiries: dict[bytes, int] = field(default_factory=dict)


@dataclass(slots=True)
class MemoryDisk:
    """What survives a crash of a device. `sync_s` is how long a sync takes."""

    sync_s: float = 0.001
    #: While true nothing can be written, as on a full disk.
    full: bool = False
    values: dict[str, bytes] = field(default_factory=dict)
    channels: dict[str, _Data] = field(default_factory=dict)
    owned: bool = False


class MemoryStore:
    """A `Store` on a `MemoryDisk`. What is written counts when its sync is over."""

    def __init__(self, disk: MemoryDisk) -> None:
        self._disk = disk
        self._lock = anyio.Lock()
        self._channels: dict[str, MemoryChannelStore] = {}

    async def get(self, key: str) -> bytes | None:
        """See `walyoff.abc.Store`."""
        await anyio.lowlevel.checkpoint()
        return self._disk.values.get(key)

    async def put(self, values: dict[str, bytes | None]) -> None:
        """See `walyoff.abc.Store`."""
        await self.sync()
        self.put_now(values)

    def put_now(self, values: Mapping[str, bytes | None]) -> None:
        """Write values as a part of what was synced."""
        for key, value in values.items():
            if value is None:
                self._disk.values.pop(key, None)
            else:
                self._disk.values[key] = value

    async def sync(self) -> None:
        """Wait for one sync; they follow one another. Raises StoreError on a full disk."""
        async with self._lock:
            await anyio.sleep(self._disk.sync_s)
            if self._disk.full:
                raise StoreError("no space left on the simulated disk")

    async def keys(self, prefix: str) -> list[str]:
        """See `walyoff.abc.Store`."""
        await anyio.lowlevel.checkpoint()
        return sorted(key for key in self._disk.values if key.startswith(prefix))

    async def erase(self, channel_id: str) -> None:
        """See `walyoff.abc.Store`."""
        await self.sync()
        self._disk.channels.pop(channel_id, None)
        self._channels.pop(channel_id, None)

    def channel(self, channel_id: str) -> MemoryChannelStore:
        """See `walyoff.abc.Store`."""
        if channel_id not in self._channels:
            data = self._disk.channels.setdefault(channel_id, _Data())
            self._channels[channel_id] = MemoryChannelStore(self, data)
        return self._channels[channel_id]

    async def aclose(self) -> None:
        """See `walyoff.abc.Store`."""
        self._disk.owned = False
        await anyio.lowlevel.checkpoint()


class MemoryChannelStore:
    """The part of one channel."""

    def __init__(self, store: MemoryStore, data: _Data) -> None:
        self._store = store
        self._data = data
        self._marks: dict[str, int] = {}
        self.chunks = MemoryChunkStore(data.chunks, store.sync, data.log)

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
        """See `walyoff.abc.ChannelStore`."""
        await self._store.sync()
        data = self._data
        for batch in batches:
            self._add(batch)
        for record_id, content in contents:
            if record_id not in data.records:
                raise StoreError(f"content of an unknown record {record_id[:4].hex()}")
            if record_id not in data.forgotten:
                data.contents.setdefault(record_id, content)
        for attachment in attachments:
            if attachment.record_id not in data.forgotten:
                self.chunks.register(attachment)
        for record_id in deliver:
            if record_id not in data.delivered:
                data.delivered.add(record_id)
                data.log.append(record_id)
        for batch_id, signature in signatures:
            if (stored := data.batches.get(batch_id)) and stored.signature is None:
                data.batches[batch_id] = replace(stored, signature=signature)
        for batch_id, anchor in anchors:
            if (stored := data.batches.get(batch_id)) and stored.anchor is None:
                data.batches[batch_id] = replace(stored, anchor=anchor)
        due = {i: at for i, at in expiries if i not in data.forgotten}
        data.expiries = {**due, **data.expiries}
        self._store.put_now(values)
        return len(data.log)

    def _add(self, batch: NewBatch) -> None:
        data = self._data
        if batch.batch_id in data.batches:
            return
        head = data.heads.get(batch.author)
        if batch.first_seq != (head.seq if head else 0) + 1:
            raise StoreError(f"batch does not follow on record {head.seq if head else 0}")
        data.batches[batch.batch_id] = StoredBatch(
            author=batch.author,
            first_seq=batch.first_seq,
            count=len(batch.record_ids),
            batch_id=batch.batch_id,
            body=batch.body,
            signature=batch.signature,
            anchor=batch.anchor,
            record_ids=tuple(batch.record_ids),
        )
        insort(data.firsts.setdefault(batch.author, []), (batch.first_seq, batch.batch_id))
        data.order[batch.batch_id] = batch.record_ids
        for at, (record_id, content) in enumerate(
            zip(batch.record_ids, batch.contents, strict=True)
        ):
            data.records[record_id] = _Place(batch.author, batch.first_seq + at, batch.batch_id)
            if content is not None:
                data.contents[record_id] = content
        data.heads[batch.author] = Head(
            author=batch.author,
            seq=batch.first_seq + len(batch.record_ids) - 1,
            record_id=batch.record_ids[-1],
            batch_id=batch.batch_id,
        )

    async def heads(self) -> list[Head]:
        """See `walyoff.abc.ChannelStore`."""
        await anyio.lowlevel.checkpoint()
        return list(self._data.heads.values())

    async def top(self) -> int:
        """See `walyoff.abc.ChannelStore`."""
        await anyio.lowlevel.checkpoint()
        return len(self._data.log)

    async def log(
        self, *, after: int, limit: int, newest_first: bool = False
    ) -> list[LogEntry]:
        """See `walyoff.abc.ChannelStore`."""
        await anyio.lowlevel.checkpoint()
        size = len(self._data.log)
        if newest_first:
            end = after - 1 if after else size
            places = range(end, max(end - limit, 0), -1)
        else:
            places = range(after + 1, min(after + limit, size) + 1)
        return [self._entry(position) for position in places]

    def _entry(self, position: int) -> LogEntry:
        record_id = self._data.log[position - 1]
        place = self._data.records[record_id]
        return LogEntry(
            position=position,
            author=place.author,
            seq=place.seq,
            record_id=record_id,
            batch_id=place.batch_id,
            anchored=self._data.batches[place.batch_id].anchor is not None,
            content=self._data.contents.get(record_id),
            forgotten=record_id in self._data.forgotten,
        )

    async def forget(self, record_ids: Sequence[bytes]) -> None:
        """See `walyoff.abc.ChannelStore`."""
        await self._store.sync()
        data = self._data
        if not data.records.keys() >= set(record_ids):
            raise StoreError("a record that is to be forgotten is unknown")
        for record_id in record_ids:
            data.contents.pop(record_id, None)
            data.expiries.pop(record_id, None)
            data.forgotten.add(record_id)
            self.chunks.release(record_id)

    async def expired(self, now_ms: int, limit: int) -> list[bytes]:
        """See `walyoff.abc.ChannelStore`."""
        await anyio.lowlevel.checkpoint()
        due = sorted((due, record_id) for record_id, due in self._data.expiries.items())
        return [record_id for at, record_id in due if at <= now_ms][:limit]

    async def next_expiry(self) -> int | None:
        """See `walyoff.abc.ChannelStore`."""
        await anyio.lowlevel.checkpoint()
        return min(self._data.expiries.values(), default=None)

    async def beginning(self, digits: str, limit: int) -> list[bytes]:
        """See `walyoff.abc.ChannelStore`."""
        await anyio.lowlevel.checkpoint()
        found = [r for r in reversed(self._data.records) if r.hex().startswith(digits)]
        return found[:limit]

    async def find(self, record_ids: Sequence[bytes]) -> list[LogEntry | None]:
        """See `walyoff.abc.ChannelStore`."""
        await anyio.lowlevel.checkpoint()
        data = self._data
        positions = {record_id: at for at, record_id in enumerate(data.log, 1)}
        found: list[LogEntry | None] = []
        for record_id in record_ids:
            place = data.records.get(record_id)
            if place is None:
                found.append(None)
                continue
            found.append(
                LogEntry(
                    position=positions.get(record_id, 0),
                    author=place.author,
                    seq=place.seq,
                    record_id=record_id,
                    batch_id=place.batch_id,
                    anchored=data.batches[place.batch_id].anchor is not None,
                    content=None,
                    forgotten=record_id in data.forgotten,
                )
            )
        return found

    async def batches(self, author: str, first_seq: int, last_seq: int) -> list[StoredBatch]:
        """See `walyoff.abc.ChannelStore`."""
        await anyio.lowlevel.checkpoint()
        firsts = self._data.firsts.get(author, [])
        start = max(bisect_right(firsts, (first_seq, b"\xff" * 33)) - 1, 0)
        found: list[StoredBatch] = []
        for first, batch_id in firsts[start : start + MAX_BATCHES + 1]:
            batch = self._data.batches[batch_id]
            if first > last_seq or len(found) == MAX_BATCHES:
                break
            if first + batch.count > first_seq:
                found.append(batch)
        return found

    async def batch(self, batch_id: bytes) -> StoredBatch | None:
        """See `walyoff.abc.ChannelStore`."""
        await anyio.lowlevel.checkpoint()
        return self._data.batches.get(batch_id)

    async def contents(self, record_ids: Sequence[bytes]) -> list[StoredContent | None]:
        """See `walyoff.abc.ChannelStore`."""
        await anyio.lowlevel.checkpoint()
        return [self._data.contents.get(record_id) for record_id in record_ids]

    async def missing(self, limit: int) -> list[tuple[str, int, bytes]]:
        """See `walyoff.abc.ChannelStore`."""
        await anyio.lowlevel.checkpoint()
        data = self._data
        found = [
            (place.author, place.seq, record_id)
            for record_id, place in data.records.items()
            if record_id not in data.contents and record_id not in data.forgotten
        ]
        return found[:limit]

    async def undelivered(self) -> list[tuple[str, int, bytes]]:
        """See `walyoff.abc.ChannelStore`."""
        await anyio.lowlevel.checkpoint()
        data = self._data
        return [
            (place.author, place.seq, record_id)
            for record_id, place in data.records.items()
            if (record_id in data.contents or record_id in data.forgotten)
            and record_id not in data.delivered
        ]

    async def unsigned(self) -> list[StoredBatch]:
        """See `walyoff.abc.ChannelStore`."""
        await anyio.lowlevel.checkpoint()
        return [batch for batch in self._data.batches.values() if batch.signature is None]

    async def unanchored(self, limit: int) -> list[StoredBatch]:
        """See `walyoff.abc.ChannelStore`."""
        await anyio.lowlevel.checkpoint()
        found = [
            batch
            for batch in self._data.batches.values()
            if batch.signature is not None and batch.anchor is None
        ]
        return found[:limit]

    async def get_cursor(self, name: str) -> int:
        """See `walyoff.abc.ChannelStore`."""
        await anyio.lowlevel.checkpoint()
        return max(self._data.cursors.get(name, 0), self._marks.get(name, 0))

    def mark_cursor(self, name: str, position: int) -> None:
        """See `walyoff.abc.ChannelStore`. A crash here is a power loss, and undoes it."""
        self._marks[name] = max(position, self._marks.get(name, 0))

    async def set_cursor(self, name: str, position: int) -> None:
        """See `walyoff.abc.ChannelStore`."""
        await self._store.sync()
        self._data.cursors[name] = max(position, self._data.cursors.get(name, 0))


@asynccontextmanager
async def open_memory_store(disk: MemoryDisk) -> AsyncIterator[MemoryStore]:
    """Open a disk; one owner at a time. Raises HomeInUseError."""
    if disk.owned:
        raise HomeInUseError("this disk is in use")
    disk.owned = True
    store = MemoryStore(disk)
    try:
        yield store
    finally:
        disk.owned = False
