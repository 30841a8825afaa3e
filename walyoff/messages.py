"""Messages and receipts: what an application holds in its hands."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Collection, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from walyoff.attachments import Attachment
from walyoff.engine.announcing import is_held
from walyoff.engine.forgotten import Forgotten
from walyoff.engine.outbox import Outgoing
from walyoff.engine.recent import Delivered
from walyoff.errors import RemoteProtocolError, StoreError, WalyoffError
from walyoff.manifest import decode_manifest
from walyoff.records import KIND_ATTACHMENT, MAX_TIME_MS, Batch, Record, decode_batch

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A verified message: its author is a member, its signature and its content hold."""

    #: The hash of its record, which names it for ever and everywhere.
    id: bytes
    #: The channel's DID.
    channel: str
    #: The DID of the device that wrote it.
    author: str
    #: Whose device it is: device, person, ..., and the channel's identity at the end. Each
    #: stands under the next one as its chain says, or did when the message was taken.
    path: tuple[str, ...]
    #: Its number among the author's records in this channel, from 1.
    seq: int
    #: When it was written, by the author's clock: a claim.
    time: datetime
    topics: tuple[str, ...]
    #: Size of the content in bytes, also when the content is not held.
    size: int
    #: None if the content is not held here (not arrived yet, or forgotten).
    content: bytes | None = field(repr=False)
    #: Why it has no content for good: who agreed to forget it, and when. None if it has one,
    #: or may get it.
    forgotten: Forgotten | None = None
    #: Its place in this device's log; grows, and is the value of cursors.
    position: int
    #: The file that came with it; its content is the caption then.
    attachment: Attachment | None = None
    _batch_id: bytes = field(repr=False)
    _engine: Engine = field(repr=False)

    @property
    def anchored(self) -> bool:
        """True once its metadata is known to be on the ledger."""
        return self._engine.is_anchored(self._batch_id)


def make_message(engine: Engine, item: Delivered) -> Message:
    """A message from a decoded entry."""
    engine.forgetting.strip(item)
    record = item.batch.records[item.index]
    record_id = item.batch.record_ids[item.index]
    content, attachment = item.content, None
    if record.kind == KIND_ATTACHMENT and content is not None:
        content, attachment = _unpack(engine, record_id, content)
    return Message(
        id=record_id,
        channel=item.batch.channel,
        author=item.batch.author,
        path=engine.trust.path(item.batch.author),
        seq=item.batch.first_seq + item.index,
        time=datetime.fromtimestamp(min(record.time_ms, MAX_TIME_MS) / 1000, UTC),
        topics=record.topics,
        size=record.size,
        content=content,
        forgotten=item.forgotten,
        position=item.position,
        attachment=attachment,
        _batch_id=item.batch.batch_id,
        _engine=engine,
    )


def _unpack(
    engine: Engine, record_id: bytes, content: bytes
) -> tuple[bytes, Attachment | None]:
    """Caption and file of a manifest; neither if its author wrote none."""
    try:
        manifest = decode_manifest(content)
    except RemoteProtocolError:
        # It was reported when it came.
        return b"", None
    return manifest.caption, Attachment(
        name=manifest.name,
        media_type=manifest.media_type,
        size=manifest.size,
        _record_id=record_id,
        _manifest=manifest,
        _engine=engine,
    )


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
        engine = self._engine
        recent: list[Delivered] = []
        size = 0
        while (
            len(recent) < PAGE
            and size < PAGE_BYTES
            and (item := engine.recent.get(self._position + 1 + len(recent)))
        ):
            recent.append(item)
            size += item.size
        if recent:
            return recent
        return await self._reader.forward(self._position)

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """Proof that a sent message is durable on this device, and a way to wait for more."""

    #: The hash of its record.
    id: bytes
    seq: int
    _batch_id: bytes = field(repr=False)
    _engine: Engine = field(repr=False)

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


def make_receipt(engine: Engine, item: Outgoing) -> Receipt:
    """The receipt of a message that was sent."""
    return Receipt(id=item.record_id, seq=item.seq, _batch_id=item.batch_id, _engine=engine)
