"""What must be read back: the log and its positions, batches, contents, cursors."""

from __future__ import annotations

import os
from pathlib import Path

from walyoff.abc import LogEntry, NewBatch
from walyoff.testing.store_base import (
    ALICE,
    BOB,
    CHANNEL,
    StoreChecks,
    make_batch,
    make_content,
    record_ids_of,
)


class LogChecks(StoreChecks):
    """Reading what was written."""

    async def test_log_entries_tell_all_about_a_record(self, tmp_path: Path) -> None:
        content = make_content()
        one = make_batch(ALICE, 1, [make_content(), content], anchor="block")
        two = make_batch(BOB, 1, [None])
        async with self.open_store(tmp_path / "home") as store:
            channel = store.channel(CHANNEL)
            await channel.write(
                batches=[one, two], deliver=[one.record_ids[1], two.record_ids[0]]
            )
            assert await channel.log(after=0, limit=9) == [
                LogEntry(
                    position=1,
                    author=ALICE,
                    seq=2,
                    record_id=one.record_ids[1],
                    batch_id=one.batch_id,
                    anchored=True,
                    content=content,
                ),
                LogEntry(
                    position=2,
                    author=BOB,
                    seq=1,
                    record_id=two.record_ids[0],
                    batch_id=two.batch_id,
                    anchored=False,
                    content=None,
                ),
            ]

    async def test_positions_follow_the_given_order(self, tmp_path: Path) -> None:
        batch = make_batch(ALICE, 1, [make_content() for _ in range(5)])
        a, b, c, d, e = batch.record_ids
        async with self.open_store(tmp_path / "home") as store:
            channel = store.channel(CHANNEL)
            assert await channel.write(batches=[batch], deliver=[c, a]) == 2
            assert await channel.write(deliver=[a, e, c, b, e]) == 4
            assert await channel.write(deliver=[d]) == 5
            entries = await channel.log(after=0, limit=10)
            assert record_ids_of(entries) == [c, a, e, b, d]
            assert [entry.position for entry in entries] == [1, 2, 3, 4, 5]

    async def test_log_pages_forward_and_backward(self, tmp_path: Path) -> None:
        batch = make_batch(ALICE, 1, [make_content(b"%d" % n) for n in range(700)])
        async with self.open_store(tmp_path / "home") as store:
            channel = store.channel(CHANNEL)
            await channel.write(batches=[batch], deliver=batch.record_ids)
            for size in (300, 257, 1000):
                forward: list[LogEntry] = []
                while page := await channel.log(
                    after=forward[-1].position if forward else 0, limit=size
                ):
                    assert len(page) <= size
                    forward += page
                backward: list[LogEntry] = []
                while page := await channel.log(
                    after=backward[-1].position if backward else 0,
                    limit=size,
                    newest_first=True,
                ):
                    backward += page
                    if backward[-1].position == 1:
                        break
                assert record_ids_of(forward) == list(batch.record_ids)
                assert backward == forward[::-1]
            assert await channel.log(after=0, limit=0) == []
            assert await channel.log(after=700, limit=10) == []
            assert await channel.log(after=1, limit=10, newest_first=True) == []

    async def test_records_are_found_by_the_beginning_of_their_hash(
        self, tmp_path: Path
    ) -> None:
        lone = [make_batch(ALICE, seq, [make_content()]) for seq in range(1, 301)]
        batch = make_batch(BOB, 1, [None] * 700)
        ids = [*(b.record_ids[0] for b in lone), *batch.record_ids]
        async with self.open_store(tmp_path / "home") as store:
            channel = store.channel(CHANNEL)
            await store.channel("another").write(batches=[make_batch(BOB, 1, [None])])
            assert await channel.beginning("", 5) == []
            for one in (*lone, batch):
                await channel.write(batches=[one])
            for digits in ("", "7", ids[0].hex()[:3], ids[250].hex()[:6], ids[-1].hex()):
                expected = [i for i in reversed(ids) if i.hex().startswith(digits)]
                assert await channel.beginning(digits, 2000) == expected
                assert await channel.beginning(digits, 2) == expected[:2]
            assert await channel.beginning("7" * 64, 1) == []

    async def test_lists_of_open_work_shrink_when_it_is_done(self, tmp_path: Path) -> None:
        own = make_batch(ALICE, 1, [make_content(), None], signature=None)
        theirs = make_batch(BOB, 1, [None, make_content()])
        (_, gap_a), (gap_b, held_b) = own.record_ids, theirs.record_ids
        async with self.open_store(tmp_path / "home") as store:
            channel = store.channel(CHANNEL)
            await channel.write(batches=[own, theirs], deliver=[own.record_ids[0], gap_b])
            assert await channel.missing(10) == [(ALICE, 2, gap_a), (BOB, 1, gap_b)]
            assert await channel.missing(1) == [(ALICE, 2, gap_a)]
            assert await channel.undelivered() == [(BOB, 2, held_b)]
            assert [batch.batch_id for batch in await channel.unsigned()] == [own.batch_id]
            assert [b.batch_id for b in await channel.unanchored(9)] == [theirs.batch_id]

            await channel.write(signatures=[(own.batch_id, b"sig")])
            assert await channel.unsigned() == []
            identifiers = [own.batch_id, theirs.batch_id]
            assert [b.batch_id for b in await channel.unanchored(9)] == identifiers
            assert [b.batch_id for b in await channel.unanchored(1)] == identifiers[:1]
            await channel.write(anchors=[(identifier, "b") for identifier in identifiers])
            assert await channel.unanchored(9) == []

            await channel.write(contents=[(gap_b, make_content()), (gap_a, make_content())])
            assert await channel.missing(10) == []
            assert await channel.undelivered() == [(ALICE, 2, gap_a), (BOB, 2, held_b)]
            assert await channel.write(deliver=[held_b, gap_a]) == 4
            assert await channel.undelivered() == []

    async def test_batches_of_a_range_are_those_that_touch_it(self, tmp_path: Path) -> None:
        sizes = [3, 1, 4, 2] + [1] * 70
        batches: list[NewBatch] = []
        seq = 1
        for size in sizes:
            batches.append(make_batch(ALICE, seq, [None] * size))
            seq += size
        async with self.open_store(tmp_path / "home") as store:
            channel = store.channel(CHANNEL)
            await channel.write(batches=batches)

            async def firsts(first: int, last: int) -> list[int]:
                return [b.first_seq for b in await channel.batches(ALICE, first, last)]

            assert await firsts(1, 1) == [1]
            assert await firsts(2, 5) == [1, 4, 5]
            assert await firsts(8, 9) == [5, 9]
            assert await firsts(6, 7) == [5]
            assert await firsts(80, 99) == [80]
            assert await firsts(81, 99) == []
            assert await firsts(5, 4) in ([], [4, 5], [5])
            assert len(await firsts(1, 99)) == 64
            assert await channel.batches(BOB, 1, 99) == []

    async def test_contents_come_in_the_order_asked_for(self, tmp_path: Path) -> None:
        contents = [make_content(b"%d" % n) for n in range(100)]
        batch = make_batch(ALICE, 1, [*contents, None])
        asked = [*batch.record_ids[::-1], os.urandom(32), batch.record_ids[5]]
        async with self.open_store(tmp_path / "home") as store:
            channel = store.channel(CHANNEL)
            await channel.write(batches=[batch])
            got = await channel.contents(asked)
            assert got == [None, *contents[::-1], None, contents[5]]

    async def test_sizes_around_every_boundary_come_back(self, tmp_path: Path) -> None:
        sizes = (0, 1, 65_535, 65_536, 65_537, 2**20 - 33, 2**20 - 32, 2**20, 2**21, 2**21 + 1)
        contents = [make_content(os.urandom(size)) for size in sizes]
        batch = make_batch(ALICE, 1, contents)
        async with self.open_store(tmp_path / "home") as store:
            channel = store.channel(CHANNEL)
            await channel.write(batches=[batch], deliver=batch.record_ids)
            assert await channel.contents(batch.record_ids) == contents
            entries = await channel.log(after=0, limit=99)
            assert [entry.content for entry in entries] == contents

    async def test_cursors_never_move_back(self, tmp_path: Path) -> None:
        async with self.open_store(tmp_path / "home") as store:
            channel = store.channel(CHANNEL)
            await channel.set_cursor("reader", 7)
            await channel.set_cursor("reader", 3)
            assert await channel.get_cursor("reader") == 7
            await channel.set_cursor("reader", 8)
            assert await channel.get_cursor("reader") == 8
            assert await channel.get_cursor("other") == 0

    async def test_a_marked_cursor_counts_at_once_and_never_moves_back(
        self, tmp_path: Path
    ) -> None:
        contents = [make_content(b"%d" % n) for n in range(3)]
        batch = make_batch(ALICE, 1, contents)
        async with self.open_store(tmp_path / "home") as store:
            channel = store.channel(CHANNEL)
            await channel.write(batches=[batch], deliver=batch.record_ids)
            channel.mark_cursor("reader", 2)
            assert await channel.get_cursor("reader") == 2
            channel.mark_cursor("reader", 1)
            await channel.set_cursor("reader", 1)
            assert await channel.get_cursor("reader") == 2
            await channel.set_cursor("reader", 3)
            channel.mark_cursor("reader", 2)
            assert await channel.get_cursor("reader") == 3
            assert await channel.get_cursor("other") == 0
            assert await store.channel(CHANNEL + "2").get_cursor("reader") == 0
