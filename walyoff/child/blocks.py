"""Walytis block files and block ids: any bytes give a value or one RemoteProtocolError.

Decided here: whether bytes are a well-formed block, and what its ids are. Never decided
here: whether the block belongs to a chain (its parents, its topics): that is `chainfiles`.

The format is that of walytis_beta 2.4 (`walytis_beta_tools.block_model`): fields without zero
bytes, joined by runs of zeros. Numbers are written in base 255 or 254 so that no digit is a
separator. What is accepted here is exactly what stock code would write again from the same
fields, so that a file that passes here cannot surprise the stock decoder.
"""

from __future__ import annotations

import functools
import hashlib
from datetime import UTC, datetime
from typing import NamedTuple

from walyoff.errors import RemoteProtocolError

#: Largest content of one block, in bytes: the size up to which Kubo and pubsub were measured.
MAX_CONTENT = 1 << 20
#: Most parents of a block: concurrent writers of one chain; stock code has no limit.
MAX_PARENTS = 64
#: Most topics of a block, and the longest topic in bytes of UTF-8.
MAX_TOPICS = 16
MAX_TOPIC = 256
#: The longest creator id in bytes (a peer id, as a claim).
MAX_CREATOR = 256
#: A short id: its fields at their longest.
MAX_SHORT_ID = 8 * 1024
#: A long id: the short ids of the block and of its parents.
MAX_LONG_ID = MAX_SHORT_ID * (MAX_PARENTS + 1)
#: A block file: content, header and parents at their longest that is reasonable.
MAX_FILE = MAX_CONTENT + 256 * 1024
#: The major version of Walytis whose blocks are understood.
WALYTIS_MAJOR = 2

#: Decoded ids that are remembered, and the largest of them in bytes: some megabytes in all.
_CACHED_IDS = 2_048
_CACHED_ID = 2_048
_FIELDS_IN_FILE = 10
_FIELDS_IN_ID = 11
_HASH = b"sha512"
_CHUNK = 262_144
#: 512 bits take at most so many digits of base 255.
_HASH_DIGITS = 65
#: For lanes of so many bits: the lower lane of each pair, and what a higher lane's one is
#: worth less in base 255 than in base 256.
_LANES: list[tuple[int, int, int]] = [
    (bits, sum(((1 << bits) - 1) << n for n in range(0, 1024, 2 * bits)), 2**bits - 255**size)
    for size in (1, 2, 4, 8, 16, 32, 64)
    if (bits := 8 * size)
]
_ONES: list[int] = [sum(255**n for n in range(size)) for size in range(_HASH_DIGITS + 1)]
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_BASE58_SET = frozenset(_BASE58)
_PAIR = 58 * 58
_PAIRS = [one + two for one in _BASE58 for two in _BASE58]
_PIECE_PAIRS = 5
_PIECE = _PAIR**_PIECE_PAIRS
_CID_LENGTH = 46
_VERSION_PARTS = 3
#: Stock code names index files after block times; a year before its first file's, or one
#: without four digits, would make it fail at every later start.
_YEARS = range(2001, 3000)
_TIME_PARTS = 7


# Tuples, as a frozen dataclass takes three times as long to make, and a hand-over makes ten
# thousands of them.
class BlockId(NamedTuple):
    """What a short or long block id says. All of it is a claim of whoever wrote it."""

    cid: str
    created: datetime
    topics: tuple[str, ...]
    parents_hash: bytes
    short: bytes
    #: Short ids of the parents; None when only a short id was given.
    parents: tuple[bytes, ...] | None


class BlockFile(NamedTuple):
    """A well-formed block. Time, creator and topics are claims."""

    cid: str
    created: datetime
    topics: tuple[str, ...]
    content: bytes
    #: CIDs of the parents, in the order of the file.
    parents: tuple[str, ...]
    short_id: bytes
    long_id: bytes
    #: Short ids of the parents, in the order of the file.
    parent_ids: tuple[bytes, ...]
    #: The hash of the content: the same in every block that repeats it.
    content_hash: bytes


#: Short ids that were decoded lately.
_known_ids: dict[bytes, BlockId] = {}


def decode_block(data: bytes, cid: str | None = None) -> BlockFile:
    """Decode a block file, of which the CID is computed (and compared, if one is given).

    Raises:
        RemoteProtocolError: it is too large, malformed, not canonical, or another block.
    """
    if len(data) > MAX_FILE:
        raise RemoteProtocolError(f"block of {len(data)} bytes", reason="too-large")
    head, found, content = data.partition(b"\0" * 5)
    if not found:
        raise RemoteProtocolError("block without content separator")
    if not 0 < len(content) <= MAX_CONTENT:
        raise RemoteProtocolError("block content is empty or too large", reason="content-size")
    meta, has_parents, parents_part = head.partition(b"\0" * 4)
    parents = tuple(parents_part.split(b"\0\0\0")) if has_parents else ()
    fields = meta.split(b"\0\0")
    if len(fields) != _FIELDS_IN_FILE or b"" in fields:
        raise RemoteProtocolError("block header has the wrong number of fields")
    (
        version,
        creator,
        time,
        topics_part,
        length,
        algorithm,
        digest,
        count,
        palgorithm,
        pdigest,
    ) = fields
    _check_version(version)
    if not 0 < len(creator) <= MAX_CREATOR or b"\0" in creator:
        raise RemoteProtocolError("block creator has the wrong form")
    created = _decode_time(time)
    topics = _decode_topics(topics_part)
    if length != _base255(len(content)) or count != _base255(len(parents)):
        raise RemoteProtocolError("block lengths do not match")
    if algorithm != _HASH or palgorithm != _HASH:
        raise RemoteProtocolError("block with an unknown hash", reason="unknown-hash")
    if _hash_value(digest) != int.from_bytes(hashlib.sha512(content).digest(), "little"):
        raise RemoteProtocolError("block content hash does not match", reason="bad-hash")
    parent_cids = _decode_parents(parents, pdigest)
    real = cid_of(data)
    if cid is not None and cid != real:
        raise RemoteProtocolError("block file is not the block it was given for", reason="cid")
    short = b"\0\0".join([version, real.encode(), *fields[1:]])
    if len(short) > MAX_SHORT_ID:
        raise RemoteProtocolError("block header too large", reason="too-large")
    if len(short) <= _CACHED_ID:
        # The next block's parents name it: all of it was checked here already.
        _remember_id(
            BlockId(
                cid=real,
                created=created,
                topics=topics,
                parents_hash=pdigest,
                short=short,
                parents=None,
            )
        )
    return BlockFile(
        cid=real,
        created=created,
        topics=topics,
        content=content,
        parents=parent_cids,
        short_id=short,
        long_id=short + b"\0" * 4 + b"\0\0\0".join(parents),
        parent_ids=parents,
        content_hash=digest,
    )


def _decode_parents(parents: tuple[bytes, ...], parents_hash: bytes) -> tuple[str, ...]:
    """The CIDs of a block's parents, whose hashes are in the block's."""
    if len(parents) > MAX_PARENTS:
        raise RemoteProtocolError(
            f"block with {len(parents)} parents", reason="too-many-parents"
        )
    if not parents:
        _check_hash_field(parents_hash)
        return ()
    if list(parents) != sorted(parents):
        raise RemoteProtocolError("block parents are not sorted")
    cids: list[str] = []
    hashes: list[bytes] = []
    for parent in parents:
        decoded = decode_id(parent)
        if decoded.parents is not None:
            raise RemoteProtocolError("block parent is not a short id")
        cids.append(decoded.cid)
        hashes.append(_from_hash_field(decoded.parents_hash))
    digest = hashlib.sha512(b"".join(hashes)).digest()
    if _hash_value(parents_hash) != int.from_bytes(digest, "little"):
        raise RemoteProtocolError("block parents hash does not match", reason="bad-hash")
    return tuple(cids)


def decode_id(block_id: bytes) -> BlockId:
    """Decode a short or a long block id. Raises RemoteProtocolError."""
    if len(block_id) > MAX_LONG_ID:
        raise RemoteProtocolError("block id too large", reason="too-large")
    # A block's id comes again with each of its children, several times.
    known = _known_ids.get(bytes(block_id))
    if known is not None:
        return known
    decoded = _decode_id(bytes(block_id))
    if decoded.parents is None and len(block_id) <= _CACHED_ID:
        _remember_id(decoded)
    return decoded


def _remember_id(block_id: BlockId) -> None:
    if len(_known_ids) >= _CACHED_IDS:
        _known_ids.clear()
    _known_ids[block_id.short] = block_id


def _decode_id(block_id: bytes) -> BlockId:
    short, is_long, parents_part = bytes(block_id).partition(b"\0" * 4)
    if not 0 < len(short) <= MAX_SHORT_ID:
        raise RemoteProtocolError("block id has the wrong size")
    fields = short.split(b"\0\0")
    if len(fields) != _FIELDS_IN_ID or not all(fields):
        raise RemoteProtocolError("block id has the wrong number of fields")
    _check_version(fields[0])
    try:
        cid = fields[1].decode("ascii")
    except UnicodeDecodeError as error:
        raise RemoteProtocolError("block id with a malformed CID") from error
    check_cid(cid)
    if len(fields[2]) > MAX_CREATOR or b"\0" in fields[2]:
        raise RemoteProtocolError("block creator has the wrong form")
    if fields[6] != _HASH or fields[9] != _HASH:
        raise RemoteProtocolError("block id with an unknown hash", reason="unknown-hash")
    _check_hash_field(fields[7])
    _check_hash_field(fields[10])
    # The counts are bounded by their sizes; their values are checked with the file.
    if len(fields[5]) > 4 or len(fields[8]) > 4:
        raise RemoteProtocolError("block id with an impossible length")
    parents: tuple[bytes, ...] | None = None
    if is_long:
        parents = tuple(parents_part.split(b"\0\0\0")) if parents_part else ()
        if len(parents) > MAX_PARENTS:
            raise RemoteProtocolError("block id with many parents", reason="too-many-parents")
    return BlockId(
        cid=cid,
        created=_decode_time(fields[3]),
        topics=_decode_topics(fields[4]),
        parents_hash=fields[10],
        short=short,
        parents=parents,
    )


def check_cid(cid: str) -> None:
    """Raise RemoteProtocolError unless it has the form of a CIDv0. It becomes a file name."""
    if len(cid) != _CID_LENGTH or not cid.startswith("Qm") or not _BASE58_SET.issuperset(cid):
        raise RemoteProtocolError("malformed CID", reason="bad-cid")


def cid_of(data: bytes) -> str:
    """The CIDv0 that Kubo gives a file (UnixFS, 256 KiB chunks, at most 174 of them).

    The formats are https://github.com/ipfs/specs/blob/main/UNIXFS.md and dag-pb.
    """
    if len(data) <= _CHUNK:
        return _base58(_leaf(data)[0])
    links = b""
    sizes = b""
    for start in range(0, len(data), _CHUNK):
        chunk = data[start : start + _CHUNK]
        digest, size = _leaf(chunk)
        link = _field(1, digest) + _field(2, b"") + b"\x18" + _varint(size)
        links += _field(2, link)
        sizes += b"\x20" + _varint(len(chunk))
    node = links + _field(1, b"\x08\x02\x18" + _varint(len(data)) + sizes)
    return _base58(b"\x12\x20" + hashlib.sha256(node).digest())


def index_record(long_id: bytes) -> bytes:
    """One record of a stock KnownBlocksIndex file."""
    return _base255(len(long_id)) + b"\0" + long_id + b"\0" * 6


# ---------------------------------------------------------------------------- fields


@functools.lru_cache(16)
def _check_version(field: bytes) -> None:
    parts = field.split(b"\x01")
    if len(parts) != _VERSION_PARTS + 1 or parts[-1] != b"":
        raise RemoteProtocolError("block version is malformed")
    if _from_base254(parts[0]) != WALYTIS_MAJOR:
        raise RemoteProtocolError("block of an unknown version", reason="unknown-version")
    for part in parts[1:-1]:
        _from_base254(part)


def _decode_time(field: bytes) -> datetime:
    parts = field.split(b"\x01")
    if len(parts) != _TIME_PARTS:
        raise RemoteProtocolError("block time is malformed")
    year, month, day, hour, minute, second, micro = [_from_base254(part) for part in parts]
    if year not in _YEARS:
        raise RemoteProtocolError("block time is impossible")
    try:
        return datetime(year, month, day, hour, minute, second, micro, tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise RemoteProtocolError("block time is impossible") from error


@functools.lru_cache(256)
def _decode_topics(field: bytes) -> tuple[str, ...]:
    parts = field.split(b"\0")
    if len(parts) > MAX_TOPICS or not all(0 < len(part) <= MAX_TOPIC for part in parts):
        raise RemoteProtocolError("block topics are empty, long or many", reason="bad-topics")
    try:
        return tuple(part.decode() for part in parts)
    except UnicodeDecodeError as error:
        raise RemoteProtocolError("block topic is not UTF-8", reason="bad-topics") from error


@functools.lru_cache(1024)
def _from_base254(field: bytes) -> int:
    # Digits are 2..255; four of them hold any number that occurs (microseconds, a year).
    if not 0 < len(field) <= 4 or min(field) < 2:
        raise RemoteProtocolError("block number is malformed")
    if len(field) > 1 and field[0] == 2:
        raise RemoteProtocolError("block number is not in canonical form")
    number = 0
    for digit in field:
        number = number * 254 + digit - 2
    return number


@functools.lru_cache(1024)
def _base255(number: int) -> bytes:
    digits = bytearray()
    while True:
        number, digit = divmod(number, 255)
        digits.append(digit + 1)
        if not number:
            digits.reverse()
            return bytes(digits)


def from_base255(field: bytes) -> int:
    """A number of at most 65 digits without zero bytes, most significant digit first."""
    # All lanes of 8, then 16, then 32 bits at once: where the bytes say high * 256**n + low,
    # high * 255**n + low is meant.
    number = int.from_bytes(field)
    for shift, mask, less in _LANES:
        number -= (number >> shift & mask) * less
    # Each digit is one more than it stands for.
    return number - _ONES[len(field)]


def _hash_value(field: bytes) -> int:
    """The number in a hash field that is in canonical form. Raises RemoteProtocolError."""
    _check_hash_field(field)
    return from_base255(field)


def _check_hash_field(field: bytes) -> None:
    if not 0 < len(field) <= _HASH_DIGITS or 0 in field or (len(field) > 1 and field[0] == 1):
        raise RemoteProtocolError("block hash is malformed")


@functools.lru_cache(1024)
def _from_hash_field(field: bytes) -> bytes:
    number = from_base255(field)
    # Stock code writes as few bytes as the number needs, so leading zeros are lost there too.
    return number.to_bytes((number.bit_length() + 7) // 8, "little")


# ------------------------------------------------------------------------------- CID


@functools.lru_cache(1024)
def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _field(number: int, value: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(value)) + value


def _leaf(chunk: bytes) -> tuple[bytes, int]:
    """The multihash of a chunk's node, and the node's size; the chunk is not copied."""
    length = _varint(len(chunk))
    before = b"\x08\x02" + (b"\x12" + length if chunk else b"")
    after = b"\x18" + length
    inner = len(before) + len(chunk) + len(after)
    before = b"\x0a" + _varint(inner) + before
    digest = hashlib.sha256(before)
    digest.update(chunk)
    digest.update(after)
    return b"\x12\x20" + digest.digest(), len(before) + len(chunk) + len(after)


def _base58(data: bytes) -> str:
    # In pieces, as each division of a long number costs much more than one of a short one.
    number = int.from_bytes(data)
    out: list[str] = []
    while number:
        number, piece = divmod(number, _PIECE)
        for _ in range(_PIECE_PAIRS):
            piece, pair = divmod(piece, _PAIR)
            out.append(_PAIRS[pair])
    out.reverse()
    return "".join(out).lstrip("1")
