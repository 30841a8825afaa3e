"""What `walyoff invite` shows and asks, without devices: codes, files, questions."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.make_vectors import BOB, CHANNEL, INVITATION
from walyoff.cli import qr
from walyoff.cli.console import Console
from walyoff.cli.inviting import _asking
from walyoff.cli.runtime import Failure
from walyoff.inviting import Joiner

WORDS = ("round", "monster", "chest", "hero", "swing", "tissue")
JOINER = Joiner(did=BOB, words=WORDS, invitation_id="00", channel=CHANNEL)


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Where to write what is typed."""
    reading, writing = os.pipe()
    with os.fdopen(reading) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        yield writing
    os.close(writing)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_a_question_shows_the_words_and_only_yes_is_a_yes(
    typed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    for answer, yes in ((b"y\n", True), (b" YES \n", True), (b"\n", False), (b"yeah\n", False)):
        os.write(typed, answer)
        assert await _asking(Console(json=False))(JOINER) is yes
        shown = capsys.readouterr()
        assert " ".join(WORDS) in shown.err
        assert BOB in shown.err
        assert shown.out == ""


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_program_is_asked_in_json(
    typed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    os.write(typed, b"yes\n")
    assert await _asking(Console(json=True))(JOINER)
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"channel": CHANNEL, "asks": BOB, "words": list(WORDS)}
    assert shown.err == ""


def test_a_code_fits_a_terminal_of_24_lines_and_80_columns() -> None:
    lines = qr.draw(str(INVITATION)).split("\n")
    plain = [line.removeprefix("\x1b[30;107m").removesuffix("\x1b[0m") for line in lines]
    assert len(plain) < 24
    assert {len(line) for line in plain} == {len(plain[0])}
    assert len(plain[0]) < 80
    assert set("".join(plain)) == set(" ▀▄█")
    # The finder patterns, three of them: a quiet zone of two, and seven modules.
    for line in (plain[1], plain[1][::-1]):
        assert line.startswith("  █▀▀▀▀▀█ ")


@pytest.mark.parametrize(("name", "begins"), [("a.svg", b"<?xml"), ("a.PNG", b"\x89PNG")])
def test_a_code_is_written_to_a_new_file_of_its_owner(
    tmp_path: Path, name: str, begins: bytes
) -> None:
    path = tmp_path / name
    old = os.umask(0)
    try:
        qr.save(str(INVITATION), path)
    finally:
        os.umask(old)
    assert path.read_bytes().startswith(begins)
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(Failure, match="exists already"):
        qr.save(str(INVITATION), path)
    with pytest.raises(Failure, match=r"\.svg nor a \.png"):
        qr.save(str(INVITATION), tmp_path / "a.txt")
