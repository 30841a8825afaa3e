"""What opening a channel asks of the store costs the same however long its history is."""

from __future__ import annotations

import hashlib
import sqlite3
from pathlib import Path

import pytest

from walyoff.abc import NewBatch
from walyoff.stores import SqliteStore, open_store
from walyoff.testing.store_base import ALICE, CHANNEL, make_content

pytestmark = pytest.mark.anyio

PER_BATCH = 500


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def grow(store: SqliteStore, first: int, batches: int) -> None:
    content = make_content(b"x")
    for number in range(first, first + batches):
        ids = tuple(hashlib.sha256(b"%d %d" % (number, n)).digest() for n in range(PER_BATCH))
        batch = NewBatch(
            author=ALICE,
            first_seq=number * PER_BATCH + 1,
            batch_id=hashlib.sha256(b"%d" % number).digest(),
            body=b"body",
            signature=b"signature",
            record_ids=ids,
            contents=(content,) * PER_BATCH,
            anchor="block",
        )
        await store.channel(CHANNEL).write(batches=[batch], deliver=ids)


async def cost_of_opening(store: SqliteStore) -> int:
    """Steps of SQLite's machine, which is exact where time is not."""
    steps = 0

    def step() -> int:
        nonlocal steps
        steps += 1
        return 0

    def count(connection: sqlite3.Connection) -> None:
        connection.set_progress_handler(step, 1)

    def stop(connection: sqlite3.Connection) -> None:
        connection.set_progress_handler(None, 1)

    channel = store.channel(CHANNEL)
    await store.read(count)
    await channel.heads()
    await channel.top()
    await channel.unsigned()
    await channel.undelivered()
    await channel.unanchored(1000)
    await channel.missing(1000)
    await channel.get_cursor("app")
    await channel.log(after=0, limit=16)
    await channel.log(after=await channel.top() - 16, limit=16)
    await channel.log(after=0, limit=16, newest_first=True)
    await store.read(stop)
    return steps


async def test_opening_costs_the_same_however_long_the_history(tmp_path: Path) -> None:
    async with open_store(tmp_path / "home") as store:
        await grow(store, 0, 2)
        small = await cost_of_opening(store)
        await grow(store, 2, 18)
        large = await cost_of_opening(store)
    assert small > 100, "nothing was counted"
    assert large <= small * 1.1
