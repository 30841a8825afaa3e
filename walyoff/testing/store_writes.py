"""What `ChannelStore.write` must do: all or nothing, in the order of calls, and only once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import anyio
import pytest

from walyoff.abc import NewBatch
from walyoff.errors import LocalProtocolError, StoreError
from walyoff.testing.store_base import (
    ALICE,
    BOB,
    CHANNEL,
    StoreChecks,
    make_batch,
    make_content,
    record_ids_of,
)


class WriteChecks(StoreChecks):
    """Writing, alone and with others, again, and what is refused."""

    async def test_writing_again_changes_nothing(self, tmp_path: Path) -> None:
        batch = make_batch(ALICE, 1, [make_content(), make_content()])
        async with self.open_store(tmp_path / "home") as store:
            channel = store.channel(CHANNEL)
            for _ in range(3):
                top = await channel.write(batches=[batch, batch], deliver=batch.record_ids)
                assert top == 2
            entries = await channel.log(after=0, limit=10)
            assert record_ids_of(entries) == list(batch.record_ids)
            assert [head.seq for head in await channel.heads()] == [2]

    async def test_first_content_signature_and_anchor_stay(self, tmp_path: Path) -> None:
        first, second = make_content(b"first"), make_content(b"second")
        batch = make_batch(ALICE, 1, [None], signature=None)
        identifier, record = batch.batch_id, batch.record_ids[0]
        async with self.open_store(tmp_path / "home") as store:
            channel = store.channel(CHANNEL)
            await channel.write(batches=[batch])
            for content, signature, anchor in ((first, b"s1", "a1"), (second, b"s2", "a2")):
                await channel.write(
                    contents=[(record, content)],
                    signatures=[(identifier, signature)],
                    anchors=[(identifier, anchor)],
                )
            stored = await channel.batch(identifier)
            assert stored is not None
            assert (stored.signature, stored.anchor) == (b"s1", "a1")
            assert await channel.contents([record]) == [first]

    async def test_a_batch_that_comes_again_brings_what_was_missing(
        self, tmp_path: Path
    ) -> None:
        content = make_content()
        bare = make_batch(ALICE, 1, [None, None], signature=None)
        full = NewBatch(
            author=ALICE,
            first_seq=1,
            batch_id=bare.batch_id,
            body=bare.body,
            signature=b"signed",
            record_ids=bare.record_ids,
            contents=(None, content),
            anchor="block",
        )
        async with self.open_store(tmp_path / "home") as store:
            channel = store.channel(CHANNEL)
            await channel.write(batches=[bare])
            await channel.write(batches=[full])
            stored = await channel.batch(bare.batch_id)
            assert stored is not None
            assert (stored.signature, stored.anchor) == (b"signed", "block")
            assert await channel.contents(bare.record_ids) == [None, content]

    async def test_heads_advance_with_contiguous_batches_only(self, tmp_path: Path) -> None:
        one = make_batch(ALICE, 1, [None, None])
        two = make_batch(ALICE, 3, [None])
        other = make_batch(BOB, 1, [None])
        async with self.open_store(tmp_path / "home") as store:
            channel = store.channel(CHANNEL)
            with pytest.raises(StoreError):
                await channel.write(batches=[two])
            assert await channel.heads() == []
            await channel.write(batches=[one, two, other])
            heads = {head.author: head for head in await channel.heads()}
            assert (heads[ALICE].seq, heads[BOB].seq) == (3, 1)
            assert heads[ALICE].record_id == two.record_ids[0]
            assert heads[ALICE].batch_id == two.batch_id
            for first_seq in (1, 3, 5):
                with pytest.raises(StoreError):
                    await channel.write(batches=[make_batch(ALICE, first_seq, [None])])
            assert {head.author: head for head in await channel.heads()} == heads

    async def test_a_refused_write_leaves_nothing(self, tmp_path: Path) -> None:
        good = make_batch(ALICE, 1, [make_content()])
        unknown = os.urandom(32)
        async with self.open_store(tmp_path / "home") as store:
            channel = store.channel(CHANNEL)
            attempts: list[dict[str, Any]] = [
                {"deliver": [*good.record_ids, unknown]},
                {"contents": [(unknown, make_content())]},
                {"contents": [(unknown, make_content(bytes(99_999)))]},
                {"signatures": [(unknown, b"signature")]},
                {"anchors": [(unknown, "block")]},
            ]
            for attempt in attempts:
                with pytest.raises(StoreError):
                    await channel.write(batches=[good], **attempt)
                assert await channel.top() == 0
                assert await channel.heads() == []
                assert await channel.batch(good.batch_id) is None
            with pytest.raises(StoreError):
                await channel.write(batches=[good, make_batch(ALICE, 7, [None])])
            assert await channel.heads() == []
            assert await channel.write(batches=[good], deliver=good.record_ids) == 1

    async def test_a_record_belongs_to_one_batch(self, tmp_path: Path) -> None:
        good = make_batch(ALICE, 1, [None])
        thief = NewBatch(
            author=BOB,
            first_seq=1,
            batch_id=os.urandom(32),
            body=b"",
            signature=b"",
            record_ids=good.record_ids,
            contents=(None,),
        )
        async with self.open_store(tmp_path / "home") as store:
            channel = store.channel(CHANNEL)
            await channel.write(batches=[good])
            with pytest.raises(StoreError):
                await channel.write(batches=[thief])
            assert [head.author for head in await channel.heads()] == [ALICE]

    async def test_concurrent_writes_keep_the_order_of_calls(self, tmp_path: Path) -> None:
        batches = [
            make_batch(ALICE, seq, [make_content(b"x" * (100_000 if seq % 7 == 0 else 10))])
            for seq in range(1, 41)
        ]
        turns = [anyio.Event() for _ in range(len(batches) + 1)]
        turns[0].set()
        async with self.open_store(tmp_path / "home") as store:
            channel = store.channel(CHANNEL)

            async def write(index: int) -> None:
                # trio starts tasks in any order: take turns in calling, not in waiting.
                await turns[index].wait()
                turns[index + 1].set()
                batch = batches[index]
                await channel.write(batches=[batch], deliver=batch.record_ids)

            async with anyio.create_task_group() as group:
                for index in range(len(batches)):
                    group.start_soon(write, index)
            entries = await channel.log(after=0, limit=99)
            assert [entry.seq for entry in entries] == list(range(1, 41))

    async def test_a_failing_write_does_not_spoil_its_neighbours(self, tmp_path: Path) -> None:
        refused: list[int] = []
        async with self.open_store(tmp_path / "home") as store:
            channel = store.channel(CHANNEL)

            async def write(number: int) -> None:
                first_seq = 1 if number % 3 else 5
                batch = make_batch(f"did:walytis:{number}", first_seq, [make_content()])
                try:
                    await channel.write(batches=[batch], deliver=batch.record_ids)
                except StoreError:
                    refused.append(number)

            async with anyio.create_task_group() as group:
                for number in range(30):
                    group.start_soon(write, number)
            assert sorted(refused) == list(range(0, 30, 3))
            assert await channel.top() == 20
            assert len(await channel.heads()) == 20

    async def test_a_cancelled_write_is_whole_or_absent(self, tmp_path: Path) -> None:
        async with self.open_store(tmp_path / "home") as store:
            channel = store.channel(CHANNEL)
            for number in range(20):
                batch = make_batch(f"did:walytis:{number}", 1, [make_content()] * 3)
                with anyio.move_on_after(number * 0.0002):
                    await channel.write(batches=[batch], deliver=batch.record_ids)
                # Behind it in the queue, so it is decided by now.
                await channel.set_cursor("barrier", number)
                held = [c is not None for c in await channel.contents(batch.record_ids)]
                stored = await channel.batch(batch.batch_id)
                assert held == [stored is not None] * 3
                top = await channel.top()
                assert top % 3 == 0
                # It can simply be repeated.
                await channel.write(batches=[batch], deliver=batch.record_ids)
                assert await channel.top() == 3 * (number + 1)

    async def test_malformed_arguments_are_refused(self, tmp_path: Path) -> None:
        good = make_batch(ALICE, 1, [None])
        async with self.open_store(tmp_path / "home") as store:
            channel = store.channel(CHANNEL)
            attempts: list[dict[str, Any]] = [
                {"deliver": [b"short"]},
                {"contents": [(b"", make_content())]},
                {"batches": [make_batch(ALICE, 1, [])]},
                {"batches": [make_batch(ALICE, 0, [None])]},
                {"batches": [make_batch("", 1, [None])]},
                {"batches": [good], "anchors": [(good.batch_id, "")]},
            ]
            for attempt in attempts:
                with pytest.raises(LocalProtocolError):
                    await channel.write(**attempt)
            with pytest.raises(LocalProtocolError):
                await channel.set_cursor("reader", -1)
            with pytest.raises(LocalProtocolError):
                await channel.set_cursor("", 1)
            with pytest.raises(LocalProtocolError):
                await store.put({"": b""})
            assert await channel.top() == 0
