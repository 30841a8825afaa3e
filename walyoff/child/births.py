"""What a DID commits to, in the first block of its chain: first keys, founder, rule, register.

A chain's id is the hash of its first block, and the DID is that id. So what stands in there
nobody can change, neither a former member who kept the first keys, nor whoever hands the
chain over. Decided here: its form. What follows from it is decided in `founding`.

Stock code puts a greeting and 1,000 random bytes there and reads neither; of ours the first
random bytes say, in their place:

    MARK ‖ length (2 bytes, the highest first) ‖ body
    body = pack([pin, founder, founder's pin, rule, register])

A device's DID has no founder, as it never has members; in place of it stands what its control
keys are renewed by (`renewals`):

    DEVICE_MARK ‖ length ‖ pack([pin, next])

Devices of an earlier version have the first form, whose last fields are empty then. An empty
register is left out: identities of an earlier version do not commit to one. A chain of stock
software or of an earlier version says nothing, which is None here.

Pure: any bytes give a birth or None.
"""

from __future__ import annotations

from dataclasses import dataclass

from walyoff.child.acts import MAX_REF, PIN_SIZE, RULES_KNOWN
from walyoff.child.blocks import check_cid
from walyoff.errors import LocalProtocolError, RemoteProtocolError
from walyoff.wire import MAX_DID, expect_array, expect_bytes, expect_str, pack, unpack

#: What stock code writes before its random bytes.
GREETING = b"Hello World, new blockchain getting born!"
MARK = b"walyoff/birth/1\n"
DEVICE_MARK = b"walyoff/birth/2\n"
#: The random bytes, which a birth takes the place of.
ROOM = 1_000
_LENGTH = 2
_WITH_REGISTER = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Birth:
    """What a DID commits to."""

    #: The fingerprint of its first control keys.
    pin: bytes
    #: The member who founds it, with the fingerprint of that DID's first keys; empty for a
    #: device, which has no members.
    founder: str = ""
    founder_pin: bytes = b""
    #: Who may invite and remove.
    rule: str = ""
    #: The chain of the first segment of the channel's register; empty if it names none.
    register: str = ""
    #: Of a device, the fingerprint of the key by which its control keys are renewed first;
    #: empty if it commits to none.
    next: bytes = b""

    def encode(self) -> bytes:
        """What stands in the first block, after the greeting.

        Raises LocalProtocolError when it does not fit.
        """
        if self.next:
            mark, body = DEVICE_MARK, pack([self.pin, self.next])
        else:
            mark = MARK
            register = [self.register] if self.register else []
            body = pack([self.pin, self.founder, self.founder_pin, self.rule, *register])
        told = mark + len(body).to_bytes(_LENGTH) + body
        if len(told) > ROOM:
            raise LocalProtocolError(f"a birth of {len(told)} bytes exceeds {ROOM}")
        return told


def put_birth(content: bytes, birth: Birth) -> bytes:
    """The content of a first block with a birth in it, as long as it was."""
    told = birth.encode()
    start = len(GREETING)
    return content[:start] + told + content[start + len(told) :]


def read_birth(content: bytes) -> Birth | None:
    """The birth in the content of a first block."""
    start = len(GREETING) + len(MARK)
    mark = content[len(GREETING) : start]
    if not content.startswith(GREETING) or mark not in (MARK, DEVICE_MARK):
        return None
    size = int.from_bytes(content[start : start + _LENGTH])
    body = content[start + _LENGTH : start + _LENGTH + size]
    if size > ROOM - len(MARK) - _LENGTH or len(body) != size:
        return None
    try:
        if mark == DEVICE_MARK:
            pin, following = expect_array(unpack(body, ROOM), 2, "birth")
            return Birth(
                pin=expect_bytes(pin, "pin", size=PIN_SIZE),
                next=expect_bytes(following, "fingerprint", size=PIN_SIZE),
            )
        fields = unpack(body, ROOM)
        named = isinstance(fields, list) and len(fields) == _WITH_REGISTER
        fields = expect_array(fields, _WITH_REGISTER if named else _WITH_REGISTER - 1, "birth")
        pin = expect_bytes(fields[0], "pin", size=PIN_SIZE)
        founder = expect_str(fields[1], "founder", limit=MAX_DID)
        founder_pin = expect_bytes(fields[2], "pin", limit=PIN_SIZE)
        rule = expect_str(fields[3], "rule", limit=16)
        register = expect_str(fields[4], "register", limit=MAX_REF) if named else ""
        if named:
            check_cid(register)
    except RemoteProtocolError:
        return None
    if founder:
        fits = len(founder_pin) == PIN_SIZE and rule in RULES_KNOWN
    else:
        fits = not founder_pin and not rule and not register
    if not fits:
        return None
    return Birth(
        pin=pin, founder=founder, founder_pin=founder_pin, rule=rule, register=register
    )
