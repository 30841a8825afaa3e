"""The suite `walytis-1`: the algorithms of a Walytis key group, for who wants no others.

sign   ECDSA over secp256k1 with SHA-256 and ML-DSA-65 (FIPS 204); both must verify. It is the
       signature of a stock key group of the families EC-secp256k1 and PQ-ML-KEM-768-ML-DSA-65
       in another spelling: `to_stock` and `from_stock` translate.
seal   The cascade of those families: ECDH over secp256k1 inside ML-KEM-768 (FIPS 203), each
       with HKDF-SHA256 and AES-256-GCM; both private keys are needed to open. Stock code
       hashes both coordinates of the shared point, which `cryptography` does not give out, and
       binds no context; so this is the same cascade, and not the same bytes.
aead   AES-256-GCM with 12-byte nonces.

Encodings, all of fixed size, the elliptic half first:

    signature     r (32) || s (32), s in the lower half || ML-DSA-65 (3309)
    sign public   secp256k1, uncompressed (65) || ML-DSA-65 (1952)
    sign secret   secp256k1 (32) || ML-DSA-65 seed (32)
    seal public   secp256k1, uncompressed (65) || ML-KEM-768 (1184)
    seal secret   secp256k1 (32) || ML-KEM-768 seed (64)
    sealed        ML-KEM-768 ciphertext (1088) || AES(ephemeral (65) || AES(plaintext))
"""

from __future__ import annotations

from typing import Final, Generic, TypeVar

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.mldsa import (
    MLDSA65PrivateKey,
    MLDSA65PublicKey,
)
from cryptography.hazmat.primitives.asymmetric.mlkem import (
    MLKEM768PrivateKey,
    MLKEM768PublicKey,
)
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from walyoff.abc import SealKey, SignKey
from walyoff.errors import CipherError
from walyoff_codecs._common import FAILURE, GUARD, PrivateKey, Suite, check_size

NAME: Final = "walytis-1"
Lattice = TypeVar("Lattice", MLDSA65PrivateKey, MLKEM768PrivateKey)

#: Signed before the message, so that a signature of this suite is none of another's, and none
#: of a control key's: what those sign begins in other ways.
DOMAIN: Final = b"walyoff/sign/walytis-1\x00"
_SEAL_DOMAIN: Final = b"walyoff/seal/walytis-1\x00"

EC_SCALAR: Final = 32
EC_POINT: Final = 65
MLDSA_SIGNATURE: Final = 3309
MLDSA_PUBLIC: Final = 1952
MLDSA_SEED: Final = 32
MLKEM_PUBLIC: Final = 1184
MLKEM_SEED: Final = 64
MLKEM_CIPHERTEXT: Final = 1088

SIGNATURE_SIZE: Final = 2 * EC_SCALAR + MLDSA_SIGNATURE
SIGN_PUBLIC_SIZE: Final = EC_POINT + MLDSA_PUBLIC
SIGN_SECRET_SIZE: Final = EC_SCALAR + MLDSA_SEED
SEAL_PUBLIC_SIZE: Final = EC_POINT + MLKEM_PUBLIC
SEAL_SECRET_SIZE: Final = EC_SCALAR + MLKEM_SEED

#: The order of the group (SEC 2, 2.4.1). For every signature (r, s) there is another, (r, -s):
#: that with the lower s is the one that counts, here as in stock code.
_ORDER: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
_CURVE: Final = ec.SECP256K1()
_ECDSA: Final = ec.ECDSA(SHA256(), deterministic_signing=True)
#: Each key of a sealing encrypts once.
_NONCE: Final = bytes(12)


def to_stock(signature: bytes) -> bytes:
    """A signature of this suite as a stock key group writes it: hex texts joined by "-"."""
    check_size(signature, SIGNATURE_SIZE)
    r, s = _scalars(signature)
    halves = (encode_dss_signature(r, s), signature[2 * EC_SCALAR :])
    return "-".join(half.hex() for half in halves).encode()


def from_stock(signature: bytes) -> bytes:
    """The inverse of `to_stock`. Raises CipherError."""
    with GUARD:
        elliptic, lattice = (bytes.fromhex(half) for half in signature.decode().split("-"))
        joined = _elliptic(elliptic) + lattice
    check_size(joined, SIGNATURE_SIZE)
    return joined


def _scalars(signature: bytes) -> tuple[int, int]:
    r = int.from_bytes(signature[:EC_SCALAR], "big")
    s = int.from_bytes(signature[EC_SCALAR : 2 * EC_SCALAR], "big")
    if not (0 < r < _ORDER and 0 < s <= _ORDER // 2):
        raise CipherError(FAILURE)
    return r, s


def _elliptic(der: bytes) -> bytes:
    r, s = decode_dss_signature(der)
    s = min(s, _ORDER - s)
    return r.to_bytes(EC_SCALAR, "big") + s.to_bytes(EC_SCALAR, "big")


def _point(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def _load_point(data: bytes) -> ec.EllipticCurvePublicKey:
    return ec.EllipticCurvePublicKey.from_encoded_point(_CURVE, data)


def _load_scalar(data: bytes) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(int.from_bytes(data, "big"), _CURVE)


def _scalar(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_numbers().private_value.to_bytes(EC_SCALAR, "big")


def _layer(secret: bytes, *context: bytes) -> AESGCM:
    """The one-time AEAD of one layer: its key depends on all that the layer is about."""
    info = b"".join((_SEAL_DOMAIN, *(len(c).to_bytes(4, "big") + c for c in context)))
    return AESGCM(HKDF(SHA256(), 32, None, info).derive(secret))


class _PrivateKey(PrivateKey, Generic[Lattice]):
    """A secp256k1 private key and one on lattices, used together."""

    __slots__ = ("_elliptic", "_lattice")

    def __init__(self, elliptic: ec.EllipticCurvePrivateKey, lattice: Lattice) -> None:
        super().__init__(
            _point(elliptic.public_key()) + lattice.public_key().public_bytes_raw()
        )
        self._elliptic = elliptic
        self._lattice: Lattice = lattice

    def secret(self) -> bytes:
        """The private scalar and the seed: 64 bytes to sign, 96 to open."""
        return _scalar(self._elliptic) + self._lattice.private_bytes_raw()


class WalytisSignKey(_PrivateKey[MLDSA65PrivateKey]):
    """A secp256k1 and an ML-DSA-65 private key, used together."""

    __slots__ = ()

    def sign(self, message: bytes) -> bytes:
        """Sign with both keys; 1 to 2 ms. ML-DSA is hedged: no two signatures are equal."""
        bound = DOMAIN + message
        with GUARD:
            return _elliptic(self._elliptic.sign(bound, _ECDSA)) + self._lattice.sign(bound)


class WalytisSealKey(_PrivateKey[MLKEM768PrivateKey]):
    """A secp256k1 and an ML-KEM-768 private key, both of which are needed to open."""

    __slots__ = ()

    def open(self, sealed: bytes, info: bytes) -> bytes:
        """Open what was sealed to this key with the same info. Raises CipherError."""
        capsule, rest = sealed[:MLKEM_CIPHERTEXT], sealed[MLKEM_CIPHERTEXT:]
        with GUARD:
            secret = self._lattice.decapsulate(capsule)
            outer = _layer(secret, b"lattice", self.public, capsule, info)
            opened = outer.decrypt(_NONCE, rest, None)
            ephemeral, inside = opened[:EC_POINT], opened[EC_POINT:]
            secret = self._elliptic.exchange(ec.ECDH(), _load_point(ephemeral))
            inner = _layer(secret, b"elliptic", self.public, ephemeral, info)
            return inner.decrypt(_NONCE, inside, None)


class Walytis1(Suite):
    """The suite `walytis-1`. Stateless; safe to use from many threads."""

    name = NAME
    key_types: Final = ("EC-secp256k1", "PQ-ML-KEM-768-ML-DSA-65")
    _foreign_aead = AESGCM

    def new_sign_key(self) -> SignKey:
        """A fresh signing key."""
        with GUARD:
            return WalytisSignKey(ec.generate_private_key(_CURVE), MLDSA65PrivateKey.generate())

    def load_sign_key(self, secret: bytes) -> SignKey:
        """A signing key from its 64 secret bytes. Raises CipherError."""
        check_size(secret, SIGN_SECRET_SIZE)
        with GUARD:
            return WalytisSignKey(
                _load_scalar(secret[:EC_SCALAR]),
                MLDSA65PrivateKey.from_seed_bytes(secret[EC_SCALAR:]),
            )

    def verify(self, public: bytes, message: bytes, signature: bytes) -> None:
        """Raise CipherError unless both halves hold."""
        check_size(public, SIGN_PUBLIC_SIZE)
        check_size(signature, SIGNATURE_SIZE)
        bound = DOMAIN + message
        with GUARD:
            elliptic = _load_point(public[:EC_POINT])
            lattice = MLDSA65PublicKey.from_public_bytes(public[EC_POINT:])
            elliptic.verify(encode_dss_signature(*_scalars(signature)), bound, _ECDSA)
            lattice.verify(signature[2 * EC_SCALAR :], bound)

    def new_seal_key(self) -> SealKey:
        """A fresh decryption key."""
        with GUARD:
            return WalytisSealKey(
                ec.generate_private_key(_CURVE), MLKEM768PrivateKey.generate()
            )

    def load_seal_key(self, secret: bytes) -> SealKey:
        """A decryption key from its 96 secret bytes. Raises CipherError."""
        check_size(secret, SEAL_SECRET_SIZE)
        with GUARD:
            return WalytisSealKey(
                _load_scalar(secret[:EC_SCALAR]),
                MLKEM768PrivateKey.from_seed_bytes(secret[EC_SCALAR:]),
            )

    def seal(self, public: bytes, plaintext: bytes, info: bytes) -> bytes:
        """Encrypt to a public key: 1185 bytes longer than the plaintext.

        Raises:
            CipherError: the public key is not one.
        """
        check_size(public, SEAL_PUBLIC_SIZE)
        with GUARD:
            receiver = _load_point(public[:EC_POINT])
            lattice = MLKEM768PublicKey.from_public_bytes(public[EC_POINT:])
            once = ec.generate_private_key(_CURVE)
            ephemeral = _point(once.public_key())
            secret = once.exchange(ec.ECDH(), receiver)
            inner = _layer(secret, b"elliptic", public, ephemeral, info)
            inside = ephemeral + inner.encrypt(_NONCE, plaintext, None)
            secret, capsule = lattice.encapsulate()
            outer = _layer(secret, b"lattice", public, capsule, info)
            return capsule + outer.encrypt(_NONCE, inside, None)
