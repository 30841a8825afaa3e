"""The suite `classic-1`: elliptic curves alone, for devices without post-quantum support.

sign   Ed25519 (RFC 8032).
seal   HPKE (RFC 9180) with the KEM X25519, HKDF-SHA256 and ChaCha20-Poly1305.
aead   ChaCha20-Poly1305 (RFC 8439) with 12-byte nonces.

Encodings: 64 bytes for a signature and 32 bytes for every public or secret key.
"""

from __future__ import annotations

from typing import Final

from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.asymmetric.x25519 import (
    X25519PrivateKey,
    X25519PublicKey,
)
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from walyoff.abc import SealKey, SignKey
from walyoff_codecs._common import GUARD, PrivateKey, Suite, check_size

NAME: Final = "classic-1"

#: Signed before the message, so that a signature of this suite is none of another's.
DOMAIN: Final = b"walyoff/sign/classic-1\x00"

SIGNATURE_SIZE: Final = 64
KEY_SIZE: Final = 32

_HPKE = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.CHACHA20_POLY1305)


class ClassicSignKey(PrivateKey):
    """An Ed25519 private key."""

    __slots__ = ("_key",)

    def __init__(self, key: Ed25519PrivateKey) -> None:
        super().__init__(key.public_key().public_bytes_raw())
        self._key = key

    def sign(self, message: bytes) -> bytes:
        """Sign; the same message always gives the same 64 bytes."""
        with GUARD:
            return self._key.sign(DOMAIN + message)

    def secret(self) -> bytes:
        """The seed, 32 bytes."""
        return self._key.private_bytes_raw()


class ClassicSealKey(PrivateKey):
    """An X25519 private key."""

    __slots__ = ("_key",)

    def __init__(self, key: X25519PrivateKey) -> None:
        super().__init__(key.public_key().public_bytes_raw())
        self._key = key

    def open(self, sealed: bytes, info: bytes) -> bytes:
        """Open what was sealed to this key with the same info. Raises CipherError."""
        with GUARD:
            return _HPKE.decrypt(sealed, self._key, info)

    def secret(self) -> bytes:
        """The private key, 32 bytes."""
        return self._key.private_bytes_raw()


class Classic1(Suite):
    """The suite `classic-1`. Stateless; safe to use from many threads."""

    name = NAME
    key_types: Final = ("Ed25519", "X25519")
    _foreign_aead = ChaCha20Poly1305

    def new_sign_key(self) -> SignKey:
        """A fresh signing key."""
        with GUARD:
            return ClassicSignKey(Ed25519PrivateKey.generate())

    def load_sign_key(self, secret: bytes) -> SignKey:
        """A signing key from its 32-byte seed. Raises CipherError."""
        check_size(secret, KEY_SIZE)
        with GUARD:
            return ClassicSignKey(Ed25519PrivateKey.from_private_bytes(secret))

    def verify(self, public: bytes, message: bytes, signature: bytes) -> None:
        """Raise CipherError unless the signature holds."""
        check_size(public, KEY_SIZE)
        check_size(signature, SIGNATURE_SIZE)
        with GUARD:
            Ed25519PublicKey.from_public_bytes(public).verify(signature, DOMAIN + message)

    def new_seal_key(self) -> SealKey:
        """A fresh decryption key."""
        with GUARD:
            return ClassicSealKey(X25519PrivateKey.generate())

    def load_seal_key(self, secret: bytes) -> SealKey:
        """A decryption key from its 32 secret bytes. Raises CipherError."""
        check_size(secret, KEY_SIZE)
        with GUARD:
            return ClassicSealKey(X25519PrivateKey.from_private_bytes(secret))

    def seal(self, public: bytes, plaintext: bytes, info: bytes) -> bytes:
        """Encrypt to a public key: 48 bytes longer than the plaintext.

        Raises:
            CipherError: the public key is not one, or has low order.
        """
        check_size(public, KEY_SIZE)
        with GUARD:
            return _HPKE.encrypt(plaintext, X25519PublicKey.from_public_bytes(public), info)
