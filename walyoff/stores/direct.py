"""Writing a large file past the system's cache, where that is possible.

What is synced at once gains nothing from the cache: copying into it and writing back from it
took two to four times the time of writing directly, and most of the processor's.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import threading

#: What block devices want addresses and sizes to be a multiple of.
_BLOCK = 4096
#: Smaller files are not worth it.
_MIN_SIZE = 64 * 1024
_DIRECT = getattr(os, "O_DIRECT", 0)
_local = threading.local()


def write_direct(descriptor: int, data: bytes) -> bool:
    """Write an empty file past the cache; False if that cannot be done: write it as usual.

    The file is empty then. It is not synced here.
    """
    size = len(data)
    if not _DIRECT or size < _MIN_SIZE:
        return False
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    try:
        # Some file systems have no such way, as tmpfs.
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | _DIRECT)
        if _write_aligned(descriptor, data):
            os.ftruncate(descriptor, size)
            return True
    except OSError:
        # Whatever it is, the usual way meets it again, and tells it.
        pass
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return False


def _write_aligned(descriptor: int, data: bytes) -> bool:
    padded = -(-len(data) // _BLOCK) * _BLOCK
    buffer: mmap.mmap | None = getattr(_local, "buffer", None)
    if buffer is None or len(buffer) < padded:
        # A mapping begins at a page; one for each thread, and of ciphertext alone.
        buffer = _local.buffer = mmap.mmap(-1, padded)
    buffer[: len(data)] = data
    with memoryview(buffer) as view, view[:padded] as aligned:
        return os.write(descriptor, aligned) == padded
