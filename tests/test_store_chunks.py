"""The chunks of attachments in the real store: the contract, files, kills, a full disk."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from pathlib import Path
from typing import ClassVar

import pytest

from walyoff.abc import Store
from walyoff.errors import StoreError
from walyoff.records import CHUNK_SIZE
from walyoff.stores import chunks as chunk_files
from walyoff.stores import direct, open_store, schema
from walyoff.stores.schema import DATABASE_NAME
from walyoff.testing.memory import MemoryDisk, open_memory_store
from walyoff.testing.store_base import CHANNEL
from walyoff.testing.store_chunks import SIZE, ChunkConformance, announce, make_chunks

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class TestSqliteStore(ChunkConformance):
    def open_store(self, home: Path) -> AbstractAsyncContextManager[Store]:
        return open_store(home)


class TestMemoryStore(ChunkConformance):
    disks: ClassVar[dict[Path, MemoryDisk]] = {}

    @asynccontextmanager
    async def open_store(self, home: Path) -> AsyncIterator[Store]:
        async with open_memory_store(self.disks.setdefault(home, MemoryDisk())) as store:
            yield store


def files(home: Path) -> list[Path]:
    return [path for path in (home / "chunks").rglob("*") if path.is_file()]


async def test_files_are_sealed_and_go_with_the_attachment(tmp_path: Path) -> None:
    chunks = make_chunks()
    home = tmp_path / "home"
    async with open_store(home) as store:
        channel = store.channel(CHANNEL)
        record_id = await announce(channel, chunks)
        for chunk in chunks:
            await channel.chunks.put(*chunk)
        assert len(files(home)) == 3
        written = b"".join(path.read_bytes() for path in files(home))
        assert not any(data[:64] in written for _, data in chunks)
        assert all(path.stat().st_mode & 0o077 == 0 for path in files(home))
        await channel.chunks.destroy(record_id)
        assert files(home) == []


async def test_an_altered_file_is_no_chunk(tmp_path: Path) -> None:
    chunks = make_chunks()
    home = tmp_path / "home"
    async with open_store(home) as store:
        channel = store.channel(CHANNEL)
        record_id = await announce(channel, chunks[:1])
        await channel.chunks.put(*chunks[0])
        (path,) = files(home)
        data = bytearray(path.read_bytes())
        data[500] ^= 1
        path.write_bytes(data)
        with pytest.raises(StoreError, match="damaged"):
            await channel.chunks.read(record_id, 0)
        path.write_bytes(data[:-1])
        with pytest.raises(StoreError, match="damaged"):
            await channel.chunks.read(record_id, 0)
        path.unlink()
        assert await channel.chunks.read(record_id, 0) is None


async def test_what_a_kill_left_is_swept(tmp_path: Path) -> None:
    chunks = make_chunks()
    home = tmp_path / "home"
    async with open_store(home) as store:
        channel = store.channel(CHANNEL)
        record_id = await announce(channel, chunks)
        for chunk in chunks:
            await channel.chunks.put(*chunk)
    # A file that was written and whose row was not, and one whose row is gone already.
    kept = files(home)
    (kept[0].parent / os.urandom(31).hex()).write_bytes(b"left")
    with closing(sqlite3.connect(home / DATABASE_NAME)) as database, database:
        ((name,),) = database.execute(
            "DELETE FROM chunks WHERE size < ? RETURNING file", (CHUNK_SIZE,)
        )
    kept.remove(home / "chunks" / name.hex()[:2] / name.hex()[2:])
    # What others put there ends no sweep, and is left alone.
    strange = [
        home / "chunks" / ".DS_Store",
        home / "chunks" / "00",
        home / "chunks" / "photos",
    ]
    strange[0].write_bytes(b"strange")
    if not strange[1].exists():
        strange[1].write_bytes(b"strange")
    strange[2].mkdir()
    (strange[2] / "photo").write_bytes(b"strange")
    async with open_store(home) as store:
        assert await store.channel(CHANNEL).chunks.held(record_id) == b"\x03"
    assert all(path.exists() for path in strange)
    assert (strange[2] / "photo").exists()
    mine = set(files(home)) - {strange[0], strange[1], strange[2] / "photo"}
    assert sorted(mine) == sorted(kept)


async def test_a_full_disk_leaves_nothing_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = make_chunks()
    home = tmp_path / "home"

    def full(descriptor: int, data: bytes) -> None:
        os.write(descriptor, data[:1000])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async with open_store(home) as store:
        channel = store.channel(CHANNEL)
        record_id = await announce(channel, chunks)
        with monkeypatch.context() as patch:
            patch.setattr(chunk_files, "write_direct", lambda *_: False)
            patch.setattr(chunk_files, "write_all", full)
            with pytest.raises(StoreError, match="No space left"):
                await channel.chunks.put(*chunks[0])
        assert files(home) == []
        assert await channel.chunks.held(record_id) == b"\x00"
        await channel.chunks.put(*chunks[0])
        assert await channel.chunks.held(record_id) == b"\x01"


async def test_a_file_is_the_same_whichever_way_it_is_written(tmp_path: Path) -> None:
    for size in (1, 70_000, 128 * 1024, CHUNK_SIZE + 16):
        data = os.urandom(size)
        for name, broken in (("direct", False), ("usual", True)):
            descriptor = os.open(tmp_path / name, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            with pytest.MonkeyPatch.context() as patch:
                if broken:
                    # As on a file system that takes part of it, and no more.
                    patch.setattr(direct, "_write_aligned", half)
                if not direct.write_direct(descriptor, data):
                    os.write(descriptor, data)
            os.fsync(descriptor)
            os.close(descriptor)
            assert (tmp_path / name).read_bytes() == data


def half(descriptor: int, data: bytes) -> bool:
    os.write(descriptor, bytes(4096))
    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


async def test_a_store_of_the_first_version_gets_what_it_lacks(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schema, "_STEPS", schema._STEPS[:1])
        patch.setattr(schema, "VERSION", 1)
        home.mkdir(mode=0o700)
        (home / DATABASE_NAME).touch(mode=0o600)
        with closing(schema.connect(home / DATABASE_NAME)) as database:
            schema.prepare(database, b"check")
            tables = {n for (n,) in database.execute("SELECT name FROM sqlite_master")}
            assert "records" in tables
            assert "chunks" not in tables
    with closing(schema.connect(home / DATABASE_NAME)) as database:
        assert schema.prepare(database, b"other") == b"check"
        assert database.execute("PRAGMA user_version").fetchone() == (schema.VERSION,)
        assert database.execute("SELECT count(*) FROM chunks").fetchone() == (0,)


async def test_sizes_are_those_of_the_plaintext(tmp_path: Path) -> None:
    chunks = make_chunks()
    async with open_store(tmp_path / "home") as store:
        channel = store.channel(CHANNEL)
        await announce(channel, chunks)
        for chunk in chunks:
            await channel.chunks.put(*chunk)
        assert await channel.chunks.total() == SIZE == 2 * CHUNK_SIZE + 100
