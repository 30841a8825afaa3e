"""`Cipher`: a suite, which is a named set of algorithms, and the keys that it makes.

What is signed or sealed, and under which tags, is decided by those who call it.
"""

from __future__ import annotations

from typing import Protocol


class Aead(Protocol):
    """An AEAD under one key. Nonces are the caller's duty."""

    def encrypt(
        self,
        nonce: bytes,
        data: bytes | bytearray | memoryview,
        associated_data: bytes | None,
    ) -> bytes:
        """Encrypt and authenticate."""

    def decrypt(
        self,
        nonce: bytes,
        data: bytes | bytearray | memoryview,
        associated_data: bytes | None,
    ) -> bytes:
        """Decrypt. Raises CipherError."""


class SignKey(Protocol):
    """A private signing key. Never prints its secret."""

    @property
    def public(self) -> bytes:
        """The public key, in the suite's fixed encoding."""

    def sign(self, message: bytes) -> bytes:
        """Sign; may take milliseconds."""

    def secret(self) -> bytes:
        """The private key, serialised for `Cipher.load_sign_key`."""


class SealKey(Protocol):
    """A private decryption key. Never prints its secret."""

    @property
    def public(self) -> bytes:
        """The public key, in the suite's fixed encoding."""

    def open(self, sealed: bytes, info: bytes) -> bytes:
        """Open what was sealed to this key with the same info. Raises CipherError."""

    def secret(self) -> bytes:
        """The private key, serialised for `Cipher.load_seal_key`."""


class Cipher(Protocol):
    """A suite: a named set of algorithms. Stateless, and safe to use from many threads."""

    @property
    def name(self) -> str:
        """The name in certificates and on the wire, at most 32 ASCII characters."""

    @property
    def key_types(self) -> tuple[str, ...]:
        """The key types that certificates of this suite list, in order."""

    #: Key and nonce size of `aead`, in bytes.
    aead_key_size: int
    aead_nonce_size: int

    def new_sign_key(self) -> SignKey:
        """A fresh signing key."""

    def load_sign_key(self, secret: bytes) -> SignKey:
        """The inverse of `SignKey.secret`. Raises CipherError."""

    def verify(self, public: bytes, message: bytes, signature: bytes) -> None:
        """Raise CipherError unless every algorithm of the suite accepts the signature."""

    def new_seal_key(self) -> SealKey:
        """A fresh decryption key."""

    def load_seal_key(self, secret: bytes) -> SealKey:
        """The inverse of `SealKey.secret`. Raises CipherError."""

    def seal(self, public: bytes, plaintext: bytes, info: bytes) -> bytes:
        """Encrypt to a public key (HPKE base mode). Raises CipherError on a bad key."""

    def aead(self, key: bytes) -> Aead:
        """The suite's AEAD under a key of `aead_key_size` bytes."""


__all__ = [
    "Aead",
    "Cipher",
    "SealKey",
    "SignKey",
]
