"""What a call on the store may ask for, checked before anything is queued.

A call that breaks a limit is the caller's bug and changes nothing; no text repeats a value,
because values are secret.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from walyoff.abc import NewBatch, StoredContent
from walyoff.chunkstore import NewAttachment
from walyoff.errors import LocalProtocolError, PayloadTooLargeError
from walyoff.manifest import chunk_count
from walyoff.records import CHUNK_SIZE
from walyoff.stores.chunks import MAX_CONTENT, MAX_INLINE
from walyoff.stores.places import HASH_SIZE, MAX_INTEGER
from walyoff.stores.vault import MAX_SALT

#: DIDs, channel ids, cursor names, block names and setting keys, in UTF-8 bytes.
MAX_NAME = 4096
#: One batch's body, setting value or signature, in bytes: 64 of them fit one answer.
MAX_VALUE = 8 * 2**20
#: Records of one batch: their hashes are read whenever one of them is.
MAX_RECORDS = 16_384
#: Entries of one page or list.
MAX_LIMIT = 2**31 - 1


def check_name(name: str, what: str) -> None:
    """Raises LocalProtocolError unless it is a text of 1 to MAX_NAME bytes."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise LocalProtocolError(f"{what} is not valid Unicode") from None
    if not size:
        raise LocalProtocolError(f"{what} is empty")
    _check_size(size, MAX_NAME, what)


def check_hash(value: bytes, what: str) -> None:
    """Raises LocalProtocolError unless it has 32 bytes."""
    if len(value) != HASH_SIZE:
        raise LocalProtocolError(f"{what} of {len(value)} bytes is no hash of {HASH_SIZE}")


def check_hashes(values: Sequence[bytes], what: str) -> None:
    """`check_hash` for many. Raises LocalProtocolError."""
    if set(map(len, values)) - {HASH_SIZE}:
        for value in values:
            check_hash(value, what)


def check_number(value: int, what: str) -> None:
    """Raises LocalProtocolError unless it is from 0 to 2**63 - 1."""
    if not 0 <= value <= MAX_INTEGER:
        raise LocalProtocolError(f"{what} is not from 0 to {MAX_INTEGER}")


def check_limit(value: int) -> None:
    """Raises LocalProtocolError unless it is from 0 to MAX_LIMIT."""
    if not 0 <= value <= MAX_LIMIT:
        raise LocalProtocolError(f"a limit of {value} is not from 0 to {MAX_LIMIT}")


def check_settings(values: Mapping[str, bytes | None]) -> None:
    """Check the arguments of `Store.put`."""
    for key, value in values.items():
        check_name(key, "setting key")
        if value is not None:
            _check_size(len(value), MAX_VALUE, "setting value")


def check_write(
    batches: Sequence[NewBatch],
    contents: Sequence[tuple[bytes, StoredContent]],
    deliver: Sequence[bytes],
    signatures: Sequence[tuple[bytes, bytes]],
    anchors: Sequence[tuple[bytes, str]],
) -> int:
    """Check the arguments of `ChannelStore.write`; returns about how many bytes it writes."""
    total = 0
    for batch in batches:
        total += _check_batch(batch)
    check_hashes([record_id for record_id, _ in contents], "record hash")
    total += _check_contents([content for _, content in contents])
    check_hashes(deliver, "record hash")
    for batch_id, signature in signatures:
        check_hash(batch_id, "batch hash")
        _check_size(len(signature), MAX_VALUE, "signature")
        total += len(signature)
    for batch_id, anchor in anchors:
        check_hash(batch_id, "batch hash")
        check_name(anchor, "block name")
    return total


def check_attachments(attachments: Sequence[NewAttachment]) -> int:
    """Check the attachments of a write; returns about how many bytes it writes for them."""
    total = 0
    for attachment in attachments:
        check_hash(attachment.record_id, "record hash")
        check_number(attachment.size, "size of an attachment")
        if len(attachment.chunk_ids) != chunk_count(attachment.size):
            raise LocalProtocolError("an attachment has not the chunks of its size")
        for chunk_id in attachment.chunk_ids:
            check_hash(chunk_id, "chunk id")
        total += len(attachment.chunk_ids) * HASH_SIZE
    return total


def check_chunk(data: bytes) -> None:
    """Raises LocalProtocolError unless it is one chunk of an attachment."""
    if not 1 <= len(data) <= CHUNK_SIZE:
        raise LocalProtocolError(f"a chunk of {len(data)} bytes is not of 1 to {CHUNK_SIZE}")


def _check_batch(batch: NewBatch) -> int:
    check_name(batch.author, "author")
    check_hash(batch.batch_id, "batch hash")
    count = len(batch.record_ids)
    if not 1 <= count <= MAX_RECORDS:
        raise LocalProtocolError(f"a batch of {count} records is not of 1 to {MAX_RECORDS}")
    if len(batch.contents) != count:
        raise LocalProtocolError(f"{len(batch.contents)} contents for {count} records")
    if batch.first_seq < 1 or batch.first_seq + count - 1 > MAX_INTEGER:
        raise LocalProtocolError("sequence numbers are from 1 to 2**63 - 1")
    _check_size(len(batch.body), MAX_VALUE, "batch body")
    if batch.signature is not None:
        _check_size(len(batch.signature), MAX_VALUE, "signature")
    if batch.anchor is not None:
        check_name(batch.anchor, "block name")
    total = len(batch.body) + count * HASH_SIZE
    check_hashes(batch.record_ids, "record hash")
    return total + _check_contents([c for c in batch.contents if c is not None])


def _check_contents(contents: Sequence[StoredContent]) -> int:
    """About how many bytes they are in the database."""
    if not contents:
        return 0
    sizes = [len(data) for _, data in contents]
    _check_size(max([len(salt) for salt, _ in contents]), MAX_SALT, "salt")
    _check_size(max(sizes), MAX_CONTENT, "content")
    # Large ones go to files, not through the database's log.
    return sum([size for size in sizes if size <= MAX_INLINE])


def _check_size(size: int, limit: int, what: str) -> None:
    if size > limit:
        raise PayloadTooLargeError(size, limit, what)
