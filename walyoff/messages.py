"""Streams of messages, and receipts: what an application reads, and has of what it sent."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Collection, Iterable
from typing import TYPE_CHECKING

from walyoff.engine.announcing import is_held
from walyoff.engine.outbox import Outgoing
from walyoff.engine.recent import Delivered
from walyoff.errors import StoreError, WalyoffError
from walyoff.message import Message, make_message
from walyoff.records import Batch, Record, decode_batch

if TYPE_CHECKING:
    from walyoff.abc import LogEntry
    from walyoff.engine.driver import Engine

#: Entries read from the store at a time: bounds memory and spares round trips.
PAGE = 256
#: And about so many bytes, going by the sizes of the page before; the first one is short.
PAGE_BYTES = 8 * 1024 * 1024
FIRST_PAGE = 16
#: In a long history a cursor is stored so often; a power loss repeats what came since.
CURSOR_EVERY_S = 0.05


class LogReader:
    """Reads pages of the log and decodes their batches, each once."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._batches: dict[bytes, Batch] = {}
        self._limit = FIRST_PAGE

    async def page(
        self, *, after: int, limit: int, newest_first: bool = False
    ) -> list[Delivered]:
        """Entries of the log. Raises StoreError if one does not authenticate."""
        entries = await self._engine.store.log(
            after=after, limit=limit, newest_first=newest_first
        )
        return [await self._decode(entry) for entry in entries]

    async def forward(self, after: int) -> list[Delivered]:
        """The next page after a position; its length follows the sizes of the page before."""
        page = await self.page(after=after, limit=self._limit)
        size = sum(item.size for item in page)
        if page:
            self._limit = max(1, min(PAGE, len(page) * PAGE_BYTES // size))
        return page

    async def _decode(self, entry: LogEntry) -> Delivered:
        batch = self._batches.get(entry.batch_id)
        if batch is None:
            stored = await self._engine.store.batch(entry.batch_id)
            if stored is None:
                raise StoreError(f"the batch of log entry {entry.position} is missing")
            batch = decode_batch(stored.body)
            if len(self._batches) >= PAGE:
                self._batches.clear()
            self._batches[entry.batch_id] = batch
        index = entry.seq - batch.first_seq
        forgotten = None
        if entry.forgotten:
            forgetting = self._engine.forgetting
            forgotten = await forgetting.explain(entry.record_id, batch.records[index])
        return Delivered(
            position=entry.position,
            batch=batch,
            index=index,
            content=None if entry.content is None else entry.content.data,
            forgotten=forgotten,
        )


async def find_messages(engine: Engine, digits: str, limit: int) -> list[Message]:
    """The messages of the log whose ids begin so, the newest first; at most so many.

    No content is read but theirs. Raises StoreError.
    """
    found = []
    reader = LogReader(engine)
    for entry in await engine.store.find(await engine.store.beginning(digits, limit)):
        # What is not delivered yet has no place.
        if entry is not None and entry.position:
            for item in await reader.page(after=entry.position - 1, limit=1):
                if item.is_message:
                    found.append(make_message(engine, item))
    return found


class MessageStream(AsyncIterator[Message]):
    """Messages after a position or a named cursor: history, then new ones as they come.

    Asking for the next message commits the one before. Cancelling, breaking off and closing
    lose nothing: what was not committed comes again. Any number of streams may read at once;
    each holds at most a page of messages in memory.
    """

    def __init__(
        self, engine: Engine, *, cursor: str | None, after: int, anchored: bool, live: bool
    ) -> None:
        self._engine = engine
        self._cursor = cursor
        self._position = after
        self._anchored = anchored
        self._live = live
        self._buffer: deque[Delivered] = deque()
        self._reader = LogReader(engine)
        self._begun = cursor is None
        self._given = 0
        self._due = 0.0
        engine.forgetting.readers.add(self)

    def drop_contents(self, record_ids: Collection[bytes]) -> None:
        """Contents were destroyed: keep none of them in memory."""
        for item in self._buffer:
            if item.batch.record_ids[item.index] in record_ids:
                self._engine.forgetting.strip(item)

    def __aiter__(self) -> MessageStream:
        return self

    async def __anext__(self) -> Message:
        engine = self._engine
        if not self._begun:
            self._position = max(self._position, await engine.cursor(self._cursor or ""))
            self._begun = True
        if self._given:
            await self._commit()
        while not self._buffer:
            if self._position < engine.top:
                items = await self._next_items()
                self._buffer.extend(item for item in items if item.is_message)
                if not self._buffer:
                    self._position = items[-1].position
            elif self._live:
                await engine.changed()
            else:
                raise StopAsyncIteration
        message = make_message(engine, self._buffer[0])
        while self._anchored and not message.anchored:
            await engine.changed()
        # No await between here and the return: a cancelled call has taken nothing.
        self._buffer.popleft()
        self._given = self._position = message.position
        return message

    async def _next_items(self) -> list[Delivered]:
        """The next entries, from memory if they are new, else from the store."""
        recent = self._engine.recent.after(self._position, limit=PAGE, size=PAGE_BYTES)
        return recent or await self._reader.forward(self._position)

    async def _commit(self) -> None:
        if self._cursor is None:
            return
        # A kill of this process repeats nothing; a power loss what is not stored yet.
        self._engine.store.mark_cursor(self._cursor, self._given)
        self._engine.cursors[self._cursor] = self._given
        self._given = 0
        now = self._engine.runtime.now()
        # Stored at once at the live end; in a long history every so often, and at the end.
        if not self._buffer or now >= self._due:
            self._due = now + CURSOR_EVERY_S
            await self._engine.flush_cursors()


class RecordStream(AsyncIterator[tuple[Message, Record]]):
    """The metadata of what is in the log now. May be broken off; holds a page at most."""

    def __init__(self, engine: Engine, *, after: int) -> None:
        self._engine = engine
        self._reader = LogReader(engine)
        self._position = after
        self._page: deque[Delivered] = deque()

    def __aiter__(self) -> RecordStream:
        return self

    async def __anext__(self) -> tuple[Message, Record]:
        if not self._page:
            self._page.extend(await self._reader.forward(self._position))
            if not self._page:
                raise StopAsyncIteration
        item = self._page.popleft()
        self._position = item.position
        return make_message(self._engine, item), item.batch.records[item.index]


class Receipt:
    """Proof that a sent message is durable on this device, and a way to wait for more."""

    __slots__ = ("_batch_id", "_engine", "_id", "_seq")

    def __init__(self, engine: Engine, item: Outgoing) -> None:
        """Of a message that was sent. There is one for each, as of messages."""
        self._id = item.record_id
        self._seq = item.seq
        self._batch_id = item.batch_id
        self._engine = engine

    def __repr__(self) -> str:
        return f"<Receipt {self._id[:8].hex()} [{self._seq}]>"

    @property
    def id(self) -> bytes:
        """The hash of its record."""
        return self._id

    @property
    def seq(self) -> int:
        """Its number among this device's records in the channel."""
        return self._seq

    @property
    def anchored(self) -> bool:
        """True once its metadata is on the ledger."""
        return self._engine.is_anchored(self._batch_id)

    async def wait_anchored(self) -> None:
        """Wait until its metadata is on the ledger."""
        while not self.anchored:
            await self._engine.changed()

    def received_by(self) -> list[str]:
        """The DIDs of the devices that said they hold it, with its content."""
        engine = self._engine
        return [
            did
            for did, vector in engine.confirmed.items()
            if is_held(*vector.get(engine.me, (0, frozenset())), self.seq)
        ]

    async def wait_received(self, by: str | Iterable[str] | None = None) -> None:
        """Wait until devices hold it durably and have verified it.

        `by` is a member's DID, or several, all of which must; None means any one device.
        Only what is said in this run counts, so after a restart it waits for their word.

        Raises:
            WalyoffError: a DID is not a member of the channel.
        """
        wanted = {by} if isinstance(by, str) else set(by or ())
        for did in wanted:
            if not self._engine.trust.is_member(did):
                raise WalyoffError(f"{did} is not a member of the channel")
        while True:
            received = set(self.received_by())
            if (wanted and wanted <= received) or (not wanted and received):
                return
            await self._engine.changed()


__all__ = ["LogReader", "Message", "MessageStream", "Receipt", "RecordStream"]
