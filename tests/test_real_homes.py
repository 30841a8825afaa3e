"""A device's home and processes: one owner, nothing outside, nothing left behind."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real.processes import FailedError, World, alive, eventually


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        yield world


def test_a_home_in_use_is_refused_until_its_process_is_gone_however_it_went(
    world: World,
) -> None:
    first = world.start("a")
    # A child of theirs is started before they know that the home is taken.
    under_way = first.home / "child" / "blocks" / "under way"
    eventually(under_way.parent.is_dir, 10)
    under_way.write_text("")
    for _ in range(2):
        with pytest.raises(FailedError, match=f"in use by process {first.pid}") as caught:
            world.start("a")
        assert caught.value.kind == "HomeInUseError"
    # The refused ones have not hurt the first.
    assert under_way.exists()
    first.call("create", name="family")
    first.kill()
    second = world.start("a")
    second.call("send", content=b"mine now")
    assert second.close() == 0
    assert world.start("a").close() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_end_of_a_device_leaves_no_child_and_no_lock(
    world: World, number: signal.Signals
) -> None:
    device = world.start("a")
    device.call("create", name="family")
    child = device.child()
    assert alive(child)
    device.signal(number)
    assert device.wait(10) != 0
    eventually(lambda: not alive(child), 3)
    if number == signal.SIGINT:
        assert "KeyboardInterrupt" in device.log
        assert "unhandled" not in device.log.lower()
        assert "ResourceWarning" not in device.log
    world.start("a").close()


def test_ctrl_c_while_it_starts_leaves_nothing_either(world: World) -> None:
    for delay in (0.3, 0.5, 0.7, 0.9):
        device = world.begin("a")
        with pytest.raises((TimeoutError, EOFError)):
            device.event("never", limit=delay)
        device.signal(signal.SIGINT)
        device.wait(10)
        eventually(lambda: not children_of(world), 3)
    world.start("a").close()


def children_of(world: World) -> list[int]:
    """Processes whose command line names a home of this world."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if str(world.homes).encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def test_nothing_is_printed_by_the_child_and_nothing_written_outside_the_home(
    world: World,
) -> None:
    a, b = world.pair()
    a.call("send", content=b"hello", topics=["greeting"])
    a.call("received")
    a.call("anchored")
    for device in (a, b):
        assert device.close() == 0
    left = [path for path in world.root.rglob("*") if world.homes not in path.parents]
    assert sorted(path.name for path in left) == sorted(
        ["homes", "cwd", "h", "t", "a.log", "b.log"]
    )
    for device in (a, b):
        assert device.events[0]["event"] == "ready"
        assert len(device.events) == 1
        # Its standard error is our own log alone, one line an entry.
        for line in device.log.splitlines():
            assert " walyoff" in line, line
        # A link to a descriptor of the child means another one here.
        for path in (p for p in device.home.rglob("*") if not p.is_symlink()):
            assert path.stat().st_mode & 0o077 == 0, path
