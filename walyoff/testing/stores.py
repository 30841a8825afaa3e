"""What every `walyoff.abc.Store` must do: inherit `StoreConformance`, give `open_store`.

    class TestMyStore(StoreConformance):
        def open_store(self, home):
            return my_open_store(home)

The module that inherits it chooses the back ends with an `anyio_backend` fixture. Survival
of a kill is not checked here: it needs a process of its own.
"""

from __future__ import annotations

import os
from pathlib import Path

import anyio
import pytest

from walyoff.errors import StoreError
from walyoff.testing.store_base import ALICE, CHANNEL, make_batch, make_content
from walyoff.testing.store_log import LogChecks
from walyoff.testing.store_writes import WriteChecks


class StoreConformance(WriteChecks, LogChecks):
    """The behavioural checks. Each needs an empty home."""

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
