"""Syncs of a folder are shared by those who wait for them, and by nobody who came too late."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from walyoff.stores import shared_sync
from walyoff.stores.shared_sync import SharedSync

FOLDER = Path("folder")


class Disk:
    """Stands for the disk: each sync waits until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = threading.Semaphore(0)
        self.let_go = threading.Semaphore(0)
        self.count = 0
        self.error: OSError | None = None
        monkeypatch.setattr(shared_sync, "sync_folder", self.sync)

    def sync(self, _: Path) -> None:
        self.count += 1
        self.begun.release()
        assert self.let_go.acquire(timeout=10)
        if self.error is not None:
            raise self.error


def _waiting(syncs: SharedSync, count: int) -> None:
    """Wait until so many have asked."""
    for _ in range(10_000):
        if syncs.asked == count:
            return
        threading.Event().wait(0.001)
    raise AssertionError("nobody asks")


def test_those_who_wait_share_one_sync_and_nobody_gets_one_that_began_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk, syncs = Disk(monkeypatch), SharedSync()
    done: list[int] = []

    def ask(number: int) -> None:
        syncs.sync(FOLDER)
        done.append(number)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(6)]
    threads[0].start()
    assert disk.begun.acquire(timeout=10)
    for thread in threads[1:]:
        thread.start()
    _waiting(syncs, 6)
    disk.let_go.release()
    # The first has its own; the others came while it ran, and wait for the next.
    threads[0].join(10)
    assert disk.begun.acquire(timeout=10)
    assert done == [0]
    disk.let_go.release()
    for thread in threads:
        thread.join(10)
    assert sorted(done) == list(range(6))
    assert disk.count == syncs.done == 2


def test_an_error_of_the_disk_is_told_to_all_who_waited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk, syncs = Disk(monkeypatch), SharedSync()
    failed: list[str] = []

    def ask() -> None:
        try:
            syncs.sync(FOLDER)
        except OSError as error:
            failed.append(str(error))

    first = threading.Thread(target=ask)
    first.start()
    assert disk.begun.acquire(timeout=10)
    others = [threading.Thread(target=ask) for _ in range(3)]
    for thread in others:
        thread.start()
    _waiting(syncs, 4)
    disk.let_go.release()
    first.join(10)
    assert not failed
    disk.error = OSError(5, "the disk is gone")
    disk.let_go.release()
    for thread in others:
        thread.join(10)
    assert failed == ["[Errno 5] the disk is gone"] * 3
    # It is not held against the next one.
    disk.error = None
    disk.let_go.release()
    syncs.sync(FOLDER)
