"""The driver of one channel: it feeds the reconciler and carries out its orders.

Nothing is decided here that the reconciler or the anchoring pace can decide. The driver
owns the clock, the store, the signing key and the links; everything runs in one event loop,
so state changes between two awaits are atomic.

A message's way out: `send` -> outbox -> one batch for all that waits -> committed by the
store while a thread signs it -> pushed to every link that is up to date -> anchored later.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

import anyio
from anyio.abc import TaskGroup

from walyoff import frames
from walyoff.abc import ChannelStore, Ledger, NewBatch, StoredContent
from walyoff.engine.anchoring import Anchoring
from walyoff.engine.anchors import AnchorKeeper
from walyoff.engine.facts import (
    FetchBatches,
    FetchContents,
    OpenRecord,
    Order,
    Reason,
    Report,
    Verdict,
    Write,
)
from walyoff.engine.reconciler import Reconciler
from walyoff.epochs import Epoch
from walyoff.errors import CipherError, RemoteProtocolError, StoreError
from walyoff.records import (
    MAX_BATCH_BODY,
    MAX_RECORDS,
    SALT_SIZE,
    Batch,
    Record,
    commit,
    decode_batch,
    make_batch,
    signed_message,
)
from walyoff.runtime import Runtime
from walyoff.tasks import background_tasks
from walyoff.trust import Credentials, Trust

log = logging.getLogger("walyoff.engine")

#: What may wait in the outbox before `send` waits: bounds memory under a fast producer.
MAX_OUTBOX_BYTES = 32 * 1024 * 1024
#: Contents larger than this are not pushed with their batch but asked for.
MAX_INLINE = 64 * 1024
MAX_INLINE_TOTAL = 4 * 1024 * 1024
#: A link with more than this unsent gets no pushes: it asks when it has caught up.
MAX_LINK_BACKLOG = 8 * 1024 * 1024
#: Decoded messages kept for the readers of the live end of the log.
RECENT_MESSAGES = 4096
RECENT_BYTES = 16 * 1024 * 1024
#: One request for batches is answered with about so many bytes.
RANGE_BYTES = 4 * 1024 * 1024
#: Records without content, and batches without anchor, that are looked at from the start.
MAX_RESTORED = 100_000
#: Batches from the ledger whose predecessors are missing, kept until they come.
MAX_WAITING_BATCHES = 512
#: More than one transaction ever holds.
MAX_ACCEPTED = 8192
#: A record's share of a batch body besides its topics, rounded up.
_RECORD_BYTES = 80


class Link(Protocol):
    """A session with another device, as the engine sees it."""

    @property
    def name(self) -> str:
        """Unique among the links of this process."""

    @property
    def did(self) -> str:
        """The authenticated member DID of the other side."""

    @property
    def backlog(self) -> int:
        """Bytes accepted by `send` that the transport has not taken yet."""

    def send(self, data: bytes) -> None:
        """Queue one encoded frame; never waits. Does nothing once the link is closed."""


@dataclass(slots=True)
class Outgoing:
    """One message on its way into a batch."""

    content: bytes
    topics: tuple[str, ...]
    kind: int
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


@dataclass(slots=True)
class _Commit:
    """What goes into the next transaction, and who waits for it."""

    batches: list[NewBatch] = field(default_factory=list)
    contents: list[tuple[bytes, StoredContent]] = field(default_factory=list)
    deliver: list[bytes] = field(default_factory=list)
    signatures: list[tuple[bytes, bytes]] = field(default_factory=list)
    anchors: list[tuple[bytes, str]] = field(default_factory=list)
    changed: dict[str, None] = field(default_factory=dict)
    done: anyio.Event = field(default_factory=anyio.Event)

    def __bool__(self) -> bool:
        return bool(
            self.batches or self.contents or self.deliver or self.signatures or self.anchors
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """A message of the local log, decoded."""

    position: int
    batch: Batch
    index: int
    content: bytes | None

    @property
    def size(self) -> int:
        """Memory that it holds, roughly."""
        return 512 + len(self.content or b"")


class Engine:
    """One channel on one device."""

    def __init__(
        self,
        *,
        store: ChannelStore,
        ledger: Ledger,
        trust: Trust,
        credentials: Credentials,
        epochs: Sequence[Epoch],
        ledger_position: int,
        on_ledger_position: Callable[[int], None],
        on_report: Callable[[Report], None],
        on_epochs: Callable[[list[Epoch]], None],
        runtime: Runtime,
    ) -> None:
        self.runtime = runtime
        self.channel = trust.channel
        self.me = credentials.certificate.member
        self.trust = trust
        self.credentials = credentials
        self.store = store
        self.epochs: dict[bytes, Epoch] = {e.epoch_id: e for e in epochs}
        self.top = 0
        self.reports: dict[str, int] = {}
        self.links: dict[str, LinkState] = {}
        self.anchoring = Anchoring(seed=runtime.seed())
        #: What other devices said they hold, for `wait_received`: DID -> author -> (seq, gaps).
        self.confirmed: dict[str, dict[str, tuple[int, frozenset[int]]]] = {}
        self.anchors = AnchorKeeper(
            self, ledger, position=ledger_position, on_position=on_ledger_position
        )
        self._on_report = on_report
        self._on_epochs = on_epochs
        self._outbox: deque[_Sending] = deque()
        self._outbox_bytes = 0
        self._commit = _Commit()
        self._recent: OrderedDict[int, Delivered] = OrderedDict()
        self._recent_bytes = 0
        #: Batches accepted lately, which the store may not show yet.
        self._accepted: OrderedDict[bytes, None] = OrderedDict()
        #: Deliveries between their order and their commit: record id -> message.
        self._staged: dict[bytes, Delivered] = {}
        self._waiting_batches: dict[tuple[str, int], tuple[Batch, bytes]] = {}
        self._outbox_work = anyio.Event()
        self._outbox_room = anyio.Event()
        self._commit_work = anyio.Event()
        self._timer_work = anyio.Event()
        self._changed = anyio.Event()
        #: Positions that named cursors committed and the store does not have yet.
        self.cursors: dict[str, int] = {}
        self._failure: BaseException | None = None
        self._closed = False

    # ------------------------------------------------------------------ life cycle

    @asynccontextmanager
    async def run(self) -> AsyncIterator[TaskGroup]:
        """Run the channel while the context is open."""
        await self._restore()
        async with background_tasks() as tasks:
            for loop in (
                self._commit_loop,
                self._send_loop,
                self._timer_loop,
                self.anchors.write_loop,
                self.anchors.read_loop,
            ):
                tasks.start_soon(loop)
            try:
                yield tasks
            finally:
                self._closed = True
                self.notify()
                await self.flush_cursors()

    async def _restore(self) -> None:
        """Take up what an earlier run left: unsigned, undelivered, unanchored, open."""
        heads = await self.store.heads()
        self.reconciler = Reconciler(
            channel=self.channel,
            author=self.me,
            heads=heads,
            seed=self.runtime.seed(),
        )
        self.durable = {h.author: h.seq for h in heads}
        self.top = await self.store.top()
        for batch in await self.store.unsigned():
            signature = await self.runtime.in_thread(
                self.credentials.sign_key.sign, signed_message(batch.batch_id)
            )
            await self.store.write(signatures=[(batch.batch_id, signature)])
        undelivered = await self.store.undelivered()
        if undelivered:
            self.top = await self.store.write(deliver=[r[2] for r in undelivered])
        now = self.runtime.now()
        for batch in await self.store.unanchored(MAX_RESTORED):
            size = len(batch.body) + len(batch.signature or b"")
            self.anchoring.add(batch.batch_id, size, own=batch.author == self.me, now=now)
        self.reconciler.restore_open(await self._open_records())

    async def _open_records(self) -> list[OpenRecord]:
        found: list[OpenRecord] = []
        missing = await self.store.missing(MAX_RESTORED)
        decoded: dict[bytes, Batch] = {}
        for author, seq, record_id in missing:
            for stored in await self.store.batches(author, seq, seq):
                batch = decoded.get(stored.batch_id) or decode_batch(stored.body)
                decoded = {stored.batch_id: batch}
                record = batch.records[seq - batch.first_seq]
                found.append(
                    OpenRecord(author, seq, record_id, record.size, record.commitment, 0.0)
                )
        return found

    def check(self) -> None:
        """Raise if the channel stopped: why, or that it was closed."""
        if self._closed:
            raise anyio.ClosedResourceError("the channel is closed")
        if self._failure is not None:
            raise StoreError("the channel stopped: its store failed") from self._failure

    # --------------------------------------------------------------------- sending

    async def send(self, items: list[Outgoing]) -> None:
        """Write messages in order; durable when it returns. Cancelling leaves all or none."""
        self.check()
        size = sum(len(item.content) for item in items)
        while self._outbox_bytes and self._outbox_bytes + size > MAX_OUTBOX_BYTES:
            self._outbox_room = anyio.Event()
            await self._outbox_room.wait()
            self.check()
        sending = _Sending(items, size, len(items))
        self._outbox.append(sending)
        self._outbox_bytes += size
        self._outbox_work.set()
        await sending.done.wait()
        if sending.error is not None:
            raise sending.error

    async def _send_loop(self) -> None:
        while True:
            await self._outbox_work.wait()
            self._outbox_work = anyio.Event()
            while self._outbox:
                await self._send_batch()

    def _take(self) -> tuple[list[Outgoing], list[_Sending]]:
        """As much of the outbox as one batch holds. A call may span several batches."""
        items: list[Outgoing] = []
        finished: list[_Sending] = []
        body = 2048
        while self._outbox and len(items) < MAX_RECORDS:
            sending = self._outbox[0]
            at = len(sending.items) - sending.left
            while sending.left and len(items) < MAX_RECORDS:
                item = sending.items[at]
                body += _RECORD_BYTES + sum(4 * len(topic) + 5 for topic in item.topics)
                if body > MAX_BATCH_BODY:
                    return items, finished
                items.append(item)
                sending.left -= 1
                at += 1
            if not sending.left:
                finished.append(self._outbox.popleft())
        return items, finished

    async def _send_batch(self) -> None:
        items, finished = self._take()
        now_ms = self.runtime.wall_ms()
        salts = self.runtime.random_bytes(SALT_SIZE * len(items))
        contents = [
            StoredContent(salt=salts[at * SALT_SIZE : (at + 1) * SALT_SIZE], data=item.content)
            for at, item in enumerate(items)
        ]
        head = self.reconciler.next_own()
        batch = make_batch(
            channel=self.channel,
            author=self.me,
            certificate_id=self.credentials.certificate.certificate_id,
            first_seq=head.seq + 1,
            prev=head.record_id,
            seen=self.reconciler.seen(),
            records=[
                Record(now_ms, i.kind, i.topics, len(i.content), commit(c.salt, c.data))
                for i, c in zip(items, contents, strict=True)
            ],
        )
        for at, item in enumerate(items):
            item.seq = batch.first_seq + at
            item.record_id = batch.record_ids[at]
            item.batch_id = batch.batch_id
        self.reconciler.own_batch(batch, contents, self.runtime.now())
        # The store commits while a thread signs; nothing leaves before both are done, or a
        # crash could make this device contradict itself.
        committed = self.dispatch()
        signature = await self.runtime.in_thread(
            self.credentials.sign_key.sign, signed_message(batch.batch_id)
        )
        await committed.wait()
        self.check()
        for sending in finished:
            self._outbox_bytes -= sending.size
            sending.done.set()
        self._outbox_room.set()
        self._commit.signatures.append((batch.batch_id, signature))
        self._commit_work.set()
        self.anchoring.add(
            batch.batch_id, len(batch.body) + len(signature), own=True, now=self.runtime.now()
        )
        self.anchors.wake()
        self._push(batch, signature, contents)

    def _push(self, batch: Batch, signature: bytes, contents: list[StoredContent]) -> None:
        """Give a new own batch to every link that holds everything before it."""
        data: bytes | None = None
        for link in self.links.values():
            if link.pushed != batch.first_seq - 1 or link.link.backlog > MAX_LINK_BACKLOG:
                link.send(frames.HaveVector((self.have(self.me),)))
                continue
            if data is None:
                data = frames.encode(batch_frame(batch.body, signature, contents))
            link.certify(self.credentials.encoded, batch.certificate_id)
            link.link.send(data)
            link.pushed = batch.last_seq

    # ------------------------------------------------------------------ committing

    def dispatch(self) -> anyio.Event:
        """Carry out the reconciler's orders; the event is set when its writes are durable."""
        commit = self._commit
        for order in self.reconciler.orders():
            self._carry_out(order)
        if commit:
            self._commit_work.set()
        else:
            # Nothing to write is durable already.
            done = anyio.Event()
            done.set()
            return done
        self._timer_work.set()
        return commit.done

    def _carry_out(self, order: Order) -> None:
        match order:
            case Write():
                self._stage(order)
            case FetchBatches(peer, author, first_seq):
                if link := self.links.get(peer):
                    link.send(frames.WantBatches(author, first_seq, RANGE_BYTES))
            case FetchContents(peer, record_ids):
                if link := self.links.get(peer):
                    link.send(frames.WantContents(record_ids))
            case Report():
                self.report(order)

    def _stage(self, write: Write) -> None:
        commit = self._commit
        held = dict(write.contents)
        if (batch := write.batch) is not None:
            self._accepted[batch.batch_id] = None
            if len(self._accepted) > MAX_ACCEPTED:
                self._accepted.popitem(last=False)
            commit.batches.append(
                NewBatch(
                    author=batch.author,
                    first_seq=batch.first_seq,
                    batch_id=batch.batch_id,
                    body=batch.body,
                    signature=write.signature,
                    record_ids=batch.record_ids,
                    contents=tuple(held.get(r) for r in batch.record_ids),
                )
            )
            for i, record_id in enumerate(batch.record_ids):
                content = held.get(record_id)
                if content is not None:
                    self._staged[record_id] = Delivered(
                        position=0, batch=batch, index=i, content=content.data
                    )
        else:
            commit.contents.extend(write.contents)
        if write.author is not None:
            commit.changed[write.author] = None
        commit.deliver.extend(write.deliver)

    async def _commit_loop(self) -> None:
        while True:
            await self._commit_work.wait()
            self._commit_work = anyio.Event()
            if not self._commit:
                continue
            commit, self._commit = self._commit, _Commit()
            try:
                top = await self.store.write(
                    batches=commit.batches,
                    contents=commit.contents,
                    deliver=commit.deliver,
                    signatures=commit.signatures,
                    anchors=commit.anchors,
                )
            except StoreError as error:
                self._fail(error, commit)
                raise
            self._committed(commit, top)

    def _fail(self, error: BaseException, commit: _Commit) -> None:
        self._failure = error
        commit.done.set()
        self._commit.done.set()
        for sending in self._outbox:
            sending.error = error
            sending.done.set()
        self._outbox.clear()
        self._outbox_room.set()
        self.notify()

    def _committed(self, commit: _Commit, top: int) -> None:
        position = top - len(commit.deliver)
        for record_id in commit.deliver:
            position += 1
            message = self._staged.pop(record_id, None)
            if message is not None:
                self._remember(position, message)
        self.top = top
        for batch in commit.batches:
            self.durable[batch.author] = batch.first_seq + len(batch.record_ids) - 1
        commit.done.set()
        announce = [a for a in commit.changed if a != self.me]
        if announce and self.links:
            data = frames.encode(frames.HaveVector(tuple(self.have(a) for a in announce)))
            for link in self.links.values():
                link.link.send(data)
        self.notify()

    def _remember(self, position: int, message: Delivered) -> None:
        self._recent[position] = Delivered(
            position=position, batch=message.batch, index=message.index, content=message.content
        )
        self._recent_bytes += message.size
        while len(self._recent) > RECENT_MESSAGES or self._recent_bytes > RECENT_BYTES:
            _, old = self._recent.popitem(last=False)
            self._recent_bytes -= old.size

    def recent(self, position: int) -> Delivered | None:
        """A message of the live end of the log, if it is still in memory."""
        return self._recent.get(position)

    def is_anchored(self, batch_id: bytes) -> bool:
        """False while no known block anchors a batch that is held."""
        return batch_id not in self.anchoring.waiting

    async def cursor(self, name: str) -> int:
        """The last position that a named cursor committed."""
        return max(self.cursors.get(name, 0), await self.store.get_cursor(name))

    async def flush_cursors(self) -> None:
        """Store what was committed to named cursors since the last time."""
        dirty, self.cursors = self.cursors, {}
        with anyio.CancelScope(shield=True):
            for name, position in dirty.items():
                await self.store.set_cursor(name, position)

    def anchored(self, anchors: Sequence[tuple[bytes, str]]) -> None:
        """Blocks that anchor these batches are on the ledger."""
        for batch_id, _ in anchors:
            self.anchoring.anchored(batch_id)
        self._commit.anchors.extend(anchors)
        self._commit_work.set()
        self.notify()

    def notify(self) -> None:
        """Wake everybody who waits in `changed`."""
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    async def changed(self) -> None:
        """Wait for the log to grow, an anchor, or news of what others hold."""
        self.check()
        await self._changed.wait()
        self.check()

    # ---------------------------------------------------------------------- vector

    def have(self, author: str) -> frames.Have:
        """What is durably held of one device."""
        gaps = self.reconciler.gaps(author) if self.reconciler.open else []
        return frames.Have(author, self.durable.get(author, 0), tuple(gaps[: frames.MAX_GAPS]))

    def vector(self) -> tuple[frames.Have, ...]:
        """What is durably held of every device."""
        return tuple(self.have(author) for author in self.durable)

    # ------------------------------------------------------------------- receiving

    async def offer(
        self,
        body: bytes,
        signature: bytes,
        contents: Sequence[tuple[bytes, bytes] | None] | None,
        link: LinkState | None,
    ) -> Batch | None:
        """Verify a batch from a link or from the ledger (None) and give it to the reconciler.

        Returns the batch if it is (or was) accepted.

        Raises:
            RemoteProtocolError: it is malformed, for another channel or badly signed.
        """
        batch = decode_batch(body)
        if batch.channel != self.channel:
            raise RemoteProtocolError("batch of another channel", reason=Reason.WRONG_CHANNEL)
        trusted = self.trust.get(batch.certificate_id) or await self.trust.load(
            batch.certificate_id
        )
        if trusted is None:
            raise RemoteProtocolError("unknown certificate", reason=Reason.NO_CERTIFICATE)
        if trusted.certificate.member != batch.author:
            raise RemoteProtocolError("author is not the signer", reason=Reason.WRONG_SIGNATURE)
        if not self.trust.is_member(batch.author):
            raise RemoteProtocolError("author is not a member", reason=Reason.NOT_A_MEMBER)
        head = self.reconciler.heads.get(batch.author)
        if head is None or head.batch_id != batch.batch_id:
            try:
                trusted.verify(signed_message(batch.batch_id), signature)
            except CipherError:
                raise RemoteProtocolError(
                    "batch signature does not hold", reason=Reason.WRONG_SIGNATURE
                ) from None
        peer = link.link.name if link is not None else None
        held = self._check_contents(batch, contents, peer)
        verdict = self.reconciler.batch(batch, signature, held, peer, self.runtime.now())
        if verdict is Verdict.ACCEPTED:
            size = len(body) + len(signature)
            if link is not None:
                self.anchoring.add(batch.batch_id, size, own=False, now=self.runtime.now())
                self.anchors.wake()
        elif verdict is Verdict.DUPLICATE:
            await self._compare(batch)
        elif verdict is Verdict.GAP and len(self._waiting_batches) < MAX_WAITING_BATCHES:
            self._waiting_batches[batch.author, batch.first_seq] = (batch, signature)
        self.dispatch()
        if verdict is Verdict.ACCEPTED:
            await self._offer_waiting(batch)
        return batch if verdict in (Verdict.ACCEPTED, Verdict.DUPLICATE) else None

    async def _offer_waiting(self, batch: Batch) -> None:
        """A predecessor came: offer again what waited for it."""
        waiting = self._waiting_batches.pop((batch.author, batch.last_seq + 1), None)
        if waiting is not None:
            await self.offer(waiting[0].body, waiting[1], None, None)

    def _check_contents(
        self,
        batch: Batch,
        contents: Sequence[tuple[bytes, bytes] | None] | None,
        peer: str | None,
    ) -> list[StoredContent | None]:
        if contents is None:
            return [None] * len(batch.records)
        if len(contents) != len(batch.records):
            raise RemoteProtocolError("a batch frame has not one content for each record")
        held: list[StoredContent | None] = []
        for record, pair in zip(batch.records, contents, strict=True):
            if pair is None:
                held.append(None)
            elif len(pair[1]) == record.size and commit(*pair) == record.commitment:
                held.append(StoredContent(salt=pair[0], data=pair[1]))
            else:
                held.append(None)
                if peer is not None:
                    self.reconciler.fault(peer, Reason.WRONG_CONTENT, batch.author)
        return held

    async def _compare(self, batch: Batch) -> None:
        """A batch for known sequence numbers: the same, or a contradiction?"""
        head = self.reconciler.heads[batch.author]
        if head.batch_id == batch.batch_id:
            return
        if batch.batch_id in self._accepted:
            return
        if await self.store.batch(batch.batch_id) is not None:
            return
        self.reconciler.fork(batch.author, f"two batches at {batch.first_seq}")

    def content(self, record_id: bytes, salt: bytes, data: bytes, peer: str) -> None:
        """A content from a link."""
        record = self.reconciler.open.get(record_id)
        now = self.runtime.now()
        if record is None:
            return
        if len(data) != record.size or commit(salt, data) != record.commitment:
            self.reconciler.content_failed([record_id], peer, Reason.WRONG_CONTENT, now)
        else:
            self.reconciler.content(record_id, StoredContent(salt=salt, data=data), peer, now)
        self.dispatch()

    def take_epochs(self, epochs: Sequence[Epoch]) -> None:
        """Epochs from another member."""
        new = self.anchors.add_epochs(epochs)
        if new:
            self._on_epochs(new)

    def report(self, report: Report) -> None:
        """Count a fault, log it, and tell the application."""
        self.reports[report.reason] = self.reports.get(report.reason, 0) + 1
        log.warning("%s: %s: %s", report.reason, report.subject, report.detail)
        self._on_report(report)

    # ---------------------------------------------------------------------- timers

    async def _timer_loop(self) -> None:
        while True:
            deadline = self.reconciler.deadline()
            pause = math.inf if deadline is None else deadline - self.runtime.now()
            if pause <= 0:
                self.reconciler.tick(self.runtime.now())
                self.dispatch()
                continue
            with anyio.move_on_after(pause):
                await self._timer_work.wait()
            self._timer_work = anyio.Event()


@dataclass(slots=True)
class LinkState:
    """A link and what was already said on it."""

    link: Link
    #: The newest own sequence number that the other side holds or was pushed.
    pushed: int = -1
    certified: set[bytes] = field(default_factory=set)

    def send(self, frame: frames.Frame) -> None:
        """Encode and queue a frame."""
        self.link.send(frames.encode(frame))

    def certify(self, encoded: bytes, certificate_id: bytes) -> None:
        """Send a certificate unless it was sent on this link."""
        if certificate_id not in self.certified:
            self.certified.add(certificate_id)
            self.send(frames.CertificateFrame(encoded))


def batch_frame(
    body: bytes, signature: bytes, contents: Sequence[StoredContent | None]
) -> frames.BatchFrame:
    """A batch with those contents that are small enough to travel with it."""
    room = MAX_INLINE_TOTAL
    inline: list[tuple[bytes, bytes] | None] = []
    for content in contents:
        if content is None or len(content.data) > MAX_INLINE or len(content.data) > room:
            inline.append(None)
            continue
        room -= len(content.data)
        inline.append((content.salt, content.data))
    return frames.BatchFrame(body, signature, tuple(inline))


__all__ = ["Delivered", "Engine", "Link", "LinkState", "Outgoing"]
