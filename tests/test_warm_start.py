"""What a start does not do: counts, because times depend on the machine."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import anyio.to_thread
import pytest

from tests.waiting import HANGS_AFTER, Deadline
from walyoff.sealing import Sealing
from walyoff.walytis.identity import WalytisIdentity
from walyoff.walytis.process import open_child
from walyoff.walytis.spawning import start_early

SEALING = Sealing(b"k" * 32)
#: What stock code says when the last of it is imported.
LAST_SAID = "WalId: Logging to files"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def run(code: str, *arguments: str) -> list[str]:
    """The words that a program prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_child_is_started_before_anything_that_takes_time_is_imported() -> None:
    code = """
import sys, anyio, walyoff
from walyoff import opening

def start_early(home):
    print(*sys.modules)
    raise SystemExit

opening.start_early = start_early

async def main():
    async with walyoff.open_device("nowhere"):
        pass

anyio.run(main)
"""
    loaded = run(code)
    assert "walyoff.opening" in loaded
    late = {"cryptography", "nacl", "sqlite3", "msgpack", "blake3", "importlib.metadata"}
    assert {name for name in loaded if name.startswith("walyoff.")} <= {
        "walyoff.errors",
        "walyoff.importing",
        "walyoff.opening",
        "walyoff.walytis",
        "walyoff.walytis.spawning",
    }
    assert late.isdisjoint(loaded)


def test_stock_code_comes_without_what_it_does_not_use_and_works(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from walyoff.child.upstream import load_stock
home = Path(sys.argv[1])
stock = load_stock(None, None, home)
print(*sys.modules, "home" if home.exists() else "")
keys = stock.keys.KeyGroup.create(["EC-secp256k1", "PQ-ML-KEM-768-ML-DSA-65"])
public = stock.keys.KeyGroup.from_id(keys.get_id())
assert public.verify_signature(keys.sign(b"text"), b"text")
assert not public.verify_signature(keys.sign(b"text"), b"other")
assert not {"ecies", "Crypto"} & set(sys.modules)
assert keys.decrypt(public.encrypt(b"secret")) == b"secret"
assert {"ecies", "Crypto"} < set(sys.modules)

# All that checks signatures is loaded, so that what it found good is not believed by another.
from walyoff.child.verifiers import MODULES
assert [name for name in MODULES if not getattr(sys.modules.get(name), "__file__", "")] == []

# What keys there are is told without loading them, which signs to check the pairs.
from walyoff.child.keyring import Keyring
from walyoff.sealing import Sealing
sealing = Sealing(b"k" * 32)
Keyring(stock.keys, home / "keys", sealing).save("did:walytisidentities:x", [keys, keys])
again = Keyring(None, home / "keys", sealing)
assert again.ids("did:walytisidentities:x") == [keys.get_id()] * 2
"""
    loaded = {name.partition(".")[0] for name in run(code, str(tmp_path / "home"))}
    assert {"walytis_beta", "walytis_identities", "multi_crypt"} <= loaded
    unused = {"pytest", "_pytest", "zmq", "Crypto", "ecies", "pathspec", "pygments"}
    assert unused.isdisjoint(loaded)
    # While it is imported the home may be another process's.
    assert "home" not in loaded


@pytest.mark.anyio
async def test_a_start_checks_no_signature_that_was_checked_before(tmp_path: Path) -> None:
    home = tmp_path / "home"
    async with open_child(home, sealing=SEALING) as child:
        device, _ = await WalytisIdentity.create_device_did(child)
        group = await WalytisIdentity.create(child, device)
        members = group.membership.members
        did, pin = group.did, group.pin
        assert await child.call("did.checked", {}) > 3
    assert await _checked(home, did, pin, device) == 0
    # The file is a memory and nothing else: what it says of other homes is not believed.
    (home / "child" / "verified").write_bytes(bytes(4096))
    assert await _checked(home, did, pin, device) > 3
    assert [m.did for m in members] == [device]


@pytest.mark.anyio
async def test_a_child_that_was_started_early_changes_nothing_before_it_is_told(
    tmp_path: Path,
) -> None:
    home = tmp_path / "home"
    async with open_child(home) as child:
        # Walytis is up, so its folders are there.
        assert await child.call("did.checked", {}) == 0
    await anyio.to_thread.run_sync(check_that_nothing_changes, home)


def check_that_nothing_changes(home: Path) -> None:
    """It imports all that it needs, and then waits: the home may be another process's."""

    def files() -> dict[Path, tuple[int, int]]:
        found = {path: path.lstat() for path in home.rglob("*")}
        # What it and the library say, and the folder that their logs are in.
        said = {home / "child", home / "child" / "child.log", home / "child" / "kubo.log"}
        return {p: (s.st_mtime_ns, s.st_size) for p, s in found.items() if p not in said}

    (home / "child" / "blocks" / "under way").write_text("")
    before = files()
    log = home / "child" / "child.log"
    # It says so when it imports the last part.
    said = log.read_text().count(LAST_SAID)
    process = start_early(home)
    assert process is not None
    try:
        wait_until_idle(process.pid, lambda: log.read_text().count(LAST_SAID) > said)
        assert files() == before
    finally:
        process.reap(0.0)
    assert files() == before
    assert start_early(home / "nowhere") is None
    assert not (home / "nowhere").exists()


def wait_until_idle(pid: int | None, imported: Callable[[], bool]) -> None:
    """Until a process has imported all, and no thread of it has run for a second."""
    before, since = "", time.monotonic()
    deadline = Deadline(HANGS_AFTER)
    while not imported() or time.monotonic() - since < 1:
        time.sleep(0.05)
        stats = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
        fields = [stat.rpartition(")")[2].split() for stat in stats]
        # A thread that waits for a processor is no idle one.
        now = " ".join(f"{f[0]} {f[11]} {f[12]}" for f in fields)
        if now != before or "R" in now:
            before, since = now, time.monotonic()
        assert deadline.left(), now


async def _checked(home: Path, did: str, pin: bytes, device: str) -> int:
    async with open_child(home, sealing=SEALING) as child:
        group = await WalytisIdentity.open(child, did, pin, device)
        assert [m.did for m in group.membership.current()] == [device]
        return int(await child.call("did.checked", {}))
