"""When to write which batches to the ledger.

Decided here: the pace and the grouping of anchor blocks. A block costs far more than a
message and grows dearer with the chain, so the pace follows the measured cost of a block,
and everything that waits goes into the next one. No I/O, no clock, no randomness of its own.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

#: A lone batch waits so long for company.
DELAY = 0.2
#: While more keep coming a block waits at most so long: it takes the processor from them.
LONGEST_DELAY = 3.0
#: The ledger is kept busy for at most one part in so many.
DUTY = 4.0
#: A batch that its author left behind is anchored by any member after this and a random part.
ORPHAN_AFTER = 20.0
#: After a failure: doubles up to the last.
RETRY_FIRST = 1.0
RETRY_LAST = 60.0
#: Leaves room for certificates in a block of 900,000 bytes.
MAX_BLOCK_BYTES = 700_000
#: Batches of one block: fewer than a reader takes (`epochs.MAX_ANCHOR_PARTS`).
MAX_BLOCK_BATCHES = 400


@dataclass(slots=True)
class _Waiting:
    size: int
    due: float
    own: bool


class Anchoring:
    """The batches that no known block anchors yet, and when to write them."""

    def __init__(self, *, seed: int) -> None:
        self.waiting: dict[bytes, _Waiting] = {}
        self._random = random.Random(seed)  # noqa: S311 - jitter only
        self._next_block = 0.0
        #: Since when own batches wait for the next block, and until when for more of them.
        self._since: float | None = None
        self._until = 0.0
        self._writing: tuple[bytes, ...] = ()
        self._started = 0.0
        self._failures = 0

    def add(self, batch_id: bytes, size: int, *, own: bool, now: float) -> float:
        """A signed batch is held that no block is known to anchor.

        Returns when it may be taken, if nothing else comes between.
        """
        waiting = self.waiting.get(batch_id)
        if waiting is None:
            pause = DELAY if own else ORPHAN_AFTER * (1 + self._random.random())
            waiting = self.waiting[batch_id] = _Waiting(size, now + pause, own)
            if own:
                self._since = now if self._since is None else self._since
                self._until = min(now + DELAY, self._since + LONGEST_DELAY)
        return max(self._next_block, self._until, waiting.due)

    def anchored(self, batch_id: bytes) -> None:
        """A block that anchors the batch is known."""
        self.waiting.pop(batch_id, None)

    def take(self, now: float) -> tuple[bytes, ...]:
        """The batches to write into one block now; empty if it is not time."""
        if self._writing or now < max(self._next_block, self._until):
            return ()
        if not any(w.due <= now for w in self.waiting.values()):
            return ()
        chosen: list[bytes] = []
        total = 0
        # Whatever is due, and with it own batches that would be due soon.
        for batch_id, waiting in self.waiting.items():
            if waiting.due > now + DELAY:
                continue
            if chosen and total + waiting.size > MAX_BLOCK_BYTES:
                break
            chosen.append(batch_id)
            total += waiting.size
            if len(chosen) == MAX_BLOCK_BATCHES:
                break
        self._writing = tuple(chosen)
        self._since = None
        self._started = now
        return self._writing

    def has_orphans(self, now: float) -> bool:
        """Whether `take` may give batches that others left behind."""
        return any(w.due <= now + DELAY and not w.own for w in self.waiting.values())

    def hold_orphans(self, now: float) -> None:
        """What others left behind may be on the part of the ledger that is not here yet."""
        for waiting in self.waiting.values():
            if waiting.due <= now + DELAY and not waiting.own:
                waiting.due = now + ORPHAN_AFTER * (1 + self._random.random())

    def put_off(self, batch_id: bytes, now: float) -> None:
        """A batch that `take` gave cannot be written yet; the others are not to wait for it."""
        if waiting := self.waiting.get(batch_id):
            waiting.due = now + DELAY

    def forget(self) -> None:
        """Begin anew, but for the pace."""
        self.waiting.clear()
        self._writing = ()
        self._since = None

    def written(self, batch_ids: Iterable[bytes], now: float) -> None:
        """A block with these of the batches that `take` gave is on the ledger."""
        for batch_id in batch_ids:
            self.waiting.pop(batch_id, None)
        self._writing = ()
        self._failures = 0
        self._next_block = now + (now - self._started) * (DUTY - 1)

    def failed(self, now: float) -> None:
        """The block that `take` gave could not be written."""
        self._writing = ()
        self._failures += 1
        pause = min(RETRY_FIRST * 2 ** min(self._failures - 1, 10), RETRY_LAST)
        self._next_block = now + pause * (0.5 + self._random.random())

    def deadline(self) -> float | None:
        """When `take` may give something."""
        if self._writing or not self.waiting:
            return None
        return max(self._next_block, self._until, min(w.due for w in self.waiting.values()))
