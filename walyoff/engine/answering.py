"""What one link asks of batches and contents, and how it is given.

Decided here: in what pieces history goes out, how far the store is read ahead of what is sent,
and that a device which has been away hears before it gives. The store is read while the piece
before is sealed and written; a piece is as much as the other side can deliver at once, so that
the first messages of a long history are there long before the last ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio
from anyio.streams.memory import MemoryObjectSendStream

from walyoff import frames
from walyoff.abc import StoredBatch, StoredContent
from walyoff.batch_frames import MAX_GRANT
from walyoff.engine.link import (
    ANSWER_BACKLOG,
    MAX_INLINE,
    batch_frames,
    contents_frames,
)
from walyoff.errors import StoreError
from walyoff.records import MAX_CONTENT, outline
from walyoff.tasks import background_tasks

if TYPE_CHECKING:
    from walyoff.engine.driver import Engine
    from walyoff.engine.link import LinkState, SessionLink

#: Records whose contents are read, sent and delivered together. Those of the first batch of an
#: answer are few, so that something is there soon; each costs the other side a commit.
FIRST_PIECE = 128
PIECE = 512
#: And so many bytes of contents, however few those are: some pieces are in memory at once.
PIECE_BYTES = 4 * 1024 * 1024
#: Batches are looked up for so many sequence numbers at a time: two of the largest.
READ_RECORDS = 2048
#: Pieces that are read ahead of what is sent.
READ_AHEAD = 2
#: Contents that were asked for one by one, which may have 8 MiB each, are read so many at once.
FIRST_READ = 4
MOST_READ = 32
READ_BYTES = 4 * 1024 * 1024
#: A device that comes back hears what was said meanwhile before it gives contents away, but
#: does not wait longer: a liar names any number.
BEHIND_S = 3.0


@dataclass(slots=True)
class _Piece:
    """Some consecutive records of a batch, and those of their contents that go with it."""

    batch: StoredBatch
    certificate_id: bytes
    first: int
    record_ids: Sequence[bytes]
    #: Those whose contents go with it.
    small: frozenset[bytes]
    #: Their bytes.
    size: int
    #: For each record; None if this device does not give contents yet.
    contents: Sequence[StoredContent | None] | None = None

    @property
    def ends(self) -> bool:
        """True for the last piece of its batch."""
        return self.first + len(self.record_ids) == self.batch.count


class Answers:
    """Batches and contents for one link."""

    def __init__(self, engine: Engine, session: SessionLink, state: LinkState) -> None:
        self._engine = engine
        self._session = session
        self._state = state
        #: Bytes that may still be sent of the answer that is under way, by author.
        self._granted: dict[str, int] = {}
        #: What the other side held when it greeted, as far as it is not held here yet.
        self._behind: dict[str, int] = {}
        self._behind_until = 0.0

    def greeted(self, vector: Sequence[frames.Have]) -> None:
        """The other side said what it holds."""
        forked = self._engine.reconciler.forked
        self._behind = {h.author: h.seq for h in vector if h.author not in forked}
        self._behind_until = self._engine.runtime.now() + BEHIND_S

    def grant(self, author: str, size: int) -> None:
        """The other side has room for more of an answer."""
        if author in self._granted:
            self._granted[author] = min(self._granted[author] + size, MAX_GRANT)

    def _is_behind(self) -> bool:
        """True while the other side has said things before that this device has not heard.

        It may be that a content was forgotten while this device was away.
        """
        if self._behind and self._engine.runtime.now() < self._behind_until:
            heads = self._engine.reconciler.heads
            self._behind = {
                author: seq
                for author, seq in self._behind.items()
                if seq > (heads[author].seq if author in heads else 0)
            }
            return bool(self._behind)
        return False

    # --------------------------------------------------------------------- batches

    async def batches(self, author: str, first_seq: int, max_bytes: int) -> None:
        """Send a device's batches from a sequence number. Raises StoreError."""
        state, last = self._state, first_seq - 1
        self._granted[author] = max_bytes
        send, receive = anyio.create_memory_object_stream[_Piece](READ_AHEAD)
        try:
            async with send, receive, background_tasks() as tasks:
                tasks.start_soon(self._read, author, first_seq, send)
                async for piece in receive:
                    size = await self._send(piece)
                    # More may have been granted meanwhile.
                    self._granted[author] -= size
                    if not piece.ends:
                        continue
                    last = piece.batch.first_seq + piece.batch.count - 1
                    if author == self._engine.me and last > state.pushed:
                        state.pushed = last
                    # A batch that was begun is sent to its end.
                    if self._granted[author] <= 0:
                        break
        finally:
            del self._granted[author]
        state.send(frames.RangeEnd(author, last))

    async def _send(self, piece: _Piece) -> int:
        """Send a piece; its size."""
        state, batch = self._state, piece.batch
        size = 0
        if piece.first == 0:
            trusted = await self._engine.trust.load(piece.certificate_id)
            if trusted is not None:
                state.certify(trusted.encoded, piece.certificate_id)
        assert batch.signature is not None
        for frame in _frames(piece, batch.signature):
            data = frames.encode(frame)
            state.link.send(data)
            size += len(data)
        await self._session.drained(ANSWER_BACKLOG)
        return size

    async def _read(
        self, author: str, first_seq: int, send: MemoryObjectSendStream[_Piece]
    ) -> None:
        """Read pieces ahead of what is sent, to the end or to what is not signed yet."""
        seq = first_seq
        async with send:
            most = FIRST_PIECE
            while True:
                until = min(seq + READ_RECORDS - 1, (1 << 62))
                stored = await self._engine.store.batches(author, seq, until)
                signed = [batch for batch in stored if batch.signature is not None]
                group: list[_Piece] = []
                records = size = 0
                for batch in signed:
                    for piece in _pieces(batch, most):
                        group.append(piece)
                        records += len(piece.record_ids)
                        size += piece.size
                        if records >= most or size >= PIECE_BYTES:
                            await self._fill(group, send)
                            group, records, size = [], 0, 0
                    most = PIECE
                await self._fill(group, send)
                # The signature of the next one is on its way; a push or a vector follows.
                if not stored or len(signed) < len(stored):
                    return
                seq = stored[-1].first_seq + stored[-1].count

    async def _fill(
        self, group: Sequence[_Piece], send: MemoryObjectSendStream[_Piece]
    ) -> None:
        """Read the contents of some pieces in one go, and hand them on."""
        if not self._is_behind():
            wanted = [record_id for piece in group for record_id in piece.small]
            found = dict(zip(wanted, await self._found(wanted), strict=True))
            for piece in group:
                piece.contents = [found.get(record_id) for record_id in piece.record_ids]
        for piece in group:
            await send.send(piece)

    # -------------------------------------------------------------------- contents

    async def contents(self, record_ids: tuple[bytes, ...]) -> None:
        """Send contents that were asked for, and say which ones are not held."""
        with anyio.move_on_after(BEHIND_S):
            while self._is_behind():
                await self._engine.changed()
        gone: list[bytes] = []
        at, count = 0, FIRST_READ
        while at < len(record_ids):
            wanted = record_ids[at : at + count]
            found = await self._found(wanted)
            gone += [i for i, content in zip(wanted, found, strict=True) if content is None]
            for frame in contents_frames(wanted, found, limit=MAX_CONTENT):
                self._state.send(frame)
            await self._session.drained(ANSWER_BACKLOG)
            at += len(wanted)
            size = sum(len(content.data) for content in found if content is not None)
            count = max(1, min(MOST_READ, count * READ_BYTES // max(size, 1)))
        if gone:
            self._state.send(frames.Gone(tuple(gone)))

    async def _found(self, wanted: Sequence[bytes]) -> list[StoredContent | None]:
        try:
            return await self._engine.contents(wanted)
        except StoreError:
            if len(wanted) > 1:
                return [(await self._found([record_id]))[0] for record_id in wanted]
            # It is damaged: others may hold it.
            return [None]


def _pieces(batch: StoredBatch, most: int) -> Iterator[_Piece]:
    """The pieces of a batch, each of so many records and of PIECE_BYTES at most, or one."""
    certificate_id, sizes = outline(batch.body)
    first = 0
    while first < batch.count:
        end, size = first, 0
        small: list[bytes] = []
        for record_id, content in zip(
            batch.record_ids[first : first + most], sizes[first : first + most], strict=True
        ):
            if content <= MAX_INLINE:
                if small and size + content > PIECE_BYTES:
                    break
                small.append(record_id)
                size += content
            end += 1
        record_ids = batch.record_ids[first:end]
        yield _Piece(batch, certificate_id, first, record_ids, frozenset(small), size)
        first = end


def _frames(piece: _Piece, signature: bytes) -> Iterator[frames.Frame]:
    """What is said of a piece."""
    batch, contents = piece.batch, piece.contents
    if contents is None:
        if piece.first == 0:
            yield frames.BatchFrame(batch.body, signature, (None,) * batch.count)
        return
    if piece.first == 0:
        yield from batch_frames(batch.body, signature, piece.record_ids, contents)
    else:
        yield from contents_frames(piece.record_ids, contents)
    # What is said to follow, and is not here, need not be waited for.
    gone = [
        record_id
        for record_id, content in zip(piece.record_ids, contents, strict=True)
        if content is None and record_id in piece.small
    ]
    if gone:
        yield frames.Gone(tuple(gone))
