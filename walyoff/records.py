"""Records, batches and commitments: what a device says about its messages.

Decided here: the bytes of a record chain and of a batch, what is hashed and what is signed,
and their limits. Never decided here: who may write, whether a signature holds, what is kept.

A record is the metadata of one message. The records of one device form a hash chain:

    id(0) = BLAKE3("walyoff/chain/1" || pack([channel, author]))
    id(n) = BLAKE3("walyoff/record/1" || id(n-1) ||
                   pack([n, time, kind, topics, size, commitment, lifetime if there is one]))

so an id names the record, its place, its author, its channel and everything before it. A
batch is a run of consecutive records under one signature over its id. The structures are in
`docs/protocol.md` with golden vectors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from blake3 import blake3

from walyoff.errors import LocalProtocolError, PayloadTooLargeError, RemoteProtocolError
from walyoff.wire import (
    MAX_DID,
    expect_array,
    expect_bytes,
    expect_int,
    expect_name,
    expect_str,
    expect_version,
    pack,
    packer,
    unpack,
    unpack_some,
)

BATCH_VERSION = 1
HASH_SIZE = 32
SALT_SIZE = 32

#: A batch shares one signature (3.4 KB, 1-2 ms); at 1,024 records it costs 2 us a record.
MAX_RECORDS = 1024
#: So that a batch with its certificate always fits an anchor block and a frame.
MAX_BATCH_BODY = 256 * 1024
#: The newest batches of others that the author had seen: enough for every active writer.
MAX_SEEN = 16
#: Topics are for filters, not for data: so many, of so many characters.
MAX_TOPICS = 8
MAX_TOPIC_CHARS = 64
#: A message travels in one frame and is held whole in memory; larger content is an attachment.
MAX_CONTENT = 8 * 1024 * 1024
CHUNK_SIZE = 1024 * 1024

KIND_MESSAGE = 0
#: The author states that a member left; see `walyoff.engine.removals`.
KIND_REMOVAL = 1
#: The content is a manifest: a caption, and the chunks of a file; see `walyoff.manifest`.
KIND_ATTACHMENT = 2
#: The author says whether a message is to be forgotten; see `walyoff.engine.consent`.
KIND_CONSENT = 3
MAX_KIND = 255
#: What the size of a content is not larger than, whatever its author says.
MAX_SIZE = (1 << 63) - 1
#: The year 9999 in milliseconds, so that a time always converts.
MAX_TIME_MS = 253_402_300_799_999
#: A message that is to be forgotten by itself lives from a millisecond to a hundred years.
MAX_LIFETIME_MS = 100 * 366 * 24 * 3600 * 1000

#: What msgpack has before the fields of a row, and of a link of the chain with one field
#: more, and before a hash; see `_packed`.
_ROW, _LINK, _LINK_THAT_FORGETS = b"\x95", b"\x96", b"\x97"
_HASH = bytes((0xC4, HASH_SIZE))

_CHAIN = b"walyoff/chain/1"
_RECORD = b"walyoff/record/1"
_BATCH = b"walyoff/batch/1"
_CHUNK = b"walyoff/chunk/1"
#: The number of a content's first chunk.
_FIRST = bytes(8)
_CONTENT = b"walyoff/content/1"
_DEVICE = b"walyoff/device/1"


class Record(NamedTuple):
    """The metadata of one message, without its place in the chain.

    A tuple, because there is one for each message, and a frozen dataclass takes four times as
    long to make.
    """

    #: Milliseconds since 1970 by the author's clock: a claim.
    time_ms: int
    kind: int
    topics: tuple[str, ...]
    #: Size of the content in bytes.
    size: int
    commitment: bytes
    #: Every device forgets it so many milliseconds after `time_ms`; 0 for never.
    lifetime_ms: int = 0


@dataclass(frozen=True, slots=True)
class Seen:
    """A batch of another device that the author held when it wrote."""

    device: bytes
    last_seq: int
    batch_id: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Consecutive records of one device, decoded and hashed, not yet verified."""

    channel: str
    author: str
    certificate_id: bytes
    first_seq: int
    prev: bytes
    seen: tuple[Seen, ...]
    records: tuple[Record, ...]
    body: bytes
    batch_id: bytes
    record_ids: tuple[bytes, ...]

    @property
    def last_seq(self) -> int:
        """The sequence number of the last record."""
        return self.first_seq + len(self.records) - 1


def device_id(did: str) -> bytes:
    """The short name (16 bytes) of a device in vectors and batches."""
    return blake3(_DEVICE + did.encode()).digest(16)


def chain_start(channel: str, author: str) -> bytes:
    """The hash before a device's first record in a channel."""
    return blake3(_CHAIN + pack([channel, author])).digest()


def batch_hash(body: bytes) -> bytes:
    """The id of the batch with this body, before the body is looked at."""
    return blake3(_BATCH + body).digest()


def signed_message(batch_id: bytes) -> bytes:
    """What the author's device key signs."""
    return _BATCH + batch_id


def commit(salt: bytes, content: bytes | memoryview) -> bytes:
    """The salted commitment to a content: BLAKE3 over the ordered chunk hashes.

    Chunks are 1 MiB, so a chunk can be verified as soon as it and the list are there. The
    salt keeps anybody who reads the chain from confirming a guess.
    """
    size = len(content)
    if size <= CHUNK_SIZE:
        hashes = blake3(b"".join((_CHUNK, salt, _FIRST, content))).digest()
    else:
        view = memoryview(content)
        hashes = b"".join(
            blake3(
                b"".join((_CHUNK, salt, i.to_bytes(8, "big"), view[at : at + CHUNK_SIZE]))
            ).digest()
            for i, at in enumerate(range(0, size, CHUNK_SIZE))
        )
    return blake3(b"".join((_CONTENT, salt, size.to_bytes(8, "big"), hashes))).digest()


def check_topics(topics: Sequence[str]) -> tuple[str, ...]:
    """The topics of an outgoing message as a tuple. Raises LocalProtocolError."""
    if isinstance(topics, str):
        raise LocalProtocolError("topics must be a list of strings, not one string")
    if len(topics) > MAX_TOPICS:
        raise LocalProtocolError(f"{len(topics)} topics exceed the limit of {MAX_TOPICS}")
    for topic in topics:
        if not topic or len(topic) > MAX_TOPIC_CHARS or not topic.isprintable():
            raise LocalProtocolError(
                f"a topic must have 1 to {MAX_TOPIC_CHARS} printable characters: {topic[:80]!r}"
            )
    return tuple(topics)


def check_content(content: bytes) -> None:
    """Raise unless the content can be sent as a message."""
    if len(content) > MAX_CONTENT:
        raise PayloadTooLargeError(len(content), MAX_CONTENT, "message")


def _packed(records: Sequence[Record]) -> Iterator[tuple[bytes, bytes]]:
    """The fields of each record, packed, and the header of a link with them.

    A row of a batch and a link of the chain share them, and the records of one batch share
    most of theirs: time, kind, topics and size are packed once for all that have the same.
    """
    known: dict[tuple[int, int, tuple[str, ...], int], bytes] = {}
    for time_ms, kind, topics, size, commitment, lifetime_ms in records:
        shared = (time_ms, kind, topics, size)
        fields = known.get(shared)
        if fields is None:
            fields = known[shared] = b"".join(map(pack, shared)) + _HASH
        fields += commitment
        # Only what is to be forgotten has a sixth field.
        if lifetime_ms:
            yield fields + pack(lifetime_ms), _LINK_THAT_FORGETS
        else:
            yield fields, _LINK


def _chain(
    prev: bytes, first_seq: int, packed: Sequence[tuple[bytes, bytes]]
) -> tuple[bytes, ...]:
    ids = []
    number = packer()
    for seq, (fields, link) in enumerate(packed, first_seq):
        prev = blake3(b"".join((_RECORD, prev, link, number(seq), fields))).digest()
        ids.append(prev)
    return tuple(ids)


def make_batch(
    *,
    channel: str,
    author: str,
    certificate_id: bytes,
    first_seq: int,
    prev: bytes,
    seen: Sequence[Seen],
    records: Sequence[Record],
) -> Batch:
    """Build a batch of own records. Raises LocalProtocolError if it breaks a limit."""
    if not 0 < len(records) <= MAX_RECORDS:
        raise LocalProtocolError(f"a batch has 1 to {MAX_RECORDS} records, not {len(records)}")
    for record in records:
        if len(record.commitment) != HASH_SIZE:
            raise LocalProtocolError(f"a commitment has {HASH_SIZE} bytes")
    packed = list(_packed(records))
    head = (
        BATCH_VERSION,
        channel,
        author,
        certificate_id,
        first_seq,
        prev,
        [[s.device, s.last_seq, s.batch_id] for s in seen[:MAX_SEEN]],
    )
    pieces = [_array(len(head) + 1), *map(pack, head), _array(len(packed))]
    for fields, link in packed:
        # A link has one field more, its number.
        pieces += (_ROW if link is _LINK else _LINK, fields)
    body = b"".join(pieces)
    if len(body) > MAX_BATCH_BODY:
        raise PayloadTooLargeError(len(body), MAX_BATCH_BODY, "batch")
    return Batch(
        channel=channel,
        author=author,
        certificate_id=certificate_id,
        first_seq=first_seq,
        prev=prev,
        seen=tuple(seen[:MAX_SEEN]),
        records=tuple(records),
        body=body,
        batch_id=batch_hash(body),
        record_ids=_chain(prev, first_seq, packed),
    )


def _decode_seen(value: object) -> Seen:
    device, last_seq, batch_id = expect_array(value, 3, "seen entry")
    return Seen(
        expect_bytes(device, "seen device", size=16),
        expect_int(last_seq, "seen sequence", low=1),
        expect_bytes(batch_id, "seen batch", size=HASH_SIZE),
    )


def _plain_record(
    time_ms: object, kind: object, topics: object, size: object, commitment: object
) -> Record | None:
    """A record without topics, as most are, decoded without a call for each field."""
    if (
        topics == []
        and type(time_ms) is int
        and type(kind) is int
        and type(size) is int
        and 0 <= time_ms <= MAX_TIME_MS
        and 0 <= kind <= MAX_KIND
        and 0 <= size <= MAX_SIZE
        and type(commitment) is bytes
        and len(commitment) == HASH_SIZE
    ):
        return Record(time_ms, kind, (), size, commitment)
    return None


def _decode_record(value: object) -> Record:
    if type(value) is list and len(value) == 5:
        plain = _plain_record(*value)
        if plain is not None:
            return plain
    forgets = isinstance(value, list) and len(value) == 6
    fields = expect_array(value, 6 if forgets else 5, "record")
    time_ms, kind, topics, size, commitment = fields[:5]
    if not isinstance(topics, list) or len(topics) > MAX_TOPICS:
        raise RemoteProtocolError("record has malformed topics")
    for topic in topics:
        # The same rule as for sending: what is refused there cannot come from an honest device.
        if not expect_str(topic, "topic", limit=MAX_TOPIC_CHARS) or not topic.isprintable():
            raise RemoteProtocolError("record has an unprintable topic")
    return Record(
        expect_int(time_ms, "record time", high=MAX_TIME_MS),
        expect_int(kind, "record kind", high=MAX_KIND),
        tuple(topics),
        expect_int(size, "record size", high=MAX_SIZE),
        expect_bytes(commitment, "commitment", size=HASH_SIZE),
        expect_int(fields[5], "lifetime", low=1, high=MAX_LIFETIME_MS) if forgets else 0,
    )


def _array(size: int) -> bytes:
    """What msgpack has before the items of an array of less than 2**16."""
    return bytes((0x90 | size,)) if size < 16 else b"\xdc" + size.to_bytes(2, "big")


def outline(body: bytes) -> tuple[bytes, list[int]]:
    """Certificate id and sizes of the contents of a batch that was decoded before.

    For those that pass it on: decoding hashes every record. Raises RemoteProtocolError.
    """
    fields = expect_array(unpack(body, MAX_BATCH_BODY), 8, "batch")
    return expect_bytes(fields[3], "certificate id", size=HASH_SIZE), [r[3] for r in fields[7]]


def batch_certificate(body: bytes) -> bytes:
    """The certificate id of a batch that was decoded before. Raises RemoteProtocolError.

    For those that hold a batch and need no more of it: the records are not looked at.
    """
    head = expect_array(unpack_some(body, 4), 4, "batch")
    return expect_bytes(head[3], "certificate id", size=HASH_SIZE)


def decode_batch(body: bytes) -> Batch:
    """Decode a batch body and hash its records. Raises RemoteProtocolError."""
    fields = expect_array(unpack(body, MAX_BATCH_BODY), 8, "batch")
    expect_version(fields[0], "batch", BATCH_VERSION)
    _, channel, author, certificate_id, first_seq, prev, seen, rows = fields
    if not isinstance(seen, list) or len(seen) > MAX_SEEN:
        raise RemoteProtocolError("batch has a malformed list of seen batches")
    if not isinstance(rows, list) or not 0 < len(rows) <= MAX_RECORDS:
        raise RemoteProtocolError("batch has a malformed list of records")
    first = expect_int(first_seq, "first sequence", low=1, high=(1 << 62))
    before = expect_bytes(prev, "previous hash", size=HASH_SIZE)
    records = tuple(map(_decode_record, rows))
    return Batch(
        channel=expect_name(channel, "channel", limit=MAX_DID),
        author=expect_name(author, "author", limit=MAX_DID),
        certificate_id=expect_bytes(certificate_id, "certificate id", size=HASH_SIZE),
        first_seq=first,
        prev=before,
        seen=tuple(map(_decode_seen, seen)),
        records=records,
        body=bytes(body),
        batch_id=batch_hash(body),
        record_ids=_chain(before, first, list(_packed(records))),
    )
