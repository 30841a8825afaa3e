"""Exports, backups and passphrases of homes: what is in the files, and what a kill leaves."""

from __future__ import annotations

import io
import os
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl import pwhash

import walyoff
from walyoff.abc import NewBatch, StoredContent
from walyoff.errors import RemoteProtocolError, StoreError, WalyoffError
from walyoff.incarnations import check_current, note_exported, note_written
from walyoff.moving import archive, homes, parts
from walyoff.moving.archive import BACKUP, EXPORT, ArchiveReader, ArchiveWriter, check_path
from walyoff.stores import SqliteStore, keyfile, open_store
from walyoff.stores.vault import Vault

KEY = bytes(range(32))
CHANNEL, ME, OTHER = "did:walytis:channel", "did:walytis:me", "did:walytis:other"
SMALL, LARGE = b"a small content of mine", os.urandom(100) * 1000
SECRET = "a passphrase for the way"


@pytest.fixture(autouse=True)
def _quick_stretching(monkeypatch: pytest.MonkeyPatch) -> None:
    """Argon2id takes a second on purpose; here it may be quick."""
    monkeypatch.setattr(pwhash.argon2id, "OPSLIMIT_MODERATE", 1)
    monkeypatch.setattr(pwhash.argon2id, "MEMLIMIT_MODERATE", 8192)


def make(entries: dict[str, bytes], kind: int = EXPORT) -> bytes:
    """An archive of parts."""
    file = io.BytesIO()
    writer = ArchiveWriter(file, kind=kind, key_block=b"block", key=lambda salt: KEY)
    for path, data in entries.items():
        writer.add(path, io.BytesIO(data), len(data))
    writer.finish()
    return file.getvalue()


def take(data: bytes, kind: int = EXPORT) -> dict[str, bytes]:
    """The parts of an archive."""
    reader = ArchiveReader(io.BytesIO(data), kind)
    assert reader.key_block == b"block"
    return {path: b"".join(pieces) for path, _, pieces in reader.parts(KEY)}


# ---------------------------------------------------------------------------- archives


@pytest.mark.parametrize("size", [0, 1, archive.SEGMENT - 40, archive.SEGMENT, 3_000_000])
def test_what_goes_in_comes_out(size: int) -> None:
    entries = {"store.db": os.urandom(size), "keys/Qm": b"", "chunks/ab/cd": b"x" * 1000}
    assert take(make(entries)) == entries


def test_an_archive_that_was_cut_off_or_altered_gives_nothing() -> None:
    whole = make({"store.db": os.urandom(archive.SEGMENT + 500), "keys/a": b"secret"})
    for cut in (*range(0, 80), len(whole) // 2, archive.SEGMENT + 100, len(whole) - 1):
        with pytest.raises(RemoteProtocolError):
            take(whole[:cut])
    for at in (0, 4, 5, 9, 20, 50, 70, archive.SEGMENT + 90, len(whole) - 1):
        altered = bytearray(whole)
        altered[at] ^= 1
        with pytest.raises((RemoteProtocolError, AssertionError)):
            take(bytes(altered))
    with pytest.raises(RemoteProtocolError):
        take(whole + b"more")


def test_an_export_is_no_backup_and_says_what_it_is_for() -> None:
    with pytest.raises(RemoteProtocolError, match="walyoff import"):
        ArchiveReader(io.BytesIO(make({})), BACKUP)
    with pytest.raises(RemoteProtocolError, match="walyoff restore"):
        ArchiveReader(io.BytesIO(make({}, BACKUP)), EXPORT)
    with pytest.raises(RemoteProtocolError, match="newer"):
        ArchiveReader(io.BytesIO(b"WOAR\x02" + make({})[5:]), EXPORT)


@pytest.mark.parametrize(
    "path",
    [
        "", "/store.db", "../store.db", "keys/../../x", "keys/", "keys", "keys//a", "keys/.a",
        "store.key", "lock", "child/child.log", "ipfs/../store.key", "keys/a\0b", "keys/a\nb",
        "keys/ü", "STORE.DB", "store.db/x", "keys/-x",
    ],
)  # fmt: skip
def test_no_part_gets_out_of_its_place(path: str) -> None:
    with pytest.raises(RemoteProtocolError):
        check_path(path)


@given(st.binary(max_size=400))
def test_any_bytes_give_parts_or_the_one_error(data: bytes) -> None:
    for begin in (b"", make({})[:45]):
        with pytest.raises(RemoteProtocolError):
            take(begin + data)


# ------------------------------------------------------------------------------- homes


@asynccontextmanager
async def store_with_log(
    home: Path, passphrase: str | None = None
) -> AsyncIterator[SqliteStore]:
    """The store of a device that has written two records and got one."""
    async with open_store(home, passphrase=passphrase) as store:
        (home / "keys").mkdir(mode=0o700, exist_ok=True)
        (home / "keys" / "QmMine").write_bytes(b"sealed keys")
        await store.put({"device": ME.encode(), f"channel/{CHANNEL}": b"state"})
        mine = NewBatch(
            author=ME, first_seq=1, batch_id=b"b" * 32, body=b"body", signature=b"s",
            record_ids=(b"1" * 32, b"2" * 32),
            contents=(
                StoredContent(salt=b"s" * 32, data=SMALL),
                StoredContent(salt=b"s" * 32, data=LARGE),
            ),
        )  # fmt: skip
        others = NewBatch(
            author=OTHER, first_seq=1, batch_id=b"c" * 32, body=b"body", signature=b"s",
            record_ids=(b"3" * 32,), contents=(StoredContent(salt=b"s" * 32, data=b"hi"),),
        )  # fmt: skip
        await store.channel(CHANNEL).write(
            batches=[mine, others], deliver=[b"1" * 32, b"2" * 32, b"3" * 32]
        )
        yield store


@pytest.mark.anyio
async def test_an_export_with_its_log_has_everything(tmp_path: Path) -> None:
    async with store_with_log(tmp_path / "old", "old passphrase"):
        pass
    file, new = tmp_path / "file", tmp_path / "new"
    await walyoff.export_device(
        tmp_path / "old", file, file_passphrase=SECRET, passphrase="old passphrase",
        with_log=True,
    )  # fmt: skip
    await walyoff.import_device(file, new, file_passphrase=SECRET, passphrase="new")
    async with open_store(new, passphrase="new") as store:
        contents = await store.channel(CHANNEL).contents([b"1" * 32, b"2" * 32, b"3" * 32])
        assert [c and c.data for c in contents] == [SMALL, LARGE, b"hi"]
        assert await store.get(f"resume/{CHANNEL}") == (2).to_bytes(8, "big")
        assert int.from_bytes(await store.get("incarnation") or b"", "big") > 10**12
    assert (new / "keys" / "QmMine").read_bytes() == b"sealed keys"
    assert all(path.stat().st_mode & 0o077 == 0 for path in (new, *new.rglob("*")))
    assert file.stat().st_mode & 0o777 == 0o600
    # Nothing is left beside them, and nobody's passphrase opens the other's.
    assert set(os.listdir(tmp_path)) == {"old", "new", "file"}
    for wrong in (SECRET, "old passphrase", None):
        with pytest.raises(StoreError, match="passphrase"):
            async with open_store(new, passphrase=wrong):
                pass


@pytest.mark.anyio
async def test_an_export_goes_to_a_file_system_without_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As FAT, which the stick that carries it has mostly."""
    async with store_with_log(tmp_path / "old"):
        pass

    def no_links(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    file = tmp_path / "file"
    await walyoff.export_device(tmp_path / "old", file, file_passphrase=SECRET, with_log=True)
    await walyoff.import_device(file, tmp_path / "new", file_passphrase=SECRET)
    assert set(os.listdir(tmp_path)) == {"old", "new", "file"}


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["no space", "cancelled"])
async def test_an_export_that_gets_no_file_leaves_the_device_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    async with store_with_log(tmp_path / "old"):
        pass
    file = tmp_path / "file"
    async with anyio.create_task_group() as tasks:

        def no_space(*_: object) -> None:
            raise OSError(28, "No space left on device")

        async def note_and_be_cancelled(store: SqliteStore, now_ms: int) -> None:
            await note_exported(store, now_ms)
            tasks.cancel_scope.cancel()
            await anyio.lowlevel.checkpoint()

        if how == "no space":
            monkeypatch.setattr(homes, "give_name", no_space)
        else:
            monkeypatch.setattr(homes, "note_exported", note_and_be_cancelled)
        with pytest.raises(StoreError, match="No space"):
            await walyoff.export_device(
                tmp_path / "old", file, file_passphrase=SECRET, with_log=True
            )
    assert os.listdir(tmp_path) == ["old"]
    async with open_store(tmp_path / "old") as store:
        await check_current(store)


@pytest.mark.anyio
async def test_an_export_without_its_log_has_no_word_of_it(tmp_path: Path) -> None:
    async with store_with_log(tmp_path / "old") as store:
        await note_written(store)
        parts.copy_database(tmp_path / "old", tmp_path / "copy.db", with_log=False)
    with closing(sqlite3.connect(tmp_path / "copy.db")) as database:
        tables = [
            name
            for (name,) in database.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table'"
            )
        ]
        counts = {
            t: database.execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in tables
        }
    assert {name for name, count in counts.items() if count} == {"checks", "settings"}
    assert (tmp_path / "copy.db").stat().st_mode & 0o777 == 0o600


@pytest.mark.anyio
async def test_a_device_without_its_records_cannot_go_on_alone(tmp_path: Path) -> None:
    """Made as `export_device` does when the members have it all."""
    async with store_with_log(tmp_path / "old") as store:
        await note_written(store)
    key = keyfile.load_or_create(tmp_path / "old", None, may_create=False)
    written = homes._write(
        Vault(key), tmp_path / "old", tmp_path, kind=EXPORT,
        key_block=keyfile.encode(key, SECRET), with_log=False,
    )  # fmt: skip
    with pytest.raises(walyoff.LocalProtocolError, match="without asking"):
        await walyoff.import_device(
            written, tmp_path / "new", file_passphrase=SECRET, alone=True
        )
    assert not (tmp_path / "new").exists()
    await walyoff.import_device(written, tmp_path / "new", file_passphrase=SECRET)
    async with open_store(tmp_path / "new") as store:
        assert await store.get(f"resume/{CHANNEL}") == (2).to_bytes(8, "big")
        assert await store.channel(CHANNEL).top() == 0


@pytest.mark.anyio
async def test_nothing_is_overwritten_and_every_failure_leaves_no_file(tmp_path: Path) -> None:
    async with store_with_log(tmp_path / "old"):
        pass
    file = tmp_path / "file"
    await walyoff.backup_device(tmp_path / "old", file)
    for call in (
        walyoff.backup_device(tmp_path / "old", file),
        walyoff.restore_device(file, tmp_path / "old"),
        walyoff.import_device(file, tmp_path / "new", file_passphrase=SECRET),
        walyoff.restore_device(file, tmp_path / "new", passphrase="none was set"),
        walyoff.backup_device(tmp_path / "nobody", tmp_path / "other"),
        walyoff.backup_device(tmp_path / "old", tmp_path / "no" / "folder"),
        walyoff.change_passphrase(tmp_path / "nobody", None, "x"),
    ):
        with pytest.raises(WalyoffError):
            await call
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(RemoteProtocolError, match="damaged or cut off"):
        await walyoff.restore_device(file, tmp_path / "new")
    assert set(os.listdir(tmp_path)) == {"old", "file"}


@pytest.mark.anyio
async def test_a_backup_is_of_one_moment_while_the_device_writes(tmp_path: Path) -> None:
    async with store_with_log(tmp_path / "old") as store, anyio.create_task_group() as tasks:

        async def write() -> None:
            number = 0
            while True:
                number += 1
                # Both or none: a backup has the same in both.
                value = number.to_bytes(4, "big")
                await store.put({"one": value, "two": value})

        await store.put({"one": b"first", "two": b"first"})
        tasks.start_soon(write)
        for number in range(5):
            await walyoff.backup_device(tmp_path / "old", tmp_path / f"file{number}")
        tasks.cancel_scope.cancel()
    for number in range(5):
        home = tmp_path / f"home{number}"
        await walyoff.restore_device(tmp_path / f"file{number}", home)
        async with open_store(home) as restored:
            assert await restored.get("one") == await restored.get("two") is not None
            (large,) = await restored.channel(CHANNEL).contents([b"2" * 32])
            assert large is not None
            assert large.data == LARGE


@pytest.mark.anyio
@pytest.mark.parametrize(
    "evil",
    [
        "CREATE TRIGGER t AFTER INSERT ON settings BEGIN DELETE FROM checks; END",
        "CREATE VIEW v AS SELECT 1",
        "CREATE TABLE more(x)",
        None,
    ],
)
async def test_a_database_of_somebody_elses_making_is_refused(
    tmp_path: Path, evil: str | None
) -> None:
    async with store_with_log(tmp_path / "old"):
        pass
    with closing(sqlite3.connect(tmp_path / "old" / "store.db")) as database:
        database.execute("PRAGMA journal_mode = DELETE")
        if evil:
            database.execute(evil)
    if evil is None:
        path = tmp_path / "old" / "store.db"
        path.write_bytes(path.read_bytes()[:8192] + b"\xff" * 8192)
        with pytest.raises(StoreError):
            parts.check_database(path)
        return
    await walyoff.backup_device(tmp_path / "old", tmp_path / "file")
    with pytest.raises(StoreError, match="damaged"):
        await walyoff.restore_device(tmp_path / "file", tmp_path / "new")
    assert not (tmp_path / "new").exists()


# ------------------------------------------------------------------------- passphrases


@pytest.mark.anyio
async def test_a_passphrase_is_set_changed_and_removed(tmp_path: Path) -> None:
    home = tmp_path / "home"
    async with store_with_log(home):
        with pytest.raises(walyoff.HomeInUseError):
            await walyoff.change_passphrase(home, None, "x")
    plain = (home / "store.key").read_bytes()
    for old, new in ((None, "first"), ("first", "second"), ("second", None)):
        for wrong in {None, "first", "second", "never"} - {old}:
            with pytest.raises(StoreError, match="passphrase"):
                await walyoff.change_passphrase(home, wrong, new)
        await walyoff.change_passphrase(home, old, new)
        async with open_store(home, passphrase=new) as store:
            assert await store.get("device") == ME.encode()
        assert (home / "store.key").stat().st_mode & 0o777 == 0o600
    assert (home / "store.key").read_bytes() == plain
    for bad in ("", "x" * 1025):
        with pytest.raises(StoreError, match="1 to 1024"):
            await walyoff.change_passphrase(home, None, bad)
    assert not list(home.glob("*.tmp"))


#: Ends at the n-th call of the system that changes or syncs something.
KILLED = """
import os, sys
from pathlib import Path
from nacl import pwhash
from walyoff.stores import keyfile
home, number, before = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "before"
pwhash.argon2id.OPSLIMIT_MODERATE = 1
pwhash.argon2id.MEMLIMIT_MODERATE = 8192
count = 0
def watched(call):
    def wrapper(*args, **kwargs):
        global count
        count += 1
        if count == number and before:
            os._exit(9)
        value = call(*args, **kwargs)
        if count == number:
            os._exit(9)
        return value
    return wrapper
for name in ("open", "write", "fsync", "rename", "unlink", "close"):
    setattr(os, name, watched(getattr(os, name)))
keyfile.change(home, "old", "new")
print(count)
"""


def test_a_kill_in_a_change_leaves_the_old_passphrase_or_the_new_one(tmp_path: Path) -> None:
    def killed(number: int, when: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(tmp_path), str(number), when], check=False
        )
        return done.returncode

    seen = set()
    number = 0
    while True:
        number += 1
        codes = set()
        for when in ("before", "after"):
            keyfile.write(tmp_path, keyfile.encode(KEY, "old"))
            codes.add(killed(number, when))
            opens = [p for p in ("old", "new") if opens_with(tmp_path, p)]
            assert len(opens) == 1, f"killed {when} call {number}"
            seen.update(opens)
            # What a killed change left behind is in no later one's way.
            keyfile.change(tmp_path, opens[0], "last")
            assert keyfile.load_or_create(tmp_path, "last", may_create=False) == KEY
        if codes == {0}:
            break
    assert number > 5
    assert seen == {"old", "new"}


def opens_with(home: Path, passphrase: str) -> bool:
    """True if it is the passphrase of the home."""
    try:
        return keyfile.load_or_create(home, passphrase, may_create=False) == KEY
    except StoreError:
        return False
