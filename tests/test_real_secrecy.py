"""What leaves a device, and what lies on its disk, says nothing to anybody else."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real.processes import World, eventually

#: Unlikely to appear by chance in some megabytes.
CONTENT = b"the treasure lies under the third palm tree"
LARGE = b"a longer story about it " * 10_000
TOPIC = "pirate-affairs"
NAME = "the-crew-of-the-black-pearl"


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World() as world:
        yield world


@pytest.fixture(scope="module")
def after(world: World) -> tuple[World, list[bytes]]:
    """Two devices after some traffic, and the DIDs that only their sessions may tell."""
    a = world.begin("a", "--record", str(world.root / "a.tape"))
    b = world.begin("b", "--record", str(world.root / "b.tape"))
    a.ready().call("create", name=NAME)
    b.ready().call("join", invitation=a.call("invite"), limit=60)
    a.call("send", content=CONTENT, topics=[TOPIC])
    b.call("wait_content", contents=[CONTENT])
    b.call("send", content=LARGE, topics=[TOPIC])
    a.call("wait_content", contents=[LARGE])
    for device in (a, b):
        device.call("received")
        device.call("anchored")
    info = a.call("info")
    # What was sent while the other one was away goes another way.
    b.kill()
    a.call("send", content=CONTENT + b" still", topics=[TOPIC])
    a.call("anchored")
    b = world.start("b", "--record", str(world.root / "b.tape"))
    b.call("wait_content", contents=[CONTENT + b" still"])
    eventually(lambda: len(b.call("history")) == 3)
    # So that the write-ahead log of one is searched as it is left by a kill.
    a.close()
    b.kill()
    return world, [did.encode() for did in (info["did"], *info["members"])]


def spellings(secret: bytes) -> list[bytes]:
    """A secret as it may stand in a file: as it is, in hex, in base64 at any offset."""
    found = [secret, secret.hex().encode(), secret.decode().encode("utf-16-le")]
    for offset in range(3):
        # The characters that depend on the neighbours are left out.
        encoded = base64.b64encode(bytes(offset) + secret)
        found.append(encoded[4 if offset else 0 : len(encoded) // 4 * 4 - 4])
    return found


SECRETS = [s for text in (CONTENT, LARGE[:24], TOPIC.encode()) for s in spellings(text)]


def test_what_crosses_a_transport_has_no_word_of_it(after: tuple[World, list[bytes]]) -> None:
    world, dids = after
    for name in ("a.tape", "b.tape"):
        tape = (world.root / name).read_bytes()
        # It is the real traffic: all of the content went through it.
        assert len(tape) > len(LARGE)
        for secret in (*SECRETS, NAME.encode(), *dids):
            assert secret not in tape, secret
        for did in dids:
            # Not even without its method's name.
            assert did.rpartition(b":")[2] not in tape, did


def test_the_search_finds_what_is_there(world: World, after: tuple[World, list[bytes]]) -> None:
    path = world.root / "control"
    path.write_bytes(b"xx" + base64.b64encode(b"z" + CONTENT + b"zzzz"))
    assert any(secret in path.read_bytes() for secret in SECRETS)
    path.unlink()
    # The identity's DID is public and does stand in the home.
    chain = after[1][0].rpartition(b":")[2]
    assert any(chain in str(path).encode() for path in world.homes.rglob("*"))


def test_no_file_of_a_device_has_content_or_topics_in_clear(
    after: tuple[World, list[bytes]],
) -> None:
    world, _ = after
    searched = 0
    kinds: set[str] = set()
    for path in world.root.rglob("*"):
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            searched += 1
            kinds.update(part for part in path.parts if part in ("ipfs", "walytis"))
            for secret in SECRETS:
                assert secret not in data, (path, secret)
    # Blocks of the chains and of the node, the store, the logs.
    assert kinds == {"ipfs", "walytis"}
    assert searched > 20


def test_the_logs_of_a_device_tell_no_secrets(after: tuple[World, list[bytes]]) -> None:
    world, _ = after
    for path in (*world.root.glob("*.log"), *world.homes.glob("*/child/*.log")):
        text = Path(path).read_text(errors="replace")
        assert NAME not in text, path
