"""The frames by which devices pass on batches and contents; see `walyoff.frames`.

A batch is sent with the contents of its first records; those of the others follow in frames
of contents, so that the first messages of a full batch are delivered while the rest is on its
way. An answer to a request for batches goes on as long as more of it is granted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from walyoff.epochs import MAX_SIGNATURE
from walyoff.errors import RemoteProtocolError
from walyoff.records import (
    HASH_SIZE,
    MAX_BATCH_BODY,
    MAX_CONTENT,
    MAX_RECORDS,
    SALT_SIZE,
)
from walyoff.wire import MAX_DID, expect_array, expect_bytes, expect_int, expect_name

#: Records that one frame asks for, speaks of, or brings the contents of.
MAX_IDS = 1024
#: Bytes of an answer that one frame asks for or grants.
MAX_GRANT = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class WantBatches:
    """Please send a device's batches from a sequence number, about so many bytes."""

    author: str
    first_seq: int
    max_bytes: int


@dataclass(frozen=True, slots=True)
class WantMore:
    """Please go on with the answer to a WantBatches for about so many bytes more.

    It says nothing if that answer has ended.
    """

    author: str
    max_bytes: int


@dataclass(frozen=True, slots=True)
class BatchFrame:
    """A batch and those of its contents that the sender has at hand."""

    body: bytes
    signature: bytes
    #: (salt, content) or None for each of the first records, in order. If there are fewer than
    #: records, the sender goes on with the small contents of the others, unasked.
    contents: tuple[tuple[bytes, bytes] | None, ...]


@dataclass(frozen=True, slots=True)
class RangeEnd:
    """The answer to a WantBatches is complete, up to this sequence number."""

    author: str
    last_seq: int


@dataclass(frozen=True, slots=True)
class WantContents:
    """Please send the contents of these records."""

    record_ids: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class ContentsFrame:
    """Contents of records, each as (record, salt, content)."""

    contents: tuple[tuple[bytes, bytes, bytes], ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Gone:
    """The sender does not hold the contents of these records."""

    record_ids: tuple[bytes, ...]


BatchFrames: TypeAlias = (
    WantBatches | WantMore | BatchFrame | RangeEnd | WantContents | ContentsFrame | Gone
)


def _did(value: Any) -> str:
    return expect_name(value, "DID", limit=MAX_DID)


def _list(value: Any, what: str, limit: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > limit:
        raise RemoteProtocolError(f"{what} is not a list of at most {limit}")
    return value


def _ids(value: Any) -> tuple[bytes, ...]:
    return tuple(expect_bytes(i, "id", size=HASH_SIZE) for i in _list(value, "ids", MAX_IDS))


def _grant(value: Any) -> int:
    return expect_int(value, "size", high=MAX_GRANT)


def _check_content(salt: Any, data: Any) -> None:
    # There is one for each message: the calls only say what is wrong.
    if not (type(salt) is bytes and len(salt) == SALT_SIZE):
        expect_bytes(salt, "salt", size=SALT_SIZE)
    if not (type(data) is bytes and len(data) <= MAX_CONTENT):
        expect_bytes(data, "content", limit=MAX_CONTENT)


def _batch(body: Any, signature: Any, contents: Any) -> BatchFrame:
    found: list[tuple[bytes, bytes] | None] = []
    for item in _list(contents, "contents", MAX_RECORDS):
        if item is None:
            found.append(None)
            continue
        salt, data = expect_array(item, 2, "content")
        _check_content(salt, data)
        found.append((salt, data))
    return BatchFrame(
        expect_bytes(body, "batch", limit=MAX_BATCH_BODY),
        expect_bytes(signature, "signature", limit=MAX_SIGNATURE),
        tuple(found),
    )


def _contents(items: Any) -> ContentsFrame:
    found: list[tuple[bytes, bytes, bytes]] = []
    for item in _list(items, "contents", MAX_IDS):
        if not (type(item) is list and len(item) == 3):
            raise RemoteProtocolError("content is not an array of 3")
        record_id, salt, data = item
        if not (type(record_id) is bytes and len(record_id) == HASH_SIZE):
            expect_bytes(record_id, "record", size=HASH_SIZE)
        _check_content(salt, data)
        found.append((record_id, salt, data))
    return ContentsFrame(tuple(found))


#: As in `walyoff.frames`, which takes them up.
TYPES: dict[int, tuple[type[Any], Callable[[Any], list[Any]], Callable[..., BatchFrames]]] = {
    2: (
        WantBatches,
        lambda f: [f.author, f.first_seq, f.max_bytes],
        lambda a, s, m: WantBatches(_did(a), expect_int(s, "sequence", low=1), _grant(m)),
    ),
    # msgpack encodes a tuple as it does a list.
    3: (BatchFrame, lambda f: [f.body, f.signature, f.contents], _batch),
    4: (
        RangeEnd,
        lambda f: [f.author, f.last_seq],
        lambda a, s: RangeEnd(_did(a), expect_int(s, "sequence")),
    ),
    5: (WantContents, lambda f: [f.record_ids], lambda i: WantContents(_ids(i))),
    6: (ContentsFrame, lambda f: [f.contents], _contents),
    7: (Gone, lambda f: [f.record_ids], lambda i: Gone(_ids(i))),
    24: (
        WantMore,
        lambda f: [f.author, f.max_bytes],
        lambda a, m: WantMore(_did(a), _grant(m)),
    ),
}
