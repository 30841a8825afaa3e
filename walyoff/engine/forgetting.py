"""Forgetting: what members agreed to is carried out.

Decided here: when messages are judged again, in which steps one is destroyed, and that
nothing of it is taken or given meanwhile. What was said is gathered in `cases`; who has agreed,
and whether that is enough, is decided in `consent`; how bytes are destroyed, in the store.

A destruction that a crash interrupts is found again at the next start, and done before the
channel is open for anybody.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING
from weakref import WeakSet

import anyio

from walyoff.engine.cases import Cases
from walyoff.engine.consent import (
    APPROVE,
    ERASED,
    REFUSE,
    WITHDRAW,
    Case,
    Judge,
    State,
    Statement,
    Verdict,
    parse_consent,
    roster,
)
from walyoff.engine.forgotten import Forgotten, Subject, why_forgotten
from walyoff.engine.outbox import Outgoing
from walyoff.errors import StoreError
from walyoff.records import KIND_CONSENT, Batch, Record, decode_batch

if TYPE_CHECKING:
    from walyoff.engine.driver import Engine
    from walyoff.engine.recent import Delivered
    from walyoff.messages import MessageStream

log = logging.getLogger("walyoff.engine")

#: So many are destroyed in one step, which makes the others wait for the disk.
MAX_AT_ONCE = 256
#: Messages that were forgotten lately, for readers that have them in their hands.
MAX_LATELY = 65536
#: A failure of the store is tried again after this; a clock is looked at this often.
RETRY_S = 1.0
CLOCK_EVERY_S = 60.0


class Forgetting:
    """The requests of one channel to forget, and what follows from them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.cases = Cases(engine.trust.store, engine.channel)
        #: Verdicts on the open ones, as they were judged last.
        self.verdicts: dict[bytes, Verdict] = {}
        #: Contents that are being destroyed, or will be: neither taken nor given.
        self._blocked: set[bytes] = set()
        #: What was forgotten in this run.
        self._lately: OrderedDict[bytes, Forgotten] = OrderedDict()
        self._dirty: dict[bytes, None] = {}
        #: What the store failed to destroy as a whole.
        self._again: dict[bytes, None] = {}
        self._judge_all = False
        #: What this device is about to say, by message.
        self._to_say: dict[bytes, Statement] = {}
        self._talk = anyio.Event()
        self._expiry_ms: int | None = None
        self._work = anyio.Event()
        #: Those who hold messages in their hands.
        self.readers: WeakSet[MessageStream] = WeakSet()
        #: Answers a request for the person, if a policy does; set by the channel.
        self.answer: Callable[[bytes, Subject, Verdict], Awaitable[str | None]] | None = None

    # ------------------------------------------------------------------- in the way

    def blocks(self, record_id: bytes, record: Record | None = None) -> bool:
        """True if a content may be neither taken nor given."""
        if record_id in self._blocked or record_id in self._lately:
            return True
        if record is None or not record.lifetime_ms:
            return False
        return self._due(record) <= self._engine.runtime.wall_ms()

    def _due(self, record: Record) -> int:
        """When a record's time is over: never later than its lifetime from now."""
        return min(record.time_ms, self._engine.runtime.wall_ms()) + record.lifetime_ms

    # ------------------------------------------------------------------- gathering

    def stage(self, batch: Batch) -> tuple[dict[str, bytes | None], list[tuple[bytes, int]]]:
        """A batch was accepted: what is to be stored with it, as values and expiries."""
        values: dict[str, bytes | None] = {}
        expiries: list[tuple[bytes, int]] = []
        for i, (record_id, record) in enumerate(
            zip(batch.record_ids, batch.records, strict=True)
        ):
            if record.lifetime_ms:
                expiries.append((record_id, self._due(record)))
                self._expect(expiries[-1][1])
            if record_id in self.cases.open:
                # It was talked about before it came.
                self._touch(record_id)
            if record.kind != KIND_CONSENT:
                continue
            said = parse_consent(record)
            if said is not None:
                values.update(
                    self._hear(batch.author, batch.first_seq + i, record.time_ms, said)
                )
        if values:
            values.update(self.cases.open_row())
        return values, expiries

    def _hear(self, author: str, seq: int, time_ms: int, said: Statement) -> dict[str, bytes]:
        values = self.cases.hear(author, seq, time_ms, said)
        if values:
            self._touch(said.message)
        else:
            self._wake()
        return values

    def _expect(self, due_ms: int) -> None:
        if self._expiry_ms is None or due_ms < self._expiry_ms:
            self._expiry_ms = due_ms
            self._wake()

    def _touch(self, message: bytes) -> None:
        self._dirty[message] = None
        self._wake()

    def _wake(self) -> None:
        self._work.set()

    def membership_changed(self) -> None:
        """Who has to agree may be others now."""
        self._judge_all = True
        self._wake()

    def policy_changed(self) -> None:
        """Somebody else may answer from now on."""
        self.membership_changed()

    # --------------------------------------------------------------------- talking

    async def say(self, act: str, message: bytes, reason: str = "") -> None:
        """Write a statement of this device; durable when it returns. Raises as `send`."""
        members = roster(self._engine.trust.identity.membership.members)
        said = Statement(act, message, members, reason)
        await self._write([said])

    async def _write(self, said: Sequence[Statement]) -> None:
        async with self.cases.prepared(said):
            await self._engine.outbox.send(
                [Outgoing(b"", s.topics(), KIND_CONSENT) for s in said]
            )

    async def has_answered(self, message: bytes) -> bool:
        """True if this device proposed, approved or refused, and did not withdraw it."""
        word = (await self.cases.look(message)).words.get(self._engine.me)
        return word is not None and word.seq > 0 and word.act != WITHDRAW

    async def destroy_here(self, message: bytes) -> None:
        """Destroy this device's copy, which nobody else counts any more."""
        await self._destroy([message])
        self._touch(message)

    def voice(self, device: str) -> str:
        """The person that a device speaks for."""
        engine = self._engine
        return Judge(engine.trust.identity.membership.members, engine.me).voice(device)

    async def subject(self, message: bytes) -> Subject:
        """The message that is talked about."""
        (entry,) = await self._engine.store.find([message])
        record: Record | None = None
        if entry is not None:
            stored = await self._engine.store.batch(entry.batch_id)
            if stored is not None:
                batch = decode_batch(stored.body)
                record = batch.records[entry.seq - batch.first_seq]
        return Subject(entry=entry, record=record)

    async def verdict(self, message: bytes) -> tuple[Subject, Verdict]:
        """What follows now from what was said about a message."""
        subject = await self.subject(message)
        case = await self.cases.look(message)
        return subject, await self._judged(message, case, subject)

    async def _judged(self, message: bytes, case: Case, subject: Subject) -> Verdict:
        engine = self._engine
        held = False
        if subject.is_here:
            held = message not in engine.reconciler.open
        judge = Judge(engine.trust.identity.membership.members, engine.me)
        return judge.verdict(case, author=subject.author, held=held)

    async def explain(self, message: bytes, record: Record) -> Forgotten:
        """Why a message that is forgotten here is."""
        known = self._lately.get(message)
        if known is not None:
            return known
        _, verdict = await self.verdict(message)
        return why_forgotten(record, verdict)

    # ------------------------------------------------------------------ life cycle

    async def restore(self) -> None:
        """Take up what an earlier run left, and finish it: nobody is served before."""
        self.verdicts.clear()
        self._blocked.clear()
        self._dirty.clear()
        await self.cases.restore()
        due: list[bytes] = []
        for message in list(self.cases.open):
            subject = await self.subject(message)
            verdict = await self._judged(message, self.cases.table[message], subject)
            self.verdicts[message] = verdict
            self._dirty[message] = None
            if verdict.erase:
                self._blocked.add(message)
                if subject.is_here:
                    due.append(message)
        if due:
            await self._engine.store.forget(due)
            self._blocked.difference_update(due)
        while expired := await self._expired():
            await self._engine.store.forget(expired)
        self._expiry_ms = await self._engine.store.next_expiry()
        self._wake()

    async def _expired(self) -> list[bytes]:
        return await self._engine.store.expired(self._engine.runtime.wall_ms(), MAX_AT_ONCE)

    async def run(self) -> None:
        """Judge what has news, and destroy what is to be."""
        while True:
            with anyio.move_on_after(self._pause()):
                await self._work.wait()
            self._work = anyio.Event()
            try:
                await self._round()
            except StoreError as error:
                log.warning("forgetting failed, it is tried again: %s", error)
                await anyio.sleep(RETRY_S)
                self.membership_changed()
                # What was due may be so still.
                self._expect(0)

    def _pause(self) -> float | None:
        if self._expiry_ms is None:
            return None
        left = (self._expiry_ms - self._engine.runtime.wall_ms()) / 1000
        # Not for longer: a clock may be set meanwhile.
        return min(max(left, 0.0) + 0.001, CLOCK_EVERY_S)

    async def _round(self) -> None:
        engine = self._engine
        for message in await self.cases.hear_lost():
            self._touch(message)
        if self._judge_all:
            self._judge_all = False
            self._dirty.update(dict.fromkeys(self.cases.open))
        while self._dirty:
            dirty = list(self._dirty)[:MAX_AT_ONCE]
            for message in dirty:
                del self._dirty[message]
            # What has news up to here is judged when it cannot be lost any more.
            await engine.commits.settled()
            await self._decide(dirty)
        if self._expiry_ms is not None and self._expiry_ms <= engine.runtime.wall_ms():
            # What comes from here on is noted anew; all before is in the store after this.
            self._expiry_ms = None
            await engine.commits.settled()
            while expired := await self._expired():
                await self._destroy(expired)
            due = await engine.store.next_expiry()
            if due is not None:
                self._expect(due)
        if self._again:
            await self._destroy(list(self._again))

    async def _decide(self, messages: Sequence[bytes]) -> None:
        """Judge messages, and do what follows."""
        engine = self._engine
        before = len(self.cases.open)
        judged = [(message, *await self._judge(message)) for message in messages]
        erase = [m for m, subject, verdict in judged if verdict.erase and subject.is_here]
        if erase:
            await self._destroy(erase)
        for message, subject, verdict in judged:
            if verdict.erase and subject.entry is not None:
                if not self.cases.table[message].erased_by(engine.me):
                    self._say_later(Statement(ERASED, message, verdict.members))
            elif verdict.asked:
                await self._ask(message, subject, verdict)
        if len(self.cases.open) != before:
            await self.cases.save_open()
        for message in messages:
            if message not in self._dirty:
                self.cases.release(message)
        engine.notify()

    async def _judge(self, message: bytes) -> tuple[Subject, Verdict]:
        """Judge one message, and note whether it is open."""
        engine = self._engine
        subject = await self.subject(message)
        case = await self.cases.load(message)
        verdict = await self._judged(message, case, subject)
        if subject.entry is not None and subject.entry.forgotten:
            # There is nothing to ask for any more.
            verdict = replace(verdict, asked=False)
            if not verdict.erase:
                self.cases.open.pop(message, None)
                self.verdicts.pop(message, None)
                return subject, verdict
        elif verdict.erase:
            self._blocked.add(message)
        if not verdict.erase:
            stands = verdict.asked or verdict.state in (State.OPEN, State.REFUSED)
        else:
            # Until this device has it, and has said that it is gone.
            told = case.erased_by(engine.me) or not engine.trust.is_member(engine.me)
            stands = subject.entry is None or not told
        if not stands:
            self.cases.open.pop(message, None)
            self.verdicts.pop(message, None)
        elif message in self.cases.open:
            self.verdicts[message] = verdict
        return subject, verdict

    async def _ask(self, message: bytes, subject: Subject, verdict: Verdict) -> None:
        """Let the policy answer, if it does; else the person is asked."""
        engine = self._engine
        if self.answer is None or subject.entry is None or message in self._to_say:
            return
        act = await self.answer(message, subject, verdict)
        if act == APPROVE and not engine.trust.is_member(engine.me):
            await self._destroy([message])
        elif act in (APPROVE, REFUSE):
            members = roster(engine.trust.identity.membership.members)
            self._say_later(Statement(act, message, members))

    def _say_later(self, said: Statement) -> None:
        self._to_say[said.message] = said
        self._talk.set()

    async def talk(self) -> None:
        """Say what this device answers by itself: beside the work, as it may have to wait."""
        engine = self._engine
        while True:
            await self._talk.wait()
            self._talk = anyio.Event()
            said = list(self._to_say.values())
            try:
                if said and engine.trust.is_member(engine.me):
                    await self._write(said)
            except StoreError as error:
                log.warning("what is forgotten was not said, it is tried again: %s", error)
                await anyio.sleep(RETRY_S)
                self.membership_changed()
            for one in said:
                if self._to_say.get(one.message) == one:
                    del self._to_say[one.message]

    async def _destroy(self, messages: Sequence[bytes]) -> None:
        """Destroy contents here, wherever they are."""
        engine = self._engine
        self._blocked.update(messages)
        engine.reconciler.forget(messages, engine.runtime.now())
        # What was on its way to the store is in it after this, and nothing comes any more.
        await engine.commits.settled()
        self._again.update(dict.fromkeys(messages))
        try:
            await engine.store.forget(messages)
            for message in messages:
                await engine.attachments.forget(message)
                subject, verdict = await self.verdict(message)
                self._lately[message] = why_forgotten(subject.record, verdict)
                if len(self._lately) > MAX_LATELY:
                    self._lately.popitem(last=False)
        finally:
            # Whatever comes between, `run` does the rest.
            self._wake()
        gone = set(messages)
        self._blocked -= gone
        for message in gone:
            self._again.pop(message, None)
        engine.drop_contents(gone)
        for reader in self.readers:
            reader.drop_contents(gone)
        for message in gone & self.cases.open.keys():
            self._touch(message)
        log.info("%d messages are forgotten", len(gone))
        engine.notify()

    def strip(self, item: Delivered) -> None:
        """Take the content of a message that was forgotten since it was read."""
        why = self._lately.get(item.batch.record_ids[item.index])
        if why is not None:
            item.content, item.forgotten = None, why


__all__ = ["Forgetting"]
