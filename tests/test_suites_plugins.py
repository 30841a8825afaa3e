"""Plug-ins: found by name, loaded late, blamed by their distribution."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from walyoff import plugins
from walyoff.errors import LocalProtocolError, UnknownSuiteError, WalyoffError


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    plugins.forget_plugins()
    yield
    plugins.forget_plugins()


def install(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, entry_points: str, code: str = ""
) -> None:
    """Put a real distribution with entry points on the path."""
    module = name.replace("-", "_")
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)
    (folder / f"{module}.py").write_text(code)
    monkeypatch.syspath_prepend(str(folder))
    importlib.invalidate_caches()
    plugins.forget_plugins()


GOOD = """
from walyoff_codecs.classic1 import Classic1
class Mine(Classic1):
    name = "mine-1"
instance = Mine()
class Fails(Classic1):
    def __init__(self):
        raise OSError("no hardware")
class Half:
    name = "half-1"
def open_pipe(host):
    raise NotImplementedError
number = 7
"""


def test_the_default_suite_is_installed_and_loaded_once() -> None:
    assert "hybrid-1" in plugins.installed_suites()
    first = plugins.suite("hybrid-1")
    assert first.name == "hybrid-1"
    assert plugins.suite("hybrid-1") is first


def test_an_unknown_suite_lists_what_is_installed() -> None:
    with pytest.raises(UnknownSuiteError, match=r"'future-9' is not installed.*hybrid-1"):
        plugins.suite("future-9")


def test_an_unknown_transport_lists_what_is_installed() -> None:
    with pytest.raises(LocalProtocolError, match=r"'pigeon' is not installed.*ipfs"):
        plugins.transport_factory("pigeon")


def test_a_plug_in_may_be_a_class_or_an_instance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "[walyoff.suites]\nmine-1 = my_suite:Mine\n"
    install(tmp_path, monkeypatch, "my-suite", text, GOOD)
    assert plugins.suite("mine-1").aead_key_size == 32
    (tmp_path / "my_suite-1.0.dist-info" / "entry_points.txt").write_text(
        "[walyoff.suites]\nmine-1 = my_suite:instance\n"
        "[walyoff.transports]\npipe = my_suite:open_pipe\nbad = my_suite:number\n"
    )
    importlib.invalidate_caches()
    plugins.forget_plugins()
    assert plugins.suite("mine-1").name == "mine-1"
    assert plugins.transport_factory("pipe").__name__ == "open_pipe"  # type: ignore[attr-defined]
    with pytest.raises(WalyoffError, match=r"'bad'.*'my-suite'.*not callable"):
        plugins.transport_factory("bad")


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("broken-1 = not_there_at_all:Suite", "does not load"),
        ("broken-1 = broken_suite:missing", "does not load"),
        ("broken-1 = broken_suite:Fails", "no hardware"),
        ("broken-1 = broken_suite:Half", "lacks key_types"),
        ("broken-1 = broken_suite:Mine", "name of its own"),
    ],
)
def test_a_broken_suite_is_blamed_by_its_distribution_and_spoils_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, text: str
) -> None:
    install(tmp_path, monkeypatch, "broken-suite", f"[walyoff.suites]\n{target}\n", GOOD)
    assert "broken-1" in plugins.installed_suites()
    with pytest.raises(WalyoffError, match="'broken-suite'") as error:
        plugins.suite("broken-1")
    assert text in str(error.value)
    assert plugins.suite("hybrid-1").name == "hybrid-1"


def test_nobody_takes_the_place_of_a_suite_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "[walyoff.suites]\nhybrid-1 = evil_suite:Mine\n"
    install(tmp_path, monkeypatch, "evil-suite", text, GOOD)
    with pytest.raises(WalyoffError, match="by distributions 'evil-suite' and 'walyoff'"):
        plugins.suite("hybrid-1")


def test_importing_it_loads_neither_plug_ins_nor_metadata() -> None:
    code = (
        "import sys; before = set(sys.modules); import walyoff.plugins; "
        "late = 'walyoff_', 'cryptography', 'importlib.metadata'; "
        "print([name for name in set(sys.modules) - before if name.startswith(late)])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    assert result.stdout.strip() == "[]"
