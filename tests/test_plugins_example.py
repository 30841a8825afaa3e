"""docs/plugins.md does what it says: its code is built, installed, tested and used."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from queue import Empty, Queue

import pytest

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "docs" / "plugins.md"
EXAMPLE = ROOT / "examples" / "transport_plugin"
#: Seconds for pip, for the suite, and for two devices to start, join and talk.
INSTALL_S, SUITE_S, TALK_S = 600, 600, 300

_NAMED = re.compile(r"^`([\w.]+)`:\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def guide_files() -> dict[str, str]:
    """The files that the guide shows, by name."""
    return dict(_NAMED.findall(GUIDE.read_text()))


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="wo-", ignore_cleanup_errors=True) as path:
        yield Path(path)


@pytest.fixture(scope="module")
def installed(folder: Path) -> dict[str, str]:
    """An environment in which the plug-in, built from the guide's text, is installed."""
    source, target = folder / "source", folder / "target"
    source.mkdir()
    for name, text in guide_files().items():
        (source / name).write_text(text)
    command = [
        *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"),
        *("--no-build-isolation", "--disable-pip-version-check", "--target", str(target)),
        str(source),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=INSTALL_S, check=False, cwd=folder
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "tmp").mkdir()
    return {
        **os.environ,
        "PYTHONPATH": str(target),
        "PYTHONUNBUFFERED": "1",
        # The plug-in keeps its sockets there.
        "TMPDIR": str(folder / "tmp"),
    }


def test_the_example_is_the_text_of_the_guide() -> None:
    files = guide_files()
    assert set(files) == {
        "pyproject.toml",
        "talk.py",
        "test_walyoff_demo.py",
        "walyoff_demo.py",
    }
    for name, text in files.items():
        assert (EXAMPLE / name).read_text() == text


def test_the_plug_in_is_found_by_its_name_and_loaded_only_when_asked_for(
    installed: dict[str, str], folder: Path
) -> None:
    code = (
        "import sys; from walyoff import plugins; print(plugins.installed_transports());"
        "print('walyoff_demo' in sys.modules); plugins.transport_factory('demo');"
        "print(sys.modules['walyoff_demo'].__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=installed,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    names, loaded, file = done.stdout.splitlines()
    assert "'demo'" in names
    assert loaded == "False"
    assert Path(file) == folder / "target" / "walyoff_demo.py"


def test_the_plug_in_passes_the_suite(installed: dict[str, str], folder: Path) -> None:
    (folder / "empty.ini").write_text("[pytest]\n")
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "anyio"),
        *("-p", "no:cacheprovider", "-c", str(folder / "empty.ini")),
        str(folder / "source" / "test_walyoff_demo.py"),
    ]
    done = subprocess.run(
        command,
        env={**installed, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=SUITE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= 50


class Talk:
    """The guide's program, running."""

    def __init__(self, env: dict[str, str], folder: Path, *arguments: str) -> None:
        # Its errors go to a file, which nobody needs to read while it runs.
        self._errors = (folder / f"{arguments[0]}.err").open("w+")
        self._process = subprocess.Popen(
            [sys.executable, "source/talk.py", *arguments],
            env=env,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._lines: Queue[str | None] = Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def line(self) -> str:
        with suppress(Empty):
            if (line := self._lines.get(timeout=TALK_S)) is not None:
                return line
        self._errors.seek(0)
        raise AssertionError(f"it says nothing more: {self._errors.read()[-4000:]}")

    def end(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=120)
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._errors.close()


def test_two_devices_talk_through_the_plug_in(installed: dict[str, str], folder: Path) -> None:
    alice = Talk(installed, folder, "alice")
    try:
        invitation = alice.line()
        bob = Talk(installed, folder, "bob", invitation)
        try:
            for device in (alice, bob):
                heard = {device.line(), device.line()}
                assert heard == {"hello from alice", "hello from bob"}
            # They met on the plug-in: there is a socket of each, and no other transport.
            sockets = list((folder / "tmp").glob("walyoff-demo-*/*"))
            assert len(sockets) == 2
        finally:
            bob.end()
    finally:
        alice.end()
