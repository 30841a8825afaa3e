"""A copied home without its key file and passphrase: every byte of it is searched.

The homes are those of a version that kept control keys and the node's key in clear, so what
is searched for is known, and was there.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

import walyoff
from tests.fixtures.make_homes import ARCHIVE, CHANNEL, FOLDER, LARGE, open_home, unpack
from tests.waiting import HANGS_AFTER
from walyoff.channel_state import ChannelState
from walyoff.epochs import decode_epochs
from walyoff.wire import pack
from walyoff.wire import unpack as decode

NAMES = ("ada", "bob")
NEW = b"a word that nobody said before", "a topic of its own"

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """One event loop is enough: files are searched."""
    return "asyncio"


@pytest.fixture
def homes(home: Path) -> Path:
    """The two homes as the old version left them."""
    unpack(FOLDER / "format-1" / ARCHIVE, home)
    return home


def every_byte(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """All files, and their names as if they were in them."""
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.is_file() and not path.is_symlink():
            yield inside, str(inside).encode() + b"\0" + path.read_bytes()


def spellings(secret: bytes) -> list[bytes]:
    """A secret in the ways in which one may be written."""
    plain = [secret, secret.hex().encode(), secret.hex().upper().encode()]
    # Base64 of a part that begins anywhere, without its ends.
    shifted = [base64.b64encode(secret[at:])[4:-4] for at in range(3)]
    return plain + [part for part in shifted if len(part) > 16]


def found(folder: Path, secrets: dict[str, bytes]) -> dict[str, list[str]]:
    """Which secrets are in which files."""
    hits: dict[str, list[str]] = {}
    for name, secret in secrets.items():
        parts = spellings(secret)
        for path, data in every_byte(folder):
            if any(part in data for part in parts):
                hits.setdefault(name, []).append(str(path))
    return hits


def old_keys(folder: Path) -> dict[str, bytes]:
    """The private keys that the old version left in clear."""
    keys: dict[str, bytes] = {}
    for path in (folder / "keys").iterdir():
        for group in decode(path.read_bytes(), 1 << 20):
            for _, _, private, _ in group:
                keys[f"control key {len(keys)}"] = private.encode()
                keys[f"control key {len(keys)}"] = bytes.fromhex(private)
    config = json.loads((folder / "ipfs" / "config").read_text())
    keys["node key"] = base64.b64decode(config["Identity"]["PrivKey"])
    return keys


async def secrets_of(device: walyoff.Device) -> dict[str, bytes]:
    """What the store keeps, read by who has the key."""
    did = device.channel(CHANNEL).did
    store = device.store
    value = await store.get(f"channel/{did}")
    own = await store.get(f"credentials/{did}")
    sealing = await store.get("sealing")
    epochs = await store.get(f"epochs/{did}")
    assert epochs
    assert value
    assert own
    assert sealing
    _, sign_secret, seal_secret = decode(own, 1 << 20)
    return {
        "channel secret": ChannelState.decode(value).secret,
        "device signing key": sign_secret,
        "device sealing key": seal_secret,
        "sealing key": decode(sealing, 1 << 10)[0],
        **{
            f"epoch {n}": e.key
            for n, e in enumerate(decode_epochs(decode(epochs, 1 << 20), 64))
        },
    }


async def test_a_copied_home_gives_no_content_no_name_and_no_key(homes: Path) -> None:
    secrets: dict[str, dict[str, bytes]] = {}
    for name in NAMES:
        keys = old_keys(homes / name)
        assert set(found(homes / name, keys)) == set(keys), "what is searched for was there"
        secrets[name] = keys
    content, topic = NEW
    with anyio.fail_after(HANGS_AFTER):
        async with open_home(homes, "ada") as ada, open_home(homes, "bob") as bob:
            channel = ada.channel(CHANNEL)
            await (await channel.send(content, topics=[topic])).wait_received()
            for name, device in (("ada", ada), ("bob", bob)):
                secrets[name] |= await secrets_of(device)
            child: Any = ada.platform.ipfs
            process = Path(f"/proc/{child.pid}")
            told = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
            assert not any(s in told for s in spellings(secrets["ada"]["sealing key"]))
            # While it runs the node's key is in memory alone.
            assert not found(homes / "ada", {"node key": secrets["ada"]["node key"]})
    said = {
        "content": content,
        "old content": b"dinner is at seven",
        "large content": LARGE[:64],
        "topic": topic.encode(),
        "old topic": b"picture",
        "name of the channel": b"family",
        "passphrase": b"correct horse",
    }
    for name in NAMES:
        assert len(secrets[name]) >= 10
        # Without a passphrase the key file is what protects the rest.
        key = (homes / name / "store.key").read_bytes()
        (homes / name / "store.key").unlink()
        assert not found(homes / name, secrets[name] | said | {"store key": key[-32:]})


async def test_what_a_copied_home_does_show(homes: Path) -> None:
    """Who is in the identity stands on its public chain, in clear, as stock code writes it."""
    about = json.loads((FOLDER / "format-1" / "contents.json").read_text())
    async with open_home(homes, "bob"):
        pass
    dids = {name: did.rpartition(":")[2].encode() for name, did in about["devices"].items()}
    hits = {
        path.parts[0]
        for path, data in every_byte(homes / "bob")
        if any(did in data for did in dids.values())
    }
    # Chain files and blocks, and files that are named for their chain.
    assert hits <= {"walytis", "ipfs", "keys", "positions", "segments", "child"}
    assert {"walytis", "keys", "positions"} <= hits


async def test_keys_that_somebody_puts_into_a_home_do_not_count(homes: Path) -> None:
    async with open_home(homes, "bob") as bob:
        did = await bob.did()
    own = homes / "bob" / "keys" / did.rpartition(":")[2]
    sealed = own.read_bytes()
    other = next(path for path in own.parent.iterdir() if path != own)
    for forged in (pack([[["x", "y", "z", "t"]]]), other.read_bytes(), sealed[:-1]):
        own.write_bytes(forged)
        async with open_home(homes, "bob") as bob:
            with pytest.raises(walyoff.StoreError, match=r"put it there|damaged"):
                await bob.platform.certify(did, b"body")
    own.write_bytes(sealed)
    async with open_home(homes, "bob") as bob:
        assert await bob.platform.certify(did, b"body")


async def test_the_key_of_the_node_cannot_be_replaced_from_outside(homes: Path) -> None:
    async with open_home(homes, "bob") as bob:
        node: Any = bob.platform.ipfs
        before = node.peer_id
    assert not list((homes / "bob").rglob("repo/config")) or os.readlink(
        homes / "bob" / "child" / "repo" / "config"
    ).startswith("/proc/self/fd/")
    async with open_home(homes, "bob") as bob:
        node = bob.platform.ipfs
        assert node.peer_id == before
    identity = homes / "bob" / "ipfs" / "identity"
    identity.write_bytes(b"CAESQAAA")
    with pytest.raises(walyoff.WalyoffError):
        async with open_home(homes, "bob"):
            pass


#: Opens a device with a umask that forbids nothing, and notes who changes a mode afterwards
#: and which mode a file has when it is removed.
WATCHED = """
import os, sys, json
home = sys.argv[1]
os.umask(0)
changed, removed = [], []
def watch(event, args):
    if event == "os.chmod" and str(args[0]).startswith(home):
        changed.append([str(args[0]), args[1]])
    if event in ("os.remove", "os.rename") and str(args[0]).startswith(home):
        try:
            removed.append([str(args[0]), os.lstat(args[0]).st_mode & 0o077])
        except OSError:
            pass
sys.addaudithook(watch)
import anyio, walyoff
def said(pid, file, name):
    with open(f"/proc/{pid}/{file}") as lines:
        return next(line.split()[-3:] for line in lines if line.startswith(name))
async def main():
    async with walyoff.open_device(home, passphrase="x") as device:
        channel = await device.create_channel("family")
        await (await channel.send(bytes(100_000))).wait_anchored()
        await walyoff.backup_device(home, home + ".backup", passphrase="x")
        child = device.platform.ipfs.pid
        found = {"umask": said(child, "status", "Umask")[-1],
                 "core": said(child, "limits", "Max core file size")[0]}
    return found
found = anyio.run(main)
loose = [str(path) for path in [home, home + ".backup"] if os.stat(path).st_mode & 0o077]
for folder, names, files in os.walk(home):
    loose += [os.path.join(folder, name) for name in names + files
              if os.lstat(os.path.join(folder, name)).st_mode & 0o077
              and not os.path.islink(os.path.join(folder, name))]
print(json.dumps({**found, "changed": changed, "loose": loose,
                  "removed": [r for r in removed if r[1]], "seen": len(removed)}))
"""


async def test_everything_of_a_device_is_private_from_its_first_byte(home: Path) -> None:
    """The last mode is the first one, because nothing changes a mode; also of what is gone."""
    done = await anyio.run_process([sys.executable, "-c", WATCHED, str(home / "device")])
    found = json.loads(done.stdout)
    assert found.pop("seen") >= 1
    # The child's files get what its umask leaves; and it leaves no core with keys in it.
    assert found == {"umask": "0077", "core": "0", "changed": [], "loose": [], "removed": []}
