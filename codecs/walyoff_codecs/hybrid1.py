"""The suite `hybrid-1`: safe as long as either the classical or the post-quantum half holds.

sign   Ed25519 (RFC 8032) and ML-DSA-65 (FIPS 204) over the same message; both must verify.
seal   HPKE (RFC 9180) with the KEM MLKEM768_X25519, HKDF-SHA256 and AES-256-GCM.
aead   AES-256-GCM with 12-byte nonces.

Encodings, all of fixed size, classical half first for signatures and HPKE's own order
(ML-KEM first) for seal keys:

    signature     Ed25519 (64)   || ML-DSA-65 (3309)
    sign public   Ed25519 (32)   || ML-DSA-65 (1952)
    sign secret   Ed25519 (32)   || ML-DSA-65 seed (32)
    seal public   ML-KEM-768 (1184) || X25519 (32)
    seal secret   ML-KEM-768 seed (64) || X25519 (32)
"""

from __future__ import annotations

from typing import Final

from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.asymmetric.mldsa import (
    MLDSA65PrivateKey,
    MLDSA65PublicKey,
)
from cryptography.hazmat.primitives.asymmetric.mlkem import (
    MLKEM768PrivateKey,
    MLKEM768PublicKey,
)
from cryptography.hazmat.primitives.asymmetric.x25519 import (
    X25519PrivateKey,
    X25519PublicKey,
)
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from walyoff.abc import SealKey, SignKey
from walyoff_codecs._common import GUARD, PrivateKey, Suite, check_size

NAME: Final = "hybrid-1"

#: Both halves sign this before the message, so that a half taken out of a signature is not
#: a signature of any other suite. ML-DSA gets it as its context as well.
DOMAIN: Final = b"walyoff/sign/hybrid-1\x00"

ED25519_SIGNATURE: Final = 64
ED25519_KEY: Final = 32
MLDSA_SIGNATURE: Final = 3309
MLDSA_PUBLIC: Final = 1952
MLDSA_SEED: Final = 32
MLKEM_PUBLIC: Final = 1184
MLKEM_SEED: Final = 64
X25519_KEY: Final = 32

SIGNATURE_SIZE: Final = ED25519_SIGNATURE + MLDSA_SIGNATURE
SIGN_PUBLIC_SIZE: Final = ED25519_KEY + MLDSA_PUBLIC
SIGN_SECRET_SIZE: Final = ED25519_KEY + MLDSA_SEED
SEAL_PUBLIC_SIZE: Final = MLKEM_PUBLIC + X25519_KEY
SEAL_SECRET_SIZE: Final = MLKEM_SEED + X25519_KEY

_HPKE = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)


class HybridSignKey(PrivateKey):
    """An Ed25519 and an ML-DSA-65 private key, used together."""

    __slots__ = ("_classical", "_post_quantum")

    def __init__(self, classical: Ed25519PrivateKey, post_quantum: MLDSA65PrivateKey) -> None:
        super().__init__(
            classical.public_key().public_bytes_raw()
            + post_quantum.public_key().public_bytes_raw()
        )
        self._classical = classical
        self._post_quantum = post_quantum

    def sign(self, message: bytes) -> bytes:
        """Sign with both keys; 1 to 2 ms. ML-DSA is hedged: no two signatures are equal."""
        bound = DOMAIN + message
        with GUARD:
            return self._classical.sign(bound) + self._post_quantum.sign(bound, DOMAIN)

    def secret(self) -> bytes:
        """Both seeds, 64 bytes."""
        return self._classical.private_bytes_raw() + self._post_quantum.private_bytes_raw()


class HybridSealKey(PrivateKey):
    """An ML-KEM-768 and an X25519 private key, used as one HPKE key."""

    __slots__ = ("_elliptic", "_key", "_lattice")

    def __init__(self, lattice: MLKEM768PrivateKey, elliptic: X25519PrivateKey) -> None:
        super().__init__(
            lattice.public_key().public_bytes_raw() + elliptic.public_key().public_bytes_raw()
        )
        self._lattice = lattice
        self._elliptic = elliptic
        self._key = hpke.MLKEM768X25519PrivateKey(lattice, elliptic)

    def open(self, sealed: bytes, info: bytes) -> bytes:
        """Open what was sealed to this key with the same info. Raises CipherError."""
        with GUARD:
            return _HPKE.decrypt(sealed, self._key, info)

    def secret(self) -> bytes:
        """The ML-KEM seed and the X25519 key, 96 bytes."""
        return self._lattice.private_bytes_raw() + self._elliptic.private_bytes_raw()


class Hybrid1(Suite):
    """The suite `hybrid-1`. Stateless; safe to use from many threads."""

    name = NAME
    key_types: Final = ("Ed25519", "ML-DSA-65", "ML-KEM-768", "X25519")
    _foreign_aead = AESGCM

    def new_sign_key(self) -> SignKey:
        """A fresh signing key."""
        with GUARD:
            return HybridSignKey(Ed25519PrivateKey.generate(), MLDSA65PrivateKey.generate())

    def load_sign_key(self, secret: bytes) -> SignKey:
        """A signing key from its 64 bytes of seeds. Raises CipherError."""
        check_size(secret, SIGN_SECRET_SIZE)
        with GUARD:
            return HybridSignKey(
                Ed25519PrivateKey.from_private_bytes(secret[:ED25519_KEY]),
                MLDSA65PrivateKey.from_seed_bytes(secret[ED25519_KEY:]),
            )

    def verify(self, public: bytes, message: bytes, signature: bytes) -> None:
        """Raise CipherError unless both halves hold."""
        check_size(public, SIGN_PUBLIC_SIZE)
        check_size(signature, SIGNATURE_SIZE)
        bound = DOMAIN + message
        with GUARD:
            classical = Ed25519PublicKey.from_public_bytes(public[:ED25519_KEY])
            post_quantum = MLDSA65PublicKey.from_public_bytes(public[ED25519_KEY:])
            # Each raises on failure. The cheap half goes first, so a stranger's garbage
            # costs little; the text is the same whichever half was bad.
            classical.verify(signature[:ED25519_SIGNATURE], bound)
            post_quantum.verify(signature[ED25519_SIGNATURE:], bound, DOMAIN)

    def new_seal_key(self) -> SealKey:
        """A fresh decryption key."""
        with GUARD:
            return HybridSealKey(MLKEM768PrivateKey.generate(), X25519PrivateKey.generate())

    def load_seal_key(self, secret: bytes) -> SealKey:
        """A decryption key from its 96 secret bytes. Raises CipherError."""
        check_size(secret, SEAL_SECRET_SIZE)
        with GUARD:
            return HybridSealKey(
                MLKEM768PrivateKey.from_seed_bytes(secret[:MLKEM_SEED]),
                X25519PrivateKey.from_private_bytes(secret[MLKEM_SEED:]),
            )

    def seal(self, public: bytes, plaintext: bytes, info: bytes) -> bytes:
        """Encrypt to a public key: 1136 bytes longer than the plaintext.

        Raises:
            CipherError: the public key is not one, or its X25519 half has low order.
        """
        check_size(public, SEAL_PUBLIC_SIZE)
        with GUARD:
            key = hpke.MLKEM768X25519PublicKey(
                MLKEM768PublicKey.from_public_bytes(public[:MLKEM_PUBLIC]),
                X25519PublicKey.from_public_bytes(public[MLKEM_PUBLIC:]),
            )
            return _HPKE.encrypt(plaintext, key, info)
