"""Signatures that were verified: checked once in the life of a home, and never believed from
anybody else.
"""

from __future__ import annotations

import os
import shutil
import sys
import types
from pathlib import Path

import pytest

from walyoff import __version__
from walyoff.child import verifiers
from walyoff.child.verified import MAX_REMEMBERED, TAG_SIZE, Verified
from walyoff.sealing import Sealing

SEALING = Sealing(b"k" * 32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "verified"


def never() -> bool:
    raise AssertionError("a signature was checked again")


def fill(path: Path, count: int, sealing: Sealing = SEALING) -> None:
    found = Verified(path, sealing)
    for number in range(count):
        assert found.check("key", b"signature", b"%d" % number, lambda: True)


def test_what_was_good_is_not_checked_again_after_a_restart(path: Path) -> None:
    fill(path, 3)
    again = Verified(path, SEALING)
    for number in range(3):
        assert again.check("key", b"signature", b"%d" % number, never)
    assert (again.checked, len(again)) == (0, 3)
    assert path.stat().st_mode & 0o077 == 0


def test_bad_ones_without_end_take_no_room_from_good_ones(path: Path) -> None:
    """An outsider announces them: each block is judged, and refused."""
    found = Verified(path, SEALING)
    assert found.check("key", b"signature", b"good", lambda: True)
    for number in range(MAX_REMEMBERED):
        assert not found.check("key", b"signature", b"%d" % number, lambda: False)
    assert found.check("key", b"signature", b"good", never)
    # Those are remembered as well, as many of them.
    assert not found.check("key", b"signature", b"0", never)
    assert path.stat().st_size == TAG_SIZE


@pytest.mark.parametrize("other", [("other", b"signature"), ("key", b"another")])
def test_another_key_signature_or_text_is_checked(path: Path, other: tuple[str, bytes]) -> None:
    fill(path, 1)
    again = Verified(path, SEALING)
    assert not again.check(*other, b"0", lambda: False)
    assert not again.check("key", b"signature", b"1", lambda: False)
    assert again.checked == 2


def test_what_was_bad_is_remembered_in_this_run_alone(path: Path) -> None:
    first = Verified(path, SEALING)
    assert not first.check("key", b"signature", b"text", lambda: False)
    assert not first.check("key", b"signature", b"text", never)
    again = Verified(path, SEALING)
    assert again.check("key", b"signature", b"text", lambda: True)


def test_tags_of_another_home_are_worth_nothing(path: Path) -> None:
    fill(path, 1, Sealing(b"o" * 32))
    assert not Verified(path, SEALING).check("key", b"signature", b"0", lambda: False)


def test_what_another_version_found_good_is_checked_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifiers, "__version__", "0.0.9")
    fill(path, 1)
    monkeypatch.undo()
    assert __version__ in verifiers.verifiers()
    assert not Verified(path, SEALING).check("key", b"signature", b"0", lambda: False)


@pytest.mark.parametrize("change", ["built anew", "another version", "another place"])
def test_what_another_build_of_a_library_found_good_is_checked_again(
    path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    library = path.with_name("library.so")
    library.write_bytes(b"version 1")
    loaded = types.ModuleType("coincurve._libsecp256k1")
    loaded.__file__ = str(library)
    monkeypatch.setitem(sys.modules, loaded.__name__, loaded)
    fill(path, 1)
    assert Verified(path, SEALING).check("key", b"signature", b"0", never)
    if change == "built anew":
        os.utime(library, ns=(0, 1))
    elif change == "another version":
        before = library.stat()
        library.write_bytes(b"version 1.1")
        os.utime(library, ns=(before.st_atime_ns, before.st_mtime_ns))
    else:
        shutil.copy2(library, path.with_name("other.so"))
        loaded.__file__ = str(path.with_name("other.so"))
    assert not Verified(path, SEALING).check("key", b"signature", b"0", lambda: False)


@pytest.mark.parametrize("version", ["0.15.0", "0.16.0"])
def test_a_native_liboqs_is_named_by_its_version(
    monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    """Its file is none of a module's."""
    base = types.ModuleType("multi_crypt._libboqs.pq_base")
    native = types.ModuleType("oqs")
    setattr(native, "oqs_version", lambda: version)  # noqa: B010 - for mypy
    setattr(base, "oqs", native)  # noqa: B010 - for mypy
    monkeypatch.setitem(sys.modules, base.__name__, base)
    assert verifiers.verifiers().split("\n")[2] == version


def test_a_home_without_a_key_keeps_nothing_and_believes_nothing(path: Path) -> None:
    fill(path, 1, Sealing())
    assert not path.exists()
    fill(path, 1)
    assert not Verified(path, Sealing()).check("key", b"signature", b"0", lambda: False)


@pytest.mark.parametrize(
    "damage",
    [b"", b"x", b"\0" * TAG_SIZE, os.urandom(100)],
    ids=["none", "short", "one", "noise"],
)
def test_a_damaged_file_costs_a_check_and_nothing_else(path: Path, damage: bytes) -> None:
    fill(path, 2)
    data = path.read_bytes()
    path.write_bytes(data[:-1] + damage)
    again = Verified(path, SEALING)
    assert again.check("key", b"signature", b"0", never)
    assert not again.check("key", b"signature", b"1", lambda: False)
    assert again.check("key", b"signature", b"2", lambda: True)
    # Whatever stood there, what is written now is found.
    assert Verified(path, SEALING).check("key", b"signature", b"2", never)


def test_the_file_is_bounded_and_keeps_the_newest(path: Path) -> None:
    path.write_bytes(os.urandom(3 * MAX_REMEMBERED * TAG_SIZE))
    assert len(Verified(path, SEALING)) == MAX_REMEMBERED
    assert path.stat().st_size == MAX_REMEMBERED * TAG_SIZE
    fill(path, 5)
    again = Verified(path, SEALING)
    assert again.check("key", b"signature", b"4", never)
    assert len(again) == MAX_REMEMBERED


def test_the_file_is_bounded_while_it_is_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("walyoff.child.verified.MAX_REMEMBERED", 4)
    monkeypatch.setattr("walyoff.child.verified._MAX_STORED", 8)
    fill(path, 50)
    assert path.stat().st_size <= 8 * TAG_SIZE
    assert Verified(path, SEALING).check("key", b"signature", b"49", never)


@pytest.mark.parametrize("kind", ["folder", "link", "pipe"])
def test_something_else_in_its_place_is_not_used(path: Path, kind: str) -> None:
    secret = path.with_name("secret")
    secret.write_bytes(b"")
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(secret)
    fill(path, 1)
    assert secret.read_bytes() == b""
