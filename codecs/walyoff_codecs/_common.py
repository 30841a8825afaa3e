"""What the suites share: one error for every failure, fixed sizes, keys that do not print.

The library's own exceptions end here. A failure says the same sentence whatever went wrong,
so that nobody can learn from the text which half of a signature or which byte was bad.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from types import TracebackType
from typing import Final

from cryptography.exceptions import InvalidSignature, InvalidTag, UnsupportedAlgorithm

from walyoff.abc import Aead
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


class PrivateKey:
    """A private key; its repr tells it from others by its public half alone."""

    __slots__ = ("public",)

    def __init__(self, public: bytes) -> None:
        #: The public key, in the suite's encoding.
        self.public: Final = public

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {sha256(self.public).hexdigest()[:8]}>"


class GuardedAead:
    """An AEAD of `cryptography` with our error."""

    __slots__ = ("_decrypt", "_encrypt")

    def __init__(self, aead: Aead) -> None:
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


class Suite:
    """What all suites have: a name, and an AEAD of 32-byte keys and 12-byte nonces."""

    name: str
    aead_key_size = 32
    aead_nonce_size = 12
    #: The AEAD's class.
    _foreign_aead: Callable[[bytes], Aead]

    def __repr__(self) -> str:
        return f"<suite {self.name}>"

    def aead(self, key: bytes) -> Aead:
        """The AEAD under a key of 32 bytes. Raises CipherError for another size."""
        check_size(key, self.aead_key_size)
        return GuardedAead(self._foreign_aead(key))
