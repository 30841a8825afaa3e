"""The command line without a running device: usage, errors, and what is printed."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import click
import pytest

from tests.sim.virtual import group
from tests.sim.virtual import run as sim_run
from walyoff.cli import attachments, run
from walyoff.cli.forgetting import _find
from walyoff.cli.naming import the_one, wanted_id
from walyoff.cli.output import dump, encode_content, escape_line, escape_text
from walyoff.cli.runtime import Failure
from walyoff.engine.attachment_states import AttachmentState

WALYOFF = [sys.executable, "-m", "walyoff.cli"]
BOUND_S = 300


@dataclass
class Result:
    code: int
    stdout: str
    stderr: str

    def one_line(self) -> str:
        """The error: exit code 1, one line on stderr, and no traceback."""
        assert self.code == 1
        assert self.stderr.startswith("walyoff: "), self.stderr
        assert self.stderr.count("\n") == 1, self.stderr
        return self.stderr


Walyoff = Callable[..., Result]


@pytest.fixture
def walyoff(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Walyoff:
    """Run a command in this process: what fails before a device is opened is quick so."""
    monkeypatch.delenv("WALYOFF_HOME", raising=False)

    def call(*arguments: str, **env: str) -> Result:
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        code = run(arguments)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


def test_help_answers_at_once_as_a_process() -> None:
    """In processor time, which other work on the machine does not add to."""
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = subprocess.run(
            [*WALYOFF, "--help"], capture_output=True, timeout=BOUND_S, check=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    for command in ("init", "create", "invite", "join", "send", "listen", "log", "records"):
        assert command in result.stdout.decode()
    # It is 0.15 s on an idle machine.
    assert min(times) < 0.6, times


def test_version(walyoff: Walyoff) -> None:
    assert walyoff("--version") == Result(0, "walyoff, version 0.1.0\n", "")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, walyoff.cli as c; c.run(['--help'])\n"
        "heavy = {'cryptography', 'walyoff.opening', 'cffi', 'nacl', 'asyncio'}\n"
        "heavy &= set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, timeout=BOUND_S, check=False
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["create"],
        ["send", "a", "b", "c"],
        ["send", "a", "b", "c", "--file", __file__],
        ["attachments", "--quota", "much"],
        ["save"],
        ["listen", "--cursor", "a", "--since", "1"],
        ["listen", "--count", "0"],
        ["log", "--last", "many"],
        ["invite", "--lifetime", "0"],
        ["join"],
        ["--passphrase-file", "/nowhere/at/all", "status"],
    ],
)
def test_wrong_usage_is_exit_code_2(
    arguments: list[str], tmp_path: Path, walyoff: Walyoff
) -> None:
    result = walyoff(*arguments, WALYOFF_HOME=str(tmp_path / "home"))
    assert result.code == 2
    assert "Error: " in result.stderr
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("command", ["status", "members", "log", "records", "listen", "invite"])
def test_without_a_device_it_says_how_to_make_one(
    command: str, tmp_path: Path, walyoff: Walyoff
) -> None:
    result = walyoff("--home", str(tmp_path / "none"), command)
    assert "walyoff init" in result.one_line()
    assert not (tmp_path / "none").exists()


def test_home_comes_from_the_environment_or_xdg(tmp_path: Path, walyoff: Walyoff) -> None:
    chosen, data = str(tmp_path / "chosen"), str(tmp_path / "data")
    result = walyoff("status", WALYOFF_HOME=chosen, XDG_DATA_HOME=data)
    assert f" {chosen}:" in result.one_line()
    result = walyoff("status", WALYOFF_HOME="", XDG_DATA_HOME=data)
    assert f" {data}/walyoff:" in result.one_line()
    result = walyoff("status", XDG_DATA_HOME="relative", HOME=str(tmp_path))
    assert f" {tmp_path}/.local/share/walyoff:" in result.one_line()


@pytest.mark.parametrize("data", [b"", b"\nsecond line\n", b"\xff\xfe\n"])
def test_a_bad_passphrase_file_is_told_without_its_content(
    data: bytes, tmp_path: Path, walyoff: Walyoff
) -> None:
    file = tmp_path / "passphrase"
    file.write_bytes(data)
    result = walyoff("init", "--home", str(tmp_path / "h"), "--passphrase-file", str(file))
    assert str(file) in result.one_line()


def test_terminals_never_get_control_characters() -> None:
    hostile = "a\x1b[2Jb\x07\x9b1m\u202ec\u2028d\x00e\x7f"
    shown = escape_text(hostile)
    assert shown.isprintable()
    assert shown == "a\\x1b[2Jb\\x07\\x9b1m\\u202ec\\u2028d\\x00e\\x7f"
    assert escape_line("two\nlines") == "two\\nlines"
    # A second line is indented, so it cannot look like the line of another message.
    assert escape_text("one\n12:00:00  you  fake\n", "    ") == "one\n    12:00:00  you  fake"
    assert escape_text("grüße 👩‍🚀 日本") == "grüße 👩‍🚀 日本"
    assert dump({"a": hostile}).isascii()
    assert json.loads(dump({"a": hostile})) == {"a": hostile}


def test_bytes_in_json_say_how_they_are_encoded() -> None:
    assert encode_content("grün".encode()) == {"content": "grün", "encoding": "utf-8"}
    assert encode_content(b"\xff\x00") == {"content": "/wA=", "encoding": "base64"}
    assert encode_content(None) == {"content": None, "encoding": None}


def test_since_is_a_position_an_age_or_a_time() -> None:
    from walyoff.cli.listening import parse_since

    now = datetime(2026, 11, 22, 12, tzinfo=UTC)
    assert parse_since("17", now) == 17
    assert parse_since("90m", now) == now - timedelta(minutes=90)
    assert parse_since("3d", now) == now - timedelta(days=3)
    assert parse_since("2026-11-22T08:00+01:00", now) == datetime(2026, 11, 22, 7, tzinfo=UTC)
    for wrong in ("", "yesterday", "-5", "999999999d", "9" * 30, "2026-99-01", "١٧"):
        with pytest.raises(click.UsageError):
            parse_since(wrong, now)


def test_how_far_a_file_is_can_be_read_on_a_terminal_and_in_a_line() -> None:
    assert attachments.bar(0, 0) == f"[{'#' * 24}] 100% of 0 B"
    assert attachments.bar(1500, 3000) == f"[{'#' * 12}{'.' * 12}]  50% of 3.0 kB"
    assert "##" not in attachments.bar(1, 3000)


def test_a_line_of_the_attachments_names_the_device_and_the_people_above_it() -> None:
    device, person, channel = (f"did:walytisidentities:{name * 6}" for name in "abc")
    message: Any = SimpleNamespace(
        id=bytes(32), author=device, path=(device, person, channel), time=datetime.now(UTC)
    )
    file: Any = SimpleNamespace(state=AttachmentState.HELD, held=3, size=3, name="photo.jpg")
    assert "  …aaaaaa of …bbbbbb  " in attachments._line(message, file, channel)
    assert "  you     of …bbbbbb  " in attachments._line(message, file, device)


def _with_ids(*ids: str) -> list[Any]:
    now = datetime(2026, 11, 22, tzinfo=UTC)
    return [SimpleNamespace(id=bytes.fromhex(one.ljust(64, "0")), time=now) for one in ids]


def test_the_beginning_of_an_id_names_a_message_if_it_begins_no_other() -> None:
    found = _with_ids("ab12cd34ef01", "ab12cd34ef99", "ab77")
    assert the_one(found, wanted_id("AB77"), "message") is found[2]
    assert the_one(found, wanted_id("ab12cd34ef0"), "message") is found[0]
    with pytest.raises(Failure) as several:
        the_one(found, wanted_id("ab12"), "message")
    # Each is named by so much of its id that it is no other one's.
    assert "2 ids begin with ab12" in str(several.value)
    assert "ab12cd34ef0 (" in str(several.value)
    assert "ab12cd34ef9 (" in str(several.value)
    with pytest.raises(Failure, match="no message has an id that begins with cccc"):
        the_one(found, wanted_id("cccc"), "message")


@pytest.mark.parametrize("text", ["", "ab1", "xyzw", "ab12\x1b[31m", "ab" * 33, "\u0661" * 4])
def test_what_is_no_id_is_said_in_a_harmless_line(text: str) -> None:
    with pytest.raises(Failure) as error:
        wanted_id(text)
    assert "\x1b" not in str(error.value)
    assert "walyoff log" in str(error.value)


#: Sends itself a Ctrl-C when a module is imported, or when the process ends.
_INTERRUPTING = """
import atexit, importlib.abc, os, signal, sys
when = sys.argv.pop(1)
def press(*_):
    os.kill(os.getpid(), signal.SIGINT)
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == when:
            press()
sys.meta_path.insert(0, Finder())
if when == "the end":
    atexit.register(press)
from walyoff.cli import main
main()
"""


@pytest.mark.parametrize(
    "when",
    ["resource", "click", "walyoff.cli.commands", "walyoff.opening", "the end"],
)
def test_ctrl_c_at_any_moment_ends_quietly(when: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _INTERRUPTING, when, "--home", str(tmp_path / "home"), "init"]
        if when == "walyoff.opening"
        else [sys.executable, "-c", _INTERRUPTING, when, "--version"],
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        check=False,
    )
    assert (done.returncode, done.stderr.strip()) == (130, "")


def test_forget_reads_hashes_and_not_the_history_for_the_beginning_of_an_id() -> None:
    async def main() -> None:
        async with group(1) as g:
            (channel,) = g.channels
            receipts = await channel.send_many([b"%d" % n for n in range(300)])
            await (await channel.send(b"the last")).wait_anchored()
            store, read = channel.engine.store, 0
            log = store.log

            async def counted(**page: Any) -> Any:
                nonlocal read
                read += page["limit"]
                return await log(**page)

            with mock.patch.object(store, "log", counted):
                assert await _find(channel, receipts[7].id.hex()[:12].upper()) == receipts[7].id
                with pytest.raises(Failure, match="no message has an id"):
                    await _find(channel, "00000000000000")
            assert read == 1
            (found,) = await channel.find(receipts[7].id.hex())
            assert found.content == b"7"
            assert len(await channel.find("", limit=5)) == 5

    sim_run("asyncio", main)


def test_who_ignores_ctrl_c_goes_on_ignoring_it() -> None:
    """As a command that a script has put into the background."""
    command = [sys.executable, "-c", _INTERRUPTING, "click", "--version"]
    done = subprocess.run(
        ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", *command],
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "walyoff" in done.stdout
