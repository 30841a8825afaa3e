"""The commands about whole homes, without any node: what they say, and that they ask nobody."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from tests.cli_processes import walyoff
from tests.test_moving import ME, store_with_log

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """One event loop: the work is in other processes."""
    return "asyncio"


def done(*arguments: str) -> dict[str, object]:
    """What a command says with --json when it succeeds."""
    result = walyoff(*arguments, "--json")
    assert result.returncode == 0, result.stderr
    value: dict[str, object] = json.loads(result.stdout)
    return value


def failed(*arguments: str) -> str:
    """Its last line when it fails."""
    result = walyoff(*arguments)
    assert result.returncode == 1, result.stdout
    # A step that takes long, on a busy machine, is mentioned before it.
    return result.stderr.decode().splitlines()[-1]


async def test_a_home_is_protected_backed_up_exported_and_moved(tmp_path: Path) -> None:
    home, new = tmp_path / "home", tmp_path / "new"
    async with store_with_log(home):
        pass
    first, second, way = (tmp_path / name for name in ("first", "second", "way"))
    for path in (first, second, way):
        path.write_text(f"the {path.name} passphrase\n")
    at: tuple[str, ...] = ("--home", str(home))
    assert "with --new-passphrase-file" in failed(*at, "passphrase")
    assert done(*at, "passphrase", "--new-passphrase-file", str(first))["passphrase"] is True
    assert "protected by a passphrase" in failed(*at, "backup", str(tmp_path / "backup"))
    at = (*at, "--passphrase-file", str(first))
    done(*at, "passphrase", "--new-passphrase-file", str(second))
    assert "wrong passphrase" in failed(*at, "passphrase", "--remove")
    at = ("--home", str(home), "--passphrase-file", str(second))
    done(*at, "backup", str(tmp_path / "backup"))
    assert stat.S_IMODE((tmp_path / "backup").stat().st_mode) == 0o600
    done(
        *at, "export", str(tmp_path / "file"), "--with-log", "--file-passphrase-file", str(way)
    )
    # It is moved: nothing opens it, and everything says what to do.
    assert "walyoff export --undo" in failed(*at, "status")
    done("--home", str(new), "import", str(tmp_path / "file"),
         "--file-passphrase-file", str(way))  # fmt: skip
    async with store_with_log(new) as store:
        assert await store.get("device") == ME.encode()
    assert done(*at, "export", "--undo")["undone"] is True
    assert "not exported" in failed(*at, "export", "--undo")
    done(*at, "takeover")
    assert "is for `walyoff import`" in failed(
        "--home", str(tmp_path / "x"), "restore", str(tmp_path / "file")
    )
    done("--home", str(tmp_path / "again"), "--passphrase-file", str(second),
         "restore", str(tmp_path / "backup"), "--alone")  # fmt: skip
    assert "not empty" in failed(*at, "restore", str(tmp_path / "backup"))
    assert done(*at, "passphrase", "--remove")["passphrase"] is False
