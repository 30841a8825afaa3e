"""Where named cursors are, written down at once and without waiting.

A durable commit costs an fsync (half a millisecond on a fast disk), which a reader of
thousands of messages a second cannot pay for each. One small write into the system's cache
costs about a microsecond, and survives the kill of this process at any instant, though not a
power loss: for that the database follows.

The file is a row of entries of 32 bytes: the cursor's ref, its position, and a keyed check,
so that what was damaged or made up is no mark. A process that is killed never leaves half of
such a write, and the last position is in the entry that it had before.
"""

from __future__ import annotations

import os
import struct
from contextlib import suppress
from pathlib import Path

from walyoff.files import open_private
from walyoff.stores import places
from walyoff.stores.vault import REF_SIZE, Vault

MARKS_NAME = "cursors"
#: Cursors beyond these have the database alone; an application has a few.
MAX_MARKS = 4096
_POSITION = struct.Struct(">Q")
_CHECK_SIZE = 8
_ENTRY_SIZE = REF_SIZE + _POSITION.size + _CHECK_SIZE


class CursorMarks:
    """The marks of one home. For one thread."""

    def __init__(self, home: Path, vault: Vault) -> None:
        """Raises OSError if the file cannot be opened."""
        self._vault = vault
        self._positions: dict[bytes, int] = {}
        self._slots: dict[bytes, int] = {}
        self._descriptor = open_private(home / MARKS_NAME, os.O_RDWR | os.O_CREAT)
        data = os.pread(self._descriptor, MAX_MARKS * _ENTRY_SIZE, 0)
        #: What is at the end and no whole entry is written over.
        self._count = len(data) // _ENTRY_SIZE
        for slot in range(self._count):
            entry = data[slot * _ENTRY_SIZE : (slot + 1) * _ENTRY_SIZE]
            ref = entry[:REF_SIZE]
            (position,) = _POSITION.unpack_from(entry, REF_SIZE)
            if entry == self._entry(ref, position):
                self._slots[ref] = slot
                self._positions[ref] = max(position, self._positions.get(ref, 0))

    def get(self, ref: bytes) -> int:
        """The position that was marked last; 0 if there is none."""
        return self._positions.get(ref, 0)

    def set(self, ref: bytes, position: int) -> None:
        """Mark a position; a lower one changes nothing."""
        if position <= self._positions.get(ref, 0):
            return
        self._positions[ref] = position
        slot = self._slots.get(ref)
        if slot is None:
            if self._count == MAX_MARKS:
                return
            slot = self._slots[ref] = self._count
            self._count += 1
        # On a full disk there is no mark: the database says why, when it follows.
        with suppress(OSError):
            os.pwrite(self._descriptor, self._entry(ref, position), slot * _ENTRY_SIZE)

    def close(self) -> None:
        """Close the file. Idempotent."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _entry(self, ref: bytes, position: int) -> bytes:
        value = ref + _POSITION.pack(position)
        return value + self._vault.ref(places.MARK, b"", value)[:_CHECK_SIZE]
