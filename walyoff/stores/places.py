"""Where each sealed value belongs: the kinds of refs, and the associated data.

Writing and reading must agree on these to the byte, so they stand here and only here.
"""

from __future__ import annotations

import struct

# Kinds of refs (`Vault.ref`).
SETTING = b"s"
CHANNEL = b"c"
AUTHOR = b"a"
BATCH = b"b"
RECORD = b"r"
CURSOR = b"n"
MARK = b"m"
CHUNK = b"k"

HASH_SIZE = 32
#: Sequence numbers, positions and counts are SQLite integers.
MAX_INTEGER = 2**63 - 1

# Associated data. Each begins with a word of its own.
CHECK = b"walyoff store"
SETTING_NAME = b"name"
SETTING_VALUE = b"value"
DID = b"did"
BODY = b"body"
SIGNATURE = b"signature"
ANCHOR = b"anchor"
CHUNK_DATA = b"chunk"
_IDS = struct.Struct(">3s16s16s16sQQ")


def ids_place(
    channel_ref: bytes, author_ref: bytes, batch_ref: bytes, first_seq: int, count: int
) -> bytes:
    """For a batch's hashes: also binds its author and its place in the author's chain."""
    return _IDS.pack(b"ids", channel_ref, author_ref, batch_ref, first_seq, count)


def content_prefix(channel_ref: bytes) -> bytes:
    """For a content and its key, before the record's hash."""
    return b"content" + channel_ref
