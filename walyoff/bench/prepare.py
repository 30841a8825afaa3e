"""A home with a long history, made without sending it: batches are written to the store.

They are what the device would have written: its own records, chained, in full batches under
its own signature. Only their contents are short, and their anchors are said to exist.
"""

from __future__ import annotations

from pathlib import Path

from walyoff import certificates, plugins
from walyoff.abc import NewBatch, Store, StoredContent
from walyoff.bench.lab import BenchError
from walyoff.records import (
    KIND_MESSAGE,
    MAX_RECORDS,
    SALT_SIZE,
    Record,
    chain_start,
    commit,
    make_batch,
    signed_message,
)
from walyoff.runtime import REAL
from walyoff.stores import open_store
from walyoff.trust import Credentials
from walyoff.wire import unpack

#: Bytes of each content: what is held per record does not depend on it, but for the disk.
CONTENT_BYTES = 64
_ANCHOR = "bench"


async def extend(home: Path, records: int) -> None:
    """Add records to the one channel of a home until it has so many."""
    async with open_store(home) as store:
        (key,) = await store.keys("channel/")
        did = key.partition("/")[2]
        credentials = await _credentials(store, did)
        channel = store.channel(did)
        me = credentials.certificate.member
        heads = [head for head in await channel.heads() if head.author == me]
        seq = heads[0].seq if heads else 0
        prev = heads[0].record_id if heads else chain_start(did, me)
        while seq < records:
            batch = _batch(did, credentials, seq, prev, min(MAX_RECORDS, records - seq))
            await channel.write(batches=[batch], deliver=batch.record_ids)
            seq += len(batch.record_ids)
            prev = batch.record_ids[-1]


async def _credentials(store: Store, did: str) -> Credentials:
    value = await store.get(f"credentials/{did}")
    if value is None:
        raise BenchError("the device has no key in its channel")
    encoded, sign_secret, _ = unpack(value, 1 << 20)
    certificate = certificates.decode(encoded).certificate
    sign_key = plugins.suite(certificate.suite).load_sign_key(sign_secret)
    return Credentials(certificate, encoded, sign_key)


def _batch(did: str, credentials: Credentials, seq: int, prev: bytes, count: int) -> NewBatch:
    now_ms = REAL.wall_ms()
    random = REAL.random_bytes((SALT_SIZE + CONTENT_BYTES) * count)
    step = SALT_SIZE + CONTENT_BYTES
    contents = tuple(
        StoredContent(salt=random[at : at + SALT_SIZE], data=random[at + SALT_SIZE : at + step])
        for at in range(0, len(random), step)
    )
    batch = make_batch(
        channel=did,
        author=credentials.certificate.member,
        certificate_id=credentials.certificate.certificate_id,
        first_seq=seq + 1,
        prev=prev,
        seen=(),
        records=[
            Record(now_ms, KIND_MESSAGE, (), CONTENT_BYTES, commit(c.salt, c.data))
            for c in contents
        ],
    )
    return NewBatch(
        author=batch.author,
        first_seq=batch.first_seq,
        batch_id=batch.batch_id,
        body=batch.body,
        signature=credentials.sign_key.sign(signed_message(batch.batch_id)),
        record_ids=batch.record_ids,
        contents=contents,
        anchor=_ANCHOR,
    )
