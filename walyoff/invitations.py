"""Invitations: a short string that lets one device find another and prove it was invited.

    bytes   = version, expiry (u32, seconds since 1970), secret (16), addresses, checksum (4)
    string  = base32 of it, lower case, in groups when shown to people

The string is a secret: who has it may join once. The secret becomes the pre-shared key of a
join session, so an eavesdropper on that session learns nothing and an impostor gets nothing.
What the inviter knows of an invitation is kept in its store.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass, field

from blake3 import blake3

from walyoff.errors import InvitationError, RemoteProtocolError
from walyoff.wire import (
    expect_array,
    expect_bytes,
    expect_int,
    expect_name,
    expect_str,
    pack,
    unpack,
)

VERSION = 1
SECRET_SIZE = 16
CHECKSUM_SIZE = 4
ID_SIZE = 8
#: More make the string too long to hand over; the first are the best.
MAX_ADDRESSES = 3
MAX_ADDRESS = 255
MAX_STRING = 2048
#: Long enough to walk to the other device, short enough to be forgotten on paper.
DEFAULT_LIFETIME_S = 24 * 3600
MAX_LIFETIME_S = 365 * 24 * 3600
#: The joiner's clock may be wrong by so much. The inviter's decides; the joiner only spares
#: itself what is hopeless.
CLOCK_SKEW_S = 24 * 3600
#: A spent invitation is remembered so long, so that the joiner gets a clear answer.
REMEMBER_S = 30 * 24 * 3600
EXPIRED = "the invitation has expired: ask for a new one"


def _derive(secret: bytes, purpose: str) -> bytes:
    return blake3(secret, derive_key_context=f"walyoff 2026-11 invitation {purpose}").digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """A parsed invitation. Its secret never prints."""

    secret: bytes = field(repr=False)
    #: Seconds since 1970.
    expires: int
    addresses: tuple[str, ...]

    @property
    def invitation_id(self) -> str:
        """Names the invitation without giving it away."""
        return _derive(self.secret, "id")[:ID_SIZE].hex()

    @property
    def tag_key(self) -> bytes:
        """For finding the invitation that a join session is about."""
        return _derive(self.secret, "tag")

    @property
    def psk(self) -> bytes:
        """The pre-shared key of the join session."""
        return _derive(self.secret, "psk")

    def has_expired(self, now: float, *, tolerance: float = 0.0) -> bool:
        """True after its time, by a clock in seconds since 1970 that may be wrong."""
        return now > self.expires + tolerance

    def __str__(self) -> str:
        parts = [bytes([VERSION]), self.expires.to_bytes(4, "big"), self.secret]
        for address in self.addresses[:MAX_ADDRESSES]:
            encoded = address.encode()
            parts += [bytes([len(encoded)]), encoded]
        body = b"".join(parts)
        checked = body + blake3(body).digest(CHECKSUM_SIZE)
        return base64.b32encode(checked).decode().rstrip("=").lower()


def new_invitation(
    addresses: Sequence[str], *, secret: bytes, now: float, lifetime_s: float
) -> Invitation:
    """A fresh invitation to a device at these addresses."""
    usable = tuple(a for a in addresses if len(a.encode()) <= MAX_ADDRESS)[:MAX_ADDRESSES]
    return Invitation(secret=secret, expires=int(now + lifetime_s), addresses=usable)


def parse(text: str, *, now: float) -> Invitation:
    """The invitation of a string; spaces, dashes and case do not matter.

    Raises:
        InvitationError: mistyped, not an invitation, of a newer version, or expired for more
            than `CLOCK_SKEW_S`.
    """
    joined = "".join(text.split()).replace("-", "").upper()
    if not joined or len(joined) > MAX_STRING or not joined.isascii():
        raise InvitationError("this is not an invitation: copy the whole string again")
    try:
        raw = base64.b32decode(joined + "=" * (-len(joined) % 8))
    except binascii.Error:
        raise InvitationError(
            "the invitation is mistyped: copy the whole string again"
        ) from None
    body, checksum = raw[:-CHECKSUM_SIZE], raw[-CHECKSUM_SIZE:]
    if (
        len(body) < 5 + SECRET_SIZE
        or blake3(body).digest(CHECKSUM_SIZE) != checksum
        # The last character has bits that no byte uses.
        or base64.b32encode(raw).rstrip(b"=") != joined.encode()
    ):
        raise InvitationError("the invitation is mistyped: copy the whole string again")
    if body[0] != VERSION:
        raise InvitationError(f"the invitation has version {body[0]}: update walyoff to use it")
    invitation = Invitation(
        secret=body[5 : 5 + SECRET_SIZE],
        expires=int.from_bytes(body[1:5], "big"),
        addresses=_addresses(body[5 + SECRET_SIZE :]),
    )
    if invitation.has_expired(now, tolerance=CLOCK_SKEW_S):
        raise InvitationError(EXPIRED)
    return invitation


def _addresses(data: bytes) -> tuple[str, ...]:
    addresses: list[str] = []
    while data:
        size = data[0]
        # Anything else would be a string of another length when it is written again.
        if len(addresses) == MAX_ADDRESSES or len(data) <= size:
            raise InvitationError("the invitation has malformed addresses")
        try:
            address = expect_name(data[1 : 1 + size].decode("ascii"), "", limit=MAX_ADDRESS)
        except (UnicodeDecodeError, RemoteProtocolError):
            raise InvitationError("the invitation has malformed addresses") from None
        addresses.append(address)
        data = data[1 + size :]
    return tuple(addresses)


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """What the inviter remembers of an invitation."""

    channel: str
    secret: bytes = field(repr=False)
    expires: int
    #: The DID that used it, which may finish a join that broke; empty while unused.
    used_by: str = ""

    def encode(self) -> bytes:
        """For the store."""
        return pack([self.channel, self.secret, self.expires, self.used_by])

    @classmethod
    def decode(cls, data: bytes) -> Issued:
        """From the store. Raises RemoteProtocolError if it is not one."""
        channel, secret, expires, used_by = expect_array(unpack(data, 4096), 4, "invitation")
        if not isinstance(channel, str):
            raise RemoteProtocolError("invitation without a channel")
        return cls(
            channel=channel,
            secret=expect_bytes(secret, "secret", size=SECRET_SIZE),
            expires=expect_int(expires, "expiry"),
            used_by=expect_str(used_by, "user", limit=256),
        )

    def invitation(self) -> Invitation:
        """The invitation without its addresses."""
        return Invitation(secret=self.secret, expires=self.expires, addresses=())

    def problem(self, did: str, now: float) -> str | None:
        """Why a DID may not use it now, or None."""
        if self.used_by and self.used_by != did:
            return "the invitation was used already: ask for a new one"
        if now > self.expires:
            return EXPIRED
        return None
