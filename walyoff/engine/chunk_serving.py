"""One link's side of attachments: what the peer watches and asks for, and what it sends.

Nothing is decided here about what is fetched: see `walyoff.engine.transfers`. Chunks go out
part by part, and only a few parts wait in the session at a time, behind all small frames.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Protocol

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from walyoff import frames
from walyoff.chunk_frames import (
    MAX_WATCHED,
    PART,
    ChunkFrame,
    ChunkGone,
    ChunkPart,
    HaveChunks,
    WantChunk,
    WatchChunks,
)
from walyoff.engine.transfers import MAX_WINDOW
from walyoff.errors import RemoteProtocolError, StoreError
from walyoff.tasks import background_tasks

if TYPE_CHECKING:
    from walyoff.engine.driver import Engine
    from walyoff.engine.link import LinkState

#: Parts that wait in the session: enough to keep it busy while the next chunk is read.
BULK_BACKLOG = 2 * PART
#: Requests that wait for an answer: some full windows of the smallest ones, because what was
#: given up is still in line.
MAX_ASKED = 4 * MAX_WINDOW // PART
#: A peer is told of new chunks at most so often, unless it is the last one.
ANNOUNCE_EVERY = 0.25


class BulkLink(Protocol):
    """What a session does for bulk; see `walyoff.session.peer.Session`."""

    async def bulk_drained(self, limit: int) -> None:
        """Wait until at most `limit` bytes of bulk wait to be sent."""


class ChunkServer:
    """The chunks of attachments on one link."""

    def __init__(self, engine: Engine, session: BulkLink, state: LinkState) -> None:
        self._engine = engine
        self._session = session
        self._state = state
        #: What the peer watches, the longest ago first.
        self._watched: OrderedDict[bytes, None] = OrderedDict()
        self._dirty: dict[bytes, None] = {}
        self._work = anyio.Event()
        self._asked: deque[WantChunk] = deque()
        self._question = anyio.Event()

    async def run(self) -> None:
        """Announce and answer until cancelled."""
        send, receive = anyio.create_memory_object_stream[tuple[WantChunk, bytes | None]](1)
        attachments = self._engine.attachments
        attachments.servers.append(self)
        try:
            async with send, receive, background_tasks() as tasks:
                tasks.start_soon(self._announce)
                tasks.start_soon(self._read, send)
                await self._send(receive)
        finally:
            attachments.servers.remove(self)

    def receive(self, frame: ChunkFrame) -> None:
        """Take a frame of the peer. Raises RemoteProtocolError if it asks for too much."""
        attachments, name = self._engine.attachments, self._state.link.name
        match frame:
            case WatchChunks(record_ids):
                for record_id in record_ids:
                    self._watched[record_id] = None
                    self._watched.move_to_end(record_id)
                    self._dirty[record_id] = None
                while len(self._watched) > MAX_WATCHED:
                    forgotten, _ = self._watched.popitem(last=False)
                    self._dirty.pop(forgotten, None)
                self._work.set()
            case HaveChunks(record_id, bits):
                attachments.peer_has(name, record_id, bits)
            case WantChunk():
                if len(self._asked) >= MAX_ASKED:
                    raise RemoteProtocolError(f"more than {MAX_ASKED} chunks asked for")
                self._asked.append(frame)
                self._question.set()
            case ChunkPart(number, offset, data):
                attachments.part(name, number, offset, data)
            case ChunkGone(number):
                attachments.gone(name, number)

    def changed(self, record_id: bytes) -> None:
        """Chunks of an attachment came, or went."""
        if record_id in self._watched:
            self._dirty[record_id] = None
            self._work.set()

    async def _announce(self) -> None:
        """Tell the peer what is held of what it watches."""
        while True:
            await self._work.wait()
            self._work = anyio.Event()
            while self._dirty:
                record_id, _ = self._dirty.popitem()
                try:
                    bits = await self._engine.attachments.held(record_id)
                except StoreError:
                    continue
                if self._admitted():
                    self._state.send(HaveChunks(record_id, bits))
            await anyio.sleep(ANNOUNCE_EVERY)

    def _admitted(self) -> bool:
        return self._engine.trust.admits(self._state.link.did)

    async def _read(self, send: MemoryObjectSendStream[tuple[WantChunk, bytes | None]]) -> None:
        """Read what was asked for, one chunk ahead of what is sent."""
        last: tuple[bytes, int] | None = None
        data: bytes | None = None
        while True:
            while not self._asked:
                self._question = anyio.Event()
                await self._question.wait()
            want = self._asked.popleft()
            if last != (want.record_id, want.place):
                last = (want.record_id, want.place)
                data = None
                try:
                    data = await self._engine.attachments.chunks.read(*last)
                except StoreError:
                    # It is damaged or the disk fails: others may hold it.
                    data = None
            await send.send((want, data))

    async def _send(
        self, receive: MemoryObjectReceiveStream[tuple[WantChunk, bytes | None]]
    ) -> None:
        async for want, data in receive:
            if not self._admitted():
                continue
            end = want.offset + want.length
            if data is None or end > len(data):
                self._state.send(ChunkGone(want.number))
                continue
            view = memoryview(data)
            for offset in range(want.offset, end, PART):
                await self._session.bulk_drained(BULK_BACKLOG)
                part = ChunkPart(want.number, offset, view[offset : min(offset + PART, end)])
                self._state.link.send_bulk(frames.encode(part))
                self._engine.attachments.bytes_served += len(part.data)
