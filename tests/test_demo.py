"""`walyoff demo`: it works, its search can fail, and it leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cli_processes import WALYOFF, failure, gone, running, walyoff
from tests.waiting import HANGS_AFTER
from walyoff.demo.search import forms, is_noise, search
from walyoff.demo.story import TALK, WHILE_AWAY, Outcome, Sent
from walyoff.walytis.ledger import TOPIC


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """One demo: what it said, and the homes that it kept."""
    base = tmp_path_factory.mktemp("demo")
    folder = base / "kept"
    result = subprocess.run(
        [*WALYOFF, "demo", "--json", "--keep", str(folder)],
        capture_output=True,
        timeout=450,
        check=False,
        env={**os.environ, "TMPDIR": str(base)},
    )
    assert result.returncode == 0, (result.stdout, result.stderr)
    assert result.stderr == b""
    (line,) = result.stdout.splitlines()
    assert [p.name for p in base.iterdir()] == ["kept"], "a temporary folder is left"
    assert gone(folder) == []
    value = json.loads(line)
    assert isinstance(value, dict)
    return value, folder


def test_the_demo_is_ok_and_complete(kept: tuple[dict[str, Any], Path]) -> None:
    value, _ = kept
    assert value["ok"] is True
    assert value["verified"] is True
    assert value["same_history"] is True
    assert value["wrong"] == []
    assert value["messages"] == value["sent"] == len(TALK) + len(WHILE_AWAY)
    assert len(value["latency_ms"]) == len(TALK)
    assert all(0 < latency < 20_000 for latency in value["latency_ms"])
    assert 0 < value["join_s"] < 30
    assert 0 < value["catch_up_s"] < 30
    assert value["total_s"] < 60
    assert value["plaintext_on_chain"] is False
    assert value["found"] == []
    # The search found what is public, so it would have found what is not.
    assert value["search_control"] > 0
    assert value["searched_files"] > value["searched_blocks"] > 0
    assert value["searched_bytes"] > 100_000
    anchors = [block for block in value["blocks"] if block["kind"] == "anchor"]
    assert anchors
    assert all(block["sealed"] for block in anchors)
    assert not any(block["sealed"] for block in value["blocks"] if block not in anchors)
    # None of them says which device wrote it.
    assert {block["creator"] for block in anchors} == {"walyoff"}


def test_the_search_finds_what_is_planted(kept: tuple[dict[str, Any], Path]) -> None:
    _, folder = kept
    homes = [folder / "alice", folder / "bob"]
    secrets = {"content": ["the heron sleeps"]}
    before = search(homes, secrets=secrets, authors=[])
    assert before.found == []
    for number, form in enumerate(forms("the heron sleeps")):
        planted = folder / "bob" / "ipfs" / "blocks" / f"planted-{number}"
        planted.write_bytes(os.urandom(1000) + form + os.urandom(1000))
        found = search(homes, secrets=secrets, authors=[]).found
        planted.unlink()
        assert found == [(str(planted.relative_to(folder)), "content")]


def test_the_search_knows_an_author_in_an_anchor(kept: tuple[dict[str, Any], Path]) -> None:
    _, folder = kept
    # An anchor names its chain in its topics, as an author would be named in it.
    anchors = [b for b in search([folder / "bob"], secrets={}, authors=[]).blocks if b.sealed]
    chain = next(t for block in anchors for t in block.topics if t != TOPIC)
    found = search([folder / "bob"], secrets={}, authors=[f"did:walytisidentities:{chain}"])
    assert len(found.found) == len(anchors)
    assert {what for _, what in found.found} == {"author"}


def test_a_block_that_is_not_encrypted_is_no_noise() -> None:
    assert is_noise(os.urandom(4096))
    assert not is_noise(b"metadata of a message " * 200)
    assert not is_noise(os.urandom(3500) + bytes(600))
    assert not is_noise(os.urandom(100))
    assert not is_noise(b"")


def test_a_message_that_is_missing_or_changed_is_not_verified() -> None:
    sent = Sent(
        sender="alice",
        receiver="bob",
        author="did:a",
        id="1",
        seq=1,
        at=0,
        content="hello",
        topics=[],
    )
    outcome = Outcome(sent=[sent], same_history=True)
    assert not outcome.verified
    outcome.good.add("1")
    assert outcome.verified
    # Without blocks there is nothing that was checked.
    assert not outcome.ok
    outcome.wrong.append("bob got a message that was changed")
    assert not outcome.verified


def test_a_folder_that_is_in_use_is_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    result = walyoff("demo", "--keep", str(tmp_path))
    assert result.returncode == 2
    assert b"not empty" in result.stderr


@pytest.mark.parametrize(("signum", "pause"), [(signal.SIGINT, 1.0), (signal.SIGTERM, 2.0)])
def test_a_signal_ends_the_demo_and_all_of_it(
    signum: int, pause: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Sockets have short paths, so it cannot be in pytest's folder.
    base = Path(tempfile.mkdtemp(prefix="demo-"))
    monkeypatch.setenv("TMPDIR", str(base))
    # The longer one: it takes some seconds, of which these are in the middle.
    with running("demo", "--forget") as demo:
        time.sleep(pause)
        code, _, errors = demo.end(signum)
    assert code == 128 + signum, errors
    assert "Traceback" not in errors
    assert gone(base) == []
    base.rmdir()  # it is empty


def test_a_demo_that_fails_says_so(tmp_path: Path) -> None:
    # The agents' code cannot be loaded there, but the demo's own was loaded before.
    code = (
        "import sys, walyoff.cli, walyoff.demo.devices as d, walyoff.demo.command\n"
        "sys.executable = '/bin/false'\n"
        "sys.exit(walyoff.cli.run(['demo', '--json']))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        timeout=HANGS_AFTER,
        check=False,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert "alice could not start" in failure(result)
    value = json.loads(result.stdout)
    assert value["ok"] is False
    assert "alice" in value["error"]
    assert list(tmp_path.iterdir()) == []


def test_three_devices_forget_a_message_and_no_byte_of_it_is_left(tmp_path: Path) -> None:
    result = subprocess.run(
        [*WALYOFF, "demo", "--forget", "--json"],
        capture_output=True,
        timeout=600,
        check=False,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert result.returncode == 0, (result.stdout, result.stderr)
    value = json.loads(result.stdout)
    assert value["forgotten"] is True
    assert value["bytes_left"] == 0
    assert value["bytes_of_control"] > 0
    assert value["traces"] == 3
    assert len(value["agreed"]) == len(value["erased"]) == 3
    assert list(tmp_path.iterdir()) == []
