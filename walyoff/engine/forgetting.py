"""Forgetting: what members say about it is gathered here, and carried out.

Decided here: when messages are judged again, in which steps one is destroyed, and that
nothing of it is taken or given meanwhile. Who has agreed, and whether that is enough, is
decided in `consent`; how bytes are destroyed, in the store.

Statements are written in the transaction of the batch that they came with, so what is judged
is what is held. A destruction that a crash interrupts is found again at the next start, and
done before the channel is open for anybody.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from weakref import WeakSet

import anyio

from walyoff.engine.consent import (
    APPROVE,
    ERASED,
    PROPOSE,
    REFUSE,
    WITHDRAW,
    Agreement,
    Case,
    Judge,
    State,
    Statement,
    Verdict,
    parse_consent,
    roster,
)
from walyoff.engine.outbox import Outgoing
from walyoff.errors import StoreError
from walyoff.records import HASH_SIZE, KIND_CONSENT, Batch, Record, decode_batch
from walyoff.wire import expect_bytes, pack, unpack

if TYPE_CHECKING:
    from walyoff.abc import LogEntry
    from walyoff.engine.driver import Engine
    from walyoff.engine.recent import Delivered
    from walyoff.messages import MessageStream

log = logging.getLogger("walyoff.engine")

#: Requests that are open at once in a channel, and of those by one device: a liar makes any
#: number. What is beyond is still judged when somebody answers, but asked for by nobody.
MAX_OPEN = 4096
MAX_OPEN_OF_ONE = 256
#: So many are destroyed in one step, which makes the others wait for the disk.
MAX_AT_ONCE = 256
#: Messages that were forgotten lately, for readers that have them in their hands.
MAX_LATELY = 65536
#: A failure of the store is tried again after this; a clock is looked at this often.
RETRY_S = 1.0
CLOCK_EVERY_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgotten:
    """Why a message has no content any more."""

    #: The first agreement of each person, in order of time; empty if its time was over.
    agreed: tuple[Agreement, ...]
    reason: str
    #: True if its author sent it for a time, which is over.
    expired: bool
    #: When the last one agreed or its time was over, in ms; clocks of devices differ.
    time_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A message that is talked about, as far as it is known here."""

    entry: LogEntry | None
    record: Record | None

    @property
    def author(self) -> str | None:
        """The device that wrote it."""
        return None if self.entry is None else self.entry.author


class Forgetting:
    """The requests of one channel to forget, and what follows from them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._cases: dict[bytes, Case] = {}
        self._pins: Counter[bytes] = Counter()
        #: Messages whose request stands, or that have to be destroyed as soon as they come.
        self.open: dict[bytes, None] = {}
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
        self._lost: list[tuple[str, int, int, Statement]] = []
        #: What this device is about to say, by message.
        self._to_say: dict[bytes, Statement] = {}
        self._talk = anyio.Event()
        self._expiry_ms: int | None = None
        self._lock = anyio.Lock()
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

    def lately(self, record_id: bytes) -> Forgotten | None:
        """Why a message was forgotten, if that was in this run."""
        return self._lately.get(record_id)

    def _due(self, record: Record) -> int:
        """When a record's time is over: never later than its lifetime from now."""
        return min(record.time_ms, self._engine.runtime.wall_ms()) + record.lifetime_ms

    # ------------------------------------------------------------------- gathering

    @asynccontextmanager
    async def prepared(self, said: Iterable[Statement | None]) -> AsyncIterator[None]:
        """Have at hand what was said before about the messages of statements."""
        wanted = list(dict.fromkeys(s.message for s in said if s is not None))
        self._pins.update(wanted)
        try:
            for message in wanted:
                await self._load(message)
            yield
        finally:
            self._pins.subtract(wanted)
            self._pins += Counter()

    async def _load(self, message: bytes) -> Case:
        async with self._lock:
            # One at a time: what is loaded is what is stored, or newer and in memory.
            case = self._cases.get(message)
            if case is None:
                value = await self._engine.trust.store.get(self._key(message))
                case = self._cases.setdefault(message, Case.decode(value) if value else Case())
        return case

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
            if record_id in self.open:
                # It was talked about before it came.
                self._touch(record_id)
            if record.kind != KIND_CONSENT:
                continue
            said = parse_consent(record) if record.kind == KIND_CONSENT else None
            if said is not None:
                seq = batch.first_seq + i
                value = self._hear(batch.author, seq, record.time_ms, said)
                if value is not None:
                    values[self._key(said.message)] = value
        if values:
            values[self._open_key] = pack(list(self.open))
        return values, expiries

    def _hear(self, author: str, seq: int, time_ms: int, said: Statement) -> bytes | None:
        case = self._cases.get(said.message)
        if case is None:
            # The store failed and was read again meanwhile: what it has is read first.
            self._lost.append((author, seq, time_ms, said))
            self._wake()
            return None
        case.hear(author, seq, time_ms, said)
        if said.message not in self.open and self._has_room(author, said):
            self.open[said.message] = None
        self._touch(said.message)
        return case.encode()

    def _has_room(self, author: str, said: Statement) -> bool:
        if len(self.open) >= MAX_OPEN:
            return False
        if said.act != PROPOSE:
            return True
        own = sum(
            1
            for message in self.open
            if (case := self._cases.get(message))
            and (word := case.words.get(author))
            and word.act == PROPOSE
        )
        return own < MAX_OPEN_OF_ONE

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
        async with self.prepared(said):
            await self._engine.outbox.send(
                [Outgoing(b"", s.topics(), KIND_CONSENT) for s in said]
            )

    async def has_answered(self, message: bytes) -> bool:
        """True if this device proposed, approved or refused, and did not withdraw it."""
        word = (await self._load(message)).words.get(self._engine.me)
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
        async with self.prepared([Statement(ERASED, message, 0)]):
            case = self._cases[message]
        return subject, await self._judged(message, case, subject)

    async def _judged(self, message: bytes, case: Case, subject: Subject) -> Verdict:
        engine = self._engine
        held = False
        if subject.entry is not None and not subject.entry.forgotten:
            held = message not in engine.reconciler.open
        judge = Judge(engine.trust.identity.membership.members, engine.me)
        return judge.verdict(case, author=subject.author, held=held)

    async def explain(self, message: bytes, record: Record) -> Forgotten:
        """Why a message that is forgotten here is."""
        known = self._lately.get(message)
        if known is not None:
            return known
        _, verdict = await self.verdict(message)
        return self._forgotten(record, verdict)

    def _forgotten(self, record: Record | None, verdict: Verdict) -> Forgotten:
        agreed = tuple(sorted(verdict.agreed, key=lambda word: (word.time_ms, word.voice)))
        if verdict.state is State.FORGOTTEN or record is None or not record.lifetime_ms:
            return Forgotten(
                agreed=agreed,
                reason=verdict.reason,
                expired=False,
                time_ms=max((word.time_ms for word in agreed), default=0),
            )
        due = record.time_ms + record.lifetime_ms
        return Forgotten(agreed=(), reason="", expired=True, time_ms=due)

    # ------------------------------------------------------------------ life cycle

    async def restore(self) -> None:
        """Take up what an earlier run left, and finish it: nobody is served before."""
        self._cases.clear()
        self.open.clear()
        self.verdicts.clear()
        self._blocked.clear()
        self._dirty.clear()
        self._lost.clear()
        value = await self._engine.trust.store.get(self._open_key)
        if value is not None:
            rows = unpack(value, 1 << 20)
            for row in rows:
                message = expect_bytes(row, "message", size=HASH_SIZE)
                await self._load(message)
                self.open[message] = None
        due: list[bytes] = []
        for message in list(self.open):
            subject = await self.subject(message)
            verdict = await self._judged(message, self._cases[message], subject)
            self.verdicts[message] = verdict
            self._dirty[message] = None
            if verdict.erase:
                self._blocked.add(message)
                if subject.entry is not None and not subject.entry.forgotten:
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
        await self._hear_lost()
        if self._judge_all:
            self._judge_all = False
            self._dirty.update(dict.fromkeys(self.open))
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

    async def _hear_lost(self) -> None:
        values: dict[str, bytes | None] = {}
        for *_, said in list(self._lost):
            await self._load(said.message)
        lost, self._lost = self._lost, []
        for author, seq, time_ms, said in lost:
            value = self._hear(author, seq, time_ms, said)
            if value is not None:
                values[self._key(said.message)] = value
        if values:
            values[self._open_key] = pack(list(self.open))
            try:
                await self._engine.trust.store.put(values)
            except StoreError:
                self._lost += lost
                raise

    async def _decide(self, messages: Sequence[bytes]) -> None:
        """Judge messages, and do what follows."""
        engine = self._engine
        before = len(self.open)
        judged = [(message, *await self._judge(message)) for message in messages]
        erase = [m for m, subject, verdict in judged if verdict.erase and _is_here(subject)]
        if erase:
            await self._destroy(erase)
        for message, subject, verdict in judged:
            if verdict.erase and subject.entry is not None:
                if not self._cases[message].erased_by(engine.me):
                    self._say_later(Statement(ERASED, message, verdict.members))
            elif verdict.asked:
                await self._ask(message, subject, verdict)
        if len(self.open) != before:
            await engine.trust.store.put({self._open_key: pack(list(self.open))})
        for message in messages:
            if not (message in self.open or self._pins[message] or message in self._dirty):
                self._cases.pop(message, None)
        engine.notify()

    async def _judge(self, message: bytes) -> tuple[Subject, Verdict]:
        """Judge one message, and note whether it is open."""
        engine = self._engine
        subject = await self.subject(message)
        case = await self._load(message)
        verdict = await self._judged(message, case, subject)
        if subject.entry is not None and subject.entry.forgotten:
            # There is nothing to ask for any more.
            verdict = replace(verdict, asked=False)
            if not verdict.erase:
                self.open.pop(message, None)
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
            self.open.pop(message, None)
            self.verdicts.pop(message, None)
        elif message in self.open:
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
                self._lately[message] = self._forgotten(subject.record, verdict)
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
        for message in gone & self.open.keys():
            self._touch(message)
        log.info("%d messages are forgotten", len(gone))
        engine.notify()

    def strip(self, item: Delivered) -> None:
        """Take the content of a message that was forgotten since it was read."""
        why = self._lately.get(item.batch.record_ids[item.index])
        if why is not None:
            item.content, item.forgotten = None, why

    # ------------------------------------------------------------------- in the store

    def _key(self, message: bytes) -> str:
        return f"consent/{self._engine.channel}/{message.hex()}"

    @property
    def _open_key(self) -> str:
        return f"consents/{self._engine.channel}"


def _is_here(subject: Subject) -> bool:
    return subject.entry is not None and not subject.entry.forgotten


__all__ = ["Forgetting", "Forgotten", "Subject"]
