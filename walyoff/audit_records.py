"""The second half of an audit: what the blocks anchor, and what the store holds of it.

Every batch and its signature, the hash chain of each author, and the commitment of each
content that is held. The chains themselves are read before, by `audit`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import anyio.to_thread

from walyoff import certificates, plugins
from walyoff.abc import ChannelStore, Head, Store, StoredBatch, StoredContent
from walyoff.audit_report import (
    ANCHOR_FALSE,
    BATCH_DAMAGED,
    BATCH_FORGED,
    BATCH_MISSING,
    CHAIN_BROKEN,
    CONTENT_DAMAGED,
    CONTENT_WRONG,
    FORK,
    NO_CERTIFICATE,
    STORE_DAMAGED,
    Meter,
    Report,
)
from walyoff.errors import CipherError, RemoteProtocolError, StoreError
from walyoff.records import Batch, chain_start, commit, decode_batch, signed_message
from walyoff.walytis.process import Child

#: Contents read at once.
_PAGE = 64


class RecordAudit:
    """Checks one channel's records; what it finds goes into the report.

    `keys_of` are the control keys of those who may certify devices, by DID, oldest first.
    """

    def __init__(
        self,
        report: Report,
        store: Store,
        child: Child,
        keys_of: Mapping[str, Sequence[str]],
    ) -> None:
        self._did = report.channel
        self._report = report
        self._store = store
        self._child = child
        self._keys_of = keys_of
        #: Certificates that hold, by id, and what they verify with.
        self._trusted: dict[bytes, certificates.Certificate] = {}
        #: (batch id, signature) that was verified.
        self._verified: set[tuple[bytes, bytes]] = set()

    # --------------------------------------------------------------------- batches

    async def load_certificates(self) -> None:
        for key in await self._store.keys(f"certificate/{self._did}/"):
            if value := await self._store.get(key):
                await self._trust(value)
        for segment in self._report.segments:
            for anchor in segment.anchors.values():
                for encoded in anchor.certificates:
                    await self._trust(encoded)

    async def _trust(self, encoded: bytes) -> None:
        try:
            signed = certificates.decode(encoded)
        except RemoteProtocolError as error:
            self._report.add(NO_CERTIFICATE, self._did, str(error))
            return
        certificate = signed.certificate
        if certificate.certificate_id in self._trusted:
            return
        self._report.counts["certificates"] += 1
        for keys in reversed(self._keys_of.get(certificate.member, [])):
            args = {
                "key_group_id": keys,
                "signature": signed.signature,
                "data": certificate.body(),
            }
            if await self._child.call("did.check_compact", args) is True:
                self._trusted[certificate.certificate_id] = certificate
                return
        self._report.add(
            NO_CERTIFICATE, certificate.member, "a certificate is not signed by its member"
        )

    async def _check_batch(
        self, body: bytes, signature: bytes | None, where: str
    ) -> Batch | None:
        """A batch whose form and signature hold."""
        try:
            batch = decode_batch(body)
        except RemoteProtocolError as error:
            self._report.add(BATCH_DAMAGED, where, str(error))
            return None
        if batch.channel != self._did:
            self._report.add(BATCH_FORGED, where, "of another channel")
            return None
        if signature is None or (batch.batch_id, signature) in self._verified:
            return batch
        certificate = self._trusted.get(batch.certificate_id)
        if certificate is None or certificate.member != batch.author:
            self._report.add(NO_CERTIFICATE, where, f"of a batch of {batch.author}")
            return None
        cipher = plugins.suite(certificate.suite)
        message = signed_message(batch.batch_id)
        try:
            await anyio.to_thread.run_sync(
                cipher.verify, certificate.sign_public, message, signature
            )
        except CipherError:
            self._report.add(BATCH_FORGED, where, f"not signed by {batch.author}")
            return None
        self._verified.add((batch.batch_id, signature))
        return batch

    async def check_anchors(self) -> dict[str, set[bytes]]:
        """Every anchored batch; the batch ids of each block."""
        anchored: dict[str, set[bytes]] = {}
        firsts: dict[tuple[str, int], bytes] = {}
        for segment in self._report.segments:
            for ref, anchor in segment.anchors.items():
                for body, signature in anchor.batches:
                    where = f"{segment.chain}/{ref}"
                    batch = await self._check_batch(body, signature, where)
                    if batch is None:
                        continue
                    self._report.counts["anchored batches"] += 1
                    anchored.setdefault(ref, set()).add(batch.batch_id)
                    place = batch.author, batch.first_seq
                    if firsts.setdefault(place, batch.batch_id) != batch.batch_id:
                        self._report.add(FORK, where, f"a second batch of {batch.author}")
        return anchored

    # --------------------------------------------------------------------- authors

    async def check_author(
        self,
        channel: ChannelStore,
        head: Head,
        anchored: dict[str, set[bytes]],
        meter: Meter,
    ) -> None:
        author = head.author
        seq, before = 1, chain_start(self._did, author)
        while seq <= head.seq:
            where = f"{author} #{seq}"
            try:
                page = await channel.batches(author, seq, head.seq)
            except StoreError as error:
                self._report.add(STORE_DAMAGED, where, str(error))
                return
            if not page:
                self._report.add(BATCH_MISSING, where, "no batch holds it")
                return
            for stored in page:
                where = f"{author} #{seq}"
                if stored.first_seq > seq:
                    self._report.add(BATCH_MISSING, where, "no batch holds it")
                    seq, before = stored.first_seq, b""
                batch = await self._check_batch(stored.body, stored.signature, where)
                if batch is None:
                    return
                self._report.counts["batches"] += 1
                follows = not before or batch.prev == before
                if (batch.author, batch.first_seq) != (author, seq) or not follows:
                    self._report.add(
                        CHAIN_BROKEN, where, "it does not follow on what is before"
                    )
                    return
                self._check_anchor(stored, batch, anchored, where)
                await self._check_contents(channel, batch, meter)
                seq, before = batch.last_seq + 1, batch.record_ids[-1]

    def _check_anchor(
        self,
        stored: StoredBatch,
        batch: Batch,
        anchored: dict[str, set[bytes]],
        where: str,
    ) -> None:
        if stored.batch_id != batch.batch_id:
            self._report.add(BATCH_DAMAGED, where, "kept under another name")
        if stored.anchor is None:
            self._report.counts["batches without anchor"] += 1
        elif stored.anchor not in anchored:
            self._report.add(ANCHOR_FALSE, where, f"no block {stored.anchor} anchors anything")
        elif batch.batch_id not in anchored[stored.anchor]:
            self._report.add(ANCHOR_FALSE, where, f"block {stored.anchor} anchors others")

    async def _check_contents(self, channel: ChannelStore, batch: Batch, meter: Meter) -> None:
        for start in range(0, len(batch.records), _PAGE):
            ids = batch.record_ids[start : start + _PAGE]
            try:
                page = await channel.contents(ids)
            except StoreError:
                # One by one, so that a damaged one hides no other.
                page = [
                    await self._content(channel, record_id, f"{batch.author} #{seq}")
                    for seq, record_id in enumerate(ids, batch.first_seq + start)
                ]
            for offset, content in enumerate(page, start):
                meter.tick()
                record = batch.records[offset]
                self._report.counts["records"] += 1
                if content is None:
                    self._report.counts["contents not held"] += 1
                    continue
                self._report.counts["contents"] += 1
                right = len(content.data) == record.size
                if not right or commit(content.salt, content.data) != record.commitment:
                    where = f"{batch.author} #{batch.first_seq + offset}"
                    self._report.add(CONTENT_WRONG, where, "another content than was signed")

    async def _content(
        self, channel: ChannelStore, record_id: bytes, where: str
    ) -> StoredContent | None:
        try:
            return (await channel.contents([record_id]))[0]
        except StoreError as error:
            self._report.add(CONTENT_DAMAGED, where, str(error))
            return None
