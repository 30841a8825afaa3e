"""The live end of the log, decoded and in memory, for those who read along.

Decided here: how much of it is kept. A message is staged when it is accepted, and gets its
position when the store has it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from walyoff.records import KIND_ATTACHMENT, KIND_MESSAGE, Batch

if TYPE_CHECKING:
    from walyoff.engine.forgotten import Forgotten

#: Decoded messages kept for the readers of the live end of the log.
RECENT_MESSAGES = 4096
#: And their bytes.
RECENT_BYTES = 16 * 1024 * 1024
#: Memory that a message holds beside its content, roughly.
BESIDE = 512


@dataclass(slots=True, kw_only=True)
class Delivered:
    """A message of the local log, decoded."""

    #: 0 until it is committed; not changed after.
    position: int
    batch: Batch
    index: int
    content: bytes | None
    #: Why it has no content for good.
    forgotten: Forgotten | None = None

    @property
    def is_message(self) -> bool:
        """False for what devices state among themselves."""
        return self.batch.records[self.index].kind in (KIND_MESSAGE, KIND_ATTACHMENT)

    @property
    def size(self) -> int:
        """Memory that it holds, roughly."""
        return BESIDE + len(self.content or b"")


class Recent:
    """The newest messages of one channel."""

    def __init__(self) -> None:
        self._by_position: OrderedDict[int, Delivered] = OrderedDict()
        #: Memory that they hold, roughly.
        self.size = 0
        #: Between their order and their commit: record id -> message.
        self.staged: dict[bytes, Delivered] = {}

    def __len__(self) -> int:
        return len(self._by_position)

    def after(self, position: int, *, limit: int, size: int) -> list[Delivered]:
        """The messages that follow a position and are here: so many, or a few more bytes."""
        found: list[Delivered] = []
        get = self._by_position.get
        held = 0
        while len(found) < limit and held < size:
            position += 1
            item = get(position)
            if item is None:
                break
            found.append(item)
            held += BESIDE + len(item.content or b"")
        return found

    def committed(self, record_ids: Sequence[bytes], top: int) -> None:
        """Records have their positions, the last of them the top of the log."""
        by_position, size = self._by_position, 0
        for position, record_id in enumerate(record_ids, top - len(record_ids) + 1):
            message = self.staged.pop(record_id, None)
            if message is not None:
                message.position = position
                by_position[position] = message
                size += BESIDE + len(message.content or b"")
        self.size += size
        while len(by_position) > RECENT_MESSAGES or self.size > RECENT_BYTES:
            _, old = by_position.popitem(last=False)
            self.size -= old.size

    def drop(self, record_ids: Collection[bytes], strip: Callable[[Delivered], None]) -> None:
        """Contents were destroyed: take them out."""
        for message in self._by_position.values():
            if message.content and message.batch.record_ids[message.index] in record_ids:
                self.size -= len(message.content)
                strip(message)


__all__ = ["RECENT_BYTES", "RECENT_MESSAGES", "Delivered", "Recent"]
