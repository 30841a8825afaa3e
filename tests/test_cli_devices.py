"""Two devices through the command line only: what a person with two terminals does."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pty
import re
import select
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cli_processes import (
    WALYOFF,
    failure,
    gone,
    objects,
    processes_of,
    running,
    walyoff,
)
from tests.real.processes import eventually
from tests.test_did_document import check
from tests.waiting import HANGS_AFTER, Deadline, free_time
from walyoff.invitations import grouped

MIB = 1024 * 1024


@dataclass
class Pair:
    """Two devices in one channel."""

    alice: Path
    bob: Path
    alice_did: str
    bob_did: str
    channel: str
    used: str


def home(path: Path) -> tuple[str, str]:
    return "--home", str(path)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Made by init, create, invite and join; which is the first test of them."""
    base = tmp_path_factory.mktemp("cli")
    alice, bob = base / "alice", base / "bob"
    (made,) = objects("init", *home(alice))
    assert made["home"] == str(alice)
    assert made["did"].startswith("did:walytisidentities:")
    assert made["channels"] == 0
    (created,) = objects("create", "family", *home(alice))
    assert created["name"] == "family"
    assert created["me"] == made["did"]
    assert created["members"] == 1

    (welcome,) = objects("send", "family", "welcome", *home(alice))
    assert welcome["others"] == 0
    assert welcome["anchored"] is True

    with running("invite", "--json", *home(alice)) as inviting:
        invited = inviting.json()
        assert invited["channel"] == created["channel"]
        assert time.time() < invited["expires"] <= time.time() + 24 * 3600
        # By stdin, so that no other user of the machine sees the secret.
        (joined,) = objects("join", "-", *home(bob), stdin=invited["invitation"].encode())
        told = inviting.json()
        assert told["joined"] == joined["me"]
        # What two people compare.
        assert len(told["words"]) == 6
        assert told["words"] == joined["words"]
        code, rest, errors = inviting.end()
    assert (code, rest, errors) == (0, "", "")
    assert joined["channel"] == created["channel"]
    assert joined["name"] == "family"
    assert joined["members"] == 2
    # The history is handed over before either command ends.
    assert joined["messages"] == 1
    assert gone(base) == []
    return Pair(
        alice, bob, made["did"], joined["me"], created["channel"], invited["invitation"]
    )


def test_a_message_goes_from_device_to_device(pair: Pair) -> None:
    with running("listen", "--json", *home(pair.bob)) as listening:
        assert listening.json()["content"] == "welcome"
        begun = free_time()
        (sent,) = objects(
            "send",
            "family",
            "dinner is ready",
            "-t",
            "food",
            "--timeout",
            "200",
            *home(pair.alice),
        )
        assert free_time() - begun < 20
        assert sent["received_by"] == [pair.bob_did]
        assert sent["others"] == 1
        assert sent["stored"] is True
        assert sent["anchored"] is True
        message = listening.json()
        assert message["id"] == sent["id"]
        assert message["author"] == pair.alice_did
        assert message["mine"] is False
        assert message["content"] == "dinner is ready"
        assert message["encoding"] == "utf-8"
        assert message["topics"] == ["food"]
        assert message["channel"] == pair.channel

        # While it runs, the home has an owner, and nobody else gets in.
        text = failure(walyoff("send", "me too", *home(pair.bob)))
        assert str(pair.bob) in text
        assert f"process {listening.process.pid}" in text
        assert "Ctrl-C" in text

        # The other side sees who is there.
        members = objects("members", *home(pair.alice))
        assert {m["did"]: (m["me"], m["connected"]) for m in members} == {
            pair.alice_did: (True, False),
            pair.bob_did: (False, True),
        }
        (status,) = objects("status", *home(pair.alice))
        assert status["did"] == pair.alice_did
        assert [c["name"] for c in status["channels"]] == ["family"]
        assert [p["did"] for p in status["channels"][0]["peers"]] == [pair.bob_did]

        code, _, errors = listening.end(signal.SIGINT)
    assert code == 130
    assert errors == ""
    assert gone(pair.bob) == []

    # No lock is left: the next command opens the home.
    log = objects("log", *home(pair.bob))
    assert [m["content"] for m in log] == ["welcome", "dinner is ready"]
    (mine,) = objects("log", "family", "--last", "1", *home(pair.alice))
    assert mine["mine"] is True
    assert mine["anchored"] is True

    # Both devices say the same of the message, to the commitment.
    theirs, ours = (objects("records", *home(h)) for h in (pair.alice, pair.bob))
    assert len(ours) == len(theirs) == 2
    for our, their in zip(ours, theirs, strict=True):
        assert len(bytes.fromhex(our["commitment"])) == 32
        for name in ("id", "author", "seq", "time", "topics", "size", "commitment"):
            assert our[name] == their[name]
        assert "content" not in our


def test_bytes_and_cursors_are_exact(pair: Pair) -> None:
    raw = bytes(range(256))
    (sent,) = objects("send", "family", "-", "--no-wait", *home(pair.alice), stdin=raw)
    assert sent["size"] == 256
    assert sent["received_by"] == []
    text = b"two\nlines, and a \x1b[31mcolour\n"
    objects("send", "-", "--no-wait", *home(pair.alice), stdin=text)

    # A cursor goes on where it stopped, without a message lost or repeated.
    before = len(objects("log", "--all", *home(pair.alice))) - 2
    listen = ("listen", "--cursor", "test", *home(pair.alice), "--timeout", "200", "--count")
    first = objects(*listen, str(before + 1))
    second = objects(*listen, "1")
    assert base64.b64decode(first[-1]["content"]) == raw
    assert first[-1]["encoding"] == "base64"
    assert second[0]["content"].encode() == text
    assert second[0]["position"] == first[-1]["position"] + 1

    # For people, control characters are shown and not obeyed.
    shown = walyoff("log", "--last", "2", *home(pair.alice)).stdout.decode()
    assert "(256 bytes, not text: --json shows them)" in shown
    assert "two\n" in shown
    assert "  lines, and a \\x1b[31mcolour" in shown
    assert "\x1b" not in shown

    # What does not come in time is a failure that says how far it got.
    late = walyoff(*listen[:-3], "--timeout", "0.5", "--count", "3")
    assert "0 of 3 messages" in failure(late)


def test_a_file_goes_on_after_kills_of_either_side(pair: Pair, tmp_path: Path) -> None:
    data = os.urandom(80 * MIB + 77)
    file = tmp_path / "film.bin"
    file.write_bytes(data)
    objects("attachments", "--fetch", "none", *home(pair.bob))
    send = ("send", "family", "look at this", "--file", str(file), "--no-wait")
    (sent,) = objects(*send, *home(pair.alice))
    assert (sent["name"], sent["size"], sent["received_by"]) == ("film.bin", len(data), [])
    stored = chunk_files(pair.alice)
    assert len(stored) == 81
    assert not any(data[:64] in path.read_bytes()[:100] for path in stored)

    fetch = ("fetch", "family", sent["id"][:16], "--json", *home(pair.bob))
    serve = ("listen", "family", "--timeout", "1000", *home(pair.alice))
    with running(*serve) as alice, running(*fetch) as bob:
        deadline = Deadline(60)
        while len(chunk_files(pair.bob)) < 10 and deadline.left():
            time.sleep(0.01)
        # Both at once, in the middle.
        bob.end(signal.SIGKILL)
        alice.end(signal.SIGKILL)
    assert gone(pair.alice) == gone(pair.bob) == []
    (listed,) = objects("attachments", *home(pair.bob))
    assert listed["state"] == "fetching" or listed["state"] == "waiting"
    kept = {path: path.stat().st_mtime_ns for path in chunk_files(pair.bob)}
    assert 5 <= len(kept) < 81
    assert listed["held"] >= (len(kept) - 1) * MIB

    with running(*serve) as alice:
        target = tmp_path / "out"
        save = ("save", sent["id"], "--to", str(target), *home(pair.bob))
        (saved,) = objects(*save)
        assert saved["path"] == str(target)
        assert target.read_bytes() == data
        assert target.stat().st_mode & 0o077 == 0
        # What was here before was not fetched again.
        assert all(path.stat().st_mtime_ns == at for path, at in kept.items())
        # It is never overwritten by accident, and no partial file is left anywhere.
        assert "File exists" in failure(walyoff(*save))
        target.unlink()
        denied = tmp_path / "denied"
        denied.mkdir(mode=0o500)
        if os.geteuid():
            refused = walyoff("save", sent["id"], "--to", str(denied), *home(pair.bob))
            assert "Permission denied" in failure(refused)
        assert "Is a directory" not in failure(
            walyoff("save", sent["id"], "--to", str(tmp_path / "no" / "such"), *home(pair.bob))
        )
        assert [path.name for path in tmp_path.iterdir()] == ["film.bin", "denied"]

        # The same file again costs nothing, and the other side has it at once.
        before = chunk_files(pair.bob)
        with running("listen", "family", "--timeout", "1000", *home(pair.bob)):
            alice.end(signal.SIGINT)
            (again,) = objects(*send[:2], "--file", str(file), *home(pair.alice))
        assert again["received_by"] == [pair.bob_did]
        assert chunk_files(pair.bob) == before
        assert chunk_files(pair.alice) == stored
    (first, _) = objects("log", "--last", "2", *home(pair.bob))
    assert first["content"] == "look at this"
    assert first["attachment"]["name"] == "film.bin"
    (freed,) = objects("gc", "--keep", "0", *home(pair.bob))
    assert freed["freed"] == len(data)
    assert chunk_files(pair.bob) == []


def chunk_files(path: Path) -> list[Path]:
    """The files of chunks in a home that are complete."""
    return sorted(p for p in (path / "chunks").rglob("*") if p.is_file() and p.stat().st_size)


def test_bad_invitations_say_what_to_do(pair: Pair, tmp_path: Path) -> None:
    new = home(tmp_path / "carol")
    mistyped = ("b" if pair.used[0] != "b" else "c") + pair.used[1:]
    text = failure(walyoff("join", mistyped, *new))
    assert "mistyped" in text
    assert not (tmp_path / "carol").exists()
    assert mistyped not in text

    assert "group 1 has a mistake" in text
    file = tmp_path / "code.svg"
    result = walyoff(
        *("invite", "--no-wait", "--lifetime", "1", "--uses", "3", "--for", "device"),
        *("--qr-file", str(file), "--json", *home(pair.alice)),
    )
    made = json.loads(result.stdout)
    expired = made["invitation"]
    assert b"<svg" in file.read_bytes()
    assert file.stat().st_mode & 0o777 == 0o600

    # All that were made are listed, one is ended, and no secret is told.
    listed = {i["id"]: i for i in objects("invitations", *home(pair.alice))}
    assert listed[made["id"]]["uses"] == 3
    assert listed[made["id"]]["for"] == "device"
    assert listed[made["id"]]["by"] == pair.alice_did
    (first,) = [i for i in listed.values() if i["used_by"]]
    assert (first["state"], first["used_by"]) == ("used", [pair.bob_did])
    (other,) = objects("invite", "--no-wait", *home(pair.alice))
    (ended,) = objects("invitations", "--revoke", other["id"][:6], *home(pair.alice))
    assert (ended["id"], ended["state"]) == (other["id"], "revoked")
    shown = walyoff("invitations", *home(pair.alice)).stdout.decode()
    assert [line.split()[1] for line in shown.splitlines()] == ["used", "expired", "revoked"]
    assert pair.used.upper()[:30] not in shown.upper().replace("-", "")

    assert "running" in failure(walyoff("join", pair.used, *new)), "nobody is there"
    with running("listen", "--json", *home(pair.alice)) as listening:
        listening.json()
        assert "used" in failure(walyoff("join", pair.used, *new))
        assert "expired" in failure(walyoff("join", expired, *new))
        # In groups, as it is shown, without quotes.
        assert "revoked" in failure(
            walyoff("join", *grouped(other["invitation"]).split("-"), *new)
        )
        code, _, _ = listening.end(signal.SIGTERM)
    assert code == 143
    assert gone(pair.alice) == []


def test_an_identity_is_governed_from_the_command_line(tmp_path: Path) -> None:
    alone = home(tmp_path / "alone")
    (made,) = objects("create", "club", "--admins", *alone)
    (me,) = objects("members", *alone)
    assert (me["did"], me["role"]) == (made["me"], "admin")
    assert "admin" in walyoff("members", *alone).stdout.decode()
    assert "no other member" in failure(walyoff("members", "--make-admin", "xyz", *alone))
    assert objects("renew", *alone) == [{"channel": made["channel"]}]
    assert objects("renew", "--own", *alone) == [{"did": made["me"]}]
    (left,) = objects("leave", "--erase", *alone)
    assert left == {"channel": made["channel"], "left": made["me"], "erased": True}
    assert "club" not in walyoff("status", *alone).stdout.decode()


def test_it_ends_when_nobody_reads_any_more(pair: Pair) -> None:
    with running("listen", "--json", *home(pair.alice)) as listening:
        listening.json()
        assert listening.process.stdout is not None
        assert listening.process.stderr is not None
        listening.process.stdout.close()
        assert listening.process.wait(timeout=HANGS_AFTER) == 0
        assert listening.process.stderr.read() == b""


def test_a_name_that_is_not_there_lists_those_that_are(pair: Pair) -> None:
    text = failure(walyoff("log", "famly", *home(pair.alice)))
    assert "famly" in text
    assert "family" in text


def test_standard_software_takes_the_did_document(pair: Pair) -> None:
    (document,) = objects("did", "show", *home(pair.alice))
    check(document)
    assert document["id"] == pair.channel
    assert document["controller"] == [pair.alice_did, pair.bob_did]
    # The identity's own keys and those of both devices.
    owners = [method["controller"] for method in document["verificationMethod"]]
    assert owners == [pair.channel] * 3 + [pair.alice_did] * 4 + [pair.bob_did] * 4


def test_a_signal_while_it_opens_leaves_nothing(pair: Pair) -> None:
    def owns_the_home(pid: int) -> bool:
        # A file may be closed while it is looked at.
        with contextlib.suppress(FileNotFoundError):
            files = Path(f"/proc/{pid}/fd").iterdir()
            return any(str(pair.bob) in str(file.readlink()) for file in files)
        return False

    def has_a_child(pid: int) -> bool:
        return len(processes_of(pair.bob)) > 1

    for far_enough in (owns_the_home, has_a_child):
        with running("listen", "--json", *home(pair.bob)) as command:
            eventually(lambda: far_enough(command.process.pid), 60)  # noqa: B023 - at once
            code, _, errors = command.end(signal.SIGINT)
        assert code == 130
        assert errors.strip() == ""
        assert gone(pair.bob) == []
    objects("log", *home(pair.bob))


def test_on_a_terminal_what_is_typed_is_sent(pair: Pair) -> None:
    process, terminal = pty.fork()
    if not process:
        os.execv(WALYOFF[0], [*WALYOFF, "listen", *home(pair.alice)])
    try:
        screen = read_until(terminal, "what you type is sent")
        os.write(terminal, "schöne Grüße\n".encode())
        screen += read_until(terminal, "you      schöne Grüße")
        assert "Traceback" not in screen
        # Ctrl-D: the end of what is typed.
        os.write(terminal, b"\x04")
        assert wait_for_end(process) == 0
    finally:
        os.close(terminal)
    assert gone(pair.alice) == []
    (last,) = objects("log", "--last", "1", *home(pair.alice))
    assert last["content"] == "schöne Grüße"
    assert last["mine"] is True


def test_a_person_is_asked_and_sees_a_code_to_scan(pair: Pair, tmp_path: Path) -> None:
    process, terminal = pty.fork()
    if not process:
        os.execv(
            WALYOFF[0], [*WALYOFF, "invite", "--confirm", "--uses", "2", *home(pair.alice)]
        )
    try:
        screen = read_until(terminal, "It is a secret")
        # The string in groups, and a code of half blocks that fits a small terminal.
        lines = screen.replace("\r", "").split("\n")
        (invitation,) = re.findall("[A-Z2-7]{5}-[A-Z2-7-]{60,}", screen)
        code = [line for line in lines if "\u2580" in line]
        assert 10 < len(code) < 24
        new = home(tmp_path / "carol")
        for answer in (b"n\n", b"yes\n"):
            with running("join", invitation, *new) as joining:
                asked = read_until(terminal, "Let it in? [y/N]")
                words = asked[: asked.index("Let it in")].split()[-6:]
                # Both sides show the same words before anybody answers.
                assert joining.process.stderr is not None
                read_until(joining.process.stderr.fileno(), " ".join(words))
                os.write(terminal, answer)
                ended, _, notes = joining.end()
                assert (ended == 0) == (answer == b"yes\n")
                assert ended == 0 or "did not confirm" in notes
        assert " ".join(words) in read_until(terminal, "has joined")
        os.write(terminal, b"\x03")
        assert wait_for_end(process) == 130
    finally:
        os.close(terminal)
    (carol,) = [m for m in objects("members", *new) if m["me"]]
    assert carol["did"] not in (pair.alice_did, pair.bob_did)
    # It is removed by the end of its DID, with the dots that the lists for people show.
    remove = ("remove", "family", f"…{carol['did'][-6:]}", *home(pair.alice))
    (removed,) = objects(*remove)
    assert (removed["removed"], removed["members"]) == (carol["did"], 2)
    assert "ends in" in failure(walyoff(*remove))


def wait_for_end(process: int, timeout: float = 20) -> int:
    """The exit code of a process, which is killed if it does not end."""
    deadline = Deadline(timeout)
    while deadline.left():
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    raise AssertionError("it did not end")


def read_until(descriptor: int, text: str, timeout: float = 30) -> str:
    """What a terminal shows, up to a text."""
    seen = b""
    deadline = Deadline(timeout)
    while text.encode() not in seen:
        ready, _, _ = select.select([descriptor], [], [], deadline.left())
        assert ready or deadline.left(), seen.decode(errors="replace")
        if ready:
            seen += os.read(descriptor, 4096)
    return seen.decode(errors="replace")


def test_a_passphrase_is_needed_ever_after(tmp_path: Path) -> None:
    file, wrong = tmp_path / "right", tmp_path / "wrong"
    file.write_text("correct horse\nsecond line\n")
    wrong.write_text("battery staple\n")
    where = home(tmp_path / "dave")
    made: list[dict[str, Any]] = objects("init", *where, "--passphrase-file", str(file))
    text = failure(walyoff("status", *where, "--passphrase-file", str(wrong)))
    assert "wrong passphrase" in text
    assert "battery" not in text
    assert objects("init", *where, "--passphrase-file", str(file)) == made


def test_an_identity_is_a_member_of_another_one(tmp_path: Path) -> None:
    (me,) = objects("create", "me", *home(tmp_path))
    (team,) = objects("create", "team", "--as", "me", *home(tmp_path))
    assert team["members"] == 1
    (member,) = objects("members", "team", *home(tmp_path))
    assert member["path"] == [me["me"], me["channel"]]
    objects("send", "team", "hello", "--no-wait", *home(tmp_path))
    (message,) = objects("log", "team", *home(tmp_path))
    assert message["path"] == [me["me"], me["channel"], team["channel"]]
    # Somebody else joins it as an identity.
    friend = home(tmp_path / "friend")
    (other,) = objects("create", "friend", *friend)
    with running("invite", "team", "--json", *home(tmp_path)) as inviting:
        invited = inviting.json()["invitation"]
        (joined,) = objects("join", "-", "--as", "friend", *friend, stdin=invited.encode())
        assert inviting.json()["joined"] == other["channel"]
        inviting.end()
    assert (joined["channel"], joined["members"]) == (team["channel"], 2)
    paths = [m["path"] for m in objects("members", "team", *friend)]
    assert [other["me"], other["channel"]] in paths
    shown = walyoff("log", "team", *home(tmp_path)).stdout.decode()
    assert f"you     of …{me['channel'][-6:]}  hello" in shown


def test_a_message_is_forgotten_when_all_agree_and_not_before(pair: Pair) -> None:
    (sent,) = objects("send", "family", "a secret to forget", "--no-wait", *home(pair.alice))
    with (
        running("listen", "family", "--timeout", "1000", *home(pair.alice)),
        running("listen", "family", "--cursor", "f", "--json", *home(pair.bob)) as bob,
    ):
        while bob.json().get("content") != "a secret to forget":
            pass
        bob.end(signal.SIGINT)
    # As the log shows it.
    log = walyoff("log", "family", "--last", "1", *home(pair.alice)).stdout.decode()
    assert log.startswith(sent["id"][:8] + "  ")
    asked = ("forget", "family", log.split()[0], "--reason", "too much", "--timeout", "0")
    (status,) = objects(*asked, *home(pair.alice))
    assert (status["state"], status["erased_here"]) == ("open", False)
    assert [word["member"] for word in status["agreed"]] == [pair.alice_did]
    assert status["waiting"] == [pair.bob_did]
    with running("listen", "family", "--timeout", "1000", *home(pair.alice)):
        (request,) = objects("forget", "family", *home(pair.bob))
        assert (request["id"], request["reason"]) == (sent["id"], "too much")
        answer = ("forget", "family", sent["id"], "--timeout", "200")
        (refused,) = objects(*answer, "--refuse", *home(pair.bob))
        assert [word["member"] for word in refused["refused"]] == [pair.bob_did]
        (agreed,) = objects(*answer, "--approve", *home(pair.bob))
    assert (agreed["state"], agreed["erased_here"], agreed["not_yet"]) == (
        "forgotten",
        True,
        [],
    )
    for path in (pair.alice, pair.bob):
        (shown,) = [m for m in objects("log", "family", *home(path)) if m["id"] == sent["id"]]
        assert shown["content"] is None
    assert "give 4 to 64" in failure(walyoff("forget", "family", "123", *home(pair.bob)))
