"""Which renewals of a device's control keys count: those that its DID has committed to.

Control keys are in use, so they can be stolen, and who has them signs as well as the device. So
they do not decide who follows them (pre-rotation, as in KERI): a device's birth has the
fingerprint of a *renewal key*. The renewal shows that key and is signed by it, and has the
fingerprint of the next one. A renewal key signs once, and is destroyed then. Were the next
*control* keys committed to instead, who steals them in use could write the renewal that began
them once more, with a next fingerprint of its own.

Decided here: the form of what such a renewal says, and which renewals count. On a chain that
has committed to nothing (of stock software, or of a device of an earlier version) the control
keys decide as before, until one of their renewals that counts commits: the old keys sign that.

Never decided here: how renewal keys are made (`renewal_keys`) and kept (`renewal_files`). Pure.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from walyoff.child.acts import MAX_APPROVAL, PIN_SIZE, RENEW, WRONG_PURPOSE, Act, expand, pin_of
from walyoff.child.births import Birth
from walyoff.child.outcome import BAD_SIGNATURE, NOT_COMMITTED, RefusedError
from walyoff.errors import RemoteProtocolError
from walyoff.wire import expect_bytes, pack

if TYPE_CHECKING:
    from walyoff.child.placing import Verify

DOMAIN: Final = "walyoff/renewal/1"
#: What a renewal key's name begins with, before its public bytes in hex; control keys' names
#: begin with "|".
SCHEME: Final = "renewal-1:"
#: Ed25519 and ML-DSA-65, one after the other; both must sign.
PUBLIC_SIZE: Final = 32 + 1_952
SIGNATURE_SIZE: Final = 64 + 3_309


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewal:
    """What a renewal says beside the old and the new control keys."""

    #: The name of the renewal key that signs; where nothing was committed to, the old control
    #: keys.
    signer: str = field(repr=False)
    #: The fingerprint of the next renewal key.
    next: bytes
    #: As `Verify` wants it, with what it is of.
    signature: bytes = field(repr=False)
    body: bytes = field(repr=False)


def renewal_body(group: str, old: str, new: str, following: bytes) -> bytes:
    """What is signed: whose control keys follow which, and the next renewal key."""
    return pack([DOMAIN, group, pin_of(old), pin_of(new), following])


def as_field(group: str, key: bytes, following: bytes, signature: bytes) -> dict[str, Any]:
    """Our field in a stock control key block; the key is empty where the old keys sign."""
    return {
        "v": 3,
        "act": RENEW,
        "group": group,
        "key": base64.b64encode(key).decode(),
        "next": following.hex(),
        "sig": base64.b64encode(signature).decode(),
    }


def read_renewal(group: str, act: Act) -> Renewal | None:
    """What a renewal says beside its keys. Raises RemoteProtocolError."""
    if act.disclosed is None:
        return None
    match act.disclosed:
        case {
            "v": 3,
            "act": "renew",
            "group": str() as named,
            "key": str() as key,
            "next": str() as following,
            "sig": str() as signature,
        } if len(act.disclosed) == 6:
            if named != group:
                raise RemoteProtocolError("renewal of another DID", reason=WRONG_PURPOSE)
            try:
                public = base64.b64decode(key, validate=True)
                raw = base64.b64decode(signature, validate=True)
                promised = bytes.fromhex(following)
            except (binascii.Error, ValueError):
                raise RemoteProtocolError("renewal is malformed") from None
            expect_bytes(promised, "fingerprint", size=PIN_SIZE)
            if public:
                expect_bytes(public, "renewal key", size=PUBLIC_SIZE)
                expect_bytes(raw, "signature", size=SIGNATURE_SIZE)
            else:
                raw = expand(expect_bytes(raw, "signature", limit=MAX_APPROVAL))
            return Renewal(
                signer=SCHEME + public.hex() if public else act.old,
                next=promised,
                signature=raw,
                body=renewal_body(group, act.old, act.new, promised),
            )
    raise RemoteProtocolError("renewal is malformed")


def signed_renewal(group: str, act: Act, verify: Verify) -> Renewal | None:
    """The same, with its signature checked. Raises RemoteProtocolError."""
    renewal = read_renewal(group, act)
    if renewal and not verify(renewal.signer, renewal.signature, renewal.body):
        raise RemoteProtocolError("renewal is not signed", reason=BAD_SIGNATURE)
    return renewal


class Succession:
    """Which renewals that no member signs count, asked in the common order."""

    def __init__(self, birth: Birth | None, said: Iterable[tuple[Act, Renewal | None]]) -> None:
        """`said` is what all renewals of the chain say, in the common order."""
        #: The fingerprint of the key that signs the next renewal; empty if none is known.
        self.next = b"" if birth is None else birth.next
        # Wherever it stands: an outsider can write the block again without our part, under a
        # name that comes first.
        self._said: dict[tuple[str, str], list[Renewal]] = {}
        for act, renewal in said:
            if renewal is not None:
                self._said.setdefault((act.old, act.new), []).append(renewal)

    def take(self, act: Act) -> None:
        """A renewal of the newest keys. Raises RefusedError if it does not count."""
        said = self._said.get((act.old, act.new), ())
        if self.next:
            fitting = [one for one in said if pin_of(one.signer) == self.next]
            if not fitting:
                raise RefusedError(NOT_COMMITTED)
        else:
            fitting = [one for one in said if one.signer == act.old]
        self.next = fitting[0].next if fitting else b""


__all__ = [
    "DOMAIN",
    "PUBLIC_SIZE",
    "SCHEME",
    "SIGNATURE_SIZE",
    "Renewal",
    "Succession",
    "as_field",
    "read_renewal",
    "renewal_body",
    "signed_renewal",
]
