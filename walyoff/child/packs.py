"""Blocks that were handed over, one after the other in one file beside the stock layout.

A file for each block, in one of a thousand folders, costs a third of a millisecond: as much as
all else that a missed block takes. So what a device missed is appended to one file of its
chain. Full segments stay as they came; the blocks of a chain that is opened in Walytis get
files of their own, as stock code has them, off everybody's way (`ChainFiles.spread`).

A record is the block's CID (46 bytes), the size of its file (u32, big-endian), and the file.
A crash may tear the end, which is cut when the pack is read; whoever reads it decodes the files
and compares them with their CIDs, so nothing else needs to be trusted.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from walyoff.child.blocks import MAX_FILE, check_cid
from walyoff.errors import LedgerError, RemoteProtocolError
from walyoff.files import sync_folder

#: Beside ReceivedBlocks in a chain's folder.
NAME = "HandedOver"
_HEADER = struct.Struct(">46sI")


class Pack:
    """The pack of one chain, if it has one. Not safe to use from many threads at once."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        #: Where in the file each block's is, and its size.
        self._places: dict[str, tuple[int, int]] = {}
        self._end = 0
        self._unwritten: dict[str, bytes] = {}
        self._fd: int | None = None
        #: Whether the file's name, and its chain's folder, would survive a power loss.
        self._named = False

    def __contains__(self, cid: object) -> bool:
        return cid in self._places or cid in self._unwritten

    def __iter__(self) -> Iterator[str]:
        return iter([*self._places, *self._unwritten])

    def __len__(self) -> int:
        return len(self._places) + len(self._unwritten)

    def put(self, cid: str, data: bytes) -> None:
        """Take a block's file; `flush` writes it."""
        self._unwritten[cid] = data

    def flush(self, *, sync: bool = True) -> None:
        """Write what was put; durable when it returns, unless the next one is to see to it."""
        if not self._unwritten:
            return
        parts: list[bytes] = []
        places: dict[str, tuple[int, int]] = {}
        end = self._end
        for cid, data in self._unwritten.items():
            parts += (_HEADER.pack(cid.encode(), len(data)), data)
            places[cid] = (end + _HEADER.size, len(data))
            end += _HEADER.size + len(data)
        self._path.parent.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            # Over a torn end, if an earlier write failed half way.
            os.ftruncate(fd, self._end)
            with open(fd, "wb", closefd=False) as file:
                file.seek(self._end)
                file.write(b"".join(parts))
            if sync:
                os.fdatasync(fd)
        finally:
            os.close(fd)
        if sync and not self._named:
            # It may be new, and its chain's folder as well.
            sync_folder(self._path.parent)
            sync_folder(self._path.parent.parent)
            self._named = True
        self._places.update(places)
        self._end = end
        self._unwritten.clear()

    def read(self, cid: str) -> bytes | None:
        """A block's file, if it is here. Raises LedgerError when it cannot be read."""
        data = self._unwritten.get(cid)
        place = self._places.get(cid)
        if data is not None or place is None:
            return data
        start, size = place
        try:
            if self._fd is None:
                self._fd = os.open(self._path, os.O_RDONLY)
            found = os.pread(self._fd, size, start)
        except OSError as error:
            raise LedgerError(f"block {cid} cannot be read") from error
        if len(found) != size:
            raise LedgerError(f"block {cid} is cut off")
        return found

    def load(self) -> None:
        """Learn what is in the file, and cut off a torn end."""
        self.close()
        self._places, self._unwritten, self._end = {}, {}, 0
        try:
            size = self._path.stat().st_size
        except FileNotFoundError:
            return
        with open(self._path, "rb") as file:
            for cid, start, length in records(file):
                self._places[cid] = (start, length)
                self._end = start + length
        if self._end < size:
            os.truncate(self._path, self._end)

    def drop(self, cid: str) -> None:
        """Forget a block that turned out to be damaged; the file keeps its bytes."""
        self._places.pop(cid, None)

    def remove(self) -> None:
        """Remove the file: its blocks are elsewhere."""
        self.close()
        self._places, self._unwritten, self._end = {}, {}, 0
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()

    def move(self, folder: Path) -> None:
        """The chain's folder was moved."""
        self._path = folder / NAME
        self._named = False

    def close(self) -> None:
        """Let the file go; it is opened again when it is needed. Idempotent."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


def holds(folder: Path) -> bool:
    """Whether a chain's folder has a pack with anything in it."""
    try:
        return (folder / NAME).stat().st_size > 0
    except FileNotFoundError:
        return False


def records(file: BinaryIO) -> Iterator[tuple[str, int, int]]:
    """(CID, offset, size) of the whole records of a pack, up to the first that is none."""
    total = file.seek(0, os.SEEK_END)
    at = 0
    while at + _HEADER.size <= total:
        file.seek(at)
        name, size = _HEADER.unpack(file.read(_HEADER.size))
        at += _HEADER.size
        try:
            cid = name.decode("ascii")
            check_cid(cid)
        except (UnicodeDecodeError, RemoteProtocolError):
            return
        if size > MAX_FILE or at + size > total:
            return
        yield cid, at, size
        at += size
