"""The stand-in for liboqs: sizes, round trips, and both libraries agreeing."""

from __future__ import annotations

import subprocess
import sys

import pytest
from cryptography.hazmat.primitives.asymmetric import mldsa, mlkem
from pqcrypto.kem import ml_kem_768
from pqcrypto.sign import ml_dsa_65

from walyoff.child.oqs_adapter import (
    KeyEncapsulation,
    MechanismNotSupportedError,
    Signature,
    import_multi_crypt,
)

FAMILY = "PQ-ML-KEM-768-ML-DSA-65"


@pytest.mark.parametrize(
    ("name", "public", "secret", "ciphertext"),
    [("ML-KEM-768", 1184, 2400, 1088), ("ML-KEM-1024", 1568, 3168, 1568)],
)
def test_kem_sizes_and_round_trip(name: str, public: int, secret: int, ciphertext: int) -> None:
    with KeyEncapsulation(name) as kem:
        key = kem.generate_keypair()
        private = kem.export_secret_key()
    assert (len(key), len(private)) == (public, secret)
    with KeyEncapsulation(name) as kem:
        sealed, shared = kem.encap_secret(key)
    assert (len(sealed), len(shared)) == (ciphertext, 32)
    with KeyEncapsulation(name, private) as kem:
        assert kem.decap_secret(sealed) == shared
        flipped = bytes([sealed[0] ^ 1]) + sealed[1:]
        assert kem.decap_secret(flipped) != shared


@pytest.mark.parametrize(
    ("name", "public", "secret", "size"),
    [("ML-DSA-65", 1952, 4032, 3309), ("ML-DSA-87", 2592, 4896, 4627)],
)
def test_signature_sizes_and_round_trip(name: str, public: int, secret: int, size: int) -> None:
    with Signature(name) as signer:
        key = signer.generate_keypair()
        private = signer.export_secret_key()
        signature = signer.sign(b"message")
    assert (len(key), len(private), len(signature)) == (public, secret, size)
    verifier = Signature(name)
    assert verifier.verify(b"message", signature, key)
    assert not verifier.verify(b"other", signature, key)
    assert not verifier.verify(b"message", signature[:-1], key)
    assert not verifier.verify(b"message", signature, key[:-1])


def test_cryptography_and_pqcrypto_understand_each_other() -> None:
    seed_kem = mlkem.MLKEM768PrivateKey.generate()
    ciphertext, shared = ml_kem_768.encaps(seed_kem.public_key().public_bytes_raw())
    assert seed_kem.decapsulate(bytes(ciphertext)) == bytes(shared)
    seed_sign = mldsa.MLDSA65PrivateKey.generate()
    public = seed_sign.public_key().public_bytes_raw()
    assert Signature("ML-DSA-65").verify(b"m", seed_sign.sign(b"m"), public)
    key, private = ml_dsa_65.keygen()
    mldsa.MLDSA65PublicKey.from_public_bytes(bytes(key)).verify(
        bytes(ml_dsa_65.sign(private, b"m")), b"m"
    )


def test_secrets_are_not_printed_and_are_forgotten() -> None:
    with Signature("ML-DSA-65") as signer:
        signer.generate_keypair()
        secret = signer.export_secret_key()
        assert secret[:8].hex() not in repr(signer)
    with pytest.raises(ValueError, match="no secret key"):
        signer.sign(b"x")
    with pytest.raises(ValueError, match="secret key of 3 bytes"):
        Signature("ML-DSA-65", b"abc")
    with pytest.raises(MechanismNotSupportedError):
        KeyEncapsulation("Kyber512")


def test_multi_crypt_works_with_it_and_no_oqs_stays_behind() -> None:
    multi_crypt = import_multi_crypt()
    assert "oqs" not in sys.modules
    assert import_multi_crypt() is multi_crypt
    crypt = multi_crypt.Crypt.new(FAMILY)
    assert (len(crypt.public_key), len(crypt.private_key)) == (3136, 6432)
    signature = crypt.sign(b"data")
    other = multi_crypt.Crypt(FAMILY, public_key=crypt.public_key)
    assert other.verify_signature(signature, b"data")
    assert not other.verify_signature(signature, b"date")
    assert crypt.decrypt(other.encrypt(b"secret")) == b"secret"


def test_import_does_not_print_or_write(tmp_path: object) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from walyoff.child.oqs_adapter import import_multi_crypt as f; f()",
        ],
        capture_output=True,
        cwd=str(tmp_path),
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
