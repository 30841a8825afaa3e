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

import anyio
from anyio.abc import TaskGroup

from walyoff import frames
from walyoff.abc import ChannelStore, Ledger, StoredContent
from walyoff.engine.anchoring import Anchoring
from walyoff.engine.anchors import AnchorKeeper
from walyoff.engine.announcing import Announcer, claim
from walyoff.engine.asking import RANGE_BYTES
from walyoff.engine.attachments import Attachments
from walyoff.engine.committing import Commits
from walyoff.engine.control_keys import ControlKeys
from walyoff.engine.facts import (
    FetchBatches,
    FetchContents,
    FetchMore,
    Order,
    Report,
    Write,
)
from walyoff.engine.forgetting import Forgetting
from walyoff.engine.forks import Forks
from walyoff.engine.inbox import Inbox
from walyoff.engine.link import LinkState
from walyoff.engine.newcomers import Newcomers
from walyoff.engine.outbox import Outbox
from walyoff.engine.policy import AttachmentPolicy
from walyoff.engine.recent import Recent
from walyoff.engine.reconciler import Reconciler
from walyoff.engine.removals import Removals
from walyoff.engine.restoring import open_records
from walyoff.engine.resuming import Resuming
from walyoff.engine.rotation import Rotation
from walyoff.epochs import Epoch
from walyoff.errors import StoreError
from walyoff.records import (
    signed_message,
)
from walyoff.runtime import Runtime
from walyoff.signals import News
from walyoff.tasks import background_tasks
from walyoff.threads import Attempts
from walyoff.trust import Credentials, Trust

log = logging.getLogger("walyoff.engine")

#: Batches without anchor that are kept in memory; the rest follows when these are anchored.
MAX_UNANCHORED = 4096
#: Batches whose anchors are known from this run alone.
MAX_ANCHORED_LATELY = 8192


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
        self.newcomers = Newcomers(self)
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
        self.commits = Commits(self)
        #: The live end of the log, in memory.
        self.recent = Recent()
        self._timer_work = anyio.Event()
        #: Until when the timer sleeps, if nothing becomes due before.
        self._timer_until = -math.inf
        self._changed = News()
        self._company = News()
        #: Positions that named cursors committed and the store does not have yet.
        self.cursors: dict[str, int] = {}
        #: Batches that were anchored in this run, while not all that are not are known.
        self._anchored_lately: OrderedDict[bytes, None] = OrderedDict()
        #: False while the store has more unanchored batches than are kept in memory.
        self._all_unanchored_known = True
        self._closed = False

    # ------------------------------------------------------------------ life cycle

    @asynccontextmanager
    async def run(self) -> AsyncIterator[TaskGroup]:
        """Run the channel while the context is open."""
        await self.restore()
        async with background_tasks() as tasks:
            for loop in (
                self.commits.run,
                self.commits.store_signatures,
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
                self.commits.close()
                self.outbox.close(anyio.ClosedResourceError("the channel is closed"))
                self.notify()
                self.attachments.close()
                await self.flush_cursors()

    async def restore(self) -> None:
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
            signature = await self.signing(batch.batch_id).value()
            await self.store.write(signatures=[(batch.batch_id, signature)])
        await self.forgetting.restore()
        undelivered = await self.store.undelivered()
        if undelivered:
            self.top = await self.store.write(deliver=[r[2] for r in undelivered])
        await self._restore_unanchored()
        self.reconciler.restore_open(await open_records(self.store))
        await self.forks.restore()
        await self.resuming.restore()
        await self.attachments.restore()

    async def _certificates_needed(self, author: str) -> list[bytes]:
        return [*await self.inbox.needed(author), *await self.forks.needed(author)]

    def forget(self) -> None:
        """Drop what is in memory and not in the store: it is read again."""
        self._anchored_lately.clear()
        self.inbox = Inbox(self)
        self.anchoring.forget()

    async def refill_unanchored(self) -> None:
        """When those that were in memory are anchored, take the next from the store."""
        if not self._all_unanchored_known and not self.anchoring.waiting:
            await self.commits.settled()
            await self._restore_unanchored()

    async def _restore_unanchored(self) -> None:
        now = self.runtime.now()
        batches = await self.store.unanchored(MAX_UNANCHORED)
        for batch in batches:
            size = len(batch.body) + len(batch.signature or b"")
            self.anchoring.add(batch.batch_id, size, own=batch.author == self.me, now=now)
        self._all_unanchored_known = len(batches) < MAX_UNANCHORED

    def check(self) -> None:
        """Raise if nothing can be sent now: the channel is closed, or its store fails."""
        self.check_open()
        if (failure := self.commits.failure) is not None:
            raise StoreError(f"the store failed and is tried again: {failure}") from failure

    def check_open(self) -> None:
        """Raise anyio.ClosedResourceError if the channel is closed."""
        if self._closed:
            raise anyio.ClosedResourceError("the channel is closed")

    # --------------------------------------------------------------------- orders

    def dispatch(self) -> anyio.Event:
        """Carry out the reconciler's orders; the event is set when its writes are durable."""
        for order in self.reconciler.orders():
            self._carry_out(order)
        deadline = self.reconciler.deadline()
        if deadline is not None and deadline < self._timer_until:
            self._timer_work.set()
        return self.commits.ordered()

    def _carry_out(self, order: Order) -> None:
        match order:
            case Write():
                self.commits.stage(order)
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
        self.recent.drop(record_ids, self.forgetting.strip)

    def signing(self, batch_id: bytes) -> Attempts[bytes]:
        """Begin to sign a batch with the device key: it takes a millisecond or two."""
        self.signatures += 1
        return self.runtime.attempts(self.credentials.sign_key.sign, signed_message(batch_id))

    def await_anchor(self, batch_id: bytes, size: int, *, own: bool) -> None:
        """A batch is held that no known block anchors."""
        now = self.runtime.now()
        self.anchors.wake(self.anchoring.add(batch_id, size, own=own, now=now))

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
            if len(self._anchored_lately) > MAX_ANCHORED_LATELY:
                self._anchored_lately.popitem(last=False)
        self.commits.anchored(anchors)
        self.notify(company=False)

    def notify(self, *, company: bool = True) -> None:
        """Wake everybody who waits in `changed`, and in `company_changed` if it did.

        Many wait there who need not be woken for each message.
        """
        self._changed.tell()
        if company:
            self._company.tell()

    async def changed(self) -> None:
        """Wait for the log to grow, an anchor, or news of what others hold."""
        self.check_open()
        await self.news()
        self.check_open()

    async def news(self) -> None:
        """The same, whether the channel is open or not."""
        await self._changed.wait()

    async def company_changed(self) -> None:
        """Wait for news of who is a member or connected."""
        self.check_open()
        await self._company.wait()
        self.check_open()

    # ---------------------------------------------------------------------- vector

    def have(self, author: str) -> frames.Have:
        """What is durably held of one device."""
        return claim(author, self.durable.get(author, 0), self.reconciler.gaps(author))

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

    def count(self, reason: str) -> None:
        """Count a fault."""
        self.reports[reason] = self.reports.get(reason, 0) + 1

    def report(self, report: Report) -> None:
        """Count a fault, log it, and tell the application."""
        self.count(report.reason)
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


__all__ = ["Engine"]
