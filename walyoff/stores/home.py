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
from walyoff.files import FOLDER_MODE, open_private, sync_folder

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
