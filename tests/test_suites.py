"""The cipher suites: both halves count, sizes are fixed, secrets stay secret."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.signing import SigningKey, VerifyKey
from walyoff_codecs import hybrid1, walytis1
from walyoff_codecs.classic1 import Classic1
from walyoff_codecs.hybrid1 import Hybrid1
from walyoff_codecs.walytis1 import Walytis1, from_stock, to_stock

from walyoff.abc import Cipher
from walyoff.child.oqs_adapter import import_multi_crypt
from walyoff.errors import CipherError

VECTORS = Path(__file__).parent / "vectors" / "suites.json"
SUITES: list[Cipher] = [Hybrid1(), Classic1(), Walytis1()]
SECRETS = {"hybrid-1": (64, 96), "classic-1": (32, 32), "walytis-1": (64, 96)}
TYPES = {
    "hybrid-1": ("Ed25519", "ML-DSA-65", "ML-KEM-768", "X25519"),
    "classic-1": ("Ed25519", "X25519"),
    "walytis-1": ("EC-secp256k1", "PQ-ML-KEM-768-ML-DSA-65"),
}
EACH = pytest.mark.parametrize("cipher", SUITES, ids=lambda cipher: cipher.name)
MESSAGE = b"a message"


def vectors(cipher: Cipher) -> dict[str, Any]:
    stored = json.loads(VECTORS.read_text())[cipher.name]
    return {key: bytes.fromhex(value) for key, value in stored.items()}


@EACH
def test_a_signature_holds_for_its_message_and_key_alone(cipher: Cipher) -> None:
    key, other = cipher.new_sign_key(), cipher.new_sign_key()
    signature = key.sign(MESSAGE)
    cipher.verify(key.public, MESSAGE, signature)
    for public, message in ((other.public, MESSAGE), (key.public, b"x"), (key.public, b"")):
        with pytest.raises(CipherError):
            cipher.verify(public, message, signature)


@EACH
def test_what_is_sealed_opens_with_the_same_key_and_info_alone(cipher: Cipher) -> None:
    key, other = cipher.new_seal_key(), cipher.new_seal_key()
    sealed = cipher.seal(key.public, MESSAGE, b"info")
    assert key.open(sealed, b"info") == MESSAGE
    assert cipher.seal(key.public, MESSAGE, b"info") != sealed
    for opener, info in ((other, b"info"), (key, b"other"), (key, b"")):
        with pytest.raises(CipherError):
            opener.open(sealed, info)


@EACH
def test_the_aead_authenticates_data_nonce_and_associated_data(cipher: Cipher) -> None:
    aead, other = cipher.aead(b"k" * 32), cipher.aead(b"l" * 32)
    nonce = b"n" * cipher.aead_nonce_size
    sealed = aead.encrypt(nonce, MESSAGE, b"with")
    assert aead.decrypt(nonce, memoryview(sealed), b"with") == MESSAGE
    for one, at, data, associated in (
        (other, nonce, sealed, b"with"),
        (aead, b"m" * 12, sealed, b"with"),
        (aead, nonce, sealed[:-1], b"with"),
        (aead, nonce, b"", b"with"),
        (aead, nonce, sealed, None),
        (aead, b"short", sealed, b"with"),
    ):
        with pytest.raises(CipherError):
            one.decrypt(at, data, associated)


@EACH
def test_keys_come_back_from_their_secrets(cipher: Cipher) -> None:
    sign_key, seal_key = cipher.new_sign_key(), cipher.new_seal_key()
    assert (len(sign_key.secret()), len(seal_key.secret())) == SECRETS[cipher.name]
    again = cipher.load_sign_key(sign_key.secret())
    assert again.public == sign_key.public
    cipher.verify(sign_key.public, MESSAGE, again.sign(MESSAGE))
    opener = cipher.load_seal_key(seal_key.secret())
    assert opener.public == seal_key.public
    assert opener.open(cipher.seal(seal_key.public, MESSAGE, b""), b"") == MESSAGE


@EACH
def test_wrong_sizes_and_bad_keys_give_the_one_error(cipher: Cipher) -> None:
    sign_key, seal_key = cipher.new_sign_key(), cipher.new_seal_key()
    signature, sealed = sign_key.sign(MESSAGE), cipher.seal(seal_key.public, MESSAGE, b"")
    texts = set()
    for change in (lambda data: data[:-1], lambda data: data + b"\x00", lambda data: b""):
        for call in (
            lambda change=change: cipher.verify(change(sign_key.public), MESSAGE, signature),
            lambda change=change: cipher.verify(sign_key.public, MESSAGE, change(signature)),
            lambda change=change: cipher.seal(change(seal_key.public), MESSAGE, b""),
            lambda change=change: seal_key.open(change(sealed), b""),
            lambda change=change: cipher.load_sign_key(change(sign_key.secret())),
            lambda change=change: cipher.load_seal_key(change(seal_key.secret())),
            lambda change=change: cipher.aead(change(bytes(32))),
        ):
            with pytest.raises(CipherError) as error:
                call()
            texts.add(str(error.value))
            assert error.value.__cause__ is None
            assert error.value.__suppress_context__ or error.value.__context__ is None
    # The right size, but no key: a low-order point, a lattice element out of range.
    good = seal_key.public
    for public in (
        (bytes(65) + good[65:], good[:65] + b"\xff" * 1152 + good[-32:], b"\xff" * len(good))
        if isinstance(cipher, Walytis1)
        else (bytes(len(good)), good[:-32] + bytes(32), b"\xff" * (len(good) - 32) + bytes(32))
    ):
        with pytest.raises(CipherError) as error:
            cipher.seal(public, MESSAGE, b"")
        texts.add(str(error.value))
    assert len(texts) == 1


@EACH
@settings(max_examples=40, deadline=None)
@given(bit=st.integers(0, 1 << 20))
def test_any_bit_flipped_is_refused(cipher: Cipher, bit: int) -> None:
    stored = vectors(cipher)

    def flip(data: bytes) -> bytes:
        changed = bytearray(data)
        place = bit % (8 * len(changed))
        changed[place // 8] ^= 1 << (place % 8)
        return bytes(changed)

    with pytest.raises(CipherError):
        cipher.verify(stored["sign_public"], stored["message"], flip(stored["signature"]))
    with pytest.raises(CipherError):
        cipher.load_seal_key(stored["seal_secret"]).open(flip(stored["sealed"]), stored["info"])


def test_each_half_of_a_hybrid_signature_is_needed() -> None:
    cipher = Hybrid1()
    key, other = cipher.new_sign_key(), cipher.new_sign_key()
    good, bad = key.sign(MESSAGE), other.sign(MESSAGE)
    cut = hybrid1.ED25519_SIGNATURE
    for signature in (good[:cut] + bad[cut:], bad[:cut] + good[cut:]):
        with pytest.raises(CipherError):
            cipher.verify(key.public, MESSAGE, signature)
    # A key whose halves have two owners: neither of them can sign alone.
    mixed = key.public[:32] + other.public[32:]
    for signature in (good, bad):
        with pytest.raises(CipherError):
            cipher.verify(mixed, MESSAGE, signature)
    cipher.verify(mixed, MESSAGE, good[:cut] + bad[cut:])


def test_each_half_of_a_hybrid_seal_key_is_needed() -> None:
    cipher = Hybrid1()
    key, other = cipher.new_seal_key(), cipher.new_seal_key()
    sealed = cipher.seal(key.public, MESSAGE, b"")
    cut = hybrid1.MLKEM_SEED
    for secret in (
        key.secret()[:cut] + other.secret()[cut:],
        other.secret()[:cut] + key.secret()[cut:],
    ):
        with pytest.raises(CipherError):
            cipher.load_seal_key(secret).open(sealed, b"")


def test_each_half_of_a_walytis_signature_is_needed() -> None:
    cipher = Walytis1()
    key, other = cipher.new_sign_key(), cipher.new_sign_key()
    good, bad = key.sign(MESSAGE), other.sign(MESSAGE)
    cut, place = 2 * walytis1.EC_SCALAR, walytis1.EC_POINT
    for signature in (good[:cut] + bad[cut:], bad[:cut] + good[cut:]):
        with pytest.raises(CipherError):
            cipher.verify(key.public, MESSAGE, signature)
    mixed = key.public[:place] + other.public[place:]
    cipher.verify(mixed, MESSAGE, good[:cut] + bad[cut:])
    # The other square root of the same signature is no second spelling of it.
    s = int.from_bytes(good[cut // 2 : cut], "big")
    twin = good[: cut // 2] + (walytis1._ORDER - s).to_bytes(32, "big") + good[cut:]
    with pytest.raises(CipherError):
        cipher.verify(key.public, MESSAGE, twin)


def test_each_half_of_a_walytis_seal_key_is_needed() -> None:
    cipher = Walytis1()
    key, other = cipher.new_seal_key(), cipher.new_seal_key()
    sealed = cipher.seal(key.public, MESSAGE, b"")
    cut = walytis1.EC_SCALAR
    for secret in (
        key.secret()[:cut] + other.secret()[cut:],
        other.secret()[:cut] + key.secret()[cut:],
    ):
        with pytest.raises(CipherError):
            cipher.load_seal_key(secret).open(sealed, b"")


@pytest.mark.filterwarnings("ignore:Use .ecies:DeprecationWarning")
def test_stock_keys_and_the_walytis_suite_hold_each_others_signatures() -> None:
    multi_crypt = import_multi_crypt()
    cipher = Walytis1()
    key = cipher.new_sign_key()
    bound = walytis1.DOMAIN + MESSAGE
    # A stock key of the second family has an ML-KEM key before its ML-DSA key.
    lattice = cipher.new_seal_key().public[walytis1.EC_POINT :]
    stock = [
        multi_crypt.Crypt(walytis1.Walytis1.key_types[0], public_key=key.public[:65]),
        multi_crypt.Crypt(walytis1.Walytis1.key_types[1], public_key=lattice + key.public[65:]),
    ]
    signature = to_stock(key.sign(MESSAGE))
    for crypt, half in zip(stock, signature.decode().split("-"), strict=True):
        assert crypt.verify_signature(bytes.fromhex(half), bound)
        assert not crypt.verify_signature(bytes.fromhex(half), MESSAGE)
    theirs = [multi_crypt.Crypt.new(family) for family in walytis1.Walytis1.key_types]
    public = theirs[0].public_key + theirs[1].public_key[walytis1.MLKEM_PUBLIC :]
    joined = "-".join(crypt.sign(bound).hex() for crypt in theirs).encode()
    cipher.verify(public, MESSAGE, from_stock(joined))
    for wrong in (b"", b"-", joined + b"-00", joined[1:], b"\xff", b"zz-zz"):
        with pytest.raises(CipherError):
            from_stock(wrong)


def test_a_half_of_a_hybrid_signature_is_no_classic_signature() -> None:
    key = Hybrid1().new_sign_key()
    with pytest.raises(CipherError):
        Classic1().verify(key.public[:32], MESSAGE, key.sign(MESSAGE)[:64])
    classic = Classic1().load_sign_key(key.secret()[:32])
    forged = classic.sign(MESSAGE) + key.sign(MESSAGE)[64:]
    with pytest.raises(CipherError):
        Hybrid1().verify(key.public, MESSAGE, forged)


@EACH
def test_secrets_never_print_and_do_not_pickle(cipher: Cipher) -> None:
    keys = (cipher.new_sign_key(), cipher.new_seal_key())
    for key in keys:
        secret = key.secret()
        for text in (repr(key), str(key), f"{key}"):
            assert secret.hex()[:16] not in text
            assert repr(secret)[2:20] not in text
            assert len(text) < 60
        with pytest.raises(TypeError):
            pickle.dumps(key)
    assert "6b6b" not in repr(cipher.aead(b"k" * 32))


@EACH
def test_a_suite_is_named_and_lists_its_key_types(cipher: Cipher) -> None:
    assert cipher.name in repr(cipher)
    assert len(cipher.name) <= 32
    assert cipher.key_types == TYPES[cipher.name]


@EACH
def test_known_answers_stay(cipher: Cipher) -> None:
    stored = vectors(cipher)
    sign_key = cipher.load_sign_key(stored["sign_secret"])
    assert sign_key.public == stored["sign_public"]
    cipher.verify(stored["sign_public"], stored["message"], stored["signature"])
    seal_key = cipher.load_seal_key(stored["seal_secret"])
    assert seal_key.public == stored["seal_public"]
    assert seal_key.open(stored["sealed"], stored["info"]) == stored["message"]
    aead = cipher.aead(stored["aead_key"])
    nonce, associated = stored["aead_nonce"], stored["aead_associated"]
    assert aead.encrypt(nonce, stored["message"], associated) == stored["aead_sealed"]
    if cipher.name == "classic-1":
        assert sign_key.sign(stored["message"]) == stored["signature"]


@pytest.mark.parametrize("cipher", SUITES[:2], ids=lambda cipher: cipher.name)
def test_another_implementation_agrees_on_ed25519(cipher: Cipher) -> None:
    stored = vectors(cipher)
    bound = b"walyoff/sign/" + cipher.name.encode() + b"\x00" + stored["message"]
    VerifyKey(stored["sign_public"][:32]).verify(bound, stored["signature"][:64])
    assert (
        SigningKey(stored["sign_secret"][:32]).sign(bound).signature
        == (stored["signature"][:64])
    )


def _make(cipher: Cipher) -> dict[str, str]:
    sign_size, seal_size = SECRETS[cipher.name]
    message, info = b"walyoff known answer", b"walyoff known info"
    sign_key = cipher.load_sign_key(bytes(range(sign_size)))
    seal_key = cipher.load_seal_key(bytes(range(100, 100 + seal_size)))
    key, nonce, associated = b"\x05" * 32, bytes(range(12)), b"associated"
    return {
        name: value.hex()
        for name, value in {
            "message": message,
            "info": info,
            "sign_secret": sign_key.secret(),
            "sign_public": sign_key.public,
            "signature": sign_key.sign(message),
            "seal_secret": seal_key.secret(),
            "seal_public": seal_key.public,
            "sealed": cipher.seal(seal_key.public, message, info),
            "aead_key": key,
            "aead_nonce": nonce,
            "aead_associated": associated,
            "aead_sealed": cipher.aead(key).encrypt(nonce, message, associated),
        }.items()
    }


if __name__ == "__main__":
    # Only for a new suite: the answers of a released one never change.
    known = json.loads(VECTORS.read_text())
    known |= {one.name: _make(one) for one in SUITES if one.name not in known}
    VECTORS.write_text(json.dumps(known, indent=1) + "\n")
