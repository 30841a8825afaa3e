"""The home folder: private from its first byte, and owned by one process at a time.

Everything in it is created with its final mode (0700 folders, 0600 files), so there is no
moment at which another user of the machine could open it. Ownership is an flock: the kernel
drops it when the process ends, however it ends, so there is never a stale lock to clear.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from pathlib import Path

from walyoff.errors import HomeInUseError, StoreError

FOLDER_MODE = 0o700
FILE_MODE = 0o600
LOCK_NAME = "lock"
#: A process id has at most 10 digits; what else stands in the lock file is not read.
_MAX_PID_TEXT = 16


def make_private_folder(path: Path) -> None:
    """Create a folder with mode 0700, or take the rights of others from an existing one.

    Raises:
        StoreError: it cannot be created, is no folder, or cannot be made private.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=FOLDER_MODE)
            sync_folder(path.parent)
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            path.chmod(FOLDER_MODE)
        if not path.is_dir():
            raise StoreError(f"{path} is not a folder")
    except OSError as error:
        raise StoreError(f"cannot use the folder {path}: {error.strerror}") from error


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


class HomeLock:
    """The ownership of a home, from its making to `release`."""

    def __init__(self, home: Path) -> None:
        """Take the lock at once or not at all.

        Raises:
            HomeInUseError: somebody has it; the text names the process id.
            StoreError: the lock file cannot be opened.
        """
        try:
            self._descriptor = open_private(home / LOCK_NAME, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise StoreError(f"cannot lock {home}: {error.strerror}") from error
        try:
            # flock and not lockf: it also excludes a second opener in this same process.
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, b"%d\n" % os.getpid(), 0)
        except BlockingIOError:
            owner = os.pread(self._descriptor, _MAX_PID_TEXT, 0).strip()
            os.close(self._descriptor)
            # The owner writes its id just after it got the lock, so it can be missing.
            who = f"process {int(owner)}" if owner.isdigit() else "another process"
            raise HomeInUseError(f"{home} is in use by {who}") from None
        except OSError as error:
            os.close(self._descriptor)
            raise StoreError(f"cannot lock {home}: {error.strerror}") from error

    def release(self) -> None:
        """Give the home free. Idempotent."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            # The file stays: removing it would let two openers lock two different files.
            os.close(descriptor)
