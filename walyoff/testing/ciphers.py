"""What every `walyoff.abc.Cipher` must do: inherit `CipherConformance`, give `make_cipher`.

    class TestMySuite(CipherConformance):
        def make_cipher(self):
            return MySuite()

That its algorithms are strong cannot be checked; that nothing gets around them can.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from walyoff.abc import Cipher
from walyoff.errors import CipherError, WalyoffError

#: As `Cipher.name` promises: certificates and flights have no room for more.
MAX_NAME = 32
#: So many bytes of a secret in a text are no accident.
TELLTALE = 6
#: Places in a signature or ciphertext that are damaged, spread over all of it.
PLACES = 48
THREADS = 4
ROUNDS = 25
MESSAGE = b"a message to be kept"
SIZES = (0, 1, 31, 32, 33, 1000, 65_536, 1 << 20)


def damaged(data: bytes) -> Iterator[bytes]:
    """The data with one bit changed, at places that are spread over all of it."""
    step = max(len(data) // PLACES, 1)
    for place in sorted({*range(0, len(data), step), len(data) - 1}):
        changed = bytearray(data)
        changed[place] ^= 1 << (place % 8)
        yield bytes(changed)


def wrong_sizes(data: bytes) -> list[bytes]:
    """What is not the data because bytes are missing or added."""
    return [b"", data[:1], data[:-1], data[: len(data) // 2], data + b"\0", data + data]


def shows(text: str, secret: bytes) -> bool:
    """Whether a text gives away any few bytes of a secret, in a usual notation."""
    lower = text.lower()
    for start in range(len(secret) - TELLTALE + 1):
        part = secret[start : start + TELLTALE]
        if len(set(part)) < 3:
            # Zeros, most likely: they are in many texts.
            continue
        numbers = ", ".join(map(str, part))
        if part.hex() in lower or repr(part)[2:-1] in text or numbers in text:
            return True
    return base64.b64encode(secret).decode().rstrip("=") in text


def _refused(call: Callable[..., object], *arguments: object) -> CipherError:
    """The one error of all failures; whatever else comes out is the suite's bug."""
    with pytest.raises(CipherError) as caught:
        call(*arguments)
    return caught.value


class CipherConformance:
    """The behavioural checks."""

    def make_cipher(self) -> Cipher:
        """The suite under test; called again for a second instance."""
        raise NotImplementedError

    def test_it_says_what_certificates_need(self) -> None:
        cipher = self.make_cipher()
        assert 0 < len(cipher.name) <= MAX_NAME
        assert cipher.name.isascii()
        assert cipher.name.isprintable()
        assert isinstance(cipher.key_types, tuple)
        assert cipher.key_types
        assert all(isinstance(kind, str) and kind for kind in cipher.key_types)
        assert (
            len(
                cipher.aead(bytes(cipher.aead_key_size)).encrypt(
                    bytes(cipher.aead_nonce_size), b"", None
                )
            )
            > 0
        )
        # Less cannot keep a secret, or cannot count the records of a session.
        assert cipher.aead_key_size >= 16
        assert cipher.aead_nonce_size >= 8

    # ---------------------------------------------------------------- signatures

    def test_a_signature_holds_for_its_message_and_key_alone(self) -> None:
        cipher = self.make_cipher()
        key, other = cipher.new_sign_key(), cipher.new_sign_key()
        for message in (MESSAGE, b"", os.urandom(100_000)):
            signature = key.sign(message)
            cipher.verify(key.public, message, signature)
            _refused(cipher.verify, other.public, message, signature)
            _refused(cipher.verify, key.public, message + b"x", signature)

    def test_every_part_of_a_signature_counts(self) -> None:
        cipher = self.make_cipher()
        key = cipher.new_sign_key()
        signature = key.sign(MESSAGE)
        for bad in [*damaged(signature), *wrong_sizes(signature)]:
            _refused(cipher.verify, key.public, MESSAGE, bad)

    def test_every_part_of_a_verification_key_counts(self) -> None:
        cipher = self.make_cipher()
        key = cipher.new_sign_key()
        signature = key.sign(MESSAGE)
        for bad in [*damaged(key.public), *wrong_sizes(key.public)]:
            _refused(cipher.verify, bad, MESSAGE, signature)

    def test_signing_keys_come_back_from_their_secrets(self) -> None:
        cipher, again = self.make_cipher(), self.make_cipher()
        key = cipher.new_sign_key()
        loaded = again.load_sign_key(key.secret())
        assert loaded.public == key.public
        assert loaded.secret() == key.secret()
        cipher.verify(key.public, MESSAGE, loaded.sign(MESSAGE))
        for bad in wrong_sizes(key.secret()):
            _refused(cipher.load_sign_key, bad)

    def test_keys_are_fresh_and_of_one_size(self) -> None:
        cipher = self.make_cipher()
        for make in (cipher.new_sign_key, cipher.new_seal_key):
            keys = [make() for _ in range(4)]
            assert len({key.public for key in keys}) == len(keys)
            assert len({key.secret() for key in keys}) == len(keys)
            assert len({len(key.public) for key in keys}) == 1

    # ------------------------------------------------------------------- sealing

    def test_what_is_sealed_opens_again_at_every_size(self) -> None:
        cipher = self.make_cipher()
        key = cipher.new_seal_key()
        overheads = set()
        for size in SIZES:
            plaintext = os.urandom(size)
            sealed = cipher.seal(key.public, plaintext, b"info")
            assert key.open(sealed, b"info") == plaintext
            overheads.add(len(sealed) - size)
        # One more thing than the size of the plaintext shows in the size of the sealed.
        assert len(overheads) == 1

    def test_what_is_sealed_opens_with_the_same_key_and_info_alone(self) -> None:
        cipher = self.make_cipher()
        key, other = cipher.new_seal_key(), cipher.new_seal_key()
        sealed = cipher.seal(key.public, MESSAGE, b"info")
        _refused(other.open, sealed, b"info")
        _refused(key.open, sealed, b"other")
        _refused(key.open, sealed, b"")

    def test_sealing_twice_gives_two_ciphertexts(self) -> None:
        cipher = self.make_cipher()
        key = cipher.new_seal_key()
        first, second = (cipher.seal(key.public, MESSAGE, b"info") for _ in range(2))
        assert first != second
        assert MESSAGE not in first

    def test_every_part_of_what_is_sealed_counts(self) -> None:
        cipher = self.make_cipher()
        key = cipher.new_seal_key()
        sealed = cipher.seal(key.public, MESSAGE, b"info")
        for bad in [*damaged(sealed), *wrong_sizes(sealed)]:
            _refused(key.open, bad, b"info")

    def test_sealing_to_what_is_no_key_is_refused(self) -> None:
        cipher = self.make_cipher()
        public = cipher.new_seal_key().public
        for bad in wrong_sizes(public):
            _refused(cipher.seal, bad, MESSAGE, b"info")

    def test_sealing_keys_come_back_from_their_secrets(self) -> None:
        cipher, again = self.make_cipher(), self.make_cipher()
        key = cipher.new_seal_key()
        loaded = again.load_seal_key(key.secret())
        assert loaded.public == key.public
        assert loaded.open(cipher.seal(key.public, MESSAGE, b"i"), b"i") == MESSAGE
        assert key.open(again.seal(loaded.public, MESSAGE, b"i"), b"i") == MESSAGE
        for bad in wrong_sizes(key.secret()):
            _refused(cipher.load_seal_key, bad)

    # ---------------------------------------------------------------------- aead

    def test_the_aead_returns_every_size_with_one_overhead(self) -> None:
        cipher = self.make_cipher()
        key, nonce = os.urandom(cipher.aead_key_size), os.urandom(cipher.aead_nonce_size)
        overheads = set()
        for size in SIZES:
            data = os.urandom(size)
            sealed = cipher.aead(key).encrypt(nonce, data, b"with")
            assert self.make_cipher().aead(key).decrypt(nonce, sealed, b"with") == data
            overheads.add(len(sealed) - size)
        assert len(overheads) == 1

    def test_the_aead_takes_all_kinds_of_bytes(self) -> None:
        cipher = self.make_cipher()
        aead = cipher.aead(os.urandom(cipher.aead_key_size))
        nonce = os.urandom(cipher.aead_nonce_size)
        for kind in (bytes, bytearray, memoryview):
            for associated in (None, b"with"):
                sealed = aead.encrypt(nonce, kind(MESSAGE), associated)
                assert aead.decrypt(nonce, kind(sealed), associated) == MESSAGE

    def test_the_aead_authenticates_data_nonce_key_and_associated_data(self) -> None:
        cipher = self.make_cipher()
        aead, other = (cipher.aead(os.urandom(cipher.aead_key_size)) for _ in range(2))
        nonce, wrong = (os.urandom(cipher.aead_nonce_size) for _ in range(2))
        sealed = aead.encrypt(nonce, MESSAGE, b"with")
        _refused(other.decrypt, nonce, sealed, b"with")
        _refused(aead.decrypt, wrong, sealed, b"with")
        _refused(aead.decrypt, nonce, sealed, b"other")
        _refused(aead.decrypt, nonce, sealed, None)
        for bad in [*damaged(sealed), *wrong_sizes(sealed)]:
            _refused(aead.decrypt, nonce, bad, b"with")

    def test_keys_and_nonces_of_another_size_are_refused(self) -> None:
        cipher = self.make_cipher()
        for bad in wrong_sizes(bytes(cipher.aead_key_size)):
            _refused(cipher.aead, bad)
        aead = cipher.aead(os.urandom(cipher.aead_key_size))
        sealed = aead.encrypt(bytes(cipher.aead_nonce_size), MESSAGE, None)
        for bad in wrong_sizes(bytes(cipher.aead_nonce_size)):
            _refused(aead.decrypt, bad, sealed, None)
            # Nonces are the caller's duty: encrypting may go on, but may not blow up.
            with suppress(WalyoffError):
                aead.encrypt(bad, MESSAGE, None)

    # ----------------------------------------------------------------- discretion

    def test_failures_all_say_the_same(self) -> None:
        """A text that tells which check failed is an oracle."""
        cipher = self.make_cipher()
        sign_key, seal_key = cipher.new_sign_key(), cipher.new_seal_key()
        signature = sign_key.sign(MESSAGE)
        sealed = cipher.seal(seal_key.public, MESSAGE, b"i")
        aead = cipher.aead(bytes(cipher.aead_key_size))
        nonce = bytes(cipher.aead_nonce_size)
        closed = aead.encrypt(nonce, MESSAGE, None)
        texts = {
            str(_refused(cipher.verify, sign_key.public, MESSAGE, bad))
            for bad in [*damaged(signature), b""]
        }
        texts |= {str(_refused(seal_key.open, bad, b"i")) for bad in damaged(sealed)}
        texts |= {str(_refused(aead.decrypt, nonce, bad, None)) for bad in damaged(closed)}
        assert len(texts) == 1

    def test_secrets_are_not_printed(self) -> None:
        cipher = self.make_cipher()
        sign_key, seal_key = cipher.new_sign_key(), cipher.new_seal_key()
        key = os.urandom(cipher.aead_key_size)
        secrets = [sign_key.secret(), seal_key.secret(), key]
        texts = [
            f"{thing!r} {thing} {thing:}" for thing in (sign_key, seal_key, cipher.aead(key))
        ]
        for text in texts:
            assert not any(shows(text, secret) for secret in secrets)

    def test_a_refused_secret_is_not_printed(self) -> None:
        cipher = self.make_cipher()
        secret = os.urandom(33)
        for load in (cipher.load_sign_key, cipher.load_seal_key, cipher.aead):
            error = _refused(load, secret)
            assert not shows(f"{error} {error!r} {error.args}", secret)

    # -------------------------------------------------------------------- threads

    def test_threads_share_it_without_harm(self) -> None:
        cipher = self.make_cipher()
        sign_key, seal_key = cipher.new_sign_key(), cipher.new_seal_key()
        aead = cipher.aead(os.urandom(cipher.aead_key_size))

        def work(number: int) -> None:
            for turn in range(ROUNDS):
                text = f"{number} {turn} ".encode() * 50
                nonce = (number * ROUNDS + turn).to_bytes(cipher.aead_nonce_size, "big")
                cipher.verify(sign_key.public, text, sign_key.sign(text))
                assert seal_key.open(cipher.seal(seal_key.public, text, nonce), nonce) == text
                assert aead.decrypt(nonce, aead.encrypt(nonce, text, text), text) == text

        with ThreadPoolExecutor(THREADS) as pool:
            for outcome in [pool.submit(work, number) for number in range(THREADS)]:
                outcome.result(timeout=60)


__all__ = ["CipherConformance", "damaged", "shows", "wrong_sizes"]
