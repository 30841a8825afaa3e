"""What a kill, a full disk and damaged files do to a store: never wrong bytes, never loss."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.waiting import HANGS_AFTER
from walyoff.abc import NewBatch
from walyoff.errors import StoreError
from walyoff.stores import SqliteStore, open_store
from walyoff.stores.threads import Job
from walyoff.testing.store_base import ALICE, CHANNEL, make_batch, make_content

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


WRITER = textwrap.dedent(
    """
    import hashlib, os, sys, anyio
    from pathlib import Path
    from walyoff.abc import NewBatch, StoredContent
    from walyoff.stores import open_store

    def content(seq):
        size = 100_000 if seq % 5 == 0 else seq % 3000
        return StoredContent(salt=b"s" * 32, data=seq.to_bytes(8) * (size // 8 + 1))

    async def main():
        author = sys.argv[2]
        async with open_store(Path(sys.argv[1])) as store:
            channel = store.channel("channel")
            heads = {head.author: head.seq for head in await channel.heads()}
            seq = heads.get(author, 0)
            while True:
                seq += 1
                record = hashlib.sha256(b"%d" % seq).digest()
                batch = NewBatch(
                    author=author, first_seq=seq, batch_id=hashlib.sha256(record).digest(),
                    body=b"body", signature=b"sig", record_ids=(record,),
                    contents=(content(seq),),
                )
                top = await channel.write(batches=[batch], deliver=[record])
                assert top == seq
                print(seq, flush=True)

    if __name__ == "__main__":
        anyio.run(main)
    """
)


async def check_log(home: Path, confirmed: int, content: Callable[[int], object]) -> None:
    async with open_store(home) as store:
        channel = store.channel("channel")
        top = await channel.top()
        # At most the one write that was on its way is there without having been told.
        assert confirmed <= top <= confirmed + 1
        entries = await channel.log(after=0, limit=top + 10)
        numbers = range(1, top + 1)
        assert [entry.seq for entry in entries] == list(numbers)
        assert [entry.content for entry in entries] == [content(seq) for seq in numbers]
        assert len(chunk_files(home)) == sum(1 for seq in numbers if seq % 5 == 0)


def test_nothing_confirmed_is_lost_by_a_kill(tmp_path: Path) -> None:
    home, script = tmp_path / "home", tmp_path / "writer.py"
    script.write_text(WRITER)
    source: dict[str, Any] = {"__name__": "writer"}
    exec(WRITER, source)
    choice = random.Random()
    confirmed = 0
    for _ in range(10):
        with subprocess.Popen(
            [sys.executable, str(script), str(home), ALICE], stdout=subprocess.PIPE
        ) as writer:
            assert writer.stdout is not None
            first = writer.stdout.readline()
            time.sleep(choice.random() * 0.15)
            writer.send_signal(signal.SIGKILL)
            lines = [first, *writer.stdout.read().split(b"\n")]
        numbers = [int(line) for line in lines if line.strip()]
        assert numbers
        confirmed = max(confirmed, *numbers)
        anyio.run(check_log, home, confirmed, source["content"])


def chunk_files(home: Path) -> list[Path]:
    return [path for path in (home / "chunks").rglob("*") if path.is_file()]


async def limit_pages(store: SqliteStore, pages: int) -> None:
    """Make the disk look full: at most this many pages more than now."""

    def work(connection: Any) -> None:
        (now,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {now + pages}")

    await store.write(Job(work))


async def test_full_disk_refuses_whole_writes_and_reading_goes_on(tmp_path: Path) -> None:
    held = make_batch(ALICE, 1, [make_content(b"before")])
    wide = make_batch(ALICE, 2, [make_content(os.urandom(60_000)) for _ in range(20)])
    async with open_store(tmp_path / "home") as store:
        channel = store.channel(CHANNEL)
        await channel.write(batches=[held], deliver=held.record_ids)
        await limit_pages(store, 20)
        for _ in range(2):
            with pytest.raises(StoreError, match="full"):
                await channel.write(batches=[wide], deliver=wide.record_ids)
            assert await channel.top() == 1
            assert await channel.batch(wide.batch_id) is None
            assert await channel.contents(held.record_ids) == list(held.contents)
        await store.put({"small": b"still fits"})
        assert await store.get("small") == b"still fits"
        await limit_pages(store, 10_000)
        assert await channel.write(batches=[wide], deliver=wide.record_ids) == 21


async def test_large_write_that_does_not_fit_does_not_take_others_with_it(
    tmp_path: Path,
) -> None:
    import threading

    gate = threading.Event()
    failed: list[str] = []
    async with open_store(tmp_path / "home") as store:
        await store.put({"key": b"value"})
        await limit_pages(store, 20)

        async def put(key: str, size: int) -> None:
            try:
                await store.put({key: os.urandom(size)})
            except StoreError:
                failed.append(key)

        async with anyio.create_task_group() as group:
            group.start_soon(store.write, Job(lambda _: gate.wait(HANGS_AFTER)))
            await anyio.sleep(0.05)
            for key, size in (("a", 10), ("large", 500_000), ("b", 10), ("c", 10)):
                group.start_soon(put, key, size)
            await anyio.sleep(0.05)
            gate.set()
        assert failed == ["large"]
        assert await store.keys("") == ["a", "b", "c", "key"]


async def test_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    home = tmp_path / "home"
    batch = make_batch(ALICE, 1, [make_content(os.urandom(6 * 2**20))])
    async with open_store(home) as store:
        channel = store.channel(CHANNEL)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4 * 2**20, hard))
        try:
            with pytest.raises(StoreError, match="too large"):
                await channel.write(batches=[batch])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert await channel.batch(batch.batch_id) is None
        assert chunk_files(home) == []
        await channel.write(batches=[batch])
        assert await channel.contents(batch.record_ids) == list(batch.contents)


async def test_files_of_refused_or_repeated_writes_are_removed(tmp_path: Path) -> None:
    home = tmp_path / "home"
    large = make_content(os.urandom(100_000))
    batch = make_batch(ALICE, 1, [large])
    async with open_store(home) as store:
        channel = store.channel(CHANNEL)
        with pytest.raises(StoreError):
            await channel.write(batches=[batch], deliver=[os.urandom(32)])
        assert chunk_files(home) == []
        for _ in range(3):
            await channel.write(batches=[batch])
            assert len(chunk_files(home)) == 1
        assert await channel.contents(batch.record_ids) == [large]


async def test_opening_sweeps_what_a_crash_left(tmp_path: Path) -> None:
    home = tmp_path / "home"
    batch = make_batch(ALICE, 1, [make_content(os.urandom(100_000)) for _ in range(3)])
    async with open_store(home) as store:
        await store.channel(CHANNEL).write(batches=[batch])
        kept = set(chunk_files(home))
    neighbour = next(iter(kept)).with_name("ff" * 31)
    orphan = home / "chunks" / "00" / ("ab" * 31)
    orphan.parent.mkdir(exist_ok=True)
    for path in (neighbour, orphan, home / "chunks" / "tmp" / ("cd" * 32)):
        path.write_bytes(b"left over")
    async with open_store(home) as store:
        assert set(chunk_files(home)) == kept
        contents = await store.channel(CHANNEL).contents(batch.record_ids)
        assert contents == list(batch.contents)


async def filled(home: Path) -> NewBatch:
    batch = make_batch(
        ALICE, 1, [make_content(os.urandom(300)), make_content(os.urandom(2_200_000))]
    )
    async with open_store(home) as store:
        await store.channel(CHANNEL).write(batches=[batch], deliver=batch.record_ids)
        await store.put({"key": b"value"})
    return batch


@pytest.mark.parametrize("change", ["first", "middle", "last", "cut", "segment", "gone"])
async def test_altered_file_names_its_record(tmp_path: Path, change: str) -> None:
    home = tmp_path / "home"
    batch = await filled(home)
    (path,) = chunk_files(home)
    data = bytearray(path.read_bytes())
    match change:
        case "first" | "middle" | "last":
            data[{"first": 0, "middle": len(data) // 2, "last": -1}[change]] ^= 1
        case "cut":
            del data[-1:]
        case "segment":
            # Exactly the whole first segments: only the end mark tells.
            del data[2 * (2**20 + 16) :]
    path.write_bytes(data)
    if change == "gone":
        path.unlink()
    async with open_store(home) as store:
        channel = store.channel(CHANNEL)
        with pytest.raises(StoreError, match=batch.record_ids[1][:8].hex()):
            await channel.contents(batch.record_ids)
        with pytest.raises(StoreError):
            await channel.log(after=0, limit=10)
        assert await channel.contents(batch.record_ids[:1]) == [batch.contents[0]]


@pytest.mark.parametrize("column", ["key", "data"])
async def test_altered_row_names_its_record(tmp_path: Path, column: str) -> None:
    home = tmp_path / "home"
    batch = await filled(home)
    async with open_store(home) as store:

        def work(connection: Any) -> None:
            query = f"SELECT {column} FROM contents WHERE record = 1"
            value = bytearray(connection.execute(query).fetchone()[0])
            value[len(value) // 2] ^= 0x40
            update = f"UPDATE contents SET {column} = ? WHERE record = 1"
            connection.execute(update, (bytes(value),))

        await store.write(Job(work))
        with pytest.raises(StoreError, match=batch.record_ids[0][:8].hex()):
            await store.channel(CHANNEL).contents(batch.record_ids)


async def test_any_flipped_byte_gives_an_error_or_the_truth(tmp_path: Path) -> None:
    home = tmp_path / "home"
    batch = await filled(home)
    original = (home / "store.db").read_bytes()
    choice = random.Random(7)
    refused = 0
    for _ in range(120):
        at = choice.randrange(len(original))
        data = bytearray(original)
        data[at] ^= 1 << choice.randrange(8)
        (home / "store.db").write_bytes(data)
        for suffix in ("-wal", "-shm"):
            (home / f"store.db{suffix}").unlink(missing_ok=True)
        try:
            async with open_store(home) as store:
                channel = store.channel(CHANNEL)
                contents = await channel.contents(batch.record_ids)
                assert all(
                    c in (None, w) for c, w in zip(contents, batch.contents, strict=True)
                )
                for entry in await channel.log(after=0, limit=10):
                    assert entry.author == ALICE
                    assert entry.record_id == batch.record_ids[entry.seq - 1]
                    assert entry.batch_id == batch.batch_id
                    assert entry.content in (None, batch.contents[entry.seq - 1])
                assert await store.get("key") in (None, b"value")
                await channel.heads()
                await channel.missing(10)
                stored = await channel.batch(batch.batch_id)
                assert stored is None or stored.body == batch.body
        except StoreError:
            refused += 1
        # The sweep may have removed a file whose reference was flipped.
        assert len(chunk_files(home)) <= 1
    assert refused


@pytest.mark.parametrize(
    "data", [b"this is no database" * 500, b"SQLite format 3\0" + bytes(4080)]
)
async def test_garbage_for_a_database_is_a_store_error(tmp_path: Path, data: bytes) -> None:
    home = tmp_path / "home"
    await filled(home)
    (home / "store.db").write_bytes(data)
    with pytest.raises(StoreError):
        async with open_store(home):
            pass


async def read_all(home: Path, batch: NewBatch) -> None:
    async with open_store(home) as store:
        await store.channel(CHANNEL).log(after=0, limit=10)
        await store.channel(CHANNEL).contents(batch.record_ids)


async def test_truncated_database_is_a_store_error(tmp_path: Path) -> None:
    home = tmp_path / "home"
    batch = await filled(home)
    data = (home / "store.db").read_bytes()
    for part in (1, 2, 3):
        copy = tmp_path / f"copy{part}"
        shutil.copytree(home, copy)
        (copy / "store.db").write_bytes(data[: len(data) * part // 4])
        with pytest.raises(StoreError):
            await read_all(copy, batch)


async def test_lost_database_is_told_and_the_files_are_kept(tmp_path: Path) -> None:
    home = tmp_path / "home"
    await filled(home)
    (home / "store.db").unlink()
    with pytest.raises(StoreError, match=r"store\.db is missing"):
        async with open_store(home):
            pass
    assert len(chunk_files(home)) == 1
