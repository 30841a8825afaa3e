"""Contradictions: what proves that an author equivocates, and how everybody learns of it.

Two batches with one author's valid signatures that cannot both belong to one chain prove it,
whoever shows them and whatever the reader holds. A device that sees such a pair freezes the
author where it is, keeps the proof, and shows it on every link, once. So all devices that are
connected, however indirectly, freeze the author; what each had accepted until then it keeps.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from walyoff import frames
from walyoff.errors import RemoteProtocolError
from walyoff.records import (
    MAX_BATCH_BODY,
    Batch,
    chain_start,
    decode_batch,
    device_id,
)
from walyoff.wire import expect_array, expect_bytes, pack, unpack

if TYPE_CHECKING:
    from walyoff.engine.driver import Engine
    from walyoff.engine.link import LinkState

log = logging.getLogger("walyoff.engine")

#: A batch body and its signature.
Signed = tuple[bytes, bytes]

#: What is kept of a contradiction: two batches and their signatures.
_MAX_SIGNATURE = 64 * 1024
_MAX_PROOF = 2 * (MAX_BATCH_BODY + _MAX_SIGNATURE) + 64


def contradict(one: Batch, other: Batch) -> bool:
    """True if two batches cannot both belong to their author's one chain."""
    if one.author != other.author or one.channel != other.channel:
        return False
    if one.first_seq > other.first_seq:
        one, other = other, one
    if one.first_seq == 1 and one.prev != chain_start(one.channel, one.author):
        return True
    if one.batch_id == other.batch_id:
        return False
    if other.first_seq == one.last_seq + 1:
        return other.prev != one.record_ids[-1]
    # A record is in one batch only: a device cuts its chain into batches once.
    return other.first_seq <= one.last_seq


class Forks:
    """The authors of one channel that contradicted themselves, with the proofs."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._proofs: dict[str, tuple[Signed, Signed]] = {}

    async def restore(self) -> None:
        """Take up what was proved before."""
        engine = self._engine
        store = engine.trust.store
        for key in await store.keys(self._key("")):
            value = await store.get(key)
            if value is None:
                continue
            one, other = _decode(value)
            author = decode_batch(one[0]).author
            self._proofs[author] = (one, other)
            engine.reconciler.forked.add(author)

    async def convict(self, one: Signed, other: Signed) -> bool:
        """Freeze the author of two verified batches if they contradict each other."""
        engine = self._engine
        first, second = decode_batch(one[0]), decode_batch(other[0])
        if first.author in self._proofs or not contradict(first, second):
            return False
        self._proofs[first.author] = (one, other)
        where = min(first.last_seq, second.last_seq)
        engine.reconciler.fork(first.author, f"two chains meet at record {where}")
        key = self._key(device_id(first.author).hex())
        try:
            await engine.trust.store.put({key: pack([list(one), list(other)])})
        except BaseException:
            # It stays frozen in this run, and is proved again by what comes.
            del self._proofs[first.author]
            raise
        for link in list(engine.links.values()):
            await self._show(link, first.author)
        return True

    async def needed(self, author: str) -> list[bytes]:
        """The certificates that the proof against an author rests on."""
        return [decode_batch(body).certificate_id for body, _ in self._proofs.get(author, ())]

    async def show_all(self, link: LinkState) -> None:
        """Show the proofs to a device that was just connected."""
        for author in list(self._proofs):
            await self._show(link, author)

    async def _show(self, link: LinkState, author: str) -> None:
        for body, signature in self._proofs[author]:
            batch = decode_batch(body)
            trusted = await self._engine.trust.load(batch.certificate_id)
            if trusted is not None:
                link.certify(trusted.encoded, batch.certificate_id)
            nothing = tuple(None for _ in batch.records)
            link.send(frames.BatchFrame(body, signature, nothing))

    def _key(self, name: str) -> str:
        return f"fork/{self._engine.channel}/{name}"


def _decode(value: bytes) -> tuple[Signed, Signed]:
    pair = expect_array(unpack(value, _MAX_PROOF), 2, "proof")
    found: list[Signed] = []
    for part in pair:
        body, signature = expect_array(part, 2, "signed batch")
        found.append(
            (
                expect_bytes(body, "batch", limit=MAX_BATCH_BODY),
                expect_bytes(signature, "signature", limit=_MAX_SIGNATURE),
            )
        )
    if not contradict(decode_batch(found[0][0]), decode_batch(found[1][0])):
        raise RemoteProtocolError("a stored proof proves nothing")
    return found[0], found[1]
