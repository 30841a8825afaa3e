"""The file of an export or a backup: one stream of named parts under one key.

Decided here: its bytes, and which parts a home may get from it. Layout:

    `WOAR`, version (1 byte), kind (1 byte), u16 length, key block, salt (32), segments

The key block is a key file (`stores.keyfile`): of an export the store key under a passphrase of
its own, of a backup the key file of the home as it is. The rest is the STREAM construction
(Hoang, Reyhanitabar, Rogaway, Vizar 2015) with AES-256-GCM under a key from store key and salt:
segments of 1 MiB, nonces of counter and end mark, and what comes before as associated data. The
plaintext is, for each part, `u32` length, pack([path, size]), and the bytes; and then `u32` 0.

Nothing is compressed, so what is unpacked is never larger than the file.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable, Iterator
from typing import BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from walyoff.errors import RemoteProtocolError, StoreError
from walyoff.stores import keyfile
from walyoff.wire import expect_array, expect_int, expect_str, pack, unpack

EXPORT, BACKUP = 1, 2
MAGIC = b"WOAR\x01"
SALT_SIZE = 32
SEGMENT = 2**20
_TAG_SIZE = 16
_HEAD = struct.Struct(">5sBH")
_LENGTH = struct.Struct(">I")
#: Characters of a part's path: chunk files have the longest, about 100.
MAX_PATH = 256
#: Bytes of a part's path and size.
MAX_PART_HEAD = 512
#: Bytes of one part, which is a file: more than any store of ours becomes.
MAX_SIZE = 2**44
#: Parts in one file: a home of a million large contents.
MAX_PARTS = 4_000_000
_COPY = 1 << 18

#: What a home may get: files, and folders with what is in them.
FILES = {"store.db", "cursors"}
FOLDERS = {"chunks", "keys", "walytis", "positions", "segments", "ipfs", "transports"}
#: No part is hidden, above the home, or anything that a shell or a person could mistake.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", re.A)


def check_path(path: str) -> str:
    """A part's path, if a home may have it. Raises RemoteProtocolError."""
    names = path.split("/")
    allowed = path in FILES or (len(names) > 1 and names[0] in FOLDERS)
    if not allowed or not all(_NAME.fullmatch(name) for name in names):
        raise RemoteProtocolError("a part has a path that no home has", reason="path")
    return path


class ArchiveWriter:
    """Writes one archive. Blocking."""

    def __init__(
        self, file: BinaryIO, *, kind: int, key_block: bytes, key: Callable[[bytes], bytes]
    ) -> None:
        """`key` makes the key from the salt (`Vault.archive_key`)."""
        salt = os.urandom(SALT_SIZE)
        self._head = _HEAD.pack(MAGIC, kind, len(key_block)) + key_block + salt
        self._aead = AESGCM(key(salt))
        self._file = file
        self._buffer = bytearray()
        self._index = 0
        file.write(self._head)

    def add(self, path: str, source: BinaryIO, size: int) -> None:
        """Add a part of exactly so many bytes. Raises StoreError if the source has fewer."""
        head = pack([check_path(path), size])
        self._write(_LENGTH.pack(len(head)) + head)
        while size:
            data = source.read(min(size, _COPY))
            if not data:
                raise StoreError(f"{path} became shorter while it was read: try again")
            self._write(data)
            size -= len(data)

    def finish(self) -> None:
        """Write the end."""
        self._write(_LENGTH.pack(0))
        self._flush(last=True)

    def _write(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) > SEGMENT:
            self._flush(last=False)

    def _flush(self, *, last: bool) -> None:
        piece = bytes(self._buffer[:SEGMENT])
        del self._buffer[:SEGMENT]
        self._file.write(self._aead.encrypt(nonce(self._index, last), piece, self._head))
        self._index += 1


class ArchiveReader:
    """Reads one archive: any bytes give parts or one of two errors. Blocking.

    Nothing of it may be used before `parts` has come to its end.
    """

    def __init__(self, file: BinaryIO, kind: int) -> None:
        """Raises RemoteProtocolError if it is no archive of that kind."""
        self._file = file
        head = self._exactly(_HEAD.size)
        magic, found, size = _HEAD.unpack(head)
        if magic[:4] != MAGIC[:4]:
            raise RemoteProtocolError("this is no file of walyoff", reason="no-archive")
        if magic != MAGIC:
            raise RemoteProtocolError(
                "this file is of a newer version: update this program", reason="version"
            )
        if found != kind:
            other = "`walyoff restore`" if kind == EXPORT else "`walyoff import`"
            raise RemoteProtocolError(f"this file is for {other}", reason="kind")
        if size > keyfile.MAX_FILE:
            raise RemoteProtocolError("the file is damaged")
        self.key_block = self._exactly(size)
        self.salt = self._exactly(SALT_SIZE)
        self._head = head + self.key_block + self.salt
        self._plain = b""
        self._at = 0
        self._index = 0
        self._ahead = b""
        self._ended = False
        self._aead: AESGCM | None = None

    def _exactly(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) != size:
            raise RemoteProtocolError("the file is too short", reason="cut-off")
        return data

    def parts(self, key: bytes) -> Iterator[tuple[str, int, Iterator[bytes]]]:
        """Path, size and pieces of each part; take all pieces before the next part.

        Raises:
            RemoteProtocolError: the file is damaged, cut off, or has what no home has.
        """
        self._aead = AESGCM(key)
        self._ahead = self._file.read(SEGMENT + _TAG_SIZE)
        for _ in range(MAX_PARTS):
            (length,) = _LENGTH.unpack(self._read(_LENGTH.size))
            if not length:
                if not self._ended or self._at != len(self._plain):
                    raise RemoteProtocolError("something follows the end of the file")
                return
            if length > MAX_PART_HEAD:
                raise RemoteProtocolError("a part's name is too long")
            fields = expect_array(unpack(self._read(length), MAX_PART_HEAD), 2, "part")
            path = check_path(expect_str(fields[0], "path", limit=MAX_PATH))
            size = expect_int(fields[1], "size", high=MAX_SIZE)
            left = [size]
            yield path, size, self._pieces(left)
            if left[0]:
                raise RemoteProtocolError("a part was not taken")
        raise RemoteProtocolError(f"the file has more than {MAX_PARTS} parts")

    def _pieces(self, left: list[int]) -> Iterator[bytes]:
        while left[0]:
            piece = self._some(left[0])
            left[0] -= len(piece)
            yield piece

    def _read(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            found += self._some(size - len(found))
        return found

    def _some(self, most: int) -> bytes:
        """At least one byte, at most so many."""
        while self._at == len(self._plain):
            self._next()
        piece = self._plain[self._at : self._at + min(most, _COPY)]
        self._at += len(piece)
        return piece

    def _next(self) -> None:
        if self._ended or self._aead is None:
            raise RemoteProtocolError("the file is too short", reason="cut-off")
        sealed, self._ahead = self._ahead, self._file.read(SEGMENT + _TAG_SIZE)
        self._ended = not self._ahead
        try:
            self._plain = self._aead.decrypt(
                nonce(self._index, self._ended), sealed, self._head
            )
        except (InvalidTag, ValueError):
            raise RemoteProtocolError("the file is damaged or cut off") from None
        if not self._plain:
            raise RemoteProtocolError("the file has an empty segment")
        self._at = 0
        self._index += 1


def nonce(index: int, last: bool) -> bytes:
    """A counter and an end mark: segments cannot be dropped, reordered or cut off."""
    return index.to_bytes(11, "big") + (b"\x01" if last else b"\x00")
