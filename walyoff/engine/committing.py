"""What goes into the store, and when: one transaction after another.

Decided here: what shares a transaction, who is told when it is durable, and what becomes of
the channel when the store fails. Whatever was ordered while a transaction is under way goes
into the next one. What is in it is decided by the reconciler and by those who order.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio

from walyoff import frames
from walyoff.abc import NewBatch, StoredContent
from walyoff.chunkstore import NewAttachment
from walyoff.engine.facts import Write
from walyoff.engine.recent import Delivered
from walyoff.errors import StoreError
from walyoff.records import KIND_ATTACHMENT, Batch
from walyoff.signals import News, Work

if TYPE_CHECKING:
    from walyoff.engine.driver import Engine

log = logging.getLogger("walyoff.engine")

#: Contents that were taken in and wait for the store; more waits in the links.
MAX_UNCOMMITTED = 32 * 1024 * 1024
#: After a failure of the store it is tried again: doubles from the first to the last.
RECOVER_FIRST = 0.5
RECOVER_LAST = 30.0
#: A signature waits so long for the next write. Anchors need it later than that.
SIGNATURE_LINGER = 0.05
#: More than one transaction ever holds.
MAX_ACCEPTED = 8192


@dataclass(slots=True)
class _Commit:
    """What goes into the next transaction, and who waits for it."""

    batches: list[NewBatch] = field(default_factory=list)
    contents: list[tuple[bytes, StoredContent]] = field(default_factory=list)
    deliver: list[bytes] = field(default_factory=list)
    signatures: list[tuple[bytes, bytes]] = field(default_factory=list)
    anchors: list[tuple[bytes, str]] = field(default_factory=list)
    #: Those whose manifests are among the contents.
    attachments: list[NewAttachment] = field(default_factory=list)
    expiries: list[tuple[bytes, int]] = field(default_factory=list)
    values: dict[str, bytes | None] = field(default_factory=dict)
    changed: dict[str, None] = field(default_factory=dict)
    #: Bytes of contents in it.
    size: int = 0
    done: anyio.Event = field(default_factory=anyio.Event)

    def __bool__(self) -> bool:
        return self.urgent or bool(self.signatures)

    @property
    def urgent(self) -> bool:
        """True if there is more than signatures, which can wait for company."""
        return bool(self.batches or self.contents or self.deliver or self.anchors)


class Commits:
    """The transactions of one channel."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._next = _Commit()
        self._committing: anyio.Event | None = None
        #: Of those who ordered nothing: it is durable already.
        self._nothing = anyio.Event()
        self._nothing.set()
        #: Own batches whose signature is not stored yet, and their last sequence number.
        self._unsigned: dict[bytes, int] = {}
        #: Batches accepted lately, which the store may not show yet.
        self._accepted: OrderedDict[bytes, None] = OrderedDict()
        self._work = Work()
        self._signature_work = anyio.Event()
        #: Bytes of contents that were taken and are not committed yet.
        self._uncommitted = 0
        self._room = News()
        #: Grows when the state was read from the store again after a failure.
        self.generation = 0
        #: Why the store fails now, if it does.
        self.failure: BaseException | None = None
        self._closed = False

    def close(self) -> None:
        """The channel ends: nobody waits for room any more."""
        self._closed = True
        self._room.tell()

    def ordered(self) -> anyio.Event:
        """Begin soon, if there is need; the event is set when what was staged is durable."""
        if not self._next:
            return self._nothing
        if self._next.urgent:
            self._work.set()
        return self._next.done

    def anchored(self, anchors: Sequence[tuple[bytes, str]]) -> None:
        """Blocks anchor these batches: store it."""
        self._next.anchors.extend(anchors)
        self._work.set()

    def stage(self, write: Write) -> None:
        """Put a write into the next transaction."""
        engine, commit = self._engine, self._next
        size = 0
        manifests: list[tuple[bytes, bytes]] = []
        if (batch := write.batch) is not None:
            held = dict(write.contents)
            self._accepted[batch.batch_id] = None
            if len(self._accepted) > MAX_ACCEPTED:
                self._accepted.popitem(last=False)
            contents = tuple(map(held.get, batch.record_ids))
            commit.batches.append(
                NewBatch(
                    author=batch.author,
                    first_seq=batch.first_seq,
                    batch_id=batch.batch_id,
                    body=batch.body,
                    signature=write.signature,
                    record_ids=batch.record_ids,
                    contents=contents,
                )
            )
            values, expiries = engine.forgetting.stage(batch)
            commit.values.update(values)
            commit.expiries.extend(expiries)
            staged = engine.recent.staged
            for i, content in enumerate(contents):
                if content is not None:
                    size += len(content.data)
                    record_id = batch.record_ids[i]
                    staged[record_id] = Delivered(
                        position=0, batch=batch, index=i, content=content.data
                    )
                    if batch.records[i].kind == KIND_ATTACHMENT:
                        manifests.append((record_id, content.data))
        else:
            commit.contents.extend(write.contents)
            for record, (record_id, content) in zip(write.records, write.contents, strict=True):
                size += len(content.data)
                if record.kind == KIND_ATTACHMENT:
                    manifests.append((record_id, content.data))
                if record.batch is not None:
                    index = record.seq - record.batch.first_seq
                    engine.recent.staged[record_id] = Delivered(
                        position=0, batch=record.batch, index=index, content=content.data
                    )
        commit.size += size
        self._uncommitted += size
        commit.attachments += engine.attachments.decode(manifests, write.author)
        if write.author is not None:
            commit.changed[write.author] = None
        commit.deliver.extend(write.deliver)

    async def settled(self) -> None:
        """Wait until what was ordered up to now is in the store."""
        begun = self._committing
        committed = self._engine.dispatch()
        self._work.set()
        await committed.wait()
        if begun is not None:
            await begun.wait()

    @property
    def pending(self) -> bool:
        """True while something that was taken in is not in the store."""
        writing = self._committing is not None and not self._committing.is_set()
        return bool(self._next) or writing or self.failure is not None

    async def room(self) -> None:
        """Wait while more is taken in than the store can write; not while it fails."""
        while self._uncommitted > MAX_UNCOMMITTED and not (self._closed or self.failure):
            await self._room.wait()

    def accepted(self, batch_id: bytes) -> bool:
        """True if the batch was accepted lately; the store knows of the others."""
        return batch_id in self._accepted

    def signed(self, batch: Batch, signature: bytes) -> None:
        """An own batch was pushed with its signature: store it with what is written next.

        At once if another device must hear of it, who can ask only for what is signed;
        otherwise it waits a moment for company, and spares a commit for each lone message.
        A crash meanwhile costs nothing: the batch is signed again.
        """
        self._unsigned[batch.batch_id] = batch.last_seq
        self._next.signatures.append((batch.batch_id, signature))
        if any(link.pushed < batch.last_seq for link in self._engine.links.values()):
            self._work.set()
        else:
            self._signature_work.set()

    async def store_signatures(self) -> None:
        """Store the signatures that no other write took along."""
        while True:
            await self._signature_work.wait()
            await anyio.sleep(SIGNATURE_LINGER)
            self._signature_work = anyio.Event()
            if self._next:
                self._work.set()

    async def run(self) -> None:
        """Write what was ordered, one transaction after another."""
        engine = self._engine
        while True:
            await self._work.wait()
            if not self._next:
                continue
            commit, self._next = self._next, _Commit()
            self._committing = commit.done
            position = engine.anchors.position
            try:
                top = await engine.store.write(
                    batches=commit.batches,
                    contents=commit.contents,
                    deliver=commit.deliver,
                    signatures=commit.signatures,
                    anchors=commit.anchors,
                    attachments=commit.attachments,
                    expiries=commit.expiries,
                    values=commit.values,
                )
            except StoreError as error:
                await self._recover(error, commit)
            else:
                self._committed(commit, top)
                engine.anchors.stored(position)

    def _committed(self, commit: _Commit, top: int) -> None:
        engine = self._engine
        self._uncommitted -= commit.size
        self._room.tell()
        engine.recent.committed(commit.deliver, top)
        engine.top = top
        for batch in commit.batches:
            if batch.author != engine.me or batch.signature is not None:
                engine.durable[batch.author] = batch.first_seq + len(batch.record_ids) - 1
        engine.reconciler.landed(record_id for record_id, _ in commit.contents)
        engine.attachments.registered(commit.attachments)
        # Those who wait run in this order: the sender, the readers, then the links.
        commit.done.set()
        engine.notify(company=False)
        self._announce_own(commit)
        engine.announcer.held(commit.changed)

    def _announce_own(self, commit: _Commit) -> None:
        """Own batches can be asked for once they are signed: tell those who were not pushed."""
        engine = self._engine
        for batch_id, _ in commit.signatures:
            seq = self._unsigned.pop(batch_id, 0)
            engine.durable[engine.me] = max(seq, engine.durable.get(engine.me, 0))
        if commit.signatures:
            for link in engine.admitted_links():
                if link.pushed < engine.durable[engine.me]:
                    link.send(frames.HaveVector((engine.have(engine.me),)))

    async def _recover(self, error: StoreError, commit: _Commit) -> None:
        """The store wrote nothing: forget what it was to write, and begin again from it.

        Who waits to send gets the error at once, and so does who sends while it lasts. The
        links are closed, because what was said on them speaks of a state that is not there.
        """
        engine = self._engine
        log.error("the store failed, it is tried again: %s", error)
        pause = RECOVER_FIRST
        while True:
            self.failure = error
            self.generation += 1
            for lost in (commit, self._next):
                lost.done.set()
            engine.outbox.close(error)
            for link in list(engine.links.values()):
                link.link.close()
            # Who reads them ends only when it is not held up here.
            self._room.tell()
            engine.notify()
            while engine.links:
                # No new one begins before the end of this: see `LinkServer.run`.
                await engine.news()
            await anyio.sleep(pause)
            pause = min(2 * pause, RECOVER_LAST)
            self._forget()
            try:
                await engine.restore()
            except StoreError as again:
                error = again
                continue
            self.failure = None
            engine.anchors.read_again()
            engine.notify()
            return

    def _forget(self) -> None:
        """Drop everything that is not in the store."""
        self._next = _Commit()
        self._committing = None
        self._accepted.clear()
        self._engine.recent.staged.clear()
        self._unsigned.clear()
        self._uncommitted = 0
        self._room.tell()
        self._engine.forget()


__all__ = ["SIGNATURE_LINGER", "Commits"]
