"""The bytes of the handshake: framing, the three flights, and the one refusal.

Each message is a u32 length (big endian) and at most 64 KiB:

    1  initiator   pack([version, mode, [suites], ephemeral suite, ephemeral key, tag])
    2  responder   pack([suite, sealed secret, encrypted proof])
    3  initiator   encrypted proof
       either      the single byte 0: refused, whatever the reason

A proof is pack([encoded certificate, signature]), encrypted. Decoders are total: any bytes
give a value or one RemoteProtocolError.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from walyoff.certificates import MAX_ENCODED
from walyoff.errors import LocalProtocolError, PayloadTooLargeError, RemoteProtocolError
from walyoff.session.transcript import HASH_SIZE, MODES, Mode
from walyoff.wire import expect_array, expect_bytes, expect_int, expect_str, pack, unpack

VERSION: Final = 1

#: Bytes of one handshake message.
MAX_MESSAGE: Final = 64 * 1024
#: Names in an offer; far more than there will be suites at a time.
MAX_SUITES: Final = 8
#: Characters of a suite's name.
MAX_NAME: Final = 32
#: Bytes of an ephemeral public key; the KEM of `hybrid-1` has 1,216.
MAX_EPHEMERAL: Final = 8 * 1024
#: Bytes of the sealed secret; that of `hybrid-1` has 1,168.
MAX_SEALED: Final = 16 * 1024
#: Bytes of a session signature; that of `hybrid-1` has 3,373.
MAX_PROOF_SIGNATURE: Final = 16 * 1024

HEADER: Final = 4

#: What a refused side gets to know. A record never has this length, so it is recognised
#: even by an initiator that already takes the session for established.
REFUSED: Final = b"\x00"


def frame(message: bytes) -> bytes:
    """A message as it goes on the wire.

    Raises:
        PayloadTooLargeError: it has more than 64 KiB.
    """
    if len(message) > MAX_MESSAGE:
        raise PayloadTooLargeError(len(message), MAX_MESSAGE, "handshake message")
    return len(message).to_bytes(HEADER, "big") + message


#: The bytes to send before closing, whenever a handshake fails on this side.
REFUSAL: Final = frame(REFUSED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """The first flight."""

    mode: Mode
    suites: tuple[str, ...]
    ephemeral_suite: str
    ephemeral: bytes
    tag: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The second flight."""

    suite: str
    sealed: bytes
    proof: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """Who a side says it is, and its signature over the transcript; sent encrypted."""

    certificate: bytes
    signature: bytes


def encode_hello(hello: Hello) -> bytes:
    """The message of the first flight."""
    return pack(
        [
            VERSION,
            hello.mode,
            list(hello.suites),
            hello.ephemeral_suite,
            hello.ephemeral,
            hello.tag,
        ]
    )


def decode_hello(message: bytes) -> Hello:
    """The inverse of `encode_hello`. Raises RemoteProtocolError."""
    value = unpack(message, MAX_MESSAGE)
    # The version goes first: a later version may well have other fields.
    if isinstance(value, list) and value and type(value[0]) is int and value[0] != VERSION:
        raise RemoteProtocolError("handshake of an unknown version", reason="version")
    fields = expect_array(value, 6, "first flight")
    expect_int(fields[0], "version", low=VERSION, high=VERSION)
    suites = _names(fields[2])
    ephemeral_suite = expect_str(fields[3], "ephemeral suite", limit=MAX_NAME)
    if ephemeral_suite not in suites:
        raise RemoteProtocolError("the ephemeral key is of a suite that is not offered")
    return Hello(
        mode=_mode(fields[1]),
        suites=suites,
        ephemeral_suite=ephemeral_suite,
        ephemeral=expect_bytes(fields[4], "ephemeral key", limit=MAX_EPHEMERAL),
        tag=expect_bytes(fields[5], "tag", size=HASH_SIZE),
    )


def encode_answer(answer: Answer) -> bytes:
    """The message of the second flight."""
    return pack([answer.suite, answer.sealed, answer.proof])


def decode_answer(message: bytes) -> Answer:
    """The inverse of `encode_answer`. Raises RemoteProtocolError."""
    fields = expect_array(unpack(message, MAX_MESSAGE), 3, "second flight")
    return Answer(
        suite=expect_str(fields[0], "suite", limit=MAX_NAME),
        sealed=expect_bytes(fields[1], "sealed secret", limit=MAX_SEALED),
        proof=expect_bytes(fields[2], "proof", limit=MAX_MESSAGE),
    )


def encode_proof(proof: Proof) -> bytes:
    """A proof, before it is encrypted."""
    return pack([proof.certificate, proof.signature])


def decode_proof(plaintext: bytes) -> Proof:
    """The inverse of `encode_proof`. Raises RemoteProtocolError."""
    fields = expect_array(unpack(plaintext, MAX_MESSAGE), 2, "proof")
    return Proof(
        certificate=expect_bytes(fields[0], "certificate", limit=MAX_ENCODED),
        signature=expect_bytes(fields[1], "signature", limit=MAX_PROOF_SIGNATURE),
    )


def check_suites(suites: Sequence[str]) -> tuple[str, ...]:
    """A list of suites that can be offered. Raises LocalProtocolError."""
    try:
        return _names(list(suites))
    except RemoteProtocolError as error:
        raise LocalProtocolError(str(error)) from None


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_SUITES:
        raise RemoteProtocolError(f"suites are not a list of 1 to {MAX_SUITES} names")
    names = tuple(expect_str(name, "suite", limit=MAX_NAME) for name in value)
    if len(set(names)) != len(names):
        raise RemoteProtocolError("a suite is offered twice")
    return names


def _mode(value: Any) -> Mode:
    for mode in MODES:
        if value == mode:
            return mode
    raise RemoteProtocolError("unknown mode of a handshake")


class Inbox:
    """Cuts a stream into handshake messages, holding at most one of them."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def __len__(self) -> int:
        return len(self._buffer)

    def add(self, data: bytes | bytearray | memoryview) -> None:
        """Append bytes from the stream."""
        self._buffer += data

    def pop(self) -> bytes | None:
        """The next message, or None until it is complete.

        Raises:
            RemoteProtocolError: it is empty, longer than 64 KiB, or the refusal.
        """
        if len(self._buffer) < HEADER:
            return None
        size = int.from_bytes(self._buffer[:HEADER], "big")
        if not 1 <= size <= MAX_MESSAGE:
            raise RemoteProtocolError(f"handshake message of {size} bytes", reason="too-large")
        if len(self._buffer) < HEADER + size:
            return None
        message = bytes(self._buffer[HEADER : HEADER + size])
        del self._buffer[: HEADER + size]
        if message == REFUSED:
            raise RemoteProtocolError("refused by the peer", reason="refused")
        return message

    def take_rest(self) -> bytes:
        """Everything that was not part of a message; the inbox is empty after it."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest


__all__ = [
    "HEADER",
    "MAX_MESSAGE",
    "REFUSAL",
    "REFUSED",
    "Answer",
    "Hello",
    "Inbox",
    "Proof",
    "check_suites",
    "decode_answer",
    "decode_hello",
    "decode_proof",
    "encode_answer",
    "encode_hello",
    "encode_proof",
    "frame",
]
