"""The way in: batches and contents from links and from the ledger, verified.

What passes here goes to the reconciler; what does not is refused by a named reason. A batch
is checked in the order of cost: form, channel, certificate, author, membership, signature,
commitments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from walyoff.abc import StoredContent
from walyoff.engine.consent import parse_consent
from walyoff.engine.facts import Reason, Verdict
from walyoff.errors import CipherError, RemoteProtocolError
from walyoff.records import (
    KIND_CONSENT,
    Batch,
    batch_hash,
    commit,
    decode_batch,
    signed_message,
)

if TYPE_CHECKING:
    from walyoff.engine.driver import Engine
    from walyoff.engine.link import LinkState

#: Batches whose predecessors are missing, kept until they come: in all and per author, so
#: that one who skips numbers keeps no other's out.
MAX_WAITING_BATCHES = 512
MAX_WAITING_PER_AUTHOR = 64


class Inbox:
    """The incoming batches and contents of one channel."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        #: Author to first sequence number to (body, signature, anchor block).
        self._waiting: dict[str, dict[int, tuple[bytes, bytes, str | None]]] = {}
        #: Author to its newest batch, and the certificate that signed it.
        self._signers: dict[str, tuple[bytes, bytes]] = {}

    async def offer(
        self,
        body: bytes,
        signature: bytes,
        contents: Sequence[tuple[bytes, bytes] | None] | None,
        link: LinkState | None,
        *,
        anchor: str | None = None,
    ) -> Batch | None:
        """Verify a batch from a link or from the ledger (None) and give it to the reconciler.

        `anchor` is the block that anchors it, if it comes from the ledger. Returns the batch
        if it is (or was) accepted.

        Raises:
            RemoteProtocolError: it is malformed, of another channel, by somebody who is not
                a member, or badly signed.
        """
        engine = self._engine
        peer = link.link.name if link is not None else None
        verdict: Verdict | None = None
        while verdict is None:
            batch = await self._verify(body, signature)
            head = engine.reconciler.heads.get(batch.author)
            await self._check_copies(batch)
            await self._check_key_order(batch)
            # What it says of those who left is in force before anything of it is passed on.
            await engine.removals.heed(batch)
            held = self._check_contents(batch, contents, peer)
            said = [parse_consent(r) for r in batch.records if r.kind == KIND_CONSENT]
            async with engine.forgetting.cases.prepared(said):
                # What was looked at is true of where the author's records ended then.
                if engine.reconciler.heads.get(batch.author) == head:
                    now = engine.runtime.now()
                    verdict = engine.reconciler.batch(batch, signature, held, peer, now)
                    engine.dispatch()
        match verdict:
            case Verdict.ACCEPTED:
                if anchor is None:
                    engine.await_anchor(batch.batch_id, len(body) + len(signature), own=False)
                else:
                    engine.anchored([(batch.batch_id, anchor)])
            case Verdict.DUPLICATE:
                if not await self._is_held(batch, signature):
                    verdict = Verdict.FORK
            case Verdict.FORK:
                await self._find_fork(batch, signature)
            case Verdict.GAP:
                await self._keep(batch, signature, anchor)
        engine.dispatch()
        if verdict is Verdict.ACCEPTED:
            await self._offer_next(batch)
        return batch if verdict in (Verdict.ACCEPTED, Verdict.DUPLICATE) else None

    async def _keep(self, batch: Batch, signature: bytes, anchor: str | None) -> None:
        """Its predecessors are missing: keep it for when they come."""
        waiting = self._waiting.setdefault(batch.author, {})
        known = waiting.get(batch.first_seq)
        if known is not None:
            if known[0] == batch.body:
                waiting[batch.first_seq] = (batch.body, signature, anchor or known[2])
            else:
                await self._engine.forks.convict((known[0], known[1]), (batch.body, signature))
        elif (
            len(waiting) < MAX_WAITING_PER_AUTHOR
            and sum(map(len, self._waiting.values())) < MAX_WAITING_BATCHES
        ):
            waiting[batch.first_seq] = (batch.body, signature, anchor)

    async def _verify(self, body: bytes, signature: bytes) -> Batch:
        engine, trust = self._engine, self._engine.trust
        batch = decode_batch(body)
        if batch.channel != engine.channel:
            raise RemoteProtocolError("batch of another channel", reason=Reason.WRONG_CHANNEL)
        trusted = trust.get(batch.certificate_id) or await trust.load(batch.certificate_id)
        if trusted is None:
            raise RemoteProtocolError("unknown certificate", reason=Reason.NO_CERTIFICATE)
        if trusted.certificate.member != batch.author:
            raise RemoteProtocolError("author is not the signer", reason=Reason.WRONG_SIGNATURE)
        last = trusted.certificate.not_after_ms
        if any(record.time_ms > last for record in batch.records):
            # Both times are by the author's clock, which may be wrong as it likes.
            raise RemoteProtocolError(
                "written after its certificate's end", reason=Reason.EXPIRED_KEY
            )
        if not engine.removals.permits(batch):
            raise RemoteProtocolError("author is not a member", reason=Reason.NOT_A_MEMBER)
        head = engine.reconciler.heads.get(batch.author)
        if head is not None and head.batch_id == batch.batch_id:
            # The newest one again, from another peer: it was verified before.
            return batch
        try:
            trusted.verify(signed_message(batch.batch_id), signature)
        except CipherError:
            raise RemoteProtocolError(
                "batch signature does not hold", reason=Reason.WRONG_SIGNATURE
            ) from None
        return batch

    async def _check_copies(self, batch: Batch) -> None:
        """A copy of a device that another one took over from adds nothing any more.

        Raises:
            RemoteProtocolError: it is such a copy's.
        """
        engine, trust = self._engine, self._engine.trust
        trusted = await trust.load(batch.certificate_id)
        if trusted is None:
            return
        if trust.overruled(trusted.certificate, batch.last_seq):
            raise RemoteProtocolError(
                "by a copy that was taken over from", reason=Reason.OLD_KEY
            )
        head = engine.reconciler.heads.get(batch.author)
        held = head.seq if head else 0
        if batch.author == engine.me and batch.last_seq > held and not engine.resuming.waiting:
            trust.note_copy()
            raise RemoteProtocolError("by a copy of this device", reason=Reason.OLD_KEY)
        if batch.first_seq == held + 1:
            await trust.began(trusted.certificate, batch.first_seq)

    async def _check_key_order(self, batch: Batch) -> None:
        """A device that has replaced its key never goes back: only a thief of the old one does.

        Raises:
            RemoteProtocolError: it continues the chain by a key that was replaced.
        """
        engine = self._engine
        head = engine.reconciler.heads.get(batch.author)
        if head is None or batch.first_seq != head.seq + 1:
            return
        if engine.trust.is_retired(batch.certificate_id, batch.first_seq):
            raise RemoteProtocolError("signed by a replaced key", reason=Reason.OLD_KEY)
        known = await self._signer(batch.author, head.batch_id)
        if known is not None and known != batch.certificate_id:
            await engine.trust.retire(known, batch.first_seq)
        self._signers[batch.author] = (batch.batch_id, batch.certificate_id)

    async def _signer(self, author: str, batch_id: bytes) -> bytes | None:
        """The certificate under an author's newest batch."""
        known = self._signers.get(author)
        if known is not None and known[0] == batch_id:
            return known[1]
        stored = await self._engine.store.batch(batch_id)
        return None if stored is None else decode_batch(stored.body).certificate_id

    async def needed(self, author: str) -> list[bytes]:
        """The certificates of an author that sign its newest batch, and what waits."""
        waiting = self._waiting.get(author, {})
        found = [decode_batch(body).certificate_id for body, _, _ in waiting.values()]
        if author in self._signers:
            found.append(self._signers[author][1])
        head = self._engine.reconciler.heads.get(author)
        if head is not None and (signer := await self._signer(author, head.batch_id)):
            found.append(signer)
        return found

    async def _offer_next(self, batch: Batch) -> None:
        """A predecessor came: offer again what waited for it."""
        waiting = self._waiting.get(batch.author, {})
        for first_seq in sorted(seq for seq in waiting if seq <= batch.last_seq + 1):
            # Those that came meanwhile by another way are compared, and anchored.
            body, signature, anchor = waiting.pop(first_seq)
            if await self.offer(body, signature, None, None, anchor=anchor) and anchor:
                self._engine.anchored([(batch_hash(body), anchor)])
        if not waiting:
            self._waiting.pop(batch.author, None)

    def _check_contents(
        self,
        batch: Batch,
        contents: Sequence[tuple[bytes, bytes] | None] | None,
        peer: str | None,
    ) -> list[StoredContent | None]:
        """Those contents that match their commitments; for the others the peer sends more."""
        if contents is None:
            return [None] * len(batch.records)
        if len(contents) > len(batch.records):
            raise RemoteProtocolError("a batch frame has more contents than records")
        held: list[StoredContent | None] = []
        engine = self._engine
        for record_id, record, pair in zip(
            batch.record_ids, batch.records, contents, strict=False
        ):
            if pair is None or engine.forgetting.blocks(record_id, record):
                held.append(None)
            elif len(pair[1]) == record.size and commit(*pair) == record.commitment:
                held.append(StoredContent(salt=pair[0], data=pair[1]))
            else:
                held.append(None)
                if peer is not None:
                    self._engine.reconciler.fault(peer, Reason.WRONG_CONTENT, batch.author)
        return held

    async def _is_held(self, batch: Batch, signature: bytes) -> bool:
        """A batch for known sequence numbers: the same, or a contradiction?"""
        engine = self._engine
        if engine.commits.accepted(batch.batch_id):
            return True
        if await engine.store.batch(batch.batch_id) is not None:
            return True
        await self._find_fork(batch, signature)
        return False

    async def _find_fork(self, batch: Batch, signature: bytes) -> None:
        """A batch that does not fit: find the held one that it contradicts."""
        engine = self._engine
        await engine.commits.settled()
        before = max(batch.first_seq - 1, 1)
        for held in await engine.store.batches(batch.author, before, batch.last_seq):
            if held.signature is not None and await engine.forks.convict(
                (held.body, held.signature), (batch.body, signature)
            ):
                return
        # It begins a chain in a way that no chain begins, and so contradicts itself.
        if not await engine.forks.convict((batch.body, signature), (batch.body, signature)):
            engine.reconciler.fork(batch.author, f"two chains meet at {batch.first_seq}")

    def contents(self, given: Sequence[tuple[bytes, bytes, bytes]], peer: str) -> None:
        """Contents from a link, as (record, salt, data): each is taken if it is wanted and
        matches its commitment.
        """
        engine = self._engine
        records, blocks = engine.reconciler.open, engine.forgetting.blocks
        held: list[tuple[bytes, StoredContent]] = []
        wrong: list[bytes] = []
        for record_id, salt, data in given:
            record = records.get(record_id)
            if record is None or blocks(record_id, record.metadata):
                continue
            if len(data) == record.size and commit(salt, data) == record.commitment:
                held.append((record_id, StoredContent(salt, data)))
            else:
                wrong.append(record_id)
        now = engine.runtime.now()
        if held:
            engine.reconciler.contents(held, peer, now)
        if wrong:
            engine.reconciler.content_failed(wrong, peer, Reason.WRONG_CONTENT, now)
        engine.dispatch()
