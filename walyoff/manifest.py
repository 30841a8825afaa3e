"""The manifest of an attachment: what is sealed about a file, and how its chunks are named.

Decided here: the bytes of a manifest, their limits, the ids of chunks, and which file names
are harmless. A manifest is the content of a record of kind `KIND_ATTACHMENT`, so the record's
salted commitment commits to the ordered chunk ids, and nothing about the file is in clear:

    [version, caption, name, media type, size, chunk size, ids of all chunks end to end]

A chunk id is a BLAKE3 hash of the chunk's bytes under a key of the channel. Members check
every chunk when it arrives; the same chunk has the same id everywhere in one channel, so it
travels and is stored once; who does not know the key can confirm no guess.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from blake3 import blake3

from walyoff.errors import LocalProtocolError, PayloadTooLargeError
from walyoff.records import CHUNK_SIZE, HASH_SIZE, MAX_CONTENT
from walyoff.wire import (
    expect_array,
    expect_bytes,
    expect_int,
    expect_str,
    expect_version,
    pack,
    unpack,
)

MANIFEST_VERSION = 1
#: A caption is a message: larger text is a file.
MAX_CAPTION = 1024 * 1024
#: What file systems allow, in bytes.
MAX_NAME = 255
#: The longest name of a media type that is registered has fewer characters.
MAX_MEDIA_TYPE = 127
#: The ids fit into one content, together with the caption and the names: 216 GiB.
MAX_CHUNKS = (MAX_CONTENT - MAX_CAPTION - 4096) // HASH_SIZE
MAX_SIZE = MAX_CHUNKS * CHUNK_SIZE

DEFAULT_NAME = "attachment"
DEFAULT_MEDIA_TYPE = "application/octet-stream"
#: RFC 6838, section 4.2; parameters are not kept.
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9][\w!#$&^.+-]{0,62}/[A-Za-z0-9][\w!#$&^.+-]{0,62}", re.A)
#: Names that are devices on Windows, with any extension.
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?$")
_UNSAFE = frozenset('/\\:*?"<>|')


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What the author says about a file."""

    caption: bytes
    name: str
    media_type: str
    #: Bytes in all.
    size: int
    #: The ids of the chunks in order, end to end.
    ids: bytes

    @property
    def count(self) -> int:
        """The number of chunks."""
        return len(self.ids) // HASH_SIZE

    def chunk_id(self, place: int) -> bytes:
        """The id of the chunk at a place, from 0."""
        return self.ids[place * HASH_SIZE : (place + 1) * HASH_SIZE]

    def chunk_ids(self) -> tuple[bytes, ...]:
        """The ids of all chunks in order."""
        return tuple(self.ids[at : at + HASH_SIZE] for at in range(0, len(self.ids), HASH_SIZE))

    def length(self, place: int) -> int:
        """The bytes of the chunk at a place."""
        return chunk_length(self.size, place)


def chunk_count(size: int) -> int:
    """How many chunks so many bytes have."""
    return -(-size // CHUNK_SIZE)


def chunk_length(size: int, place: int) -> int:
    """The bytes of one chunk of an attachment of `size` bytes: all are full but the last."""
    return min(CHUNK_SIZE, size - place * CHUNK_SIZE)


def chunk_id(key: bytes, *pieces: bytes | memoryview) -> bytes:
    """The id of the chunk that these pieces make, under the channel's key (32 bytes)."""
    hasher = blake3(key=key)
    for piece in pieces:
        hasher.update(piece)
    return hasher.digest()


def check_caption(caption: bytes) -> None:
    """Raises PayloadTooLargeError."""
    if len(caption) > MAX_CAPTION:
        raise PayloadTooLargeError(len(caption), MAX_CAPTION, "caption")


def check_size(size: int) -> None:
    """Raises PayloadTooLargeError."""
    if size > MAX_SIZE:
        raise PayloadTooLargeError(size, MAX_SIZE, "attachment")


def check_name(name: str) -> None:
    """Raises LocalProtocolError unless a file may have this name everywhere."""
    if name != safe_name(name):
        raise LocalProtocolError(
            f"{name[:80]!r} is no file name: 1 to {MAX_NAME} bytes without separators, control"
            " characters and names that systems reserve"
        )


def check_media_type(media_type: str) -> None:
    """Raises LocalProtocolError unless it has the form `type/subtype`."""
    if not _MEDIA_TYPE.fullmatch(media_type):
        raise LocalProtocolError(f"{media_type[:80]!r} is no media type, such as image/png")


def safe_name(name: str) -> str:
    """A name that is a name and nothing else on any system: what is not allowed becomes `_`.

    Names come from other devices. One with a separator would leave the folder that it is saved
    in, one with a control character obeys a terminal or shows another extension than it has.
    """
    text = "".join(c if c.isprintable() and c not in _UNSAFE else "_" for c in name)
    # A leading dot hides a file, and trailing dots and spaces are lost on some systems.
    text = text.strip(" ").rstrip(". ")
    if text.startswith("."):
        text = "_" + text[1:]
    if not text.strip("_"):
        return DEFAULT_NAME
    if _RESERVED.match(text):
        text = "_" + text
    return _shorten(text)


def _shorten(text: str) -> str:
    """At most MAX_NAME bytes, with the extension if it is a short one."""
    if len(text.encode("utf-8", "replace")) <= MAX_NAME:
        return text
    stem, dot, extension = text.rpartition(".")
    end = dot + extension if stem and len(extension.encode()) <= 16 else ""
    room = MAX_NAME - len(end.encode())
    cut = (stem if end else text).encode("utf-8", "replace")[:room].decode("utf-8", "ignore")
    return cut.rstrip(". ") + end


def encode_manifest(manifest: Manifest) -> bytes:
    """The bytes of a manifest that was checked."""
    return pack(
        [
            MANIFEST_VERSION,
            manifest.caption,
            manifest.name,
            manifest.media_type,
            manifest.size,
            CHUNK_SIZE,
            manifest.ids,
        ]
    )


def decode_manifest(data: bytes | memoryview) -> Manifest:
    """The inverse, with a harmless name whatever the author wrote.

    Raises:
        RemoteProtocolError: anything else is wrong.
    """
    fields = expect_array(unpack(data, MAX_CONTENT), 7, "manifest")
    expect_version(fields[0], "manifest", MANIFEST_VERSION)
    _, caption, name, media_type, size, chunk_size, ids = fields
    expect_int(chunk_size, "chunk size", low=CHUNK_SIZE, high=CHUNK_SIZE)
    total = expect_int(size, "size of an attachment", high=MAX_SIZE)
    kind = expect_str(media_type, "media type", limit=MAX_MEDIA_TYPE)
    return Manifest(
        caption=expect_bytes(caption, "caption", limit=MAX_CAPTION),
        name=safe_name(expect_str(name, "file name", limit=MAX_NAME)),
        media_type=kind if _MEDIA_TYPE.fullmatch(kind) else DEFAULT_MEDIA_TYPE,
        size=total,
        ids=expect_bytes(ids, "chunk ids", size=chunk_count(total) * HASH_SIZE),
    )
