"""The way out: from `send` to a signed, committed and pushed batch.

Everything that waits when a batch begins goes into it, so the batch grows with the load and
a lone message never waits for company. While a thread signs, the store commits; nothing
leaves the device before both are done, or a crash could make it contradict itself.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio

from walyoff import frames
from walyoff.abc import StoredContent
from walyoff.engine.link import batch_frames
from walyoff.errors import StoreError
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
from walyoff.signals import News, Work

if TYPE_CHECKING:
    from walyoff.engine.driver import Engine

log = logging.getLogger("walyoff.engine")

#: What may wait in the outbox before `send` waits: bounds memory under a fast producer.
MAX_OUTBOX_BYTES = 32 * 1024 * 1024
#: A link with more than this unsent gets no pushes: it asks when it has caught up.
MAX_LINK_BACKLOG = 8 * 1024 * 1024
#: A statement that the store did not take is tried again after so long.
RETRY_S = 1.0
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
class _Turn:
    """The messages of one batch, before it is made, and the event of all who sent them."""

    items: list[Outgoing] = field(default_factory=list)
    #: Bytes of the contents, and of the batch's body at most.
    size: int = 0
    body: int = _HEADER_BYTES
    done: anyio.Event = field(default_factory=anyio.Event)
    error: BaseException | None = None

    def takes(self, body: int) -> bool:
        """True if there is room for one more record."""
        return len(self.items) < MAX_RECORDS and self.body + body <= MAX_BATCH_BODY


class Outbox:
    """The messages of one channel on their way out."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        #: The batches to come; what is sent goes into the last one, while there is room.
        self._turns: deque[_Turn] = deque()
        #: Whose batch is under way.
        self._begun: list[_Turn] = []
        #: Whether it is in the store, and is sent whatever happens.
        self._stored = False
        self._bytes = 0
        self._work = Work()
        self._room = News()

    async def send(self, items: Sequence[Outgoing]) -> None:
        """Write messages in order; durable when it returns. Cancelling leaves all or none.

        Raises:
            StoreError: they could not be stored; none was sent.
            anyio.ClosedResourceError: the channel was closed; all were sent or none.
        """
        self._engine.check()
        size = 0
        for item in items:
            size += len(item.content)
        while self._bytes and self._bytes + size > MAX_OUTBOX_BYTES:
            await self._room.wait()
            self._engine.check()
        turn = self._add(items)
        self._bytes += size
        self._work.set()
        # One event for all of a batch: an event for each call took a tenth of its time.
        await turn.done.wait()
        if turn.error is not None:
            raise turn.error

    def _add(self, items: Sequence[Outgoing]) -> _Turn:
        """Take messages up; returns the turn of the last of them: it ends after the others."""
        turn = self._turns[-1] if self._turns else self._new_turn()
        for item in items:
            body = _RECORD_BYTES
            for topic in item.topics:
                body += 4 * len(topic) + 5
            if not turn.takes(body):
                turn = self._new_turn()
            turn.items.append(item)
            turn.size += len(item.content)
            turn.body += body
        return turn

    def _new_turn(self) -> _Turn:
        turn = _Turn()
        self._turns.append(turn)
        return turn

    async def run(self) -> None:
        """Make batches of what waits, one after another."""
        while True:
            await self._work.wait()
            await self._engine.resuming.over()
            while True:
                # What is made while the store fails is dropped, and was never said.
                while self._engine.commits.failure is not None:
                    await self._engine.news()
                # What is to be said of those who left comes before all that is said after.
                statements = self._engine.removals.pending()[:MAX_RECORDS]
                if statements:
                    await self._send_batch(
                        [Outgoing(b"", s.topics(), KIND_REMOVAL) for s in statements]
                    )
                elif self._turns:
                    turn = self._turns.popleft()
                    self._begun.append(turn)
                    await self._send_batch(turn.items)
                else:
                    break

    def wake(self) -> None:
        """There may be something to state."""
        self._work.set()

    def close(self, error: BaseException) -> None:
        """Nothing more goes out: tell everybody who waits."""
        if self._stored and isinstance(error, StoreError):
            # The next write failed, not this one: it is signed when the store is back.
            self._finish()
        for turn in (*self._begun, *self._turns):
            turn.error = error
            turn.done.set()
        self._turns.clear()
        self._begun.clear()
        self._stored = False
        self._bytes = 0
        self._room.tell()

    async def _send_batch(self, items: list[Outgoing]) -> None:
        engine = self._engine
        generation = engine.commits.generation
        first_seq = engine.reconciler.next_own().seq + 1
        # From here on what an older copy of this device says is nothing.
        try:
            await engine.trust.began(engine.credentials.certificate, first_seq)
        except StoreError as error:
            log.error("the store failed, nothing was written: %s", error)
            if not self._begun:
                # What is to be stated is tried again.
                await anyio.sleep(RETRY_S)
            self._finish(error)
            return
        if engine.commits.generation != generation:
            return
        batch, contents = self._make(items)
        # A core that slept wakes up while the rest is prepared.
        signing = engine.signing(batch.batch_id)
        # Known to be unanchored before anybody can see it.
        engine.await_anchor(batch.batch_id, len(batch.body) + _SIGNATURE_BYTES, own=True)
        engine.reconciler.own_batch(batch, contents, engine.runtime.now())
        committed = engine.dispatch()
        if not committed.is_set():
            await committed.wait()
        self._stored = engine.commits.generation == generation
        # Signing is trial and error, and this device has nothing else to do: twice the luck,
        # where one in a hundred signatures took four times as long as most.
        if len(items) == 1 and not self._turns and signing.again():
            engine.signatures += 1
        signature = await signing.value()
        if engine.commits.generation != generation:
            # The store failed, and who waited was told: this batch never was.
            return
        if any(record.kind == KIND_REMOVAL for record in batch.records):
            await engine.removals.stated(batch)
        # First what others wait for, and then who waits here: they run in this order.
        self._push(batch, signature, contents)
        self._finish()
        engine.commits.signed(batch, signature)

    def _finish(self, error: BaseException | None = None) -> None:
        """What was begun is durable, or was not written: tell those who sent it."""
        finished, self._begun, self._stored = self._begun, [], False
        for turn in finished:
            self._bytes -= turn.size
            turn.error = error
            turn.done.set()
        self._room.tell()

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
        data: list[bytes] = []
        for link in engine.admitted_links():
            if link.pushed != batch.first_seq - 1 or link.link.backlog > MAX_LINK_BACKLOG:
                continue
            if not data:
                said = batch_frames(batch.body, signature, batch.record_ids, contents)
                data = [frames.encode(frame) for frame in said]
            link.certify(engine.credentials.encoded, batch.certificate_id)
            for frame in data:
                link.link.send(frame)
            link.pushed = batch.last_seq
