"""Forgetting in the store: no byte of a content, its key or its ciphertext is left."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from walyoff.abc import NewBatch, StoredContent
from walyoff.chunkstore import NewAttachment
from walyoff.errors import StoreError
from walyoff.records import CHUNK_SIZE
from walyoff.stores import destroying, open_store, sqlite
from walyoff.stores.chunks import ChunkFiles
from walyoff.stores.vault import FILE_NAME_SIZE

CHANNEL = "did:walytis:channel"
AUTHOR = "did:walytis:author"
PIECE = 16


def make_batch(first_seq: int, contents: list[StoredContent | None]) -> NewBatch:
    return NewBatch(
        author=AUTHOR,
        first_seq=first_seq,
        batch_id=os.urandom(32),
        body=os.urandom(100),
        signature=b"signature",
        record_ids=tuple(os.urandom(32) for _ in contents),
        contents=tuple(contents),
    )


def home_bytes(home: Path) -> bytes:
    """Every byte of every file under a home."""
    return b"\0".join(path.read_bytes() for path in home.rglob("*") if path.is_file())


def stored(home: Path) -> list[tuple[bytes, bytes]]:
    """The wrapped key and the ciphertext of every content that is there."""
    found = []
    with closing(sqlite3.connect(home / "store.db")) as database:
        for key, data, file in database.execute("SELECT key, data, file FROM contents"):
            sealed = data
            if file is not None:
                name = bytes(file).hex()
                sealed = (home / "chunks" / name[:2] / name[2:]).read_bytes()
            found.append((bytes(key), bytes(sealed)))
    return found


def left(home: Path, needles: list[tuple[bytes, bytes]]) -> int:
    """How many of these keys and ciphertexts have a piece left in any byte of a home."""
    pieces: dict[bytes, int] = {}
    for number, needle in enumerate(needles):
        for value in needle:
            # So close together that what was overwritten in part is found as well.
            starts = range(0, max(len(value) - PIECE, 1), PIECE // 2)
            pieces |= {value[at : at + PIECE]: number for at in starts}
    there = home_bytes(home)
    found = (pieces.get(there[at : at + PIECE]) for at in range(len(there)))
    return len({number for number in found if number is not None})


def contents(seed: int, count: int, sizes: tuple[int, ...]) -> list[StoredContent]:
    rng = random.Random(seed)
    return [
        StoredContent(salt=rng.randbytes(32), data=rng.randbytes(rng.choice(sizes)))
        for _ in range(count)
    ]


async def write(home: Path, given: list[StoredContent], *, shuffle: bool) -> list[bytes]:
    """Write contents: with their batches, or later and in any order."""
    rng = random.Random(5)
    ids: list[bytes] = []
    late: list[tuple[bytes, StoredContent]] = []
    async with open_store(home) as store:
        channel = store.channel(CHANNEL)
        for at in range(0, len(given), 8):
            part = given[at : at + 8]
            batch = make_batch(at + 1, [None] * len(part) if shuffle else list(part))
            ids += batch.record_ids
            late += zip(batch.record_ids, part, strict=True)
            await channel.write(batches=[batch], deliver=batch.record_ids)
        if shuffle:
            rng.shuffle(late)
            for at in range(0, len(late), 5):
                await channel.write(contents=late[at : at + 5])
    return ids


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(
    ("count", "sizes"), [(200, (0, 100, 300)), (120, (900, 1200)), (24, (100, 5000, 70_000))]
)
def test_no_byte_is_left_of_what_was_forgotten(
    tmp_path: Path, count: int, sizes: tuple[int, ...], shuffle: bool
) -> None:
    """Also of contents that came late and in any order, while the others stay whole."""
    home = tmp_path / "home"
    given = contents(1, count, sizes)

    async def main() -> None:
        ids = await write(home, given, shuffle=shuffle)
        needles = stored(home)
        assert len(needles) == count
        assert left(home, needles) == count, "the search finds what is there"
        forgotten = random.Random(2).sample(ids, count // 2)
        gone = set(forgotten)
        async with open_store(home) as store:
            channel = store.channel(CHANNEL)
            # More is written, so that the log has pages of those rows as well.
            more = make_batch(count + 1, list(contents(3, 8, (2000,))))
            await channel.write(batches=[more], deliver=more.record_ids)
            for at in range(0, len(forgotten), 7):
                await channel.forget(forgotten[at : at + 7])
            wal = home / "store.db-wal"
            assert wal.stat().st_size == 0
            kept = [c for i, c in zip(ids, given, strict=True) if i not in gone]
            assert await channel.contents([i for i in ids if i not in gone]) == kept
            assert await channel.contents(forgotten) == [None] * len(forgotten)
            assert left(home, needles) == count - len(forgotten)
            log = await channel.log(after=0, limit=count)
            assert {e.record_id for e in log if e.forgotten} == gone
            # Nothing of it is taken again.
            again = dict(zip(ids, given, strict=True))
            await channel.write(contents=[(i, again[i]) for i in forgotten])
            assert await channel.contents(forgotten) == [None] * len(forgotten)
        assert left(home, needles) == count - len(forgotten)

    anyio.run(main)


def test_the_search_catches_a_store_that_does_not_cut_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    monkeypatch.setattr(sqlite, "truncate_log", lambda connection: None)

    async def main() -> None:
        async with open_store(home) as store:
            channel = store.channel(CHANNEL)
            batch = make_batch(1, list(contents(1, 4, (1000,))))
            await channel.write(batches=[batch])
            needles = stored(home)
            await channel.forget(batch.record_ids)
            assert left(home, needles) == 4
            monkeypatch.undo()
            await channel.forget(batch.record_ids)
            assert left(home, needles) == 0

    anyio.run(main)


def test_the_search_catches_rows_that_are_not_appended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite leaves copies of rows in pages that it splits, and they stay."""
    home = tmp_path / "home"
    source = "at_end = max(record.number, self._last_place + 1)"
    path = Path(destroying.__file__).with_name("writing.py")
    text = path.read_text()
    assert source in text
    scope: dict[str, object] = {"__name__": "walyoff.stores.writing"}
    exec(compile(text.replace(source, "at_end = record.number"), str(path), "exec"), scope)
    monkeypatch.setattr(sqlite, "Writing", scope["Writing"])

    async def main() -> None:
        ids = await write(home, contents(1, 1200, (300, 1000, 1200)), shuffle=True)
        needles = stored(home)
        async with open_store(home) as store:
            await store.channel(CHANNEL).forget(ids)
        assert left(home, needles) > 0

    anyio.run(main)


KILLED = """
    import os, sys, anyio
    from pathlib import Path
    from walyoff.stores import open_store, sqlite
    from walyoff.stores.chunks import ChunkFiles

    home, ids, where = Path(sys.argv[1]), sys.argv[2].split(","), sys.argv[3]
    die = lambda *_: os.kill(os.getpid(), 9)

    async def main():
        async with open_store(home) as store:
            if where == "before the files":
                ChunkFiles.destroy = die
            else:
                sqlite.truncate_log = die
            await store.channel("did:walytis:channel").forget([bytes.fromhex(i) for i in ids])

    anyio.run(main)
"""


@pytest.mark.parametrize("where", ["before the files", "before the log is cut"])
def test_a_kill_in_the_middle_is_made_good_at_the_next_start(
    tmp_path: Path, where: str
) -> None:
    home = tmp_path / "home"

    async def main() -> None:
        ids = await write(home, contents(1, 6, (1000, 100_000)), shuffle=False)
        needles = stored(home)
        process = await anyio.run_process(
            [
                sys.executable,
                "-c",
                textwrap.dedent(KILLED),
                str(home),
                ",".join(i.hex() for i in ids),
                where,
            ],
            check=False,
            stderr=subprocess.DEVNULL,
        )
        assert process.returncode == -9
        assert left(home, needles) > 0, "it was killed in the middle"
        async with open_store(home) as store:
            channel = store.channel(CHANNEL)
            assert await channel.contents(ids) == [None] * 6
            assert [entry.forgotten for entry in await channel.log(after=0, limit=9)] == [
                True
            ] * 6
        assert left(home, needles) == 0

    anyio.run(main)


def test_an_older_home_is_written_anew_once(tmp_path: Path) -> None:
    """Homes of before may have copies of rows in their pages."""
    home = tmp_path / "home"

    async def main() -> None:
        await write(home, contents(1, 3, (1000,)), shuffle=False)
        with closing(sqlite3.connect(home / "store.db")) as database:
            database.executescript(
                "PRAGMA journal_mode = WAL; DROP INDEX records_undelivered;"
                "DROP TABLE expiries; ALTER TABLE records DROP COLUMN place;"
                "CREATE TABLE stale AS SELECT randomblob(60000) AS junk;"
                "PRAGMA writable_schema = ON; PRAGMA user_version = 2;"
                "CREATE INDEX records_undelivered ON records(channel, record);"
            )
            junk = database.execute("SELECT substr(junk, 5000, 32) FROM stale").fetchone()[0]
            database.executescript("PRAGMA secure_delete = OFF; DROP TABLE stale;")
        assert junk in home_bytes(home)
        async with open_store(home) as store:
            channel = store.channel(CHANNEL)
            assert all(e.content is not None for e in await channel.log(after=0, limit=9))
        assert junk not in home_bytes(home)

    anyio.run(main)


def test_what_is_due_is_told_in_order_and_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_store(tmp_path / "home") as store:
            channel = store.channel(CHANNEL)
            batch = make_batch(1, list(contents(1, 3, (10, 70_000))))
            a, b, c = batch.record_ids
            assert await channel.next_expiry() is None
            await channel.write(batches=[batch], expiries=[(a, 300), (b, 100), (c, 200)])
            await channel.write(expiries=[(a, 1)])
            assert await channel.next_expiry() == 100
            assert await channel.expired(99, 10) == []
            assert await channel.expired(250, 10) == [b, c]
            await channel.forget([b])
            await channel.forget([b])
            assert await channel.expired(1000, 10) == [c, a]
            assert await channel.next_expiry() == 200
            found = await channel.find([a, b, os.urandom(32)])
            assert [entry and entry.forgotten for entry in found] == [False, True, None]
            assert await channel.undelivered() == [
                (AUTHOR, 1, a),
                (AUTHOR, 2, b),
                (AUTHOR, 3, c),
            ]
            with pytest.raises(StoreError, match="unknown"):
                await channel.forget([os.urandom(32)])

    anyio.run(main)


def test_file_names_are_as_long_as_the_zeros_that_take_their_place() -> None:
    assert FILE_NAME_SIZE == 32


@pytest.mark.parametrize("sizes", [(100, 300), (900, 5000, 70_000)])
def test_no_byte_is_left_of_a_channel_that_was_erased(
    tmp_path: Path, sizes: tuple[int, ...]
) -> None:
    home = tmp_path / "home"
    given = contents(1, 40, sizes)

    async def main() -> None:
        await write(home, given, shuffle=True)
        needles = stored(home)
        assert left(home, needles) == len(given)
        async with open_store(home) as store:
            # Another channel, before and after, keeps what it has.
            other = store.channel("did:walytis:other")
            kept = contents(2, 8, sizes)
            for at, part in enumerate((kept[:4], kept[4:])):
                batch = make_batch(4 * at + 1, list(part))
                await other.write(batches=[batch], deliver=batch.record_ids)
                if not at:
                    await store.erase(CHANNEL)
                    assert (home / "store.db-wal").stat().st_size == 0
                    assert left(home, needles) == 0
            ids = [e.record_id for e in await other.log(after=0, limit=10)]
            assert await other.contents(ids) == kept
        assert left(home, needles) == 0

    anyio.run(main)


def test_chunks_go_with_their_message_and_shared_ones_stay(tmp_path: Path) -> None:
    home = tmp_path / "home"

    async def main() -> None:
        async with open_store(home) as store:
            channel = store.channel(CHANNEL)
            chunks = channel.chunks
            data = [os.urandom(CHUNK_SIZE) for _ in range(2)] + [os.urandom(1000)]
            names = [os.urandom(32) for _ in data]
            draft = chunks.new_draft()
            for place, (name, chunk) in enumerate(zip(names, data, strict=True)):
                await chunks.put(name, chunk, draft=(draft, place))
            one, two = (StoredContent(salt=bytes(32), data=os.urandom(99)) for _ in range(2))
            batch = make_batch(1, [one, two])
            first, second = batch.record_ids
            size = 2 * CHUNK_SIZE + 1000
            sent = [
                NewAttachment(record_id=first, size=size, chunk_ids=tuple(names)),
                NewAttachment(record_id=second, size=CHUNK_SIZE, chunk_ids=(names[0],)),
            ]
            await channel.write(batches=[batch], attachments=sent)
            await chunks.end_draft(draft)
            needles = chunk_traces(home)
            assert left(home, needles) == 3
            await channel.forget([first])
            assert left(home, needles) == 1
            assert await chunks.read(first, 0) is None
            assert await chunks.read(second, 0) == data[0]
            await channel.forget([second])
            assert left(home, needles) == 0

    anyio.run(main)


def chunk_traces(home: Path) -> list[tuple[bytes, bytes]]:
    """The wrapped key of every chunk, and parts of its file."""
    found = []
    with closing(sqlite3.connect(home / "store.db")) as database:
        for key, file in database.execute("SELECT key, file FROM chunks"):
            name = bytes(file).hex()
            sealed = (home / "chunks" / name[:2] / name[2:]).read_bytes()
            found.append((bytes(key), sealed[:200] + sealed[-200:]))
    return found


@pytest.mark.parametrize("how", ["a failing disk", "cancelled"])
def test_what_was_begun_is_finished_by_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Also the files of a transaction that is over: no row names them any more."""
    home = tmp_path / "home"
    destroy = ChunkFiles.destroy

    def fail_once(files: ChunkFiles, names: Sequence[bytes]) -> None:
        monkeypatch.setattr(ChunkFiles, "destroy", destroy)
        raise OSError(5, "the disk fails")

    async def main() -> None:
        ids = await write(home, contents(1, 6, (1000, 100_000)), shuffle=False)
        needles = stored(home)
        async with open_store(home) as store:
            channel = store.channel(CHANNEL)
            if how == "cancelled":
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(channel.forget, ids)
                    await anyio.lowlevel.checkpoint()
                    tasks.cancel_scope.cancel()
            else:
                monkeypatch.setattr(ChunkFiles, "destroy", fail_once)
                with pytest.raises(StoreError):
                    await channel.forget(ids)
                assert left(home, needles) > 0
                await channel.forget(ids)
            assert left(home, needles) == 0

    anyio.run(main)
