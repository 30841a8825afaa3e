"""Files appear whole or not at all, durable, and what a kill left of them goes."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from walyoff import files


def test_a_file_is_replaced_whole_and_private(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o644)
    files.replace_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["file"]


def test_its_bytes_are_synced_before_its_name_and_then_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    happened: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def note_sync(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        happened.append("folder" if is_folder else "file")
        fsync(descriptor)

    def note_replace(self: Path, target: Path) -> Path:
        happened.append("name")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "replace", note_replace)
    files.replace_file(path, b"new")
    assert happened == ["file", "name", "folder"]


def test_a_disk_that_fails_leaves_the_old_one_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    files.replace_file(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            files.replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


KILLED = """
import os, sys
from pathlib import Path
from walyoff import files

os.replace = Path.replace = lambda *_: os._exit(9)
work = files.Workplace(Path(sys.argv[1]))
work.make()
(work.path / "half").write_bytes(b"half")
files.replace_file(Path(sys.argv[1]) / "file", b"new")
"""


def test_what_a_kill_left_is_swept_and_what_is_being_written_is_not(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / ".others.new").mkdir()
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert killed.returncode == 9
    assert len(os.listdir(tmp_path)) == 4
    files.sweep_new(tmp_path, "file")
    assert (tmp_path / "file").read_bytes() == b"old"

    first, second = files.Workplace(tmp_path), files.Workplace(tmp_path)
    first.make()
    second.make()
    assert first.path.is_dir()
    assert second.path.is_dir()
    # The leftover of the killed process went, those of the living stay.
    assert {p.name for p in tmp_path.iterdir()} == {
        "file", ".others.new", first.path.name, second.path.name,
    }  # fmt: skip
    for work in (first, second, second):
        work.close()
    assert {p.name for p in tmp_path.iterdir()} == {"file", ".others.new"}
