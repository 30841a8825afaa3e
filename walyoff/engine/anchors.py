"""Anchors: what is written to the ledger and what is learned from it.

The pace is decided in `anchoring`, the rest by the reconciler; this module seals, opens and
carries. A block that does not open or does not verify is passed over, and named in `refusals`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import anyio

from walyoff.abc import Block, GuardedLedger, Ledger
from walyoff.engine.facts import Reason
from walyoff.engine.refusals import Refusals
from walyoff.epochs import (
    MAX_ANCHOR,
    MAX_ANCHOR_PARTS,
    SALT_SIZE,
    Anchor,
    Epoch,
    anchor_epoch,
    open_anchor,
    seal_anchor,
)
from walyoff.errors import (
    CipherError,
    NotAMemberError,
    RemoteProtocolError,
    StoreError,
    TransportError,
    WalyoffError,
)
from walyoff.records import batch_certificate, batch_hash

if TYPE_CHECKING:
    from walyoff.engine.driver import Engine

log = logging.getLogger("walyoff.engine")

#: After a failure of the store the ledger is read again, in seconds.
READ_AGAIN = 2.0
#: Bytes of a block besides its parts, and of a part besides its bytes, rounded up.
_ANCHOR_OVERHEAD = 4096
_PART_OVERHEAD = 16


class AnchorKeeper:
    """Writes and reads the anchor blocks of one channel."""

    def __init__(
        self,
        engine: Engine,
        ledger: Ledger,
        *,
        position: int,
        on_position: Callable[[int], None],
    ) -> None:
        self.position = position
        #: Up to here everything that was read is in the store.
        self.committed = position
        self._engine = engine
        #: What was read and does not count.
        self.refusals = Refusals(engine)
        self._ledger = ledger
        self._on_position = on_position
        #: The first block whose epoch is not known yet; read again when epochs come.
        self._unopened: int | None = None
        self._work = anyio.Event()
        self._complete = False
        #: Until when the writer sleeps, if nothing becomes due before.
        self._until = -math.inf
        #: Blocks of ours in this run; the event is set when the next one is on the ledger.
        self.blocks_written = 0
        self.written = anyio.Event()
        self._reading = anyio.CancelScope()

    def wake(self, when: float = -math.inf) -> None:
        """There may be something to anchor from a time on (or now)."""
        if when < self._until:
            self._work.set()

    def newest_epoch(self) -> Epoch:
        """The epoch to write under. Raises TransportError while it is not there."""
        epoch = self._engine.rotation.usable()
        if epoch is None:
            raise TransportError("a member left, and the new epoch is not here yet")
        return epoch

    def epochs_came(self) -> None:
        """There are new epochs: what did not open may open now."""
        self.wake()
        if self._unopened is not None:
            self._reading.cancel()

    def reread(self) -> None:
        """Read the ledger again from its beginning: more of it counts than did."""
        self._unopened = 1
        self._reading.cancel()

    # --------------------------------------------------------------------- writing

    async def write_loop(self) -> None:
        """Anchor what waits, at the pace that `anchoring` sets."""
        anchoring = self._engine.anchoring
        while True:
            now = self._engine.runtime.now()
            if anchoring.has_orphans(now) and not await self._is_complete():
                anchoring.hold_orphans(now)
            chosen = anchoring.take(now)
            if chosen:
                await self._write(chosen)
                continue
            deadline = anchoring.deadline()
            pause = math.inf if deadline is None else deadline - self._engine.runtime.now()
            self._until = math.inf if deadline is None else deadline
            with anyio.move_on_after(max(pause, 0.001)):
                await self._work.wait()
            self._until = -math.inf
            self._work = anyio.Event()

    async def _is_complete(self) -> bool:
        """Whether the ledger has its history: before, others' batches may well be on it."""
        if not self._complete and isinstance(self._ledger, GuardedLedger):
            try:
                self._complete = await self._ledger.is_complete()
            except WalyoffError as error:
                log.debug("whether the ledger is complete is not known: %s", error)
                return False
            return self._complete
        return True

    async def _write(self, chosen: tuple[bytes, ...]) -> None:
        engine = self._engine
        try:
            certificates, batches = await self._gather(chosen)
            if not batches:
                engine.anchoring.written((), engine.runtime.now())
                return
            payload = seal_anchor(
                self.newest_epoch(),
                certificates,
                list(batches.values()),
                salt=engine.runtime.random_bytes(SALT_SIZE),
            )
            block = await self._ledger.append(payload)
        except WalyoffError as error:
            log.warning("anchoring failed, it is tried again: %s", error)
            engine.anchoring.failed(engine.runtime.now())
            return
        engine.anchoring.written(batches, engine.runtime.now())
        self.blocks_written += 1
        written, self.written = self.written, anyio.Event()
        written.set()
        engine.anchored([(batch_id, block.ref) for batch_id in batches])
        await engine.refill_unanchored()

    async def _gather(
        self, chosen: tuple[bytes, ...]
    ) -> tuple[list[bytes], dict[bytes, tuple[bytes, bytes]]]:
        """Of the chosen batches those that are signed and fit a block, with certificates."""
        engine = self._engine
        batches: dict[bytes, tuple[bytes, bytes]] = {}
        certificates: dict[bytes, bytes] = {}
        room = MAX_ANCHOR - _ANCHOR_OVERHEAD
        for batch_id in chosen:
            stored = await engine.store.batch(batch_id)
            if stored is None or stored.signature is None:
                # Its signature is still on its way to the store.
                engine.anchoring.put_off(batch_id, engine.runtime.now())
                continue
            certificate_id = batch_certificate(stored.body)
            encoded = b""
            if certificate_id not in certificates and (
                trusted := await engine.trust.load(certificate_id)
            ):
                encoded = trusted.encoded
            size = len(stored.body) + len(stored.signature) + len(encoded) + _PART_OVERHEAD
            if size > room or len(certificates) == MAX_ANCHOR_PARTS:
                # It stays due, and is in the next block.
                continue
            room -= size
            batches[batch_id] = (stored.body, stored.signature)
            if encoded:
                certificates[certificate_id] = encoded
        return list(certificates.values()), batches

    # --------------------------------------------------------------------- reading

    async def read_loop(self) -> None:
        """Learn of records from the ledger, as far as they did not come from a peer."""
        while True:
            try:
                with anyio.CancelScope() as self._reading:
                    start = self.position if self._unopened is None else self._unopened - 1
                    self._unopened = None
                    async with self._ledger.blocks(start) as blocks:
                        async for block in blocks:
                            await self._read(block)
            except StoreError as error:
                log.warning("reading the ledger is tried again: %s", error)
                await anyio.sleep(READ_AGAIN)

    def read_again(self) -> None:
        """The store failed: read from where it is sure again."""
        self.position = self.committed
        self._reading.cancel()

    async def _read(self, block: Block) -> None:
        try:
            anchor = self._open(block.payload)
            if anchor is None:
                if self._unopened is None:
                    self._unopened = block.position
                self._refuse(Reason.UNKNOWN_EPOCH, block, "no epoch of ours opens it")
                return
            await self._take(anchor, block)
        except (RemoteProtocolError, NotAMemberError, CipherError) as error:
            self._refuse(getattr(error, "reason", Reason.MALFORMED), block, str(error))
        if self._unopened is None:
            self.position = block.position
            if not self._engine.commits.pending:
                self.stored(block.position)

    def stored(self, position: int) -> None:
        """What was read up to there is in the store, so the next start may begin after it."""
        self.committed = position
        self._on_position(position)

    def _refuse(self, reason: str, block: Block, detail: str, body: bytes = b"") -> None:
        self.refusals.refuse(reason, block.ref, detail, self._member(body))

    def _member(self, body: bytes) -> str:
        """The member that a batch claims to be by; empty if it names none that is known."""
        try:
            trusted = self._engine.trust.get(batch_certificate(body))
        except RemoteProtocolError:
            return ""
        return "" if trusted is None else trusted.certificate.member

    def _open(self, payload: bytes) -> Anchor | None:
        # The payload names its epoch: what it was sealed under costs one attempt, however many
        # epochs a device holds.
        epoch = self._engine.epochs.get(anchor_epoch(payload))
        return None if epoch is None else open_anchor(epoch, payload)

    async def _take(self, anchor: Anchor, block: Block) -> None:
        engine = self._engine
        for data in anchor.certificates:
            try:
                await engine.trust.add(data)
            except (RemoteProtocolError, NotAMemberError, CipherError) as error:
                # Its own batches are refused below; those of others are not to blame.
                self._refuse(getattr(error, "reason", Reason.NO_CERTIFICATE), block, str(error))
        for body, signature in anchor.batches:
            batch_id = batch_hash(body)
            if not await self._is_held(batch_id):
                try:
                    batch = await engine.inbox.offer(
                        body, signature, None, None, anchor=block.ref
                    )
                    if batch is None:
                        continue
                except RemoteProtocolError as error:
                    # One bad batch in a block delays no other.
                    self._refuse(error.reason, block, str(error), body)
                    continue
            engine.anchored([(batch_id, block.ref)])

    async def _is_held(self, batch_id: bytes) -> bool:
        """True for a batch that came from a peer before: most do, and need no second look."""
        engine = self._engine
        return (
            engine.commits.accepted(batch_id) or await engine.store.batch(batch_id) is not None
        )
