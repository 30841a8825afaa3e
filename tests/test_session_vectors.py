"""Golden transcripts: what two versions must agree on, byte for byte.

In `classic-1` everything but HPKE's sealing is deterministic, so with a stored sealed secret
a whole handshake is pinned. In `hybrid-1` a stored handshake is read again.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from walyoff_codecs.classic1 import Classic1
from walyoff_codecs.hybrid1 import Hybrid1

from walyoff.abc import Aead, Cipher, SealKey, SignKey
from walyoff.certificates import Certificate, encode
from walyoff.session import (
    Established,
    HandshakeContext,
    Initiator,
    Mode,
    PeerPresented,
    Responder,
    SecureChannel,
    Send,
    SessionKeys,
    blinded_tag,
    records,
)

VECTORS = Path(__file__).parent / "vectors" / "session.json"
CHANNEL = "did:walytis:golden"
TAG_KEY, PSK, SECRET = b"\x01" * 32, b"\x02" * 32, b"\x03" * 32
SEALS = {"hybrid-1": 96, "classic-1": 32}
SIGNS = {"hybrid-1": 64, "classic-1": 32}
SUITES: dict[str, Cipher] = {"hybrid-1": Hybrid1(), "classic-1": Classic1()}
EACH = pytest.mark.parametrize("suite", list(SUITES))


class Fixed:
    """A suite with a fixed ephemeral key and, for the responder, a stored sealed secret."""

    aead_key_size = 32
    aead_nonce_size = 12

    def __init__(self, real: Cipher, sealed: bytes | None) -> None:
        self._real = real
        self._sealed = sealed

    @cached_property
    def name(self) -> str:
        return self._real.name

    @cached_property
    def key_types(self) -> tuple[str, ...]:
        return self._real.key_types

    def new_sign_key(self) -> SignKey:
        return self._real.new_sign_key()

    def load_sign_key(self, secret: bytes) -> SignKey:
        return self._real.load_sign_key(secret)

    def verify(self, public: bytes, message: bytes, signature: bytes) -> None:
        self._real.verify(public, message, signature)

    def new_seal_key(self) -> SealKey:
        return self._real.load_seal_key(b"\x0e" * SEALS[self.name])

    def load_seal_key(self, secret: bytes) -> SealKey:
        return self._real.load_seal_key(secret)

    def seal(self, public: bytes, plaintext: bytes, info: bytes) -> bytes:
        assert plaintext == SECRET
        if self._sealed is None:
            self._sealed = self._real.seal(public, plaintext, info)
        return self._sealed

    def aead(self, key: bytes) -> Aead:
        return self._real.aead(key)

    @property
    def sealed(self) -> bytes:
        assert self._sealed is not None
        return self._sealed


def context(suite: str, number: int) -> HandshakeContext:
    cipher = SUITES[suite]
    sign_key = cipher.load_sign_key(bytes([number]) * SIGNS[suite])
    certificate = Certificate(
        channel=CHANNEL,
        member=f"did:walytis:member-{number}",
        suite=suite,
        key_types=cipher.key_types,
        sign_public=sign_key.public,
        seal_public=cipher.load_seal_key(bytes([number]) * SEALS[suite]).public,
        not_before_ms=1_700_000_000_000,
        not_after_ms=1_800_000_000_000,
    )
    return HandshakeContext(
        channel=CHANNEL,
        sign_key=sign_key,
        certificate=encode(certificate, b"member signature"),
        psk=PSK,
    )


def machines(cipher: Cipher) -> tuple[Initiator, Responder]:
    suite = cipher.name

    def find_tag(mode: Mode, ephemeral: bytes, tag: bytes) -> HandshakeContext | None:
        assert tag == blinded_tag(TAG_KEY, mode, ephemeral)
        return context(suite, 2)

    return (
        Initiator(
            cipher_for=lambda name: cipher,
            suites=[suite],
            mode="member",
            tag_key=TAG_KEY,
            context=context(suite, 1),
            random=bytes,
        ),
        Responder(
            cipher_for=lambda name: cipher,
            suites=[suite],
            find_tag=find_tag,
            random=lambda size: SECRET[:size],
        ),
    )


def play(cipher: Fixed) -> dict[str, str]:
    """One handshake, as it is stored."""
    left, right = machines(cipher)
    flight_1 = left.start()
    (send,) = right.receive(flight_1)
    assert isinstance(send, Send)
    left.receive(send.data)
    third, established = left.accept()
    assert isinstance(third, Send)
    assert isinstance(established, Established)
    keys = established.keys
    return {
        "flight_1": flight_1.hex(),
        "sealed": cipher.sealed.hex(),
        "flight_2": send.data.hex(),
        "flight_3": third.data.hex(),
        "initiator_key": keys.initiator_key.hex(),
        "responder_key": keys.responder_key.hex(),
        "session_id": keys.session_id.hex(),
    }


def play_records(cipher: Cipher) -> dict[str, str]:
    """Records of every type, as they are stored."""
    keys = SessionKeys(
        cipher=cipher,
        initiator_key=b"\x06" * 32,
        responder_key=b"\x07" * 32,
        session_id=bytes(32),
    )
    left, right = SecureChannel(keys, "initiator"), SecureChannel(keys, "responder")
    return {
        "frames": left.seal([b"", b"one", b"two"]).hex(),
        "rekey": left.rekey().hex(),
        "after_rekey": left.seal([b"three"]).hex(),
        "end": left.end().hex(),
        "other_direction": right.seal([b"four"]).hex(),
    }


def stored(suite: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(VECTORS.read_text())[suite]
    return found


@EACH
def test_the_first_flight_stays(suite: str) -> None:
    left, _ = machines(Fixed(SUITES[suite], None))
    assert left.start().hex() == stored(suite)["handshake"]["flight_1"]


def test_a_whole_classic_handshake_stays() -> None:
    golden = stored("classic-1")["handshake"]
    assert play(Fixed(Classic1(), bytes.fromhex(golden["sealed"]))) == golden


@EACH
def test_an_initiator_reads_the_stored_answer(suite: str) -> None:
    golden = stored(suite)["handshake"]
    left, _ = machines(Fixed(SUITES[suite], None))
    left.start()
    (presented,) = left.receive(bytes.fromhex(golden["flight_2"]))
    assert isinstance(presented, PeerPresented)
    assert presented.certificate.certificate.member == "did:walytis:member-2"
    assert presented.encoded == context(suite, 2).certificate
    # The stored signature is checked here, whatever suite made it.
    _, established = left.accept()
    assert isinstance(established, Established)
    if suite == "classic-1":
        assert established.keys.initiator_key.hex() == golden["initiator_key"]


@EACH
def test_records_stay(suite: str) -> None:
    assert play_records(SUITES[suite]) == stored(suite)["records"]


def test_limits_on_the_wire_stay() -> None:
    # Both sides compute these by themselves: changing one alone breaks every session.
    assert (records.REKEY_RECORDS, records.REKEY_BYTES) == (65_536, 1_073_741_824)
    assert (records.MAX_BODY, records.MAX_FRAME) == (262_144, 16_777_216)


if __name__ == "__main__":
    # Only for a new version of the protocol: what is released never changes.
    made = {
        name: {"handshake": play(Fixed(cipher, None)), "records": play_records(cipher)}
        for name, cipher in SUITES.items()
    }
    VECTORS.write_text(json.dumps(made, indent=1) + "\n")
