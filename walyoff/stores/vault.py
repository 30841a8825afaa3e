"""What the store's bytes mean: sealed values, wrapped keys and keyed names.

Everything that is searched for is found by a keyed hash, everything that is read back is
sealed with AES-256-GCM, and associated data binds each sealed value to its place, so that
values cannot be swapped. One subkey per purpose is derived from the store key.

Random 96-bit nonces under one key are safe for 2**32 uses (NIST SP 800-38D, 8.3), which is
four billion records on one device.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from walyoff.abc import StoredContent
from walyoff.errors import StoreError

#: 128 bits: without the key nobody can look for collisions, and with it nobody needs to.
REF_SIZE = 16
FILE_NAME_SIZE = 32
CONTENT_KEY_SIZE = 32
NONCE_SIZE = 12
TAG_SIZE = 16
#: A content key as it is stored: nonce, key, tag.
WRAPPED_SIZE = NONCE_SIZE + CONTENT_KEY_SIZE + TAG_SIZE
#: The random bytes of a content: its key, and the nonce of the key's wrapping.
KEY_RANDOM_SIZE = CONTENT_KEY_SIZE + NONCE_SIZE
MAX_SALT = 255
#: A content is encrypted in segments, so that a large one is not held twice in memory.
SEGMENT = 2**20

_CONTEXT = "walyoff store 2025 "
#: The nonce of a content that is one segment. Its key is used for nothing else.
_ONLY_SEGMENT = bytes(NONCE_SIZE - 1) + b"\x01"


class Vault:
    """The keys of one store. Safe to use from many threads; never prints a secret."""

    __slots__ = ("_archive_key", "_file_key", "_ref_key", "_seal", "_wrap")

    def __init__(self, store_key: bytes) -> None:
        def derive(purpose: str) -> bytes:
            return blake3.blake3(store_key, derive_key_context=_CONTEXT + purpose).digest()

        self._wrap = AESGCM(derive("content keys"))
        self._seal = AESGCM(derive("values"))
        self._ref_key = derive("lookups")
        self._file_key = derive("file names")
        self._archive_key = derive("archives")

    def __repr__(self) -> str:
        return "<Vault>"

    def archive_key(self, salt: bytes) -> bytes:
        """The key of one export or backup, whose salt is random."""
        return blake3.blake3(salt, key=self._archive_key).digest()

    def ref(self, kind: bytes, place: bytes, name: bytes) -> bytes:
        """The keyed name of something: kind and place keep equal names apart.

        Kinds are of one byte and places of no or REF_SIZE bytes, and no kind has both.
        """
        return blake3.blake3(kind + place + name, key=self._ref_key).digest(REF_SIZE)

    def refs(self, kind: bytes, place: bytes, names: Iterable[bytes]) -> list[bytes]:
        """`ref` of many names."""
        begun = blake3.blake3(kind + place, key=self._ref_key)
        refs = []
        for name in names:
            # Taking the key in again took longer than hashing.
            hasher = begun.copy()
            hasher.update(name)
            refs.append(hasher.digest(REF_SIZE))
        return refs

    def seal(self, value: bytes, place: bytes) -> bytes:
        """Encrypt a value that can be read back at this place only."""
        nonce = os.urandom(NONCE_SIZE)
        return nonce + self._seal.encrypt(nonce, value, place)

    def unseal(self, sealed: bytes, place: bytes, what: str) -> bytes:
        """The inverse of `seal`. Raises StoreError that names `what` if it was altered."""
        try:
            return self._seal.decrypt(sealed[:NONCE_SIZE], sealed[NONCE_SIZE:], place)
        except (InvalidTag, ValueError, TypeError):
            raise StoreError(f"{what} is damaged") from None

    def file_name(self, key: bytes) -> bytes:
        """The name of the file of the content with this key."""
        return blake3.blake3(key, key=self._file_key).digest(FILE_NAME_SIZE)

    def new_key(self, place: bytes, random: bytes | None = None) -> tuple[bytes, bytes]:
        """A fresh content key, and the same wrapped for this place.

        `random` are KEY_RANDOM_SIZE fresh random bytes: os.urandom gives up the interpreter
        lock, so who needs many keys fetches the bytes for all of them at once.
        """
        random = random or os.urandom(KEY_RANDOM_SIZE)
        key, nonce = random[:CONTENT_KEY_SIZE], random[CONTENT_KEY_SIZE:]
        return key, nonce + self._wrap.encrypt(nonce, key, place)

    def open_key(self, wrapped: bytes, place: bytes, record_id: bytes) -> bytes:
        """The inverse of `new_key`. Raises StoreError that names the record."""
        try:
            return self._wrap.decrypt(wrapped[:NONCE_SIZE], wrapped[NONCE_SIZE:], place)
        except (InvalidTag, ValueError, TypeError):
            raise damaged(record_id) from None

    def encrypt_content(
        self, content: StoredContent, place: bytes, random: bytes
    ) -> tuple[bytes, bytes]:
        """A small content as (wrapped key, ciphertext); `random` as in `new_key`."""
        key, wrapped = self.new_key(place, random)
        salt, data = content
        plain = b"".join((bytes((len(salt),)), salt, data))
        return wrapped, AESGCM(key).encrypt(_ONLY_SEGMENT, plain, place)

    def decrypt_content(
        self, wrapped: bytes, sealed: bytes, place: bytes, record_id: bytes
    ) -> StoredContent:
        """The inverse of `encrypt_content`. Raises StoreError that names the record."""
        key = self.open_key(wrapped, place, record_id)
        try:
            plain = AESGCM(key).decrypt(_ONLY_SEGMENT, sealed, place)
        except (InvalidTag, ValueError, TypeError):
            raise damaged(record_id) from None
        return split_content(plain, record_id)


def damaged(record_id: bytes) -> StoreError:
    """The error for a content that does not authenticate."""
    return StoreError(f"the content of record {record_id[:8].hex()} is damaged")


def split_content(plain: bytes, record_id: bytes) -> StoredContent:
    """Salt and data of a decrypted content."""
    if not plain or len(plain) < 1 + plain[0]:
        raise damaged(record_id)
    at = 1 + plain[0]
    return StoredContent(plain[1:at], plain[at:])


def _nonce(index: int, last: bool) -> bytes:
    # The STREAM construction (Hoang, Reyhanitabar, Rogaway, Vizar 2015): counter and an end
    # mark, so that segments cannot be dropped, reordered or cut off.
    return index.to_bytes(NONCE_SIZE - 1, "big") + (b"\x01" if last else b"\x00")


def encrypt_segments(key: bytes, content: StoredContent, place: bytes) -> Iterator[bytes]:
    """The ciphertext of a content of any size, piece by piece."""
    aead = AESGCM(key)
    head = bytes((len(content.salt),)) + content.salt
    data = memoryview(content.data)
    first = SEGMENT - len(head)
    starts = range(first, len(data), SEGMENT)
    yield aead.encrypt(_nonce(0, not starts), head + bytes(data[:first]), place)
    for index, start in enumerate(starts, 1):
        last = index == len(starts)
        yield aead.encrypt(_nonce(index, last), data[start : start + SEGMENT], place)


def encrypt_chunk(key: bytes, data: bytes, place: bytes) -> bytes:
    """The ciphertext of a chunk of an attachment, under a key that is used for it alone."""
    return AESGCM(key).encrypt(_ONLY_SEGMENT, data, place)


def decrypt_chunk(key: bytes, sealed: bytes, place: bytes, record_id: bytes) -> bytes:
    """The inverse of `encrypt_chunk`. Raises StoreError that names the record."""
    try:
        return AESGCM(key).decrypt(_ONLY_SEGMENT, sealed, place)
    except (InvalidTag, ValueError):
        raise damaged(record_id) from None


def decrypt_segments(
    key: bytes, sealed: memoryview, place: bytes, record_id: bytes
) -> StoredContent:
    """The inverse of `encrypt_segments`. Raises StoreError that names the record."""
    aead = AESGCM(key)
    step = SEGMENT + TAG_SIZE
    pieces: list[bytes] = []
    try:
        for index, start in enumerate(range(0, len(sealed), step)):
            last = start + step >= len(sealed)
            pieces.append(
                aead.decrypt(_nonce(index, last), sealed[start : start + step], place)
            )
    except (InvalidTag, ValueError):
        raise damaged(record_id) from None
    # The first piece holds the whole salt: it alone is split, and nothing is copied twice.
    first = split_content(pieces[0] if pieces else b"", record_id)
    if len(pieces) == 1:
        return first
    pieces[0] = first.data
    return StoredContent(salt=first.salt, data=b"".join(pieces))
