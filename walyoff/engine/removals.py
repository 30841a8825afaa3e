"""Members who leave: which of their records still count, and who must hear nothing more.

Whoever learns from the chain that a member left says so in its own log, before anything else
that it sends, with how far it holds what that member wrote (a *statement*: a record without
content). So two things follow, on every device alike:

- What the one who left had written counts up to the farthest statement of a member: it is
  what anybody had accepted when it learned of the leaving. All that comes later is refused.
- A device accepts another device's records in order, so it knows of the leaving before it
  gets a message that was written by somebody who knew. From the statement on it has no
  session with the one who left, also when the chain has not told it yet (a *bar*).

A membership is named by the device and by `Member.joined_at`, so that statements about an
earlier membership do no harm to a member who came back. Where an identity left with its
devices, its own membership is stated as well, by the name of its link: that also shuts out
devices of it that the author of the statement has never heard of.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio

from walyoff.errors import StoreError
from walyoff.records import HASH_SIZE, KIND_REMOVAL, Batch, Record, device_id
from walyoff.wire import expect_array, expect_int, pack, unpack

if TYPE_CHECKING:
    from walyoff.abc import Member
    from walyoff.engine.driver import Engine

log = logging.getLogger("walyoff.engine")

#: Who was named by a statement is shut out for so long, in seconds, if the chain is silent:
#: it comes over the same sessions, and a member who lies must not shut others out for good.
BAR_S = 600.0
#: Devices that statements name and the chain does not (yet) know: a liar invents any number.
MAX_STRANGERS = 256
#: A grown limit is tried with the ledger, in seconds, if nobody who is connected helped.
REREAD_AFTER_S = 5.0
#: What is kept of one statement; its numbers are what a store takes.
_MAX_VALUE = 256
_MAX_NUMBER = 1 << 62


@dataclass(frozen=True, slots=True)
class Statement:
    """A member's word that another one left."""

    device: bytes
    #: The membership that ended, by `Member.joined_at`.
    joined_at: int
    #: How far the author of the statement holds the records of the one who left.
    seq: int
    record_id: bytes

    def topics(self) -> tuple[str, ...]:
        """As the topics of a record: metadata, so it is there as soon as its batch is."""
        return (self.device.hex(), str(self.joined_at), str(self.seq), self.record_id.hex())


def parse_statement(record: Record) -> Statement | None:
    """The statement that a record makes; None if it makes none, or a malformed one."""
    if record.kind != KIND_REMOVAL or len(record.topics) != 4 or record.size:
        return None
    device, joined_at, seq, record_id = record.topics
    if not all(text.isascii() and text.isdigit() for text in (joined_at, seq)):
        return None
    try:
        found = Statement(
            bytes.fromhex(device), int(joined_at), int(seq), bytes.fromhex(record_id)
        )
    except ValueError:
        return None
    if found.topics() != record.topics or len(found.device) != 16:
        return None
    if len(found.record_id) != HASH_SIZE or max(found.joined_at, found.seq) > _MAX_NUMBER:
        return None
    return found


@dataclass(slots=True)
class _Known:
    """What was stated of one device."""

    seq: int = 0
    #: One more than the `joined_at` of the newest membership whose end this device stated.
    stated: int = 0
    #: `seq` and `stated` as the store has them.
    kept: tuple[int, int] = (0, 0)


class Removals:
    """The leavings of one channel, as its members stated them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known: dict[bytes, _Known] = {}
        #: Who is shut out before the chain says it: DID -> (joined_at, until).
        self._bars: dict[str, tuple[int, float]] = {}
        self._current: frozenset[str] = frozenset()
        self._work = anyio.Event()
        self._grown: set[str] = set()

    # ---------------------------------------------------------------- what counts

    def permits(self, batch: Batch) -> bool:
        """True if a batch's author is a member now, or wrote it before it left."""
        if self._engine.trust.admits(batch.author):
            return True
        # By number alone: a liar who states another record must not make the true one unfit.
        known = self._known.get(device_id(batch.author))
        return known is not None and batch.last_seq <= known.seq

    def ended(self) -> tuple[bytes, ...]:
        """The memberships that are over, each as 24 bytes, in order: what epochs name."""
        trust = self._engine.trust
        membership = trust.identity.membership
        names = {_name(ended.link, ended.joined_at) for ended in membership.ended}
        # Who is shut out before the chain says why: nobody else's epoch fits that, so there is
        # none to write under until the chain says it, or this device begins one.
        names |= {ended_name(m) for m in membership.current() if m.did in trust.barred}
        return tuple(sorted(names))

    # --------------------------------------------------------------------- saying

    def pending(self) -> list[Statement]:
        """What this device has to state before it may say anything else."""
        engine = self._engine
        if not engine.trust.is_member(engine.me):
            return []
        membership = engine.trust.identity.membership
        found = [
            Statement(ended.link, ended.joined_at, 0, bytes(HASH_SIZE))
            for ended in membership.ended
            if ended.identity and not self._is_stated(ended.link, ended.joined_at)
        ]
        links = {(ended.link, ended.joined_at) for ended in membership.ended}
        for member in membership.members:
            if member.did == engine.me or (member.current and member.did not in self._bars):
                continue
            device = device_id(member.did)
            if self._is_stated(device, member.joined_at):
                continue
            head = engine.reconciler.heads.get(member.did)
            if head is None and links_of(member)[0] not in links:
                # It left with its identity, which is stated; and it wrote nothing.
                continue
            seq, record_id = (head.seq, head.record_id) if head else (0, bytes(HASH_SIZE))
            found.append(Statement(device, member.joined_at, seq, record_id))
        return found

    def _is_stated(self, name: bytes, joined_at: int) -> bool:
        known = self._known.get(name)
        return known is not None and known.stated > joined_at

    async def stated(self, batch: Batch) -> None:
        """A batch of this device with statements is durable."""
        for record in batch.records:
            if statement := parse_statement(record):
                known = self._known.setdefault(statement.device, _Known())
                known.stated = max(known.stated, statement.joined_at + 1)
                try:
                    await self._learn(statement)
                except StoreError as error:
                    # It is said and in the log; at the next start it is said again.
                    log.warning("what was stated of who left was not noted: %s", error)
        self._engine.notify()

    async def wait_stated(self) -> None:
        """Wait until this device has stated, durably, who left."""
        self._engine.outbox.wake()
        while self.pending():
            await self._engine.changed()

    # ------------------------------------------------------------------- hearing

    async def heed(self, batch: Batch) -> None:
        """A verified batch of another member: take what it states, before it is accepted."""
        for record in batch.records:
            if record.kind == KIND_REMOVAL and (statement := parse_statement(record)):
                self._bar(statement)
                await self._learn(statement)

    def _bar(self, statement: Statement) -> None:
        engine = self._engine
        for member in engine.trust.identity.membership.current():
            if member.did == engine.me or member.did in self._bars:
                continue
            if _concerns(statement, member):
                until = engine.runtime.now() + BAR_S
                number = max(member.joined_at, statement.joined_at)
                self._bars[member.did] = (number, until)
                engine.trust.barred.add(member.did)
                log.info("%s left, as a member says", member.did)
                engine.on_membership()
                engine.rotation.wake()
                self._wake()

    async def _learn(self, statement: Statement) -> None:
        known = self._known.get(statement.device)
        if known is None:
            if not self._has_room(statement.device):
                return
            known = self._known[statement.device] = _Known()
        if statement.seq > known.seq:
            known.seq = statement.seq
            self._grown.add(statement.device.hex())
            self._wake()
        value = (known.seq, known.stated)
        if value != known.kept:
            # What a store refused is tried again whenever it is heard.
            await self._engine.trust.store.put({self._key(statement.device): pack([*value])})
            known.kept = value

    def _has_room(self, device: bytes) -> bool:
        """True for members, who are as many as the chain says, and for a few others."""
        members = self._engine.trust.identity.membership.members
        known = {device_id(m.did) for m in members}
        known |= {link for m in members for link, _ in m.links}
        return device in known or len(self._known.keys() - known) < MAX_STRANGERS

    # ---------------------------------------------------------------- life cycle

    async def restore(self) -> None:
        """Take up what was stated in earlier runs."""
        store = self._engine.trust.store
        for key in await store.keys(self._key(b"")):
            if value := await store.get(key):
                seq, stated = expect_array(unpack(value, _MAX_VALUE), 2, "removal")
                known = (expect_int(seq, "sequence"), expect_int(stated, "membership"))
                self._known[bytes.fromhex(key.rpartition("/")[2])] = _Known(*known, known)

    def membership_changed(self) -> None:
        """The chain has news: lift bars that it confirms, and ask for whose records count."""
        engine = self._engine
        members = {m.did: m for m in engine.trust.identity.membership.members}
        for did, (joined_at, _) in list(self._bars.items()):
            member = members.get(did)
            if member is None or not member.current or member.joined_at > joined_at:
                self._lift(did)
        current = frozenset(did for did, member in members.items() if member.current)
        for did in current - self._current:
            engine.reconciler.author_counts(did, engine.runtime.now())
        self._current = current
        self._wake()

    async def run(self) -> None:
        """State what is due, lift bars in time, and fetch what counts after all."""
        engine = self._engine
        self.membership_changed()
        while True:
            if self.pending():
                engine.outbox.wake()
            if self._grown:
                await self._fetch_grown()
            until = min((until for _, until in self._bars.values()), default=None)
            with anyio.move_on_after(
                None if until is None else max(until - engine.runtime.now(), 0.0) + 0.001
            ):
                await self._work.wait()
            self._work = anyio.Event()
            for did, (_, end) in list(self._bars.items()):
                if end <= engine.runtime.now():
                    log.warning("the chain did not confirm that %s left", did)
                    self._lift(did)

    async def _fetch_grown(self) -> None:
        """More of somebody's records count than was known: ask again, the ledger last."""
        engine = self._engine
        grown, self._grown = self._grown, set()
        members = engine.trust.identity.membership.members
        dids = {m.did: device_id(m.did) for m in members if device_id(m.did).hex() in grown}
        for did in dids:
            engine.reconciler.author_counts(did, engine.runtime.now())
        engine.dispatch()
        if self._lacks(dids):
            await anyio.sleep(REREAD_AFTER_S)
            if self._lacks(dids):
                engine.anchors.reread()

    def _lacks(self, dids: dict[str, bytes]) -> bool:
        heads = self._engine.reconciler.heads
        return any(
            did not in heads or heads[did].seq < self._known[device].seq
            for did, device in dids.items()
        )

    def _lift(self, did: str) -> None:
        self._bars.pop(did, None)
        self._engine.trust.barred.discard(did)

    def _wake(self) -> None:
        self._work.set()

    def _key(self, device: bytes) -> str:
        return f"removal/{self._engine.channel}/{device.hex()}"


def links_of(member: Member) -> tuple[tuple[bytes, int], ...]:
    """The memberships that a device's own rests on: (name, number), its own first."""
    return member.links or ((device_id(member.did), member.joined_at),)


def _concerns(statement: Statement, member: Member) -> bool:
    """True if what a statement says is over is a membership of this device of now."""
    if statement.device == device_id(member.did):
        return member.joined_at <= statement.joined_at
    return any(
        link == statement.device and number <= statement.joined_at
        for link, number in links_of(member)
    )


def ended_name(member: Member) -> bytes:
    """How an epoch names a device that is shut out: device and number, 24 bytes."""
    return _name(device_id(member.did), member.joined_at)


def ended_names(member: Member) -> tuple[bytes, ...]:
    """The names in an epoch, or earlier numbers of them, that keep it from a device."""
    return (ended_name(member), *(_name(*link) for link in links_of(member)))


def _name(link: bytes, joined_at: int) -> bytes:
    return link + joined_at.to_bytes(8, "big")


__all__ = ["Removals", "Statement", "ended_name", "ended_names", "links_of", "parse_statement"]
