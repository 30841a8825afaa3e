"""The order in which records appear in the local log.

Decided here: when a record that is held gets its place. It waits for its predecessors (its
author's earlier ones, and the batches that its author had seen) for `LATE_AFTER` seconds at
most, so that one missing content never holds up the rest for longer. A part of the
reconciler, and as pure.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from walyoff.records import Batch, device_id

if TYPE_CHECKING:
    from walyoff.engine.reconciler import Reconciler

#: A message waits at most so long for its missing predecessors.
LATE_AFTER = 1.0


@dataclass(slots=True)
class _Pending:
    """A batch whose records are not all delivered."""

    batch: Batch
    since: float
    #: Index of the next record to deliver.
    at: int


class Delivery:
    """The batches of one channel whose records have not all got their places."""

    def __init__(self, reconciler: Reconciler) -> None:
        self._reconciler = reconciler
        self._devices = {device_id(author): author for author in reconciler.heads}
        self._pending: dict[str, deque[_Pending]] = {}
        self._undelivered: set[bytes] = set()

    def add(self, batch: Batch, now: float) -> None:
        """A batch was accepted; the reconciler knows which of its contents are missing."""
        self._devices.setdefault(device_id(batch.author), batch.author)
        self._pending.setdefault(batch.author, deque()).append(_Pending(batch, now, 0))
        self._undelivered.add(batch.batch_id)

    def __len__(self) -> int:
        return len(self._pending)

    def waits(self, record_id: bytes) -> bool:
        """True for a record of a batch that was accepted, until it is delivered."""
        return any(
            record_id in pending.batch.record_ids[pending.at :]
            for queue in self._pending.values()
            for pending in queue
        )

    def release(self, now: float) -> tuple[bytes, ...]:
        """The records that get their places now, in order."""
        ready: list[bytes] = []
        progress = True
        while progress:
            progress = False
            for author in list(self._pending):
                progress = self._release_author(author, ready, now) or progress
        return tuple(ready)

    def _release_author(self, author: str, ready: list[bytes], now: float) -> bool:
        queue = self._pending[author]
        progress = False
        while queue:
            pending = queue[0]
            late = pending.since + LATE_AFTER
            if (now < late and not self._dependencies_met(pending.batch)) or (
                not self._release_batch(pending, ready, late, now)
            ):
                self._reconciler.wake_at(late)
                break
            queue.popleft()
            self._undelivered.discard(pending.batch.batch_id)
            progress = True
        if not queue:
            del self._pending[author]
        return progress

    def _release_batch(
        self, pending: _Pending, ready: list[bytes], late: float, now: float
    ) -> bool:
        """Deliver a batch's records in order; False if one is still waited for."""
        ids, missing = pending.batch.record_ids, self._reconciler.open
        while pending.at < len(ids):
            record_id = ids[pending.at]
            if record_id in missing:
                if now < late:
                    return False
                # It takes its place when it comes; the ones after it no longer wait.
                missing[record_id].late = True
            else:
                ready.append(record_id)
            pending.at += 1
        return True

    def _dependencies_met(self, batch: Batch) -> bool:
        reconciler = self._reconciler
        for seen in batch.seen:
            if seen.batch_id in self._undelivered:
                return False
            author = self._devices.get(seen.device)
            if author in reconciler.forked:
                # Nothing more of it is coming.
                continue
            head = reconciler.heads.get(author) if author else None
            if head is None or head.seq < seen.last_seq:
                return not reconciler.peers
        return True


__all__ = ["LATE_AFTER", "Delivery"]
