"""The home of a store: private, owned by one, useless without its key."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from walyoff.errors import HomeInUseError, StoreError
from walyoff.stores import SqliteStore, keyfile, open_store
from walyoff.stores.vault import Vault
from walyoff.testing.store_base import ALICE, BOB, CHANNEL, make_batch, make_content

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


SECRETS = {
    "content": b"the-words-of-a-small-message",
    "large content": b"the-words-of-a-large-message" * 5000,
    "body": b"topic:holiday-plans",
    "signature": b"a-signature-that-names-its-maker",
}
SETTING, CURSOR, BLOCK = "peers/did:walytis:carol", "inbox-of-dave", "bafy-block-name"


async def fill(store: SqliteStore) -> list[bytes]:
    """Put something secret into every column; returns everything that must not be seen."""
    from dataclasses import replace

    batch = replace(
        make_batch(ALICE, 1, [make_content(SECRETS["content"]), None, None]),
        body=SECRETS["body"],
        signature=SECRETS["signature"],
        anchor=BLOCK,
    )
    large = make_content(SECRETS["large content"])
    channel = store.channel(CHANNEL)
    await channel.write(
        batches=[batch, make_batch(BOB, 1, [None])],
        contents=[(batch.record_ids[1], large)],
        deliver=batch.record_ids,
    )
    await channel.set_cursor(CURSOR, 2)
    await store.put({SETTING: b"value-of-a-setting"})
    texts = [ALICE, BOB, CHANNEL, SETTING, CURSOR, BLOCK, "carol", "walytis", "alice"]
    return [
        *(text.encode() for text in texts),
        *(secret[:28] for secret in SECRETS.values()),
        b"value-of-a-setting",
        batch.batch_id,
        *batch.record_ids,
        large.salt,
    ]


def files_of(home: Path) -> list[Path]:
    return [path for path in home.rglob("*") if path.is_file()]


async def test_no_byte_of_the_home_tells_what_is_in_it(tmp_path: Path) -> None:
    home = tmp_path / "home"

    def search(secrets: list[bytes]) -> None:
        paths = files_of(home)
        assert any("chunks" in path.parts for path in paths)
        for path in paths:
            data = path.read_bytes() + str(path.relative_to(home)).encode()
            for secret in secrets:
                assert secret not in data, (path, secret)
                assert secret.hex().encode() not in data, (path, secret)

    async with open_store(home) as store:
        secrets = await fill(store)
        assert (home / "store.db-wal").stat().st_size
        search(secrets)
    search(secrets)


async def test_everything_is_private_whatever_the_umask(
    tmp_path: Path, open_umask: None
) -> None:
    home = tmp_path / "home"
    async with open_store(home) as store:
        await fill(store)
        assert stat.S_IMODE(home.stat().st_mode) == 0o700
        paths = list(home.rglob("*"))
        assert {path.name for path in paths} >= {
            "lock",
            "store.key",
            "store.db",
            "store.db-wal",
            "store.db-shm",
            "chunks",
        }
        for path in paths:
            wanted = 0o700 if path.is_dir() else 0o600
            assert stat.S_IMODE(path.stat().st_mode) == wanted, path


async def test_a_folder_that_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    async with open_store(home):
        assert stat.S_IMODE(home.stat().st_mode) == 0o700


async def test_second_opener_in_this_process_is_told_the_owner(tmp_path: Path) -> None:
    async with open_store(tmp_path / "home"):
        with pytest.raises(HomeInUseError, match=f"process {os.getpid()}$"):
            async with open_store(tmp_path / "home"):
                pass
    async with open_store(tmp_path / "home"):
        pass


HOLDER = textwrap.dedent(
    """
    import sys, anyio
    from pathlib import Path
    from walyoff.stores import open_store

    async def main():
        async with open_store(Path(sys.argv[1])) as store:
            await store.put({"key": b"value"})
            print("open", flush=True)
            await anyio.sleep(60)

    anyio.run(main)
    """
)


async def read_key(home: Path) -> bytes | None:
    async with open_store(home) as store:
        return await store.get("key")


def test_lock_of_another_process_goes_when_it_is_killed(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(home)], stdout=subprocess.PIPE
    ) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"open\n"
            with pytest.raises(HomeInUseError, match=f"process {holder.pid}$"):
                anyio.run(read_key, home)
        finally:
            holder.send_signal(signal.SIGKILL)
    assert anyio.run(read_key, home) == b"value"


async def test_passphrase_protects_the_key_and_is_needed(tmp_path: Path) -> None:
    home = tmp_path / "home"
    async with open_store(home, passphrase="correct horse") as store:
        await store.put({"key": b"value"})
    with pytest.raises(StoreError, match="wrong passphrase"):
        async with open_store(home, passphrase="wrong horse"):
            pass
    with pytest.raises(StoreError, match="protected by a passphrase"):
        async with open_store(home):
            pass
    async with open_store(home, passphrase="correct horse") as store:
        assert await store.get("key") == b"value"


async def test_passphrase_for_an_unprotected_home_is_refused(tmp_path: Path) -> None:
    async with open_store(tmp_path / "home"):
        pass
    with pytest.raises(StoreError, match="not protected"):
        async with open_store(tmp_path / "home", passphrase="any"):
            pass


async def test_key_file_that_asks_for_too_much_is_refused_at_once(tmp_path: Path) -> None:
    async with open_store(tmp_path / "home"):
        pass
    key = tmp_path / "home" / "store.key"
    key.write_bytes(b"WOFK\x01\x01" + b"\xff" * 8 + bytes(16 + 12 + 48))
    with pytest.raises(StoreError, match="damaged"):
        async with open_store(tmp_path / "home", passphrase="any"):
            pass


@pytest.mark.parametrize(
    "data", [b"", b"WOFK\x01\x00", b"WOFK\x02\x00" + bytes(32), bytes(999)]
)
async def test_damaged_key_file_is_told_and_kept(tmp_path: Path, data: bytes) -> None:
    async with open_store(tmp_path / "home"):
        pass
    key = tmp_path / "home" / "store.key"
    key.write_bytes(data)
    with pytest.raises(StoreError, match=r"store\.key is damaged"):
        async with open_store(tmp_path / "home"):
            pass
    assert key.read_bytes() == data


async def test_missing_key_is_not_replaced(tmp_path: Path) -> None:
    async with open_store(tmp_path / "home"):
        pass
    (tmp_path / "home" / "store.key").unlink()
    with pytest.raises(StoreError, match="missing"):
        async with open_store(tmp_path / "home"):
            pass
    assert not (tmp_path / "home" / "store.key").exists()


async def test_key_of_another_home_is_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        async with open_store(tmp_path / name):
            pass
    (tmp_path / "one" / "store.key").replace(tmp_path / "two" / "store.key")
    with pytest.raises(StoreError, match="not the key of its store"):
        async with open_store(tmp_path / "two"):
            pass


async def test_leftover_of_a_killed_first_start_is_no_obstacle(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    (home / "store.tmp").write_bytes(b"half a k")
    (home / "store.db").touch(mode=0o600)
    async with open_store(home) as store:
        await store.put({"key": b"value"})


async def test_store_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    import sqlite3
    from contextlib import closing

    async with open_store(tmp_path / "home"):
        pass
    with closing(sqlite3.connect(tmp_path / "home" / "store.db")) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="version 99, newer than"):
        async with open_store(tmp_path / "home"):
            pass


async def test_home_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError):
        async with open_store(tmp_path / "file"):
            pass
    with pytest.raises(StoreError):
        async with open_store(tmp_path / "file" / "below"):
            pass


@pytest.mark.skipif(os.geteuid() == 0, reason="modes do not bind root")
async def test_read_only_home_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ro").mkdir(mode=0o500)
    with pytest.raises(StoreError):
        async with open_store(tmp_path / "ro" / "home"):
            pass


def test_vault_and_key_never_print() -> None:
    assert repr(Vault(bytes(32))) == "<Vault>"
    assert keyfile.KEY_SIZE == 32


def test_refs_differ_by_kind_place_and_store() -> None:
    one, two = Vault(bytes(32)), Vault(b"\x01" * 32)
    place = bytes(16)
    refs = {
        one.ref(b"a", place, b"name"),
        one.ref(b"b", place, b"name"),
        one.ref(b"a", b"\x01" * 16, b"name"),
        one.ref(b"a", place, b"names"),
        two.ref(b"a", place, b"name"),
    }
    assert len(refs) == 5
