"""What the suites share: one error for every failure, fixed sizes, and the AEAD wrapper.

The library's own exceptions end here. A failure says the same sentence whatever went wrong,
so that nobody can learn from the text which half of a signature or which byte was bad.
"""

from __future__ import annotations

from hashlib import sha256
from types import TracebackType
from typing import Protocol

from cryptography.exceptions import InvalidSignature, InvalidTag, UnsupportedAlgorithm

from walyoff.errors import CipherError

#: The only text of a failure.
FAILURE = "the cipher operation failed"

#: What `cryptography` raises for a bad key, signature, ciphertext, or one that is too large.
FOREIGN_ERRORS = (
    InvalidTag,
    InvalidSignature,
    UnsupportedAlgorithm,
    ValueError,
    OverflowError,
)


class Guard:
    """Turns every foreign error of its block into one CipherError."""

    __slots__ = ()

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None and isinstance(error, FOREIGN_ERRORS):
            # `from None`: the foreign text would tell which check failed.
            raise CipherError(FAILURE) from None


GUARD = Guard()


def check_size(data: bytes, size: int) -> None:
    """Refuse anything that is not exactly `size` bytes. Raises CipherError."""
    if len(data) != size:
        raise CipherError(FAILURE)


def key_label(public: bytes) -> str:
    """Eight hexadecimal digits that tell keys apart in a repr; derived from public bytes."""
    return sha256(public).hexdigest()[:8]


class ForeignAead(Protocol):
    """The part of `cryptography`'s AEAD classes that is used."""

    def encrypt(
        self,
        nonce: bytes,
        data: bytes | bytearray | memoryview,
        associated_data: bytes | None,
    ) -> bytes:
        """Encrypt and append the tag."""

    def decrypt(
        self,
        nonce: bytes,
        data: bytes | bytearray | memoryview,
        associated_data: bytes | None,
    ) -> bytes:
        """Decrypt, or raise InvalidTag."""


class GuardedAead:
    """An AEAD of `cryptography` with our error."""

    __slots__ = ("_decrypt", "_encrypt")

    def __init__(self, aead: ForeignAead) -> None:
        self._encrypt = aead.encrypt
        self._decrypt = aead.decrypt

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    def encrypt(
        self,
        nonce: bytes,
        data: bytes | bytearray | memoryview,
        associated_data: bytes | None,
    ) -> bytes:
        """Encrypt and append the 16-byte tag. Raises CipherError for a bad nonce size."""
        try:
            return self._encrypt(nonce, data, associated_data)
        except FOREIGN_ERRORS:
            raise CipherError(FAILURE) from None

    def decrypt(
        self,
        nonce: bytes,
        data: bytes | bytearray | memoryview,
        associated_data: bytes | None,
    ) -> bytes:
        """Decrypt what `encrypt` returned. Raises CipherError."""
        try:
            return self._decrypt(nonce, data, associated_data)
        except FOREIGN_ERRORS:
            raise CipherError(FAILURE) from None
