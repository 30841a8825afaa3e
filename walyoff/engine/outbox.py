"""The way out: from `send` to a signed, committed and pushed batch.

Everything that waits when a batch begins goes into it, so the batch grows with the load and
a lone message never waits for company. While a thread signs, the store commits; nothing
leaves the device before both are done, or a crash could make it contradict itself.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio

from walyoff import frames
from walyoff.abc import StoredContent
from walyoff.engine.link import batch_frame
from walyoff.records import (
    KIND_REMOVAL,
    MAX_BATCH_BODY,
    MAX_RECORDS,
    SALT_SIZE,
    Batch,
    Record,
    commit,
    make_batch,
)

if TYPE_CHECKING:
    from walyoff.engine.driver import Engine

#: What may wait in the outbox before `send` waits: bounds memory under a fast producer.
MAX_OUTBOX_BYTES = 32 * 1024 * 1024
#: A link with more than this unsent gets no pushes: it asks when it has caught up.
MAX_LINK_BACKLOG = 8 * 1024 * 1024
#: A batch body besides its records, and a record besides its topics, rounded up.
_HEADER_BYTES = 2048
_RECORD_BYTES = 80
#: The size of a signature, roughly: the pace of anchors needs no more.
_SIGNATURE_BYTES = 3500


@dataclass(slots=True)
class Outgoing:
    """One message on its way into a batch."""

    content: bytes
    topics: tuple[str, ...]
    kind: int
    lifetime_ms: int = 0
    #: Filled in when the batch is made.
    seq: int = 0
    record_id: bytes = b""
    batch_id: bytes = b""


@dataclass(slots=True)
class _Sending:
    items: list[Outgoing]
    size: int
    left: int
    done: anyio.Event = field(default_factory=anyio.Event)
    error: BaseException | None = None


class Outbox:
    """The messages of one channel on their way out."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._waiting: deque[_Sending] = deque()
        self._begun: list[_Sending] = []
        self._bytes = 0
        self._work = anyio.Event()
        self._room = anyio.Event()

    async def send(self, items: list[Outgoing]) -> None:
        """Write messages in order; durable when it returns. Cancelling leaves all or none.

        Raises:
            StoreError: they could not be stored; none was sent.
            anyio.ClosedResourceError: the channel was closed; all were sent or none.
        """
        self._engine.check()
        size = sum(len(item.content) for item in items)
        while self._bytes and self._bytes + size > MAX_OUTBOX_BYTES:
            await self._room.wait()
            self._engine.check()
        sending = _Sending(items, size, len(items))
        self._waiting.append(sending)
        self._bytes += size
        self._work.set()
        await sending.done.wait()
        if sending.error is not None:
            raise sending.error

    async def run(self) -> None:
        """Make batches of what waits, one after another."""
        while True:
            await self._work.wait()
            self._work = anyio.Event()
            await self._engine.resuming.over()
            while True:
                # What is to be said of those who left comes before all that is said after.
                statements = self._engine.removals.pending()[:MAX_RECORDS]
                if statements:
                    await self._send_batch(
                        [Outgoing(b"", s.topics(), KIND_REMOVAL) for s in statements]
                    )
                elif self._waiting:
                    await self._send_batch(self._take())
                else:
                    break

    def wake(self) -> None:
        """There may be something to state."""
        self._work.set()

    def close(self, error: BaseException) -> None:
        """Nothing more goes out: tell everybody who waits."""
        for sending in (*self._begun, *self._waiting):
            sending.error = error
            sending.done.set()
        self._waiting.clear()
        self._begun.clear()
        self._bytes = 0
        self._make_room()

    def _make_room(self) -> None:
        # Everybody who waits for room waits for the same event.
        room, self._room = self._room, anyio.Event()
        room.set()

    def _take(self) -> list[Outgoing]:
        """As much as one batch holds. One call of `send` may span several batches."""
        items: list[Outgoing] = []
        body = _HEADER_BYTES
        while self._waiting and len(items) < MAX_RECORDS:
            sending = self._waiting[0]
            at = len(sending.items) - sending.left
            while sending.left and len(items) < MAX_RECORDS:
                item = sending.items[at]
                body += _RECORD_BYTES + sum(4 * len(topic) + 5 for topic in item.topics)
                if body > MAX_BATCH_BODY:
                    return items
                items.append(item)
                sending.left -= 1
                at += 1
            if not sending.left:
                self._begun.append(self._waiting.popleft())
        return items

    async def _send_batch(self, items: list[Outgoing]) -> None:
        engine = self._engine
        generation = engine.generation
        first_seq = engine.reconciler.next_own().seq + 1
        # From here on what an older copy of this device says is nothing.
        await engine.trust.began(engine.credentials.certificate, first_seq)
        batch, contents = self._make(items)
        # Known to be unanchored before anybody can see it.
        engine.await_anchor(batch.batch_id, len(batch.body) + _SIGNATURE_BYTES, own=True)
        engine.reconciler.own_batch(batch, contents, engine.runtime.now())
        committed = engine.dispatch()
        signature = await engine.sign(batch.batch_id)
        if not committed.is_set():
            await committed.wait()
        if engine.generation != generation:
            # The store failed, and who waited was told: this batch never was.
            return
        if any(record.kind == KIND_REMOVAL for record in batch.records):
            await engine.removals.stated(batch)
        # First what others wait for, and then who waits here: they run in this order.
        self._push(batch, signature, contents)
        finished, self._begun = self._begun, []
        for sending in finished:
            self._bytes -= sending.size
            sending.done.set()
        self._make_room()
        engine.signed(batch, signature)

    def _make(self, items: list[Outgoing]) -> tuple[Batch, list[StoredContent]]:
        engine = self._engine
        # A clock that was set may be past the certificate's end; a new one is on its way.
        end_ms = engine.credentials.certificate.not_after_ms
        now_ms = min(engine.runtime.wall_ms(), end_ms)
        salts = engine.runtime.random_bytes(SALT_SIZE * len(items))
        contents = [
            StoredContent(salt=salts[at * SALT_SIZE : (at + 1) * SALT_SIZE], data=item.content)
            for at, item in enumerate(items)
        ]
        head = engine.reconciler.next_own()
        batch = make_batch(
            channel=engine.channel,
            author=engine.me,
            certificate_id=engine.credentials.certificate.certificate_id,
            first_seq=head.seq + 1,
            prev=head.record_id,
            seen=engine.reconciler.seen(),
            records=[
                Record(
                    *(now_ms, i.kind, i.topics, len(i.content), commit(c.salt, c.data)),
                    i.lifetime_ms,
                )
                for i, c in zip(items, contents, strict=True)
            ],
        )
        for at, item in enumerate(items):
            item.seq = batch.first_seq + at
            item.record_id = batch.record_ids[at]
            item.batch_id = batch.batch_id
        return batch, contents

    def _push(self, batch: Batch, signature: bytes, contents: list[StoredContent]) -> None:
        """Give a new batch to every link that holds everything before it.

        The others are told when the signature is stored: before, they could not get it.
        """
        engine = self._engine
        data: bytes | None = None
        for link in engine.admitted_links():
            if link.pushed != batch.first_seq - 1 or link.link.backlog > MAX_LINK_BACKLOG:
                continue
            if data is None:
                data = frames.encode(batch_frame(batch.body, signature, contents))
            link.certify(engine.credentials.encoded, batch.certificate_id)
            link.link.send(data)
            link.pushed = batch.last_seq
