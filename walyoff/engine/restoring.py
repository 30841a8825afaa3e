"""What an earlier run left open, as the reconciler takes it up again."""

from __future__ import annotations

from walyoff.abc import ChannelStore
from walyoff.engine.facts import OpenRecord
from walyoff.records import Batch, decode_batch

#: Records without content that are looked at from the start.
MAX_RESTORED = 100_000


async def open_records(store: ChannelStore) -> list[OpenRecord]:
    """Records that the store knows without content, at the start. Raises StoreError."""
    found: list[OpenRecord] = []
    batch: Batch | None = None
    # They come in the order of writing, so a batch's records follow one another.
    for author, seq, record_id in await store.missing(MAX_RESTORED):
        if (
            batch is None
            or batch.author != author
            or not batch.first_seq <= seq <= batch.last_seq
        ):
            stored = await store.batches(author, seq, seq)
            if not stored:
                continue
            batch = decode_batch(stored[0].body)
        record = batch.records[seq - batch.first_seq]
        found.append(
            OpenRecord(
                author,
                seq,
                record_id,
                record.size,
                record.commitment,
                0.0,
                kind=record.kind,
            )
        )
    return found
