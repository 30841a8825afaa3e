"""What every `walyoff.abc.Store` must do: inherit `StoreConformance`, give `open_store`.

    class TestMyStore(StoreConformance):
        def open_store(self, home):
            return my_open_store(home)

The module that inherits it chooses the back ends with an `anyio_backend` fixture. Survival
of a kill is not checked here: it needs a process of its own.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import anyio
import pytest

from walyoff.abc import LogEntry, NewBatch, Store, StoredContent
from walyoff.errors import LocalProtocolError, StoreError

CHANNEL = "did:walytis:channel-under-test"
ALICE = "did:walytis:alice"
BOB = "did:walytis:bob"


def make_content(data: bytes = b"hello") -> StoredContent:
    """A content with a fresh salt."""
    return StoredContent(salt=os.urandom(32), data=data)


def make_batch(
    author: str,
    first_seq: int,
    contents: Sequence[StoredContent | None],
    *,
    signature: bytes | None = b"signature",
    anchor: str | None = None,
) -> NewBatch:
    """A batch with random hashes: a store does not look into bodies."""
    return NewBatch(
        author=author,
        first_seq=first_seq,
        batch_id=os.urandom(32),
        body=os.urandom(100),
        signature=signature,
        record_ids=tuple(os.urandom(32) for _ in contents),
        contents=tuple(contents),
        anchor=anchor,
    )


def _ids(entries: Sequence[LogEntry]) -> list[bytes]:
    return [entry.record_id for entry in entries]


@pytest.mark.anyio
class StoreConformance:
    """The behavioural checks. Each needs an empty home."""

    def open_store(self, home: Path) -> AbstractAsyncContextManager[Store]:
        """Open the store under test in a home folder, new or used."""
        raise NotImplementedError

    async def test_new_store_is_empty(self, tmp_path: Path) -> None:
        async with self.open_store(tmp_path / "home") as store:
            channel = store.channel(CHANNEL)
            assert await store.get("key") is None
            assert await store.keys("") == []
            assert await channel.top() == 0
            assert await channel.heads() == []
            assert await channel.log(after=0, limit=10) == []
            assert await channel.missing(10) == []
            assert await channel.undelivered() == []
            assert await channel.unsigned() == []
            assert await channel.unanchored(10) == []
            assert await channel.batch(bytes(32)) is None
            assert await channel.batches(ALICE, 1, 10) == []
            assert await channel.contents([bytes(32)]) == [None]
            assert await channel.get_cursor("reader") == 0

    async def test_settings_are_replaced_removed_and_listed(self, tmp_path: Path) -> None:
        async with self.open_store(tmp_path / "home") as store:
            await store.put({"a/2": b"two", "a/1": b"", "b/1": b"x" * 5000})
            await store.put({"a/2": b"zwei", "a/3": b"3", "b/1": None, "never": None})
            assert await store.get("a/2") == b"zwei"
            assert await store.get("a/1") == b""
            assert await store.get("b/1") is None
            assert await store.keys("a/") == ["a/1", "a/2", "a/3"]
            assert await store.keys("") == ["a/1", "a/2", "a/3"]

    async def test_everything_is_there_after_reopening(self, tmp_path: Path) -> None:
        small, large = make_content(b"small"), make_content(os.urandom(200_000))
        batch = make_batch(ALICE, 1, [small, large, None], anchor="block-1")
        async with self.open_store(tmp_path / "home") as store:
            await store.put({"key": b"value"})
            channel = store.channel(CHANNEL)
            assert await channel.write(batches=[batch], deliver=batch.record_ids[:2]) == 2
            await channel.set_cursor("reader", 1)
        async with self.open_store(tmp_path / "home") as store:
            channel = store.channel(CHANNEL)
            assert await store.get("key") == b"value"
            assert await channel.get_cursor("reader") == 1
            assert await channel.top() == 2
            first, second = await channel.log(after=0, limit=10)
            assert (first.content, second.content) == (small, large)
            stored = await channel.batch(batch.batch_id)
            assert stored is not None
            assert (stored.author, stored.first_seq, stored.count) == (ALICE, 1, 3)
            assert (stored.body, stored.signature) == (batch.body, batch.signature)
            assert (stored.batch_id, stored.anchor) == (batch.batch_id, "block-1")

    async def test_what_is_forgotten_is_gone_for_good(self, tmp_path: Path) -> None:
        small, large = make_content(b"small"), make_content(os.urandom(200_000))
        batch = make_batch(ALICE, 1, [small, large, make_content(), None])
        ids = batch.record_ids
        async with self.open_store(tmp_path / "home") as store:
            channel = store.channel(CHANNEL)
            await channel.write(
                batches=[batch],
                deliver=ids[:1],
                expiries=[(ids[2], 200), (ids[3], 100)],
                values={"said": b"yes"},
            )
            assert await store.get("said") == b"yes"
            assert await channel.next_expiry() == 100
            assert await channel.expired(150, 10) == [ids[3]]
            await channel.forget([ids[0], ids[1], ids[3]])
            await channel.forget([ids[0]])
            assert await channel.next_expiry() == 200
            with pytest.raises(StoreError):
                await channel.forget([os.urandom(32)])
        async with self.open_store(tmp_path / "home") as store:
            channel = store.channel(CHANNEL)
            await channel.write(contents=[(ids[0], small), (ids[3], make_content())])
            contents = await channel.contents(ids)
            assert [content is not None for content in contents] == [False, False, True, False]
            (entry,) = await channel.log(after=0, limit=9)
            assert (entry.record_id, entry.content, entry.forgotten) == (ids[0], None, True)
            assert await channel.missing(9) == []
            # What was forgotten takes its place in the log as well.
            assert [seq for _, seq, _ in await channel.undelivered()] == [2, 3, 4]
            found = await channel.find([ids[1], ids[2], os.urandom(32)])
            assert [entry and entry.forgotten for entry in found] == [True, False, None]

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

    async def test_writing_again_changes_nothing(self, tmp_path: Path) -> None:
        batch = make_batch(ALICE, 1, [make_content(), make_content()])
        async with self.open_store(tmp_path / "home") as store:
            channel = store.channel(CHANNEL)
            for _ in range(3):
                top = await channel.write(batches=[batch, batch], deliver=batch.record_ids)
                assert top == 2
            entries = await channel.log(after=0, limit=10)
            assert _ids(entries) == list(batch.record_ids)
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

    async def test_positions_follow_the_given_order(self, tmp_path: Path) -> None:
        batch = make_batch(ALICE, 1, [make_content() for _ in range(5)])
        a, b, c, d, e = batch.record_ids
        async with self.open_store(tmp_path / "home") as store:
            channel = store.channel(CHANNEL)
            assert await channel.write(batches=[batch], deliver=[c, a]) == 2
            assert await channel.write(deliver=[a, e, c, b, e]) == 4
            assert await channel.write(deliver=[d]) == 5
            entries = await channel.log(after=0, limit=10)
            assert _ids(entries) == [c, a, e, b, d]
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
                assert _ids(forward) == list(batch.record_ids)
                assert backward == forward[::-1]
            assert await channel.log(after=0, limit=0) == []
            assert await channel.log(after=700, limit=10) == []
            assert await channel.log(after=1, limit=10, newest_first=True) == []

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

    async def test_channels_are_apart(self, tmp_path: Path) -> None:
        batch = make_batch(ALICE, 1, [make_content(b"same")])
        async with self.open_store(tmp_path / "home") as store:
            one, two = store.channel(CHANNEL), store.channel(CHANNEL + "2")
            await one.write(batches=[batch], deliver=batch.record_ids)
            await one.set_cursor("reader", 1)
            assert await two.top() == 0
            assert await two.heads() == []
            assert await two.get_cursor("reader") == 0
            assert await two.contents(batch.record_ids) == [None]
            with pytest.raises(StoreError):
                await two.write(deliver=batch.record_ids)
            await two.write(batches=[batch], deliver=batch.record_ids)
            assert await two.contents(batch.record_ids) == [batch.contents[0]]

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

    async def test_closing_twice_is_allowed_and_ends_all_calls(self, tmp_path: Path) -> None:
        async with self.open_store(tmp_path / "home") as store:
            await store.put({"key": b"value"})
            await store.aclose()
            await store.aclose()
            with pytest.raises(anyio.ClosedResourceError):
                await store.get("key")
            with pytest.raises(anyio.ClosedResourceError):
                await store.put({"key": b"other"})
        async with self.open_store(tmp_path / "home") as store:
            assert await store.get("key") == b"value"
