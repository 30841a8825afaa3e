"""`ChunkStore`: the durable part of a channel's attachments, as a protocol.

A chunk is held once for a channel, however many attachments use it, and is alive as long as
one does. An attachment is known from the moment its manifest is written (`ChannelStore.write`),
whether its chunks are held or not. A draft is an attachment that is being sent and has no
record yet; drafts end with the run, their chunks stay until `collect`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

#: What somebody wished for one attachment, in place of the channel's policy.
WISH_NONE = 0
WISH_FETCH = 1
WISH_DROPPED = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class NewAttachment:
    """An attachment whose manifest is written: the ids of its chunks in order."""

    record_id: bytes
    #: Bytes in all.
    size: int
    chunk_ids: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfinished:
    """An attachment that is not held as a whole."""

    record_id: bytes
    size: int
    #: The number of its chunks.
    count: int
    wish: int


class ChunkStore(Protocol):
    """Every read authenticates. All raise StoreError when the store fails."""

    def new_draft(self) -> int:
        """A number for an attachment that begins to be sent."""

    async def adopt(self, draft: int, place: int, chunk_id: bytes) -> bool:
        """Use a chunk that is held for a draft, at a place from 0; False if it is not held."""

    async def put(
        self, chunk_id: bytes, data: bytes, *, draft: tuple[int, int] | None = None
    ) -> bool:
        """Hold a chunk, for a draft at a place, or for those attachments that use it.

        The caller has checked the id. Durable when it returns. False if nothing uses it any
        more: then it is not kept. Cancelling leaves it held or not.
        """

    async def end_draft(self, draft: int) -> None:
        """The draft has its record, or will have none."""

    async def held(self, record_id: bytes) -> bytes | None:
        """Which chunks are held: bit `place % 8` of byte `place // 8`; None if unknown."""

    async def read(self, record_id: bytes, place: int) -> bytes | None:
        """A chunk of an attachment; None if it is not held."""

    async def unfinished(self, limit: int) -> list[Unfinished]:
        """The attachments that are not held as a whole, oldest first."""

    async def finish(self, record_id: bytes) -> bool:
        """Note that an attachment is held as a whole; False if it is not."""

    async def wish(self, record_id: bytes, value: int) -> None:
        """Note what somebody wished for an attachment: one of the WISH constants."""

    async def drop(self, record_id: bytes) -> int:
        """Give up the chunks that no other attachment uses; returns their bytes."""

    async def destroy(self, record_id: bytes) -> None:
        """Forget an attachment: the keys of its chunks, unless another one uses them, and
        their files. Durable when it returns; a kill before leaves files without keys, which
        the next opening removes."""

    async def collect(self) -> tuple[int, int]:
        """Remove the chunks that nothing uses; returns how many, and their bytes."""

    async def total(self) -> int:
        """The bytes of all chunks of the channel."""

    async def positions(self, limit: int) -> list[int]:
        """The positions in the log of the newest attachments, newest first."""
