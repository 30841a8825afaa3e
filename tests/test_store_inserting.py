"""Rows that go into SQLite together are the rows that go in one by one."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path
from typing import Any

import anyio
import pytest

from walyoff.abc import NewBatch
from walyoff.stores import SqliteChannelStore, inserting, open_store
from walyoff.stores.chunks import MAX_INLINE
from walyoff.stores.schema import DATABASE_NAME
from walyoff.testing.store_base import ALICE, BOB, CHANNEL, make_batch, make_content

SIZES = (0, 1, 300, 5000, MAX_INLINE)


def content(random_: random.Random) -> Any:
    """One that is stored in a row, or, now and then, in a file."""
    size = MAX_INLINE + 1 if random_.random() < 0.03 else random_.choice(SIZES)
    return make_content(random_.randbytes(size))


async def fill(channel: SqliteChannelStore, seed: int) -> dict[bytes, Any]:
    """Batches of two authors: with holes, whose contents come later and in any order."""
    random_ = random.Random(seed)
    given: dict[bytes, Any] = {}
    missing: list[bytes] = []
    seqs = {ALICE: 1, BOB: 1}
    for _ in range(6):
        batches: list[NewBatch] = []
        ready: list[bytes] = []
        for author in random_.choices((ALICE, BOB), k=random_.randint(1, 3)):
            count = random_.choice((1, 7, 8, 40))
            share = random_.choice((0.0, 0.3, 1.0))
            contents = [
                content(random_) if random_.random() >= share else None for _ in range(count)
            ]
            batch = make_batch(author, seqs[author], contents)
            seqs[author] += count
            batches.append(batch)
            for record_id, held in zip(batch.record_ids, contents, strict=True):
                if held is None:
                    missing.append(record_id)
                else:
                    given[record_id] = held
                    ready.append(record_id)
        if random_.random() < 0.3:
            random_.shuffle(ready)
        late = []
        for _ in range(random_.randint(0, len(missing))):
            place = 0 if random_.random() < 0.7 else random_.randrange(len(missing))
            record_id = missing.pop(place)
            given[record_id] = content(random_)
            late.append((record_id, given[record_id]))
        deliver = ready + [record_id for record_id, _ in late]
        await channel.write(batches=batches, contents=late, deliver=deliver)
    return given


def table(home: Path) -> list[tuple[Any, ...]]:
    """The records of a store, without what is random in them."""
    connection = sqlite3.connect(home / DATABASE_NAME)
    try:
        return connection.execute(
            "SELECT r.record, r.channel, r.batch, held, position, place, c.record,"
            " length(key), length(data), file IS NULL FROM records r"
            " LEFT JOIN contents c ON c.record = coalesce(r.place, r.record) ORDER BY r.record"
        ).fetchall()
    finally:
        connection.close()


@pytest.mark.parametrize("seed", range(6))
def test_rows_together_are_rows_one_by_one(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main(home: Path) -> None:
        async with open_store(home) as store:
            channel = store.channel(CHANNEL)
            given = await fill(channel, seed)
            ids = list(given)
            for start in range(0, len(ids), 64):
                some = ids[start : start + 64]
                assert await channel.contents(some) == [given[i] for i in some]

    anyio.run(main, tmp_path / "together")
    monkeypatch.setattr(inserting, "_MIN_RUN", 1 << 30)
    anyio.run(main, tmp_path / "single")
    together = table(tmp_path / "together")
    assert together == table(tmp_path / "single")
    assert any(row[5] is not None for row in together), "some contents have another place"


def test_contents_are_appended_in_their_order(tmp_path: Path) -> None:
    seen: list[tuple[int, ...]] = []

    async def main() -> None:
        async with open_store(tmp_path / "home") as store:
            await fill(store.channel(CHANNEL), 1)

    original = inserting.insert_contents

    def watched(connection: sqlite3.Connection, rows: Any) -> None:
        top = connection.execute("SELECT coalesce(max(record), 0) FROM contents").fetchone()[0]
        seen.append((top, *(row[0] for row in rows)))
        original(connection, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("walyoff.stores.writing.insert_contents", watched)
        anyio.run(main)
    assert seen
    for numbers in seen:
        assert list(numbers) == sorted(set(numbers))


def test_a_full_batch_takes_few_steps(tmp_path: Path) -> None:
    async def main() -> int:
        async with open_store(tmp_path / "home") as store:
            channel = store.channel(CHANNEL)
            steps: list[str] = []
            store._home.writer.set_trace_callback(steps.append)
            batch = make_batch(ALICE, 1, [make_content(b"x" * 1024) for _ in range(1024)])
            await channel.write(batches=[batch], deliver=batch.record_ids)
            return len(steps)

    assert anyio.run(main) < 24
