"""What every store must do with the chunks of attachments: inherit `ChunkConformance`.

It stands beside `walyoff.testing.stores.StoreConformance` and needs the same `open_store`.
"""

from __future__ import annotations

import os
from pathlib import Path

from walyoff.abc import ChannelStore
from walyoff.chunkstore import WISH_DROPPED, WISH_FETCH, NewAttachment, Unfinished
from walyoff.records import CHUNK_SIZE
from walyoff.testing.store_base import ALICE, CHANNEL, StoreChecks, make_batch, make_content

#: Three chunks, the last of them short.
SIZE = 2 * CHUNK_SIZE + 100


def make_chunks() -> list[tuple[bytes, bytes]]:
    """(id, bytes) of the chunks of an attachment of SIZE bytes."""
    sizes = (CHUNK_SIZE, CHUNK_SIZE, SIZE - 2 * CHUNK_SIZE)
    return [
        (os.urandom(32), os.urandom(64) * (size // 64) + bytes(size % 64)) for size in sizes
    ]


async def announce(
    channel: ChannelStore, chunks: list[tuple[bytes, bytes]], seq: int = 1
) -> bytes:
    """Write the record of an attachment; returns its id."""
    batch = make_batch(ALICE, seq, [make_content(b"manifest")])
    (record_id,) = batch.record_ids
    size = sum(len(data) for _, data in chunks)
    ids = tuple(chunk_id for chunk_id, _ in chunks)
    about = NewAttachment(record_id=record_id, size=size, chunk_ids=ids)
    await channel.write(batches=[batch], deliver=[record_id], attachments=[about])
    return record_id


class ChunkConformance(StoreChecks):
    """The behavioural checks. Each needs an empty home."""

    async def test_chunks_come_back_in_a_later_run(self, tmp_path: Path) -> None:
        chunks = make_chunks()
        async with self.open_store(tmp_path / "home") as store:
            channel = store.channel(CHANNEL)
            record_id = await announce(channel, chunks)
            assert await channel.chunks.held(record_id) == b"\x00"
            assert await channel.chunks.read(record_id, 1) is None
            assert not await channel.chunks.finish(record_id)
            assert await channel.chunks.put(*chunks[1])
            assert await channel.chunks.put(*chunks[2])
            assert await channel.chunks.held(record_id) == b"\x06"
        async with self.open_store(tmp_path / "home") as store:
            channel = store.channel(CHANNEL)
            assert await channel.chunks.held(record_id) == b"\x06"
            assert await channel.chunks.read(record_id, 1) == chunks[1][1]
            assert await channel.chunks.unfinished(10) == [
                Unfinished(record_id=record_id, size=SIZE, count=3, wish=0)
            ]
            await channel.chunks.put(*chunks[0])
            assert await channel.chunks.finish(record_id)
            assert await channel.chunks.unfinished(10) == []
            assert await channel.chunks.total() == SIZE
            assert await channel.chunks.positions(10) == [1]

    async def test_what_is_not_known_is_not_held(self, tmp_path: Path) -> None:
        async with self.open_store(tmp_path / "home") as store:
            chunks = store.channel(CHANNEL).chunks
            assert await chunks.held(bytes(32)) is None
            assert await chunks.read(bytes(32), 0) is None
            assert await chunks.unfinished(10) == []
            assert await chunks.positions(10) == []
            assert await chunks.total() == 0
            assert await chunks.drop(bytes(32)) == 0
            await chunks.destroy(bytes(32))
            # Nothing uses it: it is not kept.
            assert not await chunks.put(os.urandom(32), b"chunk")
            assert await chunks.total() == 0
            assert await chunks.collect() == (0, 0)

    async def test_an_empty_attachment_is_held(self, tmp_path: Path) -> None:
        async with self.open_store(tmp_path / "home") as store:
            channel = store.channel(CHANNEL)
            record_id = await announce(channel, [])
            assert await channel.chunks.held(record_id) == b""
            assert await channel.chunks.unfinished(10) == []

    async def test_the_same_chunks_are_held_once(self, tmp_path: Path) -> None:
        chunks = make_chunks()
        async with self.open_store(tmp_path / "home") as store:
            channel = store.channel(CHANNEL)
            first = await announce(channel, chunks)
            for chunk in chunks:
                await channel.chunks.put(*chunk)
                await channel.chunks.put(*chunk)
            second = await announce(channel, chunks, 2)
            assert await channel.chunks.held(second) == b"\x07"
            assert await channel.chunks.total() == SIZE
            await channel.chunks.destroy(first)
            assert await channel.chunks.held(first) is None
            assert await channel.chunks.read(first, 0) is None
            assert await channel.chunks.read(second, 0) == chunks[0][1]
            await channel.chunks.destroy(second)
            assert await channel.chunks.total() == 0

    async def test_channels_do_not_share_chunks(self, tmp_path: Path) -> None:
        chunks = make_chunks()
        async with self.open_store(tmp_path / "home") as store:
            mine, other = store.channel(CHANNEL), store.channel(CHANNEL + "2")
            await announce(mine, chunks)
            for chunk in chunks:
                await mine.chunks.put(*chunk)
            record_id = await announce(other, chunks)
            assert await other.chunks.held(record_id) == b"\x00"
            assert await other.chunks.total() == 0

    async def test_a_draft_keeps_its_chunks_until_it_has_a_record(self, tmp_path: Path) -> None:
        chunks = make_chunks()
        async with self.open_store(tmp_path / "home") as store:
            channel = store.channel(CHANNEL)
            draft = channel.chunks.new_draft()
            assert not await channel.chunks.adopt(draft, 0, chunks[0][0])
            for place, chunk in enumerate(chunks):
                assert await channel.chunks.put(*chunk, draft=(draft, place))
            old = await announce(channel, chunks)
            await channel.chunks.destroy(old)
            assert await channel.chunks.collect() == (0, 0)
            record_id = await announce(channel, chunks, 2)
            await channel.chunks.end_draft(draft)
            assert await channel.chunks.collect() == (0, 0)
            assert await channel.chunks.held(record_id) == b"\x07"

    async def test_a_broken_off_draft_serves_the_next_one(self, tmp_path: Path) -> None:
        chunks = make_chunks()
        async with self.open_store(tmp_path / "home") as store:
            channel = store.channel(CHANNEL)
            draft = channel.chunks.new_draft()
            await channel.chunks.put(*chunks[0], draft=(draft, 0))
        async with self.open_store(tmp_path / "home") as store:
            channel = store.channel(CHANNEL)
            draft = channel.chunks.new_draft()
            assert await channel.chunks.adopt(draft, 0, chunks[0][0])
            await channel.chunks.end_draft(draft)
            assert await channel.chunks.collect() == (1, CHUNK_SIZE)
            assert await channel.chunks.total() == 0

    async def test_forgetting_takes_the_chunks_of_an_old_draft(self, tmp_path: Path) -> None:
        chunks = make_chunks()
        async with self.open_store(tmp_path / "home") as store:
            channel = store.channel(CHANNEL)
            draft = channel.chunks.new_draft()
            await channel.chunks.put(*chunks[0], draft=(draft, 0))
            record_id = await announce(channel, chunks)
        async with self.open_store(tmp_path / "home") as store:
            channel = store.channel(CHANNEL)
            await channel.chunks.destroy(record_id)
            assert await channel.chunks.total() == 0

    async def test_a_late_chunk_of_a_forgotten_attachment_is_not_kept(
        self, tmp_path: Path
    ) -> None:
        chunks = make_chunks()
        async with self.open_store(tmp_path / "home") as store:
            channel = store.channel(CHANNEL)
            record_id = await announce(channel, chunks)
            await channel.chunks.destroy(record_id)
            assert not await channel.chunks.put(*chunks[0])
            assert await channel.chunks.total() == 0

    async def test_dropping_keeps_what_another_attachment_uses(self, tmp_path: Path) -> None:
        chunks = make_chunks()
        async with self.open_store(tmp_path / "home") as store:
            channel = store.channel(CHANNEL)
            record_id = await announce(channel, chunks)
            other = await announce(channel, chunks[:1], 2)
            for chunk in chunks:
                await channel.chunks.put(*chunk)
            assert await channel.chunks.drop(record_id) == SIZE - CHUNK_SIZE
            assert await channel.chunks.held(record_id) == b"\x01"
            assert await channel.chunks.read(other, 0) == chunks[0][1]
            (left,) = [
                u for u in await channel.chunks.unfinished(10) if u.record_id == record_id
            ]
            assert left.wish == WISH_DROPPED
            await channel.chunks.wish(record_id, WISH_FETCH)
            (left,) = [
                u for u in await channel.chunks.unfinished(10) if u.record_id == record_id
            ]
            assert left.wish == WISH_FETCH

    async def test_what_two_attachments_share_goes_when_both_are_dropped(
        self, tmp_path: Path
    ) -> None:
        chunks = make_chunks()
        async with self.open_store(tmp_path / "home") as store:
            channel = store.channel(CHANNEL)
            first = await announce(channel, chunks)
            second = await announce(channel, chunks, 2)
            for chunk in chunks:
                await channel.chunks.put(*chunk)
            assert await channel.chunks.finish(second)
            assert await channel.chunks.drop(first) == 0
            assert await channel.chunks.read(second, 0) == chunks[0][1]
            assert await channel.chunks.drop(second) == SIZE
            assert await channel.chunks.total() == 0
            assert len(await channel.chunks.unfinished(10)) == 2

    async def test_a_chunk_of_another_length_is_not_that_of_the_place(
        self, tmp_path: Path
    ) -> None:
        chunks = make_chunks()
        # What a liar wrote: an id of another file, at a place where it cannot be.
        wrong = [chunks[0], chunks[2], chunks[1]]
        async with self.open_store(tmp_path / "home") as store:
            channel = store.channel(CHANNEL)
            await announce(channel, chunks)
            for chunk in chunks:
                await channel.chunks.put(*chunk)
            batch = make_batch(ALICE, 2, [make_content()])
            (record_id,) = batch.record_ids
            about = NewAttachment(
                record_id=record_id, size=SIZE, chunk_ids=tuple(i for i, _ in wrong)
            )
            await channel.write(batches=[batch], attachments=[about])
            assert await channel.chunks.held(record_id) == b"\x01"
            assert await channel.chunks.read(record_id, 1) is None
