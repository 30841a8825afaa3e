"""Device certificates: which keys speak for a member of a channel, and until when.

Only the form is decided here. The signature over `Certificate.body()` is made and checked by
an `Identity` (it is the slow post-quantum signature of the member DID's control keys); here
it is opaque bytes. Whether a certificate is *trusted* is never decided in this module.

    body     = pack([DOMAIN, 1, channel, member, suite, [key types], sign public,
                     seal public, not before ms, not after ms])
               and the incarnation, if the device was ever moved or restored
    encoded  = pack([body, signature])
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

from blake3 import blake3

from walyoff.errors import LocalProtocolError, RemoteProtocolError
from walyoff.wire import (
    MAX_DID,
    expect_array,
    expect_bytes,
    expect_int,
    expect_str,
    pack,
    unpack,
)

DOMAIN: Final = "walyoff/certificate/1"
VERSION: Final = 1

#: Bytes of an encoded certificate with its signature: what one handshake message can hold.
MAX_ENCODED: Final = 64 * 1024
#: Bytes of a signature; a walytis-identities CodePackage has 15,563 (facts, 0.5.3).
MAX_SIGNATURE: Final = 32 * 1024
#: Bytes of one public key; ML-DSA-87 with Ed25519 has 2,624.
MAX_PUBLIC: Final = 8 * 1024
#: Characters of a suite's name or of a key type, and key types in a suite.
MAX_NAME: Final = 32
MAX_KEY_TYPES: Final = 8
#: The latest time, in milliseconds since 1970: what JSON numbers hold exactly.
MAX_TIME_MS: Final = (1 << 53) - 1
#: Bytes of a certificate's id.
ID_SIZE: Final = 32
_FIELDS: Final = 10


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What a member DID says about one of its device keys.

    Raises LocalProtocolError when a field is out of its bounds.
    """

    #: The identity's DID; in a joining device's own certificate empty or an invitation id.
    channel: str
    #: The member DID, whose control keys sign.
    member: str
    suite: str
    key_types: tuple[str, ...]
    sign_public: bytes = field(repr=False)
    seal_public: bytes = field(repr=False)
    #: Milliseconds since 1970, both ends included.
    not_before_ms: int
    not_after_ms: int
    #: Which copy of the device this is about, see `walyoff.incarnations`; 0 at first.
    incarnation: int = 0

    def __post_init__(self) -> None:
        problem = _problem(self)
        if problem:
            raise LocalProtocolError(f"certificate: {problem}")

    def body(self) -> bytes:
        """The canonical bytes that the member's control keys sign."""
        return self._body

    @cached_property
    def _body(self) -> bytes:
        return pack(
            [
                DOMAIN,
                VERSION,
                self.channel,
                self.member,
                self.suite,
                list(self.key_types),
                self.sign_public,
                self.seal_public,
                self.not_before_ms,
                self.not_after_ms,
                # Devices that never moved have certificates as they always were.
                *([self.incarnation] if self.incarnation else []),
            ]
        )

    @cached_property
    def certificate_id(self) -> bytes:
        """BLAKE3 of the body, 32 bytes: the name of this certificate everywhere."""
        return blake3(self._body).digest(ID_SIZE)

    def covers(self, now_ms: int) -> bool:
        """Whether a time, in milliseconds since 1970, lies within its validity."""
        return self.not_before_ms <= now_ms <= self.not_after_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedCertificate:
    """A decoded certificate with its signature, which nobody has checked yet."""

    certificate: Certificate
    signature: bytes = field(repr=False)


def encode(certificate: Certificate, signature: bytes) -> bytes:
    """The bytes of a certificate with the signature over its body.

    Raises:
        LocalProtocolError: the signature has more than 32 KiB.
    """
    if len(signature) > MAX_SIGNATURE:
        raise LocalProtocolError(
            f"certificate signature of {len(signature)} bytes exceeds {MAX_SIGNATURE}"
        )
    return pack([certificate.body(), signature])


def decode(data: bytes | bytearray | memoryview) -> SignedCertificate:
    """The inverse of `encode`; any bytes at all give a value or the one error.

    Raises:
        RemoteProtocolError: too long, malformed, out of bounds, or not canonical.
    """
    outer = expect_array(unpack(data, MAX_ENCODED), 2, "certificate")
    body = expect_bytes(outer[0], "certificate body", limit=MAX_ENCODED)
    signature = expect_bytes(outer[1], "certificate signature", limit=MAX_SIGNATURE)
    return SignedCertificate(certificate=_decode_body(body), signature=signature)


def _decode_body(body: bytes) -> Certificate:
    value = unpack(body, MAX_ENCODED)
    moved = isinstance(value, list) and len(value) == _FIELDS + 1
    fields = expect_array(value, _FIELDS + moved, "certificate body")
    if fields[0] != DOMAIN:
        raise RemoteProtocolError("not the body of a certificate")
    if expect_int(fields[1], "certificate version") != VERSION:
        raise RemoteProtocolError("certificate of an unknown version", reason="version")
    types = fields[5]
    if not isinstance(types, list) or len(types) > MAX_KEY_TYPES:
        raise RemoteProtocolError(f"key types are not an array of at most {MAX_KEY_TYPES}")
    try:
        certificate = Certificate(
            channel=expect_str(fields[2], "channel", limit=MAX_DID),
            member=expect_str(fields[3], "member", limit=MAX_DID),
            suite=expect_str(fields[4], "suite", limit=MAX_NAME),
            key_types=tuple(expect_str(one, "key type", limit=MAX_NAME) for one in types),
            sign_public=expect_bytes(fields[6], "sign key", limit=MAX_PUBLIC),
            seal_public=expect_bytes(fields[7], "seal key", limit=MAX_PUBLIC),
            not_before_ms=expect_int(fields[8], "not before", high=MAX_TIME_MS),
            not_after_ms=expect_int(fields[9], "not after", high=MAX_TIME_MS),
            incarnation=(
                expect_int(fields[_FIELDS], "incarnation", low=1, high=MAX_TIME_MS)
                if moved
                else 0
            ),
        )
    except LocalProtocolError as error:
        # The bounds are written once, in Certificate; here they are the peer's fault.
        raise RemoteProtocolError(str(error)) from None
    # `unpack` accepts canonical bytes alone, so this holds unless the two ever disagree;
    # an id that is not the hash of what was signed would be worse than an error.
    if certificate.body() != body:
        raise RemoteProtocolError("certificate is not canonical", reason="not-canonical")
    return certificate


def _problem(certificate: Certificate) -> str | None:
    texts = (
        ("channel", certificate.channel, 0, MAX_DID),
        ("member", certificate.member, 1, MAX_DID),
        ("suite", certificate.suite, 1, MAX_NAME),
        *(("key type", one, 1, MAX_NAME) for one in certificate.key_types),
    )
    for what, text, low, high in texts:
        if not _is_text(text, low, high):
            return f"{what} is not {low} to {high} visible ASCII characters"
    if not 1 <= len(certificate.key_types) <= MAX_KEY_TYPES:
        return f"it does not list 1 to {MAX_KEY_TYPES} key types"
    for what, key in (("sign", certificate.sign_public), ("seal", certificate.seal_public)):
        if not isinstance(key, bytes) or not 1 <= len(key) <= MAX_PUBLIC:
            return f"{what} key is not 1 to {MAX_PUBLIC} bytes"
    if not 0 <= certificate.not_before_ms <= certificate.not_after_ms <= MAX_TIME_MS:
        return "its times are not in order"
    if not 0 <= certificate.incarnation <= MAX_TIME_MS:
        return "its incarnation is no time"
    return None


def _is_text(text: Any, low: int, high: int) -> bool:
    # No spaces and no control characters: DIDs end up in logs and in terminals.
    return (
        isinstance(text, str)
        and low <= len(text) <= high
        and all("!" <= character <= "~" for character in text)
    )


__all__ = [
    "ID_SIZE",
    "MAX_ENCODED",
    "MAX_SIGNATURE",
    "Certificate",
    "SignedCertificate",
    "decode",
    "encode",
]
