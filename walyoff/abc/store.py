"""`Store` and `ChannelStore`: what a device holds, and the values that go in and come out.

A store keeps and orders; it does not look into bodies and judges nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, Protocol

from walyoff.chunkstore import ChunkStore, NewAttachment


class StoredContent(NamedTuple):
    """A content to be held: the salt of its commitment and the bytes.

    A tuple, because there is one for each message; name its fields all the same.
    """

    salt: bytes
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class NewBatch:
    """A verified batch to be written, with what is held of its contents."""

    author: str
    first_seq: int
    #: The batch's hash, 32 bytes.
    batch_id: bytes
    #: The canonical body and the author's signature; None until an own batch is signed.
    body: bytes
    signature: bytes | None
    #: Per record, in order: its hash (32 bytes), and its content if it is held.
    record_ids: tuple[bytes, ...]
    contents: tuple[StoredContent | None, ...]
    #: The ledger's name of the block that anchors it, if it is known already.
    anchor: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBatch:
    """A batch as it is read back."""

    author: str
    first_seq: int
    count: int
    batch_id: bytes
    body: bytes
    signature: bytes | None
    anchor: str | None
    record_ids: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    """One record of the local log, with its content unless that is not held or gone."""

    #: Its place in the local log: grows by one, never changes, starts at 1.
    position: int
    author: str
    seq: int
    record_id: bytes
    #: The batch that holds the record's metadata, for `walyoff.records.decode_batch`.
    batch_id: bytes
    anchored: bool
    content: StoredContent | None
    #: Its content was destroyed, for good.
    forgotten: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """How far a device's records are held, without a gap."""

    author: str
    #: The newest record's sequence number, its hash, and the batch that it ends.
    seq: int
    record_id: bytes
    batch_id: bytes


class ChannelStore(Protocol):
    """The durable part of one channel. Every read of content authenticates it."""

    async def write(
        self,
        *,
        batches: Sequence[NewBatch] = (),
        contents: Sequence[tuple[bytes, StoredContent]] = (),
        deliver: Sequence[bytes] = (),
        signatures: Sequence[tuple[bytes, bytes]] = (),
        anchors: Sequence[tuple[bytes, str]] = (),
        attachments: Sequence[NewAttachment] = (),
        expiries: Sequence[tuple[bytes, int]] = (),
        values: Mapping[str, bytes | None] = MappingProxyType({}),
    ) -> int:
        """Write all of it in one transaction; durable when it returns.

        `contents` are (record hash, content) of records known before; `deliver` are record
        hashes that get the next positions, one each, in that order; `signatures` are (batch
        hash, signature); `anchors` are (batch hash, block name); `attachments` are those whose
        manifests are held now; `expiries` are (record hash, time in ms at which it is to be
        forgotten); `values` are as in `Store.put`. A content of a forgotten record is not
        taken. All but the values is idempotent: what is there already is left as it is.
        Concurrent calls are committed in call order and
        may share one commit. Cancelling leaves all of it written or nothing.

        Returns the highest position of the log after it.

        Raises:
            StoreError: nothing was written (disk full, read only, corrupt).
        """

    @property
    def chunks(self) -> ChunkStore:
        """The chunks of the channel's attachments."""

    async def heads(self) -> list[Head]:
        """The head of each device, from records held without a gap."""

    async def top(self) -> int:
        """The highest position of the log; 0 when it is empty."""

    async def log(
        self, *, after: int, limit: int, newest_first: bool = False
    ) -> list[LogEntry]:
        """Entries after a position in order (or before it, newest first, 0 = from the end)."""

    async def batches(self, author: str, first_seq: int, last_seq: int) -> list[StoredBatch]:
        """The batches that hold any record of a range, in order; at most 64 of them."""

    async def batch(self, batch_id: bytes) -> StoredBatch | None:
        """One batch."""

    async def contents(self, record_ids: Sequence[bytes]) -> list[StoredContent | None]:
        """The contents of records, None where not held."""

    async def missing(self, limit: int) -> list[tuple[str, int, bytes]]:
        """(author, sequence number, hash) of records without content, oldest first."""

    async def undelivered(self) -> list[tuple[str, int, bytes]]:
        """(author, sequence number, hash) of records with content, or forgotten, and no
        position yet."""

    async def forget(self, record_ids: Sequence[bytes]) -> None:
        """Destroy the contents of records for good; idempotent.

        When it returns, no file of the store has a byte of a content, of its key or of its
        ciphertext. What a crash interrupts is not half done: at the next opening it is either
        done or not begun. No content of these records is ever taken again.

        Raises:
            StoreError: a record is unknown, or it may not be done; call it again.
        """

    async def expired(self, now_ms: int, limit: int) -> list[bytes]:
        """The records that were to be forgotten by a time and are not yet, first due first."""

    async def next_expiry(self) -> int | None:
        """When the next record is to be forgotten, in ms; None if there is none."""

    async def find(self, record_ids: Sequence[bytes]) -> list[LogEntry | None]:
        """The entries of records, without their contents; None for unknown records.

        The position is 0 while a record has none.
        """

    async def beginning(self, digits: str, limit: int) -> list[bytes]:
        """The hashes of records that begin with such hexadecimal digits, the newest first.

        Reads hashes and no contents, in pages.
        """

    async def unsigned(self) -> list[StoredBatch]:
        """Own batches that a crash left without a signature."""

    async def unanchored(self, limit: int) -> list[StoredBatch]:
        """Signed batches that no known block anchors, oldest first."""

    async def get_cursor(self, name: str) -> int:
        """The last position that a named cursor has committed; 0 for a new one."""

    def mark_cursor(self, name: str, position: int) -> None:
        """Note a cursor at once and without waiting; `set_cursor` makes it durable.

        From here on `get_cursor` gives it, in later runs too if this process is killed. A
        power loss may undo it. It never moves back, and is not beyond the end of the log.
        """

    async def set_cursor(self, name: str, position: int) -> None:
        """Commit a cursor; it never moves back. Durable when it returns."""


class Store(Protocol):
    """A device's transactional store. It has one owner at a time and survives any kill."""

    async def get(self, key: str) -> bytes | None:
        """A small sealed value of the device (keys, certificates, addresses)."""

    async def put(self, values: dict[str, bytes | None]) -> None:
        """Write values in one transaction, None removes; durable when it returns."""

    async def keys(self, prefix: str) -> list[str]:
        """The keys that begin with a prefix, sorted."""

    async def erase(self, channel_id: str) -> None:
        """Delete the log of a channel that is closed: records, contents, attachments.

        Positions go on from where they were, so named cursors skip nothing that comes later.
        """

    def channel(self, channel_id: str) -> ChannelStore:
        """The part of the store that belongs to one channel; made at its first write."""

    async def aclose(self) -> None:
        """Finish what was begun and release the store. Idempotent."""


__all__ = [
    "ChannelStore",
    "Head",
    "LogEntry",
    "NewBatch",
    "Store",
    "StoredBatch",
    "StoredContent",
]
