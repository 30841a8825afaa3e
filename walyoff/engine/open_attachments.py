"""Which attachments are fetched now: what is not whole, what is wanted of it, whose turn it is.

A bounded number is active at a time. One that gets nothing for a while goes to the end of the
line when others wait. No I/O: the driver carries it out.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from walyoff.chunkstore import WISH_DROPPED, WISH_FETCH, Unfinished
from walyoff.engine.policy import AttachmentPolicy
from walyoff.engine.transfer_facts import Transfer
from walyoff.manifest import chunk_count

#: Attachments that are fetched at a time, and their chunks in all: bounds memory.
MAX_ACTIVE = 16
MAX_ACTIVE_CHUNKS = 300_000
#: One that gets nothing for so long makes room for another.
STALLED_AFTER = 20.0


@dataclass(slots=True)
class OpenAttachment:
    """An attachment that is not held as a whole."""

    size: int
    wish: int
    #: When its last chunk came, or it was taken up.
    moved: float = 0.0
    #: Bytes of it that are held, as far as it was looked at.
    held: int = 0
    #: Its manifest does not decode, or is gone.
    refused: bool = False


class OpenAttachments:
    """The table of them, and the line of those that wait."""

    def __init__(self, policy: AttachmentPolicy) -> None:
        self.policy = policy
        self.table: dict[bytes, OpenAttachment] = {}
        self._queue: deque[bytes] = deque()

    def restore(self, found: Iterable[Unfinished]) -> None:
        """Begin with what the store has."""
        self.table = {u.record_id: OpenAttachment(u.size, u.wish) for u in found}
        self.line_up({})

    def wants(self, known: OpenAttachment) -> bool:
        """True if it is to be fetched."""
        if known.refused or known.wish == WISH_DROPPED:
            return False
        return known.wish == WISH_FETCH or self.policy.wants(known.size)

    def line_up(self, active: dict[bytes, Transfer]) -> None:
        """Line up anew all that is wanted and not active."""
        self._queue = deque(
            record_id
            for record_id, known in self.table.items()
            if record_id not in active and self.wants(known)
        )

    def enqueue(self, record_id: bytes, *, first: bool = False) -> None:
        """It is this one's turn last, or first."""
        if first:
            self._queue.appendleft(record_id)
        else:
            self._queue.append(record_id)

    def next(self, active: dict[bytes, Transfer]) -> bytes | None:
        """The first in line that is still wanted and not active; it stays in line."""
        while self._queue:
            record_id = self._queue[0]
            known = self.table.get(record_id)
            if known is not None and record_id not in active and self.wants(known):
                return record_id
            self._queue.popleft()
        return None

    def taken_up(self) -> None:
        """The first in line is active."""
        self._queue.popleft()

    def has_room(self, record_id: bytes, active: dict[bytes, Transfer]) -> bool:
        """True if one more may be active; one always may, whatever its size."""
        count = chunk_count(self.table[record_id].size)
        used = sum(transfer.manifest.count for transfer in active.values())
        return not active or (len(active) < MAX_ACTIVE and used + count <= MAX_ACTIVE_CHUNKS)

    def stalled(self, active: dict[bytes, Transfer]) -> tuple[bytes | None, float]:
        """The active one that got nothing for the longest time, and when it may be put off."""
        # One that is being forgotten has no entry any more, and makes room by itself.
        known = [record_id for record_id in active if record_id in self.table]
        if not known:
            return None, math.inf
        record_id = min(known, key=lambda r: self.table[r].moved)
        return record_id, self.table[record_id].moved + STALLED_AFTER


__all__ = ["MAX_ACTIVE", "OpenAttachment", "OpenAttachments"]
