"""The attachments of one channel: it feeds the plan of transfers and carries out its orders.

What is fetched, and from whom, is decided in `walyoff.engine.transfers`; here are the clock,
the store, the links and the bytes. An attachment whose manifest is held is `open` until all
its chunks are; those that are wanted are taken up, a bounded number at a time.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

import anyio
from anyio.abc import TaskGroup

from walyoff.chunk_frames import MAX_WATCHED, WantChunk, WatchChunks
from walyoff.chunkstore import WISH_DROPPED, WISH_FETCH, WISH_NONE, NewAttachment
from walyoff.engine.facts import Reason, Report
from walyoff.engine.open_attachments import STALLED_AFTER, OpenAttachment, OpenAttachments
from walyoff.engine.policy import AttachmentPolicy
from walyoff.engine.transfer_facts import Ask, Discard, Key, Part, Watch, Whole
from walyoff.engine.transfers import Transfers
from walyoff.errors import RemoteProtocolError, StoreError
from walyoff.manifest import Manifest, chunk_id, decode_manifest
from walyoff.tasks import background_tasks

if TYPE_CHECKING:
    from walyoff.engine.chunk_serving import ChunkServer
    from walyoff.engine.driver import Engine

log = logging.getLogger("walyoff.engine")

#: Attachments that are not whole, looked at from the start.
MAX_OPEN = 100_000


class Attachments:
    """The attachments of one channel on one device."""

    def __init__(self, engine: Engine, key: bytes, policy: AttachmentPolicy) -> None:
        self._engine = engine
        #: Names the chunks of the channel.
        self.key = key
        self.chunks = engine.store.chunks
        #: The links that serve chunks.
        self.servers: list[ChunkServer] = []
        self.line = OpenAttachments(policy)
        #: Own attachments that somebody looks at: to what each peer holds of them.
        self._followed: dict[bytes, dict[str, int]] = {}
        self.bytes_fetched = 0
        self.bytes_served = 0
        #: Chunks that came over links and were kept.
        self.chunks_fetched = 0
        self._total = 0
        self._fresh: deque[tuple[NewAttachment, int]] = deque()
        self._parts: dict[int, list[bytes | memoryview]] = {}
        #: The store took no more when a chunk came last.
        self.no_space = False
        self._changed = anyio.Event()
        self._work = anyio.Event()
        #: Until when `run` sleeps, if nothing becomes due before.
        self._until = -math.inf
        self._tasks: TaskGroup | None = None
        self._reset()

    def _reset(self) -> None:
        self.transfers = Transfers(seed=self._engine.runtime.seed())
        self._parts.clear()
        self._fresh.clear()

    # ------------------------------------------------------------------ life cycle

    async def restore(self) -> None:
        """Take up what the store has. Raises StoreError."""
        self._reset()
        self._total = await self.chunks.total()
        self.line.restore(await self.chunks.unfinished(MAX_OPEN))
        self._budget()
        self._work.set()

    async def run(self) -> None:
        """Fetch until cancelled."""
        async with background_tasks() as self._tasks:
            while True:
                self._work = anyio.Event()
                try:
                    await self._look_at_fresh()
                    due = await self._activate()
                except StoreError as error:
                    log.warning("attachments wait for the store: %s", error)
                    due = self._engine.runtime.now() + STALLED_AFTER
                self.dispatch()
                deadline = self.transfers.deadline()
                self._until = due if deadline is None else min(due, deadline)
                with anyio.move_on_after(self._until - self._engine.runtime.now()):
                    await self._work.wait()
                self._until = -math.inf
                self.transfers.tick(self._engine.runtime.now())

    def decode(
        self, contents: Iterable[tuple[bytes, bytes]], author: str | None
    ) -> list[NewAttachment]:
        """The attachments of these manifests, (record, content), that are to be stored."""
        found = []
        for record_id, content in contents:
            try:
                manifest = decode_manifest(content)
            except RemoteProtocolError as error:
                self._engine.report(Report(Reason.MALFORMED, author or "", str(error)))
                continue
            found.append(
                NewAttachment(
                    record_id=record_id, size=manifest.size, chunk_ids=manifest.chunk_ids()
                )
            )
        return found

    def registered(self, attachments: Iterable[NewAttachment]) -> None:
        """Their manifests are durable."""
        for attachment in attachments:
            if attachment.record_id not in self.open:
                self.open[attachment.record_id] = OpenAttachment(attachment.size, WISH_NONE)
                self._fresh.append((attachment, len(attachment.chunk_ids)))
                self._work.set()

    async def _look_at_fresh(self) -> None:
        """See how much of new attachments is here already: own ones, and known chunks."""
        while self._fresh:
            attachment, count = self._fresh[0]
            record_id = attachment.record_id
            bits = await self.chunks.held(record_id)
            self._fresh.popleft()
            if bits is None or int.from_bytes(bits, "little").bit_count() == count:
                self._settled(record_id)
            elif (known := self.open.get(record_id)) and self.line.wants(known):
                self.line.enqueue(record_id)
            self._announce(record_id)

    def _settled(self, record_id: bytes) -> None:
        """An attachment is whole, or gone."""
        self.open.pop(record_id, None)
        self.transfers.remove(record_id, self._engine.runtime.now())
        self._notify()

    # -------------------------------------------------------------------- choosing

    @property
    def open(self) -> dict[bytes, OpenAttachment]:
        """What is not held as a whole."""
        return self.line.table

    @property
    def policy(self) -> AttachmentPolicy:
        """What is fetched by itself, and how much is kept."""
        return self.line.policy

    async def _activate(self) -> float:
        """Take up what waits while there is room; returns when to look again."""
        active = self.transfers.transfers
        while (record_id := self.line.next(active)) is not None:
            if self.line.has_room(record_id, active):
                self.line.taken_up()
                await self._take_up(record_id, self.open[record_id])
                continue
            stalled, until = self.line.stalled(active)
            now = self._engine.runtime.now()
            if stalled is None or until > now:
                return until
            self.transfers.remove(stalled, now)
            self.line.enqueue(stalled)
        return math.inf

    async def _take_up(self, record_id: bytes, known: OpenAttachment) -> None:
        manifest = await self.manifest(record_id)
        bits = await self.chunks.held(record_id)
        if manifest is None or bits is None:
            known.refused = True
            return
        now = self._engine.runtime.now()
        known.moved = now
        if record_id not in self.open:
            return
        self.transfers.add(record_id, manifest, bits, wanted=True, now=now)
        known.held = self.transfers.transfers[record_id].bytes_held

    async def manifest(self, record_id: bytes) -> Manifest | None:
        """The manifest of a record, if it is held and one. Raises StoreError."""
        (content,) = await self._engine.store.contents([record_id])
        if content is None:
            return None
        try:
            return decode_manifest(content.data)
        except RemoteProtocolError:
            return None

    def set_policy(self, policy: AttachmentPolicy) -> None:
        """Another policy holds from now on."""
        self.line.policy = policy
        now = self._engine.runtime.now()
        for record_id in list(self.transfers.transfers):
            known = self.open.get(record_id)
            if known is None or not self.line.wants(known):
                self.transfers.remove(record_id, now)
        self.line.line_up(self.transfers.transfers)
        self._budget()
        self._notify()
        self._work.set()

    def _budget(self) -> None:
        quota = self.policy.quota
        left = None if quota is None else quota - self._total
        self.transfers.set_budget(left, self._engine.runtime.now())

    async def wish(self, record_id: bytes, value: int) -> None:
        """Fetch an attachment whatever the policy says, or not. Raises StoreError."""
        known = self.open.get(record_id)
        if known is None or known.wish == value:
            return
        await self.chunks.wish(record_id, value)
        known.wish = value
        if value == WISH_FETCH:
            if record_id not in self.transfers.transfers:
                self.line.enqueue(record_id, first=True)
        elif not self.line.wants(known):
            self.transfers.remove(record_id, self._engine.runtime.now())
        self._work.set()
        self._notify()

    async def drop(self, record_id: bytes, size: int) -> int:
        """Give up the chunks of an attachment that nothing else uses; returns their bytes."""
        freed = await self.chunks.drop(record_id)
        self._total -= freed
        self.transfers.remove(record_id, self._engine.runtime.now())
        self.open[record_id] = OpenAttachment(size, WISH_DROPPED)
        self._budget()
        self._announce(record_id)
        self._notify()
        return freed

    async def forget(self, record_id: bytes) -> None:
        """Destroy an attachment: keys first, then files. Raises StoreError."""
        self.open.pop(record_id, None)
        self.transfers.remove(record_id, self._engine.runtime.now())
        self.dispatch()
        await self.chunks.destroy(record_id)
        self._total = await self.chunks.total()
        self._budget()
        self._announce(record_id)
        self._notify()

    async def collect(self) -> tuple[int, int]:
        """Remove the chunks that nothing uses; returns how many, and their bytes."""
        found = await self.chunks.collect()
        self._total = await self.chunks.total()
        self._budget()
        return found

    # --------------------------------------------------------------------- looking

    @property
    def total(self) -> int:
        """Bytes of chunks that the channel holds."""
        return self._total

    def sent(self, size: int) -> None:
        """A chunk of an own attachment is stored."""
        self._total += size
        self._budget()

    def bytes_held(self, record_id: bytes, size: int) -> int:
        """How many bytes of an attachment are here."""
        if transfer := self.transfers.transfers.get(record_id):
            return transfer.bytes_held
        known = self.open.get(record_id)
        return size if known is None else known.held

    async def held(self, record_id: bytes) -> bytes:
        """Which chunks are durably held; nothing for what is not known. Raises StoreError."""
        if transfer := self.transfers.transfers.get(record_id):
            return transfer.held.to_bytes(-(-transfer.manifest.count // 8), "little")
        return await self.chunks.held(record_id) or b""

    @property
    def event(self) -> anyio.Event:
        """Set at the next change; take it before looking, wait for it after."""
        return self._changed

    async def changed(self) -> None:
        """Wait until chunks came or something else about an attachment changed.

        Raises:
            anyio.ClosedResourceError: the channel was closed.
        """
        self._engine.check_open()
        await self._changed.wait()
        self._engine.check_open()

    def close(self) -> None:
        """The channel ends: wake everybody who waits."""
        self._notify()

    def _notify(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    def _announce(self, record_id: bytes) -> None:
        for server in self.servers:
            server.changed(record_id)

    # ----------------------------------------------------------------------- links

    def follow(self, record_id: bytes) -> dict[str, int]:
        """Ask all peers what they hold of an attachment, from now until `unfollow`.

        Returns a table of DIDs to numbers of chunks, which changes as they answer.
        """
        table = self._followed.setdefault(record_id, {})
        for link in self._engine.admitted_links():
            link.send(WatchChunks((record_id,)))
        return table

    def unfollow(self, record_id: bytes) -> None:
        """Nobody looks any more."""
        self._followed.pop(record_id, None)

    def peer_joined(self, name: str, did: str) -> None:
        """A session with a member is up."""
        if self._followed and (link := self._engine.links.get(name)):
            link.send(WatchChunks(tuple(self._followed)[:MAX_WATCHED]))
        self.transfers.peer_joined(name, did, self._engine.runtime.now())
        self.dispatch()

    def peer_left(self, name: str) -> None:
        """A session is over."""
        self.transfers.peer_left(name, self._engine.runtime.now())
        self.dispatch()

    def peer_has(self, name: str, record_id: bytes, bits: bytes) -> None:
        """A peer says which chunks it holds."""
        link = self._engine.links.get(name)
        if record_id in self._followed and link is not None:
            self._followed[record_id][link.link.did] = int.from_bytes(
                bits, "little"
            ).bit_count()
            self._notify()
        self.transfers.peer_has(name, record_id, bits, self._engine.runtime.now())
        self.dispatch()

    def gone(self, name: str, number: int) -> None:
        """A peer does not hold what it was asked for."""
        self.transfers.gone(name, number, self._engine.runtime.now())
        self.dispatch()

    def part(self, name: str, number: int, offset: int, data: bytes | memoryview) -> None:
        """A part came from a peer."""
        fetch = self.transfers.fetches.get(number)
        now = self._engine.runtime.now()
        verdict = self.transfers.part(name, number, offset, len(data), now)
        if verdict is not Part.IGNORED and fetch is not None:
            self._parts.setdefault(number, []).append(data)
            if verdict is Part.COMPLETE and self._tasks is not None:
                self._tasks.start_soon(
                    self._keep, fetch.key, fetch.record_id, self._parts.pop(number)
                )
        self.dispatch()

    async def _keep(self, key: Key, record_id: bytes, parts: list[bytes | memoryview]) -> None:
        """Check a chunk that came, and store it."""
        engine, transfers = self._engine, self.transfers
        whole = await engine.runtime.in_thread(_check, self.key, parts, key[0])
        if whole is None:
            transfers.wrong(key, record_id, engine.runtime.now())
            self.dispatch()
            return
        self.bytes_fetched += len(whole)
        try:
            kept = await self.chunks.put(key[0], whole)
        except (StoreError, anyio.ClosedResourceError) as error:
            if not self.no_space:
                log.error("a chunk was not stored, it is fetched again: %s", error)
            self.no_space = True
            transfers.failed(key, engine.runtime.now())
        else:
            self.no_space = False
            if kept:
                self.chunks_fetched += 1
                self._total += key[1]
            now = engine.runtime.now()
            transfers.stored(key, now)
            for transfer in transfers.transfers.values():
                if key[0] in transfer.places and (known := self.open.get(transfer.record_id)):
                    known.moved = now
                    known.held = transfer.bytes_held
                    self._announce(transfer.record_id)
        self.dispatch()
        self._notify()

    # ---------------------------------------------------------------------- orders

    def dispatch(self) -> None:
        """Carry out the orders of the plan."""
        engine = self._engine
        for order in self.transfers.orders():
            match order:
                case Ask(peer, number, record_id, place, offset, length):
                    if link := engine.links.get(peer):
                        link.send(WantChunk(number, record_id, place, offset, length))
                case Watch(peer, record_ids):
                    if link := engine.links.get(peer):
                        for at in range(0, len(record_ids), MAX_WATCHED):
                            link.send(WatchChunks(record_ids[at : at + MAX_WATCHED]))
                case Discard(number):
                    self._parts.pop(number, None)
                case Whole(record_id):
                    if self._tasks is not None:
                        self._tasks.start_soon(self._finish, record_id)
                case Report(reason, peer, detail):
                    engine.reconciler.fault(peer, reason, detail)
                    engine.dispatch()
        deadline = self.transfers.deadline()
        if deadline is not None and deadline < self._until:
            self._work.set()

    async def _finish(self, record_id: bytes) -> None:
        """All chunks are here: note it."""
        try:
            whole = await self.chunks.finish(record_id)
        except (StoreError, anyio.ClosedResourceError):
            # The next opening sees it again.
            whole = True
        if whole:
            self._settled(record_id)
        else:
            # Something was dropped or destroyed meanwhile.
            self.transfers.remove(record_id, self._engine.runtime.now())
            self.line.line_up(self.transfers.transfers)
        self._announce(record_id)
        self._work.set()


def _check(key: bytes, parts: list[bytes | memoryview], wanted: bytes) -> bytes | None:
    """The chunk of these parts, or None if it is not the wanted one."""
    return b"".join(parts) if chunk_id(key, *parts) == wanted else None


__all__ = ["Attachments"]
