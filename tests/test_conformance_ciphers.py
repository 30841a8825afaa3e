"""Our suites pass the shipped suite of checks, and suites that are wrong in one thing fail."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from walyoff_codecs.classic1 import Classic1
from walyoff_codecs.hybrid1 import ED25519_SIGNATURE, Hybrid1
from walyoff_codecs.walytis1 import Walytis1

from walyoff.abc import Aead, Cipher, SealKey, SignKey
from walyoff.errors import CipherError
from walyoff.testing import CipherConformance


class TestHybrid1(CipherConformance):
    def make_cipher(self) -> Cipher:
        return Hybrid1()


class TestClassic1(CipherConformance):
    def make_cipher(self) -> Cipher:
        return Classic1()


class TestWalytis1(CipherConformance):
    def make_cipher(self) -> Cipher:
        return Walytis1()


class _Around:
    """Another object with some parts replaced."""

    def __init__(self, inner: Any, **parts: Any) -> None:
        self.inner = inner
        self.parts = parts

    def __repr__(self) -> str:
        return "<around>"

    def __getattr__(self, name: str) -> Any:
        return self.parts[name] if name in self.parts else getattr(self.inner, name)


class HalfVerifying(Hybrid1):
    """Is content with the classical half."""

    def verify(self, public: bytes, message: bytes, signature: bytes) -> None:
        fresh = self.new_sign_key()
        # Whatever comes for the other half is replaced by a half that is good.
        if len(signature) != 3373 or len(public) != 1984:
            raise CipherError("the cipher operation failed")
        good = fresh.sign(message)[ED25519_SIGNATURE:]
        super().verify(
            public[:32] + fresh.public[32:], message, signature[:ED25519_SIGNATURE] + good
        )


class Foreign(Classic1):
    """Lets its library's errors out."""

    def verify(self, public: bytes, message: bytes, signature: bytes) -> None:
        try:
            super().verify(public, message, signature)
        except CipherError:
            raise ValueError("bad signature") from None


class Careless(Classic1):
    """Does not bind what is sealed to its info."""

    def seal(self, public: bytes, plaintext: bytes, info: bytes) -> bytes:
        return super().seal(public, plaintext, b"")

    def _key(self, key: SealKey) -> Any:
        return _Around(key, open=lambda sealed, info: key.open(sealed, b""))

    def new_seal_key(self) -> SealKey:
        return self._key(super().new_seal_key())  # type: ignore[no-any-return]

    def load_seal_key(self, secret: bytes) -> SealKey:
        return self._key(super().load_seal_key(secret))  # type: ignore[no-any-return]


class Bare(Classic1):
    """Forgets the associated data."""

    def aead(self, key: bytes) -> Aead:
        inner = super().aead(key)
        return _Around(
            inner,
            encrypt=lambda nonce, data, _: inner.encrypt(nonce, data, None),
            decrypt=lambda nonce, data, _: inner.decrypt(nonce, data, None),
        )


class _Open(_Around):
    def __repr__(self) -> str:
        return f"<key {self.inner.secret()[:8].hex()}>"


class Showing(Classic1):
    """Prints the beginning of its keys."""

    def new_sign_key(self) -> SignKey:
        return _Open(super().new_sign_key())


class Telling(Classic1):
    """Says which check failed."""

    def verify(self, public: bytes, message: bytes, signature: bytes) -> None:
        if len(signature) != 64:
            raise CipherError("a signature has 64 bytes")
        super().verify(public, message, signature)


class Blaming(Classic1):
    """Quotes what it was given."""

    def load_seal_key(self, secret: bytes) -> SealKey:
        try:
            return super().load_seal_key(secret)
        except CipherError:
            raise CipherError(f"no key: {secret.hex()}") from None


class Sharing(Classic1):
    """Keeps the message in itself between two steps."""

    def __init__(self) -> None:
        self._message = b""

    def _sign(self, key: SignKey, message: bytes) -> bytes:
        self._message = message
        if threading.current_thread() is not threading.main_thread():
            time.sleep(0.0005)
        return key.sign(self._message)

    def new_sign_key(self) -> SignKey:
        key = super().new_sign_key()
        return _Around(key, sign=lambda message: self._sign(key, message))


class Padding(Classic1):
    """Opens what is sealed even if something was added to it."""

    def aead(self, key: bytes) -> Aead:
        inner = super().aead(key)

        def decrypt(nonce: bytes, data: Any, associated: bytes | None) -> bytes:
            try:
                return inner.decrypt(nonce, data, associated)
            except CipherError:
                return inner.decrypt(nonce, bytes(data)[:-1], associated)

        return _Around(inner, decrypt=decrypt)


class Repeating(Classic1):
    """Always has the same sealing key."""

    def new_seal_key(self) -> SealKey:
        return super().load_seal_key(bytes(range(32)))


CASES: list[tuple[type[Classic1 | Hybrid1], set[str]]] = [
    (
        HalfVerifying,
        {
            "test_every_part_of_a_signature_counts",
            "test_every_part_of_a_verification_key_counts",
            "test_failures_all_say_the_same",
        },
    ),
    (
        Foreign,
        {
            "test_a_signature_holds_for_its_message_and_key_alone",
            "test_every_part_of_a_signature_counts",
            "test_every_part_of_a_verification_key_counts",
            "test_failures_all_say_the_same",
        },
    ),
    (Careless, {"test_what_is_sealed_opens_with_the_same_key_and_info_alone"}),
    (Bare, {"test_the_aead_authenticates_data_nonce_key_and_associated_data"}),
    (Showing, {"test_secrets_are_not_printed"}),
    (Telling, {"test_failures_all_say_the_same"}),
    (Blaming, {"test_a_refused_secret_is_not_printed"}),
    (Sharing, {"test_threads_share_it_without_harm"}),
    (Padding, {"test_the_aead_authenticates_data_nonce_key_and_associated_data"}),
    (
        Repeating,
        {
            "test_keys_are_fresh_and_of_one_size",
            "test_what_is_sealed_opens_with_the_same_key_and_info_alone",
        },
    ),
]


@pytest.mark.parametrize(("broken", "expected"), CASES)
def test_a_wrong_suite_fails_what_it_should_and_nothing_else(
    broken: type[Any], expected: set[str]
) -> None:
    class Suite(CipherConformance):
        def make_cipher(self) -> Cipher:
            return broken()  # type: ignore[no-any-return]

    failed = set()
    for name in dir(Suite):
        if name.startswith("test_"):
            check: Callable[[], None] = getattr(Suite(), name)
            try:
                check()
            except (Exception, pytest.fail.Exception):
                failed.add(name)
    assert failed == expected
