"""Files that only this user may read, and that appear whole or not at all.

Decided here: how a file gets its name, so that a crash at any instant leaves the old one or the
new one and what was confirmed survives a power loss; and how that which a kill left on the way
there is told from what is still being written, and removed. Standard library alone: the child
process and the transports use it as well.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
from pathlib import Path

FOLDER_MODE = 0o700
FILE_MODE = 0o600
#: What is on its way to be a file beside it has this end, and a dot before its name.
NEW = ".new"
#: The name of a workplace in a folder of the user's.
_WORK, _WORK_END = ".walyoff-", ".part"


def open_private(path: Path, flags: int) -> int:
    """Open a file that is created, if at all, with mode 0600; links are not followed."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write all of the data: os.write may stop short, for example when the disk fills."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def sync_folder(path: Path) -> None:
    """Make the names in a folder survive a power loss."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """A private folder and those above it; what is made survives a power loss."""
    if path.is_dir():
        return
    make_folder(path.parent)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=FOLDER_MODE)
        sync_folder(path.parent)


def replace_file(path: Path, data: bytes, *, sync_name: bool = True) -> None:
    """Replace a file whole; durable when it returns. Raises OSError.

    Without `sync_name` a power loss may leave the old one: for many files of one folder, which
    is synced by the caller afterwards.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{NEW}")
    try:
        descriptor = open_private(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if sync_name:
        sync_folder(path.parent)


def sweep_new(folder: Path, name: str = "") -> None:
    """Remove what a kill left of replacing files, or one file, of which we are the owner."""
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        if path.name.startswith(f".{name}") and path.name.endswith(NEW) and path.is_file():
            with contextlib.suppress(OSError):
                path.unlink()


def give_name(temporary: Path, target: Path) -> None:
    """Give a complete file the name that it is to have, if nobody has it; durable then.

    Raises:
        FileExistsError: somebody has the name; nothing was changed.
        OSError: it may not be done.
    """
    try:
        target.hardlink_to(temporary)
    except FileExistsError:
        raise
    except OSError:
        # File systems without links, such as FAT.
        if os.path.lexists(target):
            raise FileExistsError(17, os.strerror(17), str(target)) from None
        temporary.rename(target)
    temporary.unlink(missing_ok=True)
    sync_folder(target.parent)


class Workplace:
    """A private folder of ours in a folder of the user's, for what is to be given a name there.

    What killed processes left there is removed first: nobody has it locked any more. Blocking.
    """

    def __init__(self, parent: Path) -> None:
        self.path = parent
        self._parent = parent
        self._claim: int | None = None

    def __repr__(self) -> str:
        return f"<Workplace {self.path}>"

    def make(self) -> None:
        """Make it. Raises OSError."""
        sweep_workplaces(self._parent)
        while self._claim is None:
            self.path = self._parent / f"{_WORK}{secrets.token_hex(4)}{_WORK_END}"
            self.path.mkdir(mode=FOLDER_MODE)
            with contextlib.suppress(FileNotFoundError):
                claim = _open_folder(self.path)
                with contextlib.suppress(OSError):
                    fcntl.flock(claim, fcntl.LOCK_SH)
                if self.path.exists():
                    self._claim = claim
                else:
                    # Somebody swept before it was locked.
                    os.close(claim)

    def close(self) -> None:
        """Remove it, unless it was renamed. Idempotent."""
        claim, self._claim = self._claim, None
        if claim is not None:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(claim)


def sweep_workplaces(parent: Path) -> None:
    """Remove the workplaces of processes that are gone."""
    with contextlib.suppress(OSError):
        for path in sorted(parent.glob(f"{_WORK}????????{_WORK_END}")):
            with contextlib.suppress(OSError):
                claim = _open_folder(path)
                try:
                    fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path, ignore_errors=True)
                finally:
                    os.close(claim)


def _open_folder(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
