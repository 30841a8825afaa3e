"""HOME/store.key: the one secret that all others in the home hang on.

Layout: `WOFK`, version (1 byte), kind (1 byte), then
  kind 0, plain:       the 32-byte store key
  kind 1, passphrase:  opslimit and memlimit (4 bytes each, big-endian), Argon2id salt (16),
                       nonce (12), and the store key under AES-256-GCM with everything
                       before it as associated data.
The file is replaced as a whole, when the passphrase changes: there is no moment without a
whole one. The store key stays the same, so whoever has an old key file and its passphrase has
the key.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from walyoff.errors import StoreError
from walyoff.files import open_private, replace_file, sweep_new

KEY_NAME = "store.key"
KEY_SIZE = 32
#: Bytes of a passphrase: more than anybody types, and no file by mistake.
MAX_PASSPHRASE = 1024
_MAGIC = b"WOFK\x01"
_PLAIN, _PASSPHRASE = b"\x00", b"\x01"
_PARAMETERS = struct.Struct(">II16s")
_NONCE_SIZE = 12
_TAG_SIZE = 16
_PLAIN_SIZE = len(_MAGIC) + 1 + KEY_SIZE
_WRAPPED_AT = len(_MAGIC) + 1 + _PARAMETERS.size
_WRAPPED_SIZE = _WRAPPED_AT + _NONCE_SIZE + KEY_SIZE + _TAG_SIZE
#: Bytes of the largest key file.
MAX_FILE = _WRAPPED_SIZE
# The file may come from anywhere: it must not be able to ask for hours or for all memory.
_MAX_OPSLIMIT = 16
_MAX_MEMLIMIT = 2**30


def load_or_create(home: Path, passphrase: str | None, *, may_create: bool) -> bytes:
    """The store key of a home, made on first use (only under the home's lock).

    With a passphrase this takes about a second and 256 MiB, on purpose.

    Raises:
        StoreError: the file is missing although the store exists, is damaged or unreadable,
            or the passphrase is wrong, missing or not wanted.
    """
    path = home / KEY_NAME
    _check(passphrase)
    try:
        data = read(home)
    except FileNotFoundError:
        if not may_create:
            # A new key would make everything in the store look damaged for ever.
            raise StoreError(f"{path} is missing: the store cannot be read") from None
        key = os.urandom(KEY_SIZE)
        write(home, encode(key, passphrase))
        return key
    return decode(data, passphrase, path)


def change(home: Path, old: str | None, new: str | None) -> None:
    """Wrap the store key in another passphrase; None is no passphrase. Under the home's lock.

    A kill at any instant leaves the old key file or the new one.

    Raises:
        StoreError: the old passphrase is wrong, or the file cannot be written.
    """
    _check(new)
    write(home, encode(load_or_create(home, old, may_create=False), new))


def read(home: Path) -> bytes:
    """The bytes of a home's key file. Raises FileNotFoundError, StoreError."""
    path = home / KEY_NAME
    try:
        descriptor = open_private(path, os.O_RDONLY)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error
    try:
        return os.read(descriptor, MAX_FILE + 1)
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error
    finally:
        os.close(descriptor)


def _check(passphrase: str | None) -> None:
    if passphrase is not None and not 0 < len(passphrase.encode()) <= MAX_PASSPHRASE:
        raise StoreError(f"a passphrase has 1 to {MAX_PASSPHRASE} bytes")


def decode(data: bytes, passphrase: str | None, path: Path) -> bytes:
    """The store key in the bytes of a key file, which come from `path`.

    Raises:
        StoreError: they are damaged, or the passphrase is wrong, missing or not wanted.
    """
    _check(passphrase)
    kind = data[len(_MAGIC) : len(_MAGIC) + 1]
    if data.startswith(_MAGIC) and kind == _PLAIN and len(data) == _PLAIN_SIZE:
        if passphrase is not None:
            raise StoreError(f"{_place(path)} is not protected by a passphrase")
        return data[-KEY_SIZE:]
    if data.startswith(_MAGIC) and kind == _PASSPHRASE and len(data) == _WRAPPED_SIZE:
        if passphrase is None:
            raise StoreError(f"{_place(path)} is protected by a passphrase, and none was given")
        head, wrapped = data[:_WRAPPED_AT], data[_WRAPPED_AT:]
        opslimit, memlimit, salt = _PARAMETERS.unpack_from(data, len(_MAGIC) + 1)
        if opslimit > _MAX_OPSLIMIT or memlimit > _MAX_MEMLIMIT:
            raise StoreError(f"{path} is damaged")
        try:
            return _stretch(passphrase, salt, opslimit, memlimit).decrypt(
                wrapped[:_NONCE_SIZE], wrapped[_NONCE_SIZE:], head
            )
        except InvalidTag:
            raise StoreError(f"wrong passphrase for {_place(path)}") from None
    raise StoreError(f"{path} is damaged, or of a newer version")


def _stretch(passphrase: str, salt: bytes, opslimit: int, memlimit: int) -> AESGCM:
    try:
        key = _argon2id().kdf(
            KEY_SIZE, passphrase.encode(), salt, opslimit=opslimit, memlimit=memlimit
        )
    except Exception as error:
        # PyNaCl raises ValueError, RuntimeError and MemoryError kinds for bad limits.
        raise StoreError("the passphrase cannot be stretched here") from error
    return AESGCM(key)


def _argon2id() -> Any:
    # A home without a passphrase starts without it.
    from nacl import pwhash  # noqa: PLC0415

    return pwhash.argon2id


def _place(path: Path) -> Path:
    """What people know: the home of a key file, or the file that is none."""
    return path.parent if path.name == KEY_NAME else path


def encode(key: bytes, passphrase: str | None) -> bytes:
    """The bytes of a key file."""
    if passphrase is None:
        return _MAGIC + _PLAIN + key
    _check(passphrase)
    argon2id = _argon2id()
    ops, mem = argon2id.OPSLIMIT_MODERATE, argon2id.MEMLIMIT_MODERATE
    salt, nonce = os.urandom(argon2id.SALTBYTES), os.urandom(_NONCE_SIZE)
    head = _MAGIC + _PASSPHRASE + _PARAMETERS.pack(ops, mem, salt)
    return head + nonce + _stretch(passphrase, salt, ops, mem).encrypt(nonce, key, head)


def write(home: Path, data: bytes) -> None:
    """Replace a home's key file; durable when it returns. Raises StoreError."""
    path = home / KEY_NAME
    try:
        # A kill of an earlier start may have left one; the home's lock makes it ours.
        sweep_new(home, KEY_NAME)
        replace_file(path, data)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}") from error
