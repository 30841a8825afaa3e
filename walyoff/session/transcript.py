"""What both sides hash, sign and derive keys from; no state of the handshake is kept here.

Every hash, key and signature of a session begins with DOMAIN, so nothing that is computed
here means anything elsewhere. The transcript is BLAKE3 over labelled, length-prefixed items
in the order in which they became known, beginning with the mode and the channel (which
never travel in clear). Keys are HKDF-SHA256 of the sealed secret, with the pre-shared
secret as salt and the transcript in the info.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

from blake3 import blake3
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from walyoff.abc import Cipher
from walyoff.errors import LocalProtocolError
from walyoff.wire import pack

DOMAIN: Final = "walyoff/session/1"

#: Bytes of hashes, tags, tag keys, session secrets and ids.
HASH_SIZE: Final = 32

Mode = Literal["member", "join", "introduce"]
Role = Literal["initiator", "responder"]

MODES: Final[tuple[Mode, ...]] = ("member", "join", "introduce")


class Transcript:
    """A running hash of everything that was said in one handshake."""

    __slots__ = ("_hasher",)

    def __init__(self, mode: Mode, channel: str) -> None:
        self._hasher = blake3(pack([DOMAIN, "transcript", mode, channel]))

    def add(self, label: str, *items: bytes) -> None:
        """Append items under a label; lengths are hashed, so items cannot be shifted."""
        self._hasher.update(pack([label, *items]))

    def digest(self) -> bytes:
        """The hash of all items so far, 32 bytes; more may follow."""
        return self._hasher.digest(HASH_SIZE)


def blinded_tag(tag_key: bytes, mode: Mode, ephemeral: bytes) -> bytes:
    """The tag by which holders of a tag key recognise whom a first flight is for.

    The tag key is 32 secret bytes of a channel's epoch or of an invitation. To anybody
    without it the tag is random, and it fits no other ephemeral key.
    """
    check_secret(tag_key, "tag key")
    return blake3(pack([DOMAIN, "tag", mode, ephemeral]), key=tag_key).digest(HASH_SIZE)


def signed_message(role: Role, mode: Mode, transcript: bytes) -> bytes:
    """What a side signs: it fits one role in one handshake and no other purpose."""
    return pack([DOMAIN, "signature", role, mode, transcript])


def seal_info(transcript: bytes) -> bytes:
    """The HPKE info of the session secret, bound to the first flight."""
    return pack([DOMAIN, "seal", transcript])


def derive(secret: bytes, psk: bytes | None, size: int, *info: str | bytes) -> bytes:
    """`size` bytes of key from a session secret and, where there is one, a pre-shared one."""
    return HKDF(
        algorithm=SHA256(), length=size, salt=psk, info=pack([DOMAIN, "key", *info])
    ).derive(secret)


def check_secret(secret: bytes, what: str) -> None:
    """Refuse a secret that is not 32 bytes. Raises LocalProtocolError."""
    if len(secret) != HASH_SIZE:
        raise LocalProtocolError(f"{what} of {len(secret)} bytes is not {HASH_SIZE}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionKeys:
    """What a finished handshake leaves: one key for each direction. Its secrets never print."""

    cipher: Cipher
    #: The key of what the initiator sends, and of what the responder sends.
    initiator_key: bytes = field(repr=False)
    responder_key: bytes = field(repr=False)
    #: Names the session on both sides, 32 bytes; not secret, and tells nothing about the keys.
    session_id: bytes


def traffic_keys(
    cipher: Cipher,
    secret: bytes,
    psk: bytes | None,
    *,
    transcript: bytes,
    channel: str,
    responder_certificate: bytes,
    initiator_certificate: bytes,
) -> SessionKeys:
    """The keys of a session, from its whole transcript and both certificate ids."""
    context = (transcript, channel, responder_certificate, initiator_certificate)
    size = cipher.aead_key_size
    return SessionKeys(
        cipher=cipher,
        initiator_key=derive(secret, psk, size, "traffic initiator", *context),
        responder_key=derive(secret, psk, size, "traffic responder", *context),
        session_id=derive(secret, psk, HASH_SIZE, "session id", *context),
    )


__all__ = [
    "DOMAIN",
    "HASH_SIZE",
    "MODES",
    "Mode",
    "Role",
    "SessionKeys",
    "Transcript",
    "blinded_tag",
    "check_secret",
    "derive",
    "seal_info",
    "signed_message",
    "traffic_keys",
]
