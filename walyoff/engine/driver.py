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
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
from anyio.abc import TaskGroup

from walyoff import frames
from walyoff.abc import ChannelStore, Ledger, NewBatch, StoredContent
from walyoff.chunkstore import NewAttachment
from walyoff.engine.anchoring import Anchoring
from walyoff.engine.anchors import AnchorKeeper
from walyoff.engine.announcing import Announcer
from walyoff.engine.asking import RANGE_BYTES
from walyoff.engine.attachments import Attachments
from walyoff.engine.control_keys import ControlKeys
from walyoff.engine.facts import (
    FetchBatches,
    FetchContents,
    FetchMore,
    OpenRecord,
    Order,
    Report,
    Write,
)
from walyoff.engine.forgetting import Forgetting, Forgotten
from walyoff.engine.forks import Forks
from walyoff.engine.inbox import Inbox
from walyoff.engine.link import LinkState
from walyoff.engine.outbox import Outbox
from walyoff.engine.policy import AttachmentPolicy
from walyoff.engine.reconciler import Reconciler
from walyoff.engine.removals import Removals
from walyoff.engine.resuming import Resuming
from walyoff.engine.rotation import Rotation
from walyoff.epochs import Epoch
from walyoff.errors import StoreError
from walyoff.records import (
    KIND_ATTACHMENT,
    KIND_MESSAGE,
    Batch,
    decode_batch,
    signed_message,
)
from walyoff.runtime import Runtime
from walyoff.tasks import background_tasks
from walyoff.trust import Credentials, Trust

log = logging.getLogger("walyoff.engine")

#: Decoded messages kept for the readers of the live end of the log.
RECENT_MESSAGES = 4096
#: And their bytes.
RECENT_BYTES = 16 * 1024 * 1024
#: Records without content that are looked at from the start.
MAX_RESTORED = 100_000
#: Batches without anchor that are kept in memory; the rest follows when these are anchored.
MAX_UNANCHORED = 4096
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


@dataclass(slots=True, kw_only=True)
class Delivered:
    """A message of the local log, decoded."""

    #: 0 until it is committed; not changed after.
    position: int
    batch: Batch
    index: int
    content: bytes | None
    #: Why it has no content for good.
    forgotten: Forgotten | None = None

    @property
    def is_message(self) -> bool:
        """False for what devices state among themselves."""
        return self.batch.records[self.index].kind in (KIND_MESSAGE, KIND_ATTACHMENT)

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
        chunk_key: bytes,
        policy: AttachmentPolicy,
    ) -> None:
        self.runtime = runtime
        self.channel = trust.channel
        self.me = credentials.certificate.member
        self.trust = trust
        self.credentials = credentials
        #: How often the device key signed in this run.
        self.signatures = 0
        self.store = store
        self.removals = Removals(self)
        self.rotation = Rotation(
            self, epochs, lambda: on_epochs(list(self.rotation.epochs.values()))
        )
        self.control_keys = ControlKeys(self)
        #: Called when somebody has to be left out at once.
        self.on_membership: Callable[[], None] = lambda: None
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
        self.outbox = Outbox(self)
        self.inbox = Inbox(self)
        self.forks = Forks(self)
        trust.unused.needed_by.append(self._certificates_needed)
        self.forgetting = Forgetting(self)
        self.resuming = Resuming(self)
        self.announcer = Announcer(self)
        self.attachments = Attachments(self, chunk_key, policy)
        #: Own batches whose signature is not stored yet, and their last sequence number.
        self._unsigned: dict[bytes, int] = {}
        self._commit = _Commit()
        self._committing: anyio.Event | None = None
        self._recent: OrderedDict[int, Delivered] = OrderedDict()
        self._recent_bytes = 0
        #: Batches accepted lately, which the store may not show yet.
        self._accepted: OrderedDict[bytes, None] = OrderedDict()
        #: Deliveries between their order and their commit: record id -> message.
        self._staged: dict[bytes, Delivered] = {}
        self._commit_work = anyio.Event()
        self._signature_work = anyio.Event()
        self._timer_work = anyio.Event()
        #: Until when the timer sleeps, if nothing becomes due before.
        self._timer_until = -math.inf
        self._changed = anyio.Event()
        self._company = anyio.Event()
        #: Positions that named cursors committed and the store does not have yet.
        self.cursors: dict[str, int] = {}
        #: Batches that were anchored in this run, while not all that are not are known.
        self._anchored_lately: OrderedDict[bytes, None] = OrderedDict()
        #: False while the store has more unanchored batches than are kept in memory.
        self._all_unanchored_known = True
        #: Bytes of contents that were taken and are not committed yet.
        self._uncommitted = 0
        self._room = anyio.Event()
        #: Grows when the state was read from the store again after a failure.
        self.generation = 0
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
                self._signature_loop,
                self.outbox.run,
                self._timer_loop,
                self.anchors.write_loop,
                self.anchors.read_loop,
                self.removals.run,
                self.rotation.run,
                self.control_keys.run,
                self.resuming.run,
                self.forgetting.run,
                self.forgetting.talk,
                self.announcer.run,
                self.attachments.run,
            ):
                tasks.start_soon(loop)
            try:
                yield tasks
            finally:
                self._closed = True
                self._make_room()
                self.outbox.close(anyio.ClosedResourceError("the channel is closed"))
                self.notify()
                self.attachments.close()
                await self.flush_cursors()

    async def _restore(self) -> None:
        """Take up what an earlier run left: unsigned, undelivered, unanchored, open."""
        await self.trust.restore()
        await self.removals.restore()
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
            signature = await self.sign(batch.batch_id)
            await self.store.write(signatures=[(batch.batch_id, signature)])
        await self.forgetting.restore()
        undelivered = await self.store.undelivered()
        if undelivered:
            self.top = await self.store.write(deliver=[r[2] for r in undelivered])
        await self._restore_unanchored()
        self.reconciler.restore_open(await self._open_records())
        await self.forks.restore()
        await self.resuming.restore()
        await self.attachments.restore()

    async def refill_unanchored(self) -> None:
        """When those that were in memory are anchored, take the next from the store."""
        if not self._all_unanchored_known and not self.anchoring.waiting:
            await self.settled()
            await self._restore_unanchored()

    async def _restore_unanchored(self) -> None:
        now = self.runtime.now()
        batches = await self.store.unanchored(MAX_UNANCHORED)
        for batch in batches:
            size = len(batch.body) + len(batch.signature or b"")
            self.anchoring.add(batch.batch_id, size, own=batch.author == self.me, now=now)
        self._all_unanchored_known = len(batches) < MAX_UNANCHORED

    async def _open_records(self) -> list[OpenRecord]:
        found: list[OpenRecord] = []
        batch: Batch | None = None
        # They come in the order of writing, so a batch's records follow one another.
        for author, seq, record_id in await self.store.missing(MAX_RESTORED):
            if (
                batch is None
                or batch.author != author
                or not batch.first_seq <= seq <= batch.last_seq
            ):
                stored = await self.store.batches(author, seq, seq)
                if not stored:
                    continue
                batch = decode_batch(stored[0].body)
            record = batch.records[seq - batch.first_seq]
            found.append(
                OpenRecord(
                    author,
                    seq,
                    record_id,
                    record.size,
                    record.commitment,
                    0.0,
                    kind=record.kind,
                )
            )
        return found

    def check(self) -> None:
        """Raise if nothing can be sent now: the channel is closed, or its store fails."""
        self.check_open()
        if self._failure is not None:
            raise StoreError(
                f"the store failed and is tried again: {self._failure}"
            ) from self._failure

    def check_open(self) -> None:
        """Raise anyio.ClosedResourceError if the channel is closed."""
        if self._closed:
            raise anyio.ClosedResourceError("the channel is closed")

    # ------------------------------------------------------------------ committing

    def dispatch(self) -> anyio.Event:
        """Carry out the reconciler's orders; the event is set when its writes are durable."""
        commit = self._commit
        for order in self.reconciler.orders():
            self._carry_out(order)
        deadline = self.reconciler.deadline()
        if deadline is not None and deadline < self._timer_until:
            self._timer_work.set()
        if not commit:
            # Nothing to write is durable already.
            commit = _Commit()
            commit.done.set()
        elif commit.urgent:
            self._commit_work.set()
        return commit.done

    def _carry_out(self, order: Order) -> None:
        match order:
            case Write():
                self._stage(order)
            case FetchBatches(peer, author, first_seq):
                if link := self.links.get(peer):
                    link.send(frames.WantBatches(author, first_seq, RANGE_BYTES))
            case FetchMore(peer, author, size):
                if link := self.links.get(peer):
                    link.send(frames.WantMore(author, size))
            case FetchContents(peer, record_ids):
                if link := self.links.get(peer):
                    link.send(frames.WantContents(record_ids))
            case Report():
                self.report(order)

    async def settled(self) -> None:
        """Wait until what was ordered up to now is in the store."""
        begun = self._committing
        committed = self.dispatch()
        self._commit_work.set()
        await committed.wait()
        if begun is not None:
            await begun.wait()

    async def room(self) -> None:
        """Wait while more is taken in than the store can write."""
        while self._uncommitted > MAX_UNCOMMITTED and not self._closed:
            await self._room.wait()

    def _stage(self, write: Write) -> None:
        commit = self._commit
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
            values, expiries = self.forgetting.stage(batch)
            commit.values.update(values)
            commit.expiries.extend(expiries)
            staged = self._staged
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
                    self._staged[record_id] = Delivered(
                        position=0, batch=record.batch, index=index, content=content.data
                    )
        commit.size += size
        self._uncommitted += size
        commit.attachments += self.attachments.decode(manifests, write.author)
        if write.author is not None:
            commit.changed[write.author] = None
        commit.deliver.extend(write.deliver)

    async def _signature_loop(self) -> None:
        """Store the signatures that no other write took along."""
        while True:
            await self._signature_work.wait()
            await anyio.sleep(SIGNATURE_LINGER)
            self._signature_work = anyio.Event()
            if self._commit:
                self._commit_work.set()

    async def _commit_loop(self) -> None:
        while True:
            await self._commit_work.wait()
            self._commit_work = anyio.Event()
            if not self._commit:
                continue
            commit, self._commit = self._commit, _Commit()
            self._committing = commit.done
            position = self.anchors.position
            try:
                top = await self.store.write(
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
                self.anchors.committed = position
                self._committed(commit, top)

    async def _recover(self, error: StoreError, commit: _Commit) -> None:
        """The store wrote nothing: forget what it was to write, and begin again from it.

        Who waits to send gets the error at once, and so does who sends while it lasts. The
        links are closed, because what was said on them speaks of a state that is not there.
        """
        log.error("the store failed, it is tried again: %s", error)
        pause = RECOVER_FIRST
        while True:
            self._failure = error
            self.generation += 1
            for lost in (commit, self._commit):
                lost.done.set()
            self.outbox.close(error)
            for link in list(self.links.values()):
                link.link.close()
            self.notify()
            while self.links:
                # No new one begins before the end of this: see `LinkServer.run`.
                await self._changed.wait()
            await anyio.sleep(pause)
            pause = min(2 * pause, RECOVER_LAST)
            self._forget()
            try:
                await self._restore()
            except StoreError as again:
                error = again
                continue
            self._failure = None
            self.anchors.read_again()
            self.notify()
            return

    async def _certificates_needed(self, author: str) -> list[bytes]:
        return [*await self.inbox.needed(author), *await self.forks.needed(author)]

    def _forget(self) -> None:
        """Drop everything that is not in the store."""
        self._commit = _Commit()
        self._committing = None
        self._accepted.clear()
        self._staged.clear()
        self._unsigned.clear()
        self._anchored_lately.clear()
        self._uncommitted = 0
        self._make_room()
        self.inbox = Inbox(self)
        self.anchoring.forget()

    def _make_room(self) -> None:
        room, self._room = self._room, anyio.Event()
        room.set()

    def _committed(self, commit: _Commit, top: int) -> None:
        self._uncommitted -= commit.size
        self._make_room()
        self._remember(commit.deliver, top)
        self.top = top
        for batch in commit.batches:
            if batch.author != self.me or batch.signature is not None:
                self.durable[batch.author] = batch.first_seq + len(batch.record_ids) - 1
        self.reconciler.landed(record_id for record_id, _ in commit.contents)
        self.attachments.registered(commit.attachments)
        # Those who wait run in this order: the sender, the readers, then the links.
        commit.done.set()
        self.notify(company=False)
        self._announce_own(commit)
        self.announcer.held(commit.changed)

    def _announce_own(self, commit: _Commit) -> None:
        """Own batches can be asked for once they are signed: tell those who were not pushed."""
        for batch_id, _ in commit.signatures:
            seq = self._unsigned.pop(batch_id, 0)
            self.durable[self.me] = max(seq, self.durable.get(self.me, 0))
        if commit.signatures:
            for link in self.admitted_links():
                if link.pushed < self.durable[self.me]:
                    link.send(frames.HaveVector((self.have(self.me),)))

    def _remember(self, delivered: Sequence[bytes], top: int) -> None:
        """Records have their positions, up to the top: keep them for the log's readers."""
        recent, size = self._recent, 0
        for position, record_id in enumerate(delivered, top - len(delivered) + 1):
            message = self._staged.pop(record_id, None)
            if message is not None:
                message.position = position
                recent[position] = message
                size += message.size
        self._recent_bytes += size
        while len(recent) > RECENT_MESSAGES or self._recent_bytes > RECENT_BYTES:
            _, old = recent.popitem(last=False)
            self._recent_bytes -= old.size

    async def contents(self, record_ids: Sequence[bytes]) -> list[StoredContent | None]:
        """What may be given to others of the contents of records."""
        found = await self.store.contents(record_ids)
        blocks = self.forgetting.blocks
        return [
            None if blocks(record_id) else content
            for record_id, content in zip(record_ids, found, strict=True)
        ]

    def drop_contents(self, record_ids: Collection[bytes]) -> None:
        """Forget what is in memory of contents that were destroyed."""
        for message in self._recent.values():
            if message.content and message.batch.record_ids[message.index] in record_ids:
                self._recent_bytes -= len(message.content)
                self.forgetting.strip(message)

    def accepted(self, batch_id: bytes) -> bool:
        """True if the batch was accepted lately; the store knows of the others."""
        return batch_id in self._accepted

    async def sign(self, batch_id: bytes) -> bytes:
        """Sign a batch with the device key, in a thread: it takes a millisecond or two."""
        self.signatures += 1
        return await self.runtime.in_thread(
            self.credentials.sign_key.sign, signed_message(batch_id)
        )

    def signed(self, batch: Batch, signature: bytes) -> None:
        """An own batch was pushed with its signature: store it with what is written next.

        At once if another device must hear of it, who can ask only for what is signed;
        otherwise it waits a moment for company, and spares a commit for each lone message.
        A crash meanwhile costs nothing: the batch is signed again.
        """
        self._unsigned[batch.batch_id] = batch.last_seq
        self._commit.signatures.append((batch.batch_id, signature))
        if any(link.pushed < batch.last_seq for link in self.links.values()):
            self._commit_work.set()
        else:
            self._signature_work.set()

    def await_anchor(self, batch_id: bytes, size: int, *, own: bool) -> None:
        """A batch is held that no known block anchors."""
        now = self.runtime.now()
        self.anchors.wake(self.anchoring.add(batch_id, size, own=own, now=now))

    def recent(self, position: int) -> Delivered | None:
        """A message of the live end of the log, if it is still in memory."""
        return self._recent.get(position)

    def is_anchored(self, batch_id: bytes) -> bool:
        """False while no known block anchors a batch that is held."""
        if batch_id in self.anchoring.waiting:
            return False
        return self._all_unanchored_known or batch_id in self._anchored_lately

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
        # This device's own blocks are read back from the ledger: those are known.
        anchors = [anchor for anchor in anchors if anchor[0] not in self._anchored_lately]
        if not anchors:
            return
        for batch_id, _ in anchors:
            self.anchoring.anchored(batch_id)
            self._anchored_lately[batch_id] = None
            if len(self._anchored_lately) > MAX_ACCEPTED:
                self._anchored_lately.popitem(last=False)
        self._commit.anchors.extend(anchors)
        self._commit_work.set()
        self.notify(company=False)

    def notify(self, *, company: bool = True) -> None:
        """Wake everybody who waits in `changed`, and in `company_changed` if it did.

        Many wait there who need not be woken for each message.
        """
        changed, self._changed = self._changed, anyio.Event()
        changed.set()
        if company:
            changed, self._company = self._company, anyio.Event()
            changed.set()

    async def changed(self) -> None:
        """Wait for the log to grow, an anchor, or news of what others hold."""
        self.check_open()
        await self._changed.wait()
        self.check_open()

    async def company_changed(self) -> None:
        """Wait for news of who is a member or connected."""
        self.check_open()
        await self._company.wait()
        self.check_open()

    # ---------------------------------------------------------------------- vector

    def have(self, author: str) -> frames.Have:
        """What is durably held of one device."""
        gaps, seq = self.reconciler.gaps(author), self.durable.get(author, 0)
        if len(gaps) > frames.MAX_GAPS:
            # What cannot be named as a gap must not be claimed.
            seq = min(seq, gaps[frames.MAX_GAPS] - 1)
        return frames.Have(author, seq, tuple(gaps[: frames.MAX_GAPS]))

    def vector(self) -> tuple[frames.Have, ...]:
        """What is durably held of every device."""
        return tuple(self.have(author) for author in self.durable)

    @property
    def epochs(self) -> dict[bytes, Epoch]:
        """All epochs that are known, by their ids."""
        return self.rotation.epochs

    def membership_changed(self) -> None:
        """The identity's chain has news."""
        self.removals.membership_changed()
        self.rotation.wake()
        self.control_keys.wake()
        self.forgetting.membership_changed()
        self.dispatch()
        self.notify()

    def admitted_links(self) -> list[LinkState]:
        """The links with those who may hear anything now."""
        admits = self.trust.admits
        return [link for link in self.links.values() if admits(link.link.did)]

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
            self._timer_until = math.inf if deadline is None else deadline
            with anyio.move_on_after(pause):
                await self._timer_work.wait()
            self._timer_until = -math.inf
            self._timer_work = anyio.Event()


__all__ = ["Delivered", "Engine"]
