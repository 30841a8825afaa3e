"""examples/chat with three devices, as three people at three terminals use it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.waiting import MOST, Deadline

CHAT = Path(__file__).parents[1] / "examples" / "chat" / "chat.py"
#: Seconds for anything to appear; it takes one or two on an idle machine.
SOON = 40.0


class Person:
    """One terminal with the chat."""

    def __init__(self, home: Path, *options: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(CHAT), str(home), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
        )
        self.lines: list[str] = []
        self._more = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._more:
                self.lines.append(line.rstrip("\n"))
                self._more.notify_all()

    def type(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")

    def sees(self, pattern: str) -> re.Match[str]:
        """Wait for a line that has the pattern."""
        deadline = Deadline(SOON)
        with self._more:
            while True:
                for line in self.lines:
                    if match := re.search(pattern, line):
                        return match
                left = deadline.left()
                assert left, f"no {pattern!r} in {self.lines}"
                self._more.wait(left)

    def end(self) -> int:
        assert self.process.stdin is not None
        self.process.stdin.close()
        code = self.process.wait(MOST * SOON)
        self._reader.join(MOST * SOON)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


@pytest.fixture
def people() -> Iterator[list[Person]]:
    started: list[Person] = []
    yield started
    for person in started:
        if person.process.poll() is None:
            person.process.kill()
            person.end()


def test_three_devices_chat(tmp_path: Path, people: list[Person]) -> None:
    def start(name: str, *options: str) -> Person:
        people.append(Person(tmp_path / name, *options))
        return people[-1]

    alice = start("alice", "--create", "family")
    alice.sees("what you type is sent")
    alice.type("before anybody came")
    alice.type("/invite")
    alice.type("/invite")
    while len(invitations := re.findall(r"invitation: (\w+)", "\n".join(alice.lines))) < 2:
        alice.sees("invitation: ")
        time.sleep(0.05)
    bob, carol = (
        start(who, "--join", invitation)
        for who, invitation in zip(("bob", "carol"), invitations, strict=True)
    )
    # What was said before is there, and each joiner showed the words that Alice saw.
    for person in (bob, carol):
        person.sees("before anybody came")
        words = person.sees(r"words: ((\w+ ){5}\w+)")[1]
        alice.sees(f"has joined; words: {words}$")
    bob.type("hello from bob")
    carol.type("hello from carol \x1b[2J")
    for person in (alice, carol):
        person.sees(r"…\w{6}: hello from bob$")
    bob.sees(r"you: hello from bob$")
    bob.sees(r"…\w{6}: hello from carol \?\[2J$")
    alice.type("/members")
    alice.sees("member: you")
    alice.sees(r"member: …\w{6}")
    alice.type("/help")
    alice.sees(r"^\* what you type")

    # Carol goes, and is told what she missed when she comes back.
    assert carol.end() == 0
    alice.sees("has left")
    bob.type("while carol was away")
    alice.sees("while carol was away")
    carol = start("carol")
    carol.sees("while carol was away")
    assert not any("hello from bob" in line for line in carol.lines)
    for person in (alice, bob, carol):
        assert person.end() == 0, person.lines


def test_the_example_needs_the_public_interface_alone() -> None:
    """No module of walyoff is named, and nothing private is touched."""
    tree = ast.parse(CHAT.read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import)]
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert "walyoff" in {alias.name for node in imports for alias in node.names}
    assert not any(node.module and node.module.startswith("walyoff") for node in froms)
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not any(name.startswith("_") for name in attributes)
    assert len(CHAT.read_text().splitlines()) <= 140
