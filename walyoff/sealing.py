"""Files outside of the store that hold secrets: sealed under a key that is in the store.

They are the control keys and the node's key, which the child process writes, and the keys of
transports. Decided here: their form, and that a file in clear counts only as long as its home
has not sealed its files. The child gets the key with the parent's hello, so it is in no
argument and no environment.

Layout: `WOCS`, version (1 byte), nonce (12), then the value under AES-256-GCM, with the
version and the file's place as associated data: no file is good in another one's place.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from walyoff.errors import StoreError
from walyoff.wire import expect_array, expect_bytes, pack, unpack

if TYPE_CHECKING:
    from walyoff.abc import Store

KEY_SIZE = 32
#: Of keys that are derived, with what for.
_CONTEXT = "walyoff sealing 1 "
#: No msgpack of ours and no JSON begins like this.
MAGIC = b"WOCS\x01"
_NONCE_SIZE = 12
#: The store's setting: the key, and whether the files of the home are sealed.
_SETTING = "sealing"
#: What is sealed lies in these.
_PLACES = ("keys", "ipfs", "transports")


class Sealing:
    """How secret files are written and read. Never prints its key."""

    def __init__(self, key: bytes | None = None, *, plain: bool = False) -> None:
        """Without a key files are in clear; `plain` also believes those of an older home."""
        self._key = key
        self._aead = None if key is None else AESGCM(key)
        self._plain = plain or key is None

    def __repr__(self) -> str:
        return f"<Sealing [{'off' if self._aead is None else 'on'}]>"

    def hello(self) -> dict[str, Any]:
        """What `from_hello` needs. A secret: for the child alone."""
        return {"key": self._key, "plain": self._plain}

    @property
    def plain(self) -> bool:
        """True if files in clear count."""
        return self._plain

    @classmethod
    def from_hello(cls, info: dict[str, Any]) -> Sealing:
        """What the parent's hello says. Raises StoreError if that is nonsense."""
        key = info.get("key")
        if key is not None and (not isinstance(key, bytes) or len(key) != KEY_SIZE):
            raise StoreError("the key that the parent gave is no key")
        return cls(key, plain=info.get("plain") is True)

    @property
    def active(self) -> bool:
        """True if there is a key."""
        return self._aead is not None

    def derive(self, purpose: str) -> bytes | None:
        """A key of this home for another purpose than files; None if there is no key."""
        if self._key is None:
            return None
        return blake3(self._key, derive_key_context=_CONTEXT + purpose).digest()

    def seal(self, value: bytes, place: str) -> bytes:
        """A value as it goes into the file at a place."""
        if self._aead is None:
            return value
        nonce = os.urandom(_NONCE_SIZE)
        return MAGIC + nonce + self._aead.encrypt(nonce, value, MAGIC + place.encode())

    def unseal(self, data: bytes, place: str) -> bytes:
        """The inverse. Raises StoreError if the file was altered, moved or put there."""
        if not data.startswith(MAGIC):
            if self._plain:
                return data
            raise StoreError(f"{place} is not sealed: somebody has put it there")
        if self._aead is None:
            raise StoreError(f"{place} is sealed, and there is no key for it")
        start = len(MAGIC) + _NONCE_SIZE
        try:
            return self._aead.decrypt(
                data[len(MAGIC) : start], data[start:], MAGIC + place.encode()
            )
        except (InvalidTag, ValueError):
            raise StoreError(f"{place} is damaged, or of another home") from None

    def must_be_sealed(self, data: bytes) -> bool:
        """True if a file is in clear, counts, and should not stay so."""
        return self._aead is not None and self._plain and not data.startswith(MAGIC)


async def load_sealing(store: Store, home: Path) -> Sealing:
    """The sealing of a home, made when it is first opened."""
    value = await store.get(_SETTING)
    if value is not None:
        key, sealed = _decode(value)
    else:
        key = os.urandom(KEY_SIZE)
        # One that an older version wrote has files, which are in clear.
        sealed = not any((home / name).exists() for name in _PLACES)
        await store.put({_SETTING: pack([key, sealed])})
    return Sealing(key, plain=not sealed)


async def all_sealed(store: Store) -> None:
    """From now on a file in clear is one that somebody put there."""
    value = await store.get(_SETTING)
    if value is not None:
        await store.put({_SETTING: pack([_decode(value)[0], True])})


def _decode(value: bytes) -> tuple[bytes, bool]:
    fields = expect_array(unpack(value, 256), 2, "sealing")
    return expect_bytes(fields[0], "sealing key", size=KEY_SIZE), fields[1] is True
