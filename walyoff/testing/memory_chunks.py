"""The chunks of attachments on a simulated disk."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import anyio

from walyoff.chunkstore import WISH_DROPPED, WISH_NONE, NewAttachment, Unfinished
from walyoff.manifest import chunk_length


@dataclass(slots=True)
class Held:
    """An attachment that is known."""

    about: NewAttachment
    wish: int = WISH_NONE
    complete: bool = False


@dataclass(slots=True)
class ChunkData:
    """What survives a crash."""

    attachments: dict[bytes, Held] = field(default_factory=dict)
    chunks: dict[bytes, bytes] = field(default_factory=dict)


class MemoryChunkStore:
    """A `walyoff.chunkstore.ChunkStore` for one channel."""

    def __init__(
        self, data: ChunkData, sync: Callable[[], Awaitable[None]], log: list[bytes]
    ) -> None:
        self._data = data
        self._sync = sync
        self._log = log
        self._drafts: dict[int, set[bytes]] = {}
        #: Chunks that were put in this run: what was not put was not transferred.
        self.puts = 0

    def register(self, attachment: NewAttachment) -> None:
        """The manifest of an attachment is written."""
        self._data.attachments.setdefault(attachment.record_id, Held(attachment))
        self._finish(attachment.record_id)

    def new_draft(self) -> int:
        """See `walyoff.chunkstore.ChunkStore`."""
        draft = len(self._drafts) + 1
        self._drafts[draft] = set()
        return draft

    async def adopt(self, draft: int, place: int, chunk_id: bytes) -> bool:
        """See `walyoff.chunkstore.ChunkStore`."""
        await anyio.lowlevel.checkpoint()
        if chunk_id not in self._data.chunks:
            return False
        self._drafts[draft].add(chunk_id)
        return True

    async def put(
        self, chunk_id: bytes, data: bytes, *, draft: tuple[int, int] | None = None
    ) -> bool:
        """See `walyoff.chunkstore.ChunkStore`."""
        await self._sync()
        if draft is not None:
            self._drafts[draft[0]].add(chunk_id)
        if chunk_id not in self._used(dropped=True):
            return False
        if chunk_id not in self._data.chunks:
            self._data.chunks[chunk_id] = data
            self.puts += 1
        return True

    async def end_draft(self, draft: int) -> None:
        """See `walyoff.chunkstore.ChunkStore`."""
        await anyio.lowlevel.checkpoint()
        self._drafts[draft].clear()

    def _used(self, but: bytes = b"", *, dropped: bool = False) -> set[bytes]:
        used: set[bytes] = set().union(*self._drafts.values())
        for record_id, held in self._data.attachments.items():
            if record_id != but and (dropped or held.wish != WISH_DROPPED):
                used.update(held.about.chunk_ids)
        return used

    def _places(self, held: Held) -> list[int]:
        chunks = self._data.chunks
        return [
            place
            for place, chunk_id in enumerate(held.about.chunk_ids)
            if len(chunks.get(chunk_id, b"")) == chunk_length(held.about.size, place)
        ]

    async def held(self, record_id: bytes) -> bytes | None:
        """See `walyoff.chunkstore.ChunkStore`."""
        await anyio.lowlevel.checkpoint()
        held = self._data.attachments.get(record_id)
        if held is None:
            return None
        bits = bytearray(-(-len(held.about.chunk_ids) // 8))
        for place in self._places(held):
            bits[place // 8] |= 1 << place % 8
        return bytes(bits)

    async def read(self, record_id: bytes, place: int) -> bytes | None:
        """See `walyoff.chunkstore.ChunkStore`."""
        await anyio.lowlevel.checkpoint()
        held = self._data.attachments.get(record_id)
        if held is None or place >= len(held.about.chunk_ids):
            return None
        data = self._data.chunks.get(held.about.chunk_ids[place])
        if data is None or len(data) != chunk_length(held.about.size, place):
            return None
        return data

    async def unfinished(self, limit: int) -> list[Unfinished]:
        """See `walyoff.chunkstore.ChunkStore`."""
        await anyio.lowlevel.checkpoint()
        found = [
            Unfinished(
                record_id=record_id,
                size=held.about.size,
                count=len(held.about.chunk_ids),
                wish=held.wish,
            )
            for record_id, held in self._data.attachments.items()
            if not held.complete
        ]
        return found[:limit]

    def _finish(self, record_id: bytes) -> bool:
        held = self._data.attachments.get(record_id)
        if held is None or len(self._places(held)) < len(held.about.chunk_ids):
            return False
        held.complete = True
        return True

    async def finish(self, record_id: bytes) -> bool:
        """See `walyoff.chunkstore.ChunkStore`."""
        await self._sync()
        return self._finish(record_id)

    async def wish(self, record_id: bytes, value: int) -> None:
        """See `walyoff.chunkstore.ChunkStore`."""
        await self._sync()
        if held := self._data.attachments.get(record_id):
            held.wish = value

    def _remove(self, chunk_ids: set[bytes]) -> int:
        return sum(len(self._data.chunks.pop(chunk_id, b"")) for chunk_id in chunk_ids)

    async def drop(self, record_id: bytes) -> int:
        """See `walyoff.chunkstore.ChunkStore`."""
        await self._sync()
        held = self._data.attachments.get(record_id)
        if held is None:
            return 0
        freed = self._remove(set(held.about.chunk_ids) - self._used(but=record_id))
        held.complete, held.wish = False, WISH_DROPPED
        return freed

    async def destroy(self, record_id: bytes) -> None:
        """See `walyoff.chunkstore.ChunkStore`."""
        await self._sync()
        self.release(record_id)

    def release(self, record_id: bytes) -> None:
        """Forget an attachment as a part of what was synced."""
        held = self._data.attachments.pop(record_id, None)
        if held is not None:
            self._remove(set(held.about.chunk_ids) - self._used())

    async def collect(self) -> tuple[int, int]:
        """See `walyoff.chunkstore.ChunkStore`."""
        await self._sync()
        unused = set(self._data.chunks) - self._used(dropped=True)
        return len(unused), self._remove(unused)

    async def total(self) -> int:
        """See `walyoff.chunkstore.ChunkStore`."""
        await anyio.lowlevel.checkpoint()
        return sum(len(data) for data in self._data.chunks.values())

    async def positions(self, limit: int) -> list[int]:
        """See `walyoff.chunkstore.ChunkStore`."""
        await anyio.lowlevel.checkpoint()
        found = [
            position
            for position, record_id in enumerate(self._log, 1)
            if record_id in self._data.attachments
        ]
        return found[::-1][:limit]
