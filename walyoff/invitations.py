"""Invitations: a short string that lets a device find another one and prove it was invited.

    body   = version and purpose (1 byte), expiry (2, in units of four hours since 2020),
             secret (16), addresses (`walyoff.addresses`)
    string = base32 of body and 4 check bytes, in groups of five when people see it

The string is a secret: who has it may join. The secret becomes the pre-shared key of a join
session, so an eavesdropper on that session learns nothing and an impostor gets nothing. The
check bytes are those of a Reed-Solomon code, so a mistyped character is not only noticed but
found: the error names its group. Nothing is corrected in silence. What the inviter remembers
of an invitation, its exact expiry among it, is in `walyoff.issued`.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

import reedsolo
from blake3 import blake3

from walyoff.addresses import MAX_ADDRESSES, MAX_TEXT, decode_addresses, encode_addresses
from walyoff.errors import InvitationError, LocalProtocolError, RemoteProtocolError
from walyoff.wire import expect_name

#: Who may use an invitation: a device, an identity with its devices, or either.
Purpose = Literal["any", "device", "identity"]
PURPOSES: Final[tuple[Purpose, ...]] = get_args(Purpose)

VERSION = 2
#: Strings of this version are still understood, and not made any more.
OLD_VERSION = 1
SECRET_SIZE = 16
CHECK_SIZE = 4
#: A Reed-Solomon word over bytes.
MAX_BODY = 255 - CHECK_SIZE
ID_SIZE = 8
GROUP = 5
#: Characters that are looked at: eight times what one has.
MAX_STRING = 2048
#: Long enough to walk to the other device, short enough to be forgotten on paper.
DEFAULT_LIFETIME_S = 24 * 3600
#: A year: a longer one is forgotten, and still opens.
MAX_LIFETIME_S = 365 * 24 * 3600
#: The joiner's clock may be wrong by so much. The inviter's decides; the joiner only spares
#: itself what is hopeless.
CLOCK_SKEW_S = 24 * 3600
EXPIRED = "the invitation has expired: ask for a new one"

#: The expiry in a string: 2020 as the beginning, and the unit, which last until 2049.
_EPOCH_S = 1_577_836_800
_UNIT_S = 4 * 3600
_MAX_UNITS = 0xFFFF
_HEAD = 3
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
#: Bytes added to a Reed-Solomon word and taken off its end give a word again, and so do
#: zeros: the check bytes are masked, so that neither is an invitation.
_MASK = b"waly"
_CODE = reedsolo.RSCodec(CHECK_SIZE)
#: More wrong groups than this are no typing mistake that the code can place.
_MAX_WRONG = 2
_AGAIN = "copy the whole string again"


def _derive(secret: bytes, purpose: str) -> bytes:
    return blake3(secret, derive_key_context=f"walyoff 2026-11 invitation {purpose}").digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """A parsed invitation. Its secret never prints."""

    secret: bytes = field(repr=False)
    #: Seconds since 1970. In a string it is rounded up to four hours.
    expires: int
    addresses: tuple[str, ...]
    purpose: Purpose = "any"

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
        units = min(max(math.ceil((self.expires - _EPOCH_S) / _UNIT_S), 0), _MAX_UNITS)
        head = bytes([VERSION << 4 | PURPOSES.index(self.purpose)]) + units.to_bytes(2, "big")
        return _text(head + self.secret + encode_addresses(self.addresses))


def grouped(text: str) -> str:
    """An invitation string as people see it: capitals in groups of five."""
    plain = _plain(text)
    return "-".join(plain[at : at + GROUP] for at in range(0, len(plain), GROUP))


def new_invitation(
    addresses: Sequence[str],
    *,
    secret: bytes,
    now: float,
    lifetime_s: float,
    purpose: Purpose = "any",
) -> Invitation:
    """A fresh invitation to a device at these addresses: those that fit, the best first."""
    chosen: list[str] = []
    for address in addresses:
        usable = len(address) <= MAX_TEXT and address.isascii() and len(chosen) < MAX_ADDRESSES
        size = _HEAD + SECRET_SIZE + len(encode_addresses([*chosen, address])) if usable else 0
        if usable and size <= MAX_BODY:
            chosen.append(address)
    return Invitation(
        secret=secret,
        expires=math.ceil(now + lifetime_s),
        addresses=tuple(chosen),
        purpose=purpose,
    )


def parse(text: str, *, now: float) -> Invitation:
    """The invitation of a string; spaces, dashes and case do not matter.

    Raises:
        InvitationError: mistyped, not an invitation, of a newer version, or expired for more
            than `CLOCK_SKEW_S`.
    """
    plain = _plain(text)
    if not plain or len(plain) > MAX_STRING or not plain.isascii():
        raise InvitationError(f"this is not an invitation: {_AGAIN}")
    raw = _bytes(plain)
    invitation = None if raw is None else _read(raw) or _read_old(raw)
    if invitation is None:
        raise InvitationError(f"the invitation is mistyped: {_advice(text, plain, raw)}")
    if invitation.has_expired(now, tolerance=CLOCK_SKEW_S):
        raise InvitationError(EXPIRED)
    return invitation


# ------------------------------------------------------------------------------ text


def _plain(text: str) -> str:
    return "".join(text.split()).replace("-", "").upper()


def _base32(raw: bytes) -> str:
    return base64.b32encode(raw).decode().rstrip("=")


def _bytes(plain: str) -> bytes | None:
    """The bytes of a string, unless it has a wrong character or length."""
    try:
        raw = base64.b32decode(plain + "=" * (-len(plain) % 8))
    except binascii.Error:
        return None
    # The last character may have bits that no byte uses.
    return raw if _base32(raw) == plain and len(raw) > CHECK_SIZE else None


def _text(body: bytes) -> str:
    if len(body) > MAX_BODY:
        raise LocalProtocolError("too many long addresses for one invitation")
    coded = bytes(_CODE.encode(body))
    return _base32(body + _masked(coded[len(body) :])).lower()


def _masked(check: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(check, _MASK, strict=True))


def _word(raw: bytes) -> bytes:
    return raw[:-CHECK_SIZE] + _masked(raw[-CHECK_SIZE:])


def _advice(text: str, plain: str, raw: bytes | None) -> str:
    """Where to look. Names places only: what was typed is a secret."""
    groups = text.replace("-", " ").split()
    odd = {n for n, group in enumerate(groups[:-1], 1) if len(group) != GROUP}
    if len(groups) > 1 and len(odd) == 1:
        number = odd.pop()
        return f"group {number} has {len(groups[number - 1])} characters instead of {GROUP}"
    if foreign := {at // GROUP + 1 for at, c in enumerate(plain) if c not in _ALPHABET}:
        return f"{_groups(foreign)} a character that no invitation has (0, 1, 8 or 9?)"
    if raw is None or len(raw) > MAX_BODY + CHECK_SIZE:
        last = (len(plain) - 1) // GROUP + 1
        return f"group {last}, the last one, has a mistake, or characters are missing"
    try:
        coded = bytes(_CODE.decode(_word(raw))[1])
    except reedsolo.ReedSolomonError:
        return f"there is more than one mistake, or something is missing: {_AGAIN}"
    meant = _base32(_word(coded))
    pairs = enumerate(zip(plain, meant, strict=True))
    wrong = {at // GROUP + 1 for at, (typed, right) in pairs if typed != right}
    if len(wrong) > _MAX_WRONG:
        return f"there is more than one mistake: {_AGAIN}"
    return f"{_groups(wrong)} a mistake (groups of {GROUP} characters, counted from 1)"


def _groups(numbers: set[int]) -> str:
    named = " and ".join(str(n) for n in sorted(numbers)[:_MAX_WRONG])
    return f"group {named} has" if len(numbers) == 1 else f"groups {named} have"


# ----------------------------------------------------------------------------- bytes


def _read(raw: bytes) -> Invitation | None:
    """An invitation of this version, or None if the check bytes are not those of one."""
    if len(raw) > MAX_BODY + CHECK_SIZE or not all(_CODE.check(_word(raw))):
        return None
    body = raw[:-CHECK_SIZE]
    version, purpose = body[0] >> 4, body[0] & 0x0F
    if version != VERSION:
        raise InvitationError(f"the invitation has version {version}: update walyoff to use it")
    if len(body) < _HEAD + SECRET_SIZE or purpose >= len(PURPOSES):
        raise InvitationError("the invitation is malformed: ask for a new one")
    try:
        addresses = decode_addresses(body[_HEAD + SECRET_SIZE :])
    except RemoteProtocolError:
        raise InvitationError("the invitation has malformed addresses") from None
    return Invitation(
        secret=body[_HEAD : _HEAD + SECRET_SIZE],
        expires=_EPOCH_S + int.from_bytes(body[1:_HEAD], "big") * _UNIT_S,
        addresses=addresses,
        purpose=PURPOSES[purpose],
    )


def _read_old(raw: bytes) -> Invitation | None:
    """The same of the version before: addresses as text, a hash as check bytes, for devices."""
    body = raw[:-CHECK_SIZE]
    if len(body) < 5 + SECRET_SIZE or body[0] != OLD_VERSION:
        return None
    if blake3(body).digest(CHECK_SIZE) != raw[-CHECK_SIZE:]:
        return None
    return Invitation(
        secret=body[5 : 5 + SECRET_SIZE],
        expires=int.from_bytes(body[1:5], "big"),
        addresses=_old_addresses(body[5 + SECRET_SIZE :]),
        purpose="device",
    )


def _old_addresses(data: bytes) -> tuple[str, ...]:
    addresses: list[str] = []
    while data:
        size = data[0]
        if len(addresses) == MAX_ADDRESSES or len(data) <= size:
            raise InvitationError("the invitation has malformed addresses")
        try:
            address = expect_name(data[1 : 1 + size].decode("ascii"), "", limit=255)
        except (UnicodeDecodeError, RemoteProtocolError):
            raise InvitationError("the invitation has malformed addresses") from None
        addresses.append(address)
        data = data[1 + size :]
    return tuple(addresses)
