"""What a block of an identity's chain claims: who does what, signed by whom, for which place.

Decided here: the form of such blocks, stock ones and ours, and what is signed in them. Never
decided here: whether an act counts (`reader`), or who may write to the chain (`judging`).

Version 2 of our part names the member who acts and carries that member's own signature over

    pack([DOMAIN, identity, act, subject, pin, nonce, rule, [parents of the block, sorted]])

The parents are in it so that a copy of an act elsewhere on the chain is no act. Version 1 and
stock blocks are signed by the identity's control keys alone, which all members hold.

Pure: any bytes give an act or RemoteProtocolError.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from blake3 import blake3

from walyoff.errors import RemoteProtocolError
from walyoff.wire import (
    MAX_DID,
    expect_array,
    expect_bytes,
    expect_int,
    expect_str,
    pack,
    unpack,
)

DOMAIN: Final = "walyoff/act/2"
PIN_DOMAIN: Final = b"walyoff/pin/1"
PIN_SIZE: Final = 32
NONCE_SIZE: Final = 16
#: The topics of stock blocks.
TOPIC_KEY: Final = "control_key"
TOPIC_JOIN: Final = "member_joining"
TOPIC_LEAVE: Final = "member_leaving"
TOPIC_UPDATE: Final = "member_update"
TOPIC_DOC: Final = "did_doc"
#: Our own blocks: the anchor segments of a channel, and its rules.
TOPIC_SEGMENT: Final = "walyoff_segment"
TOPIC_RULES: Final = "walyoff_rules"
DID_PREFIX: Final = "did:walytisidentities:"
SEGMENT_DOMAIN: Final = "walyoff/segment/1"

#: What members do.
JOIN: Final = "join"
LEAVE: Final = "leave"
RENEW: Final = "renew"
ADMIN: Final = "admin"
RULES: Final = "rules"
SEGMENT: Final = "segment"
#: And stock blocks that decide nothing here.
UPDATE: Final = "update"
DOCUMENT: Final = "document"
_KINDS: Final = {
    TOPIC_JOIN: JOIN,
    TOPIC_LEAVE: LEAVE,
    TOPIC_KEY: RENEW,
    TOPIC_UPDATE: UPDATE,
    TOPIC_DOC: DOCUMENT,
    "key_ownership": DOCUMENT,
    "endra_corresp_reg": DOCUMENT,
}

_OWN_TOPICS: Final = frozenset({TOPIC_SEGMENT, TOPIC_RULES})
#: Blocks without one of these topics cannot say anything about an identity.
TOPICS: Final = _OWN_TOPICS.union(_KINDS)

#: Who may invite and remove.
RULE_ANY: Final = "any"
RULE_ADMINS: Final = "admins"
RULES_KNOWN: Final = frozenset({RULE_ANY, RULE_ADMINS})

#: An identity block: a key group's id is 6 KiB, a document lists keys of all members.
MAX_CONTENT: Final = 256 * 1024
#: Opening brackets in its JSON: it is flat, and the parser recurses in C.
MAX_BRACKETS: Final = 512
#: Characters of a key group's id, which names its keys.
MAX_KEY_ID: Final = 64 * 1024
#: Own blocks: two post-quantum signatures and some names.
MAX_OWN: Final = 64 * 1024
#: An approval: the signatures of a member's control keys, 3.4 KiB.
MAX_APPROVAL: Final = 16 * 1024
#: Parents of a block: stock code and the guard allow fewer.
MAX_PARENTS: Final = 128
#: Characters of a block's name.
MAX_REF: Final = 64

# Why a block is no act.
MALFORMED: Final = "malformed"
WRONG_PURPOSE: Final = "wrong-purpose"
WRONG_PLACE: Final = "wrong-place"


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityBlock:
    """One block of an identity's chain."""

    ref: str
    topics: tuple[str, ...]
    parents: tuple[str, ...]
    content: bytes
    #: Where it came among the blocks that are held here: it decides where nothing else can,
    #: see `founding`.
    place: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """A member's own signature under an act."""

    #: The DID of the direct member who acts.
    by: str
    body: bytes = field(repr=False)
    signature: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """What a block claims. Nothing of it was checked but its form, purpose and place."""

    kind: str
    #: A member's DID; of a segment its chain; else empty.
    subject: str = ""
    #: The fingerprint of a joining member's first keys; empty in stock blocks.
    pin: bytes = b""
    rule: str = ""
    #: None in blocks of version 1 and stock blocks.
    approval: Approval | None = None
    #: The identity's control keys' signature, as stock code writes it, and what it covers.
    signature: bytes = field(repr=False)
    signed: bytes = field(repr=False)
    #: Of control key blocks: the keys that sign, and the keys that follow.
    old: str = field(default="", repr=False)
    new: str = field(default="", repr=False)
    #: What a device's renewal says beside them; not looked at here, see `renewals`.
    disclosed: dict[str, Any] | None = field(default=None, repr=False, compare=False)


def pin_of(key_group_id: str) -> bytes:
    """The fingerprint of a DID's first control keys."""
    return blake3(PIN_DOMAIN + key_group_id.encode()).digest()


def did_of(chain: str) -> str:
    """The DID whose chain this is."""
    return DID_PREFIX + chain


def chain_of(did: str) -> str:
    """The chain of a DID. Raises RemoteProtocolError."""
    if not isinstance(did, str) or len(did) > MAX_DID or not did.startswith(DID_PREFIX):
        raise RemoteProtocolError("malformed DID", reason="bad-did")
    return did.removeprefix(DID_PREFIX)


def is_own(topics: Iterable[str]) -> bool:
    """Whether a block is one of our own, and no stock one."""
    return not _OWN_TOPICS.isdisjoint(topics)


# --------------------------------------------------------------------------- writing


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """An act that is about to be written, without its signatures."""

    group: str
    kind: str
    by: str
    subject: str = ""
    pin: bytes = b""
    rule: str = ""
    nonce: bytes
    #: The names of the block's parents.
    parents: tuple[str, ...]

    def body(self) -> bytes:
        """What the acting member signs."""
        return pack(
            [
                DOMAIN,
                self.group,
                self.kind,
                self.subject,
                self.pin,
                self.nonce,
                self.rule,
                sorted(self.parents),
            ]
        )

    def as_field(self, approval: bytes) -> dict[str, Any]:
        """Our field in a stock block."""
        return {
            "v": 2,
            "act": self.kind,
            "group": self.group,
            "subject": self.subject,
            "pin": self.pin.hex(),
            "nonce": self.nonce.hex(),
            "rule": self.rule,
            "after": sorted(self.parents),
            "by": self.by,
            "sig": base64.b64encode(approval).decode(),
        }

    def as_block(self, approval: bytes, signature: bytes) -> bytes:
        """The content of a block of our own; the second is the identity's over the body."""
        return pack(
            [
                2,
                self.kind,
                self.group,
                self.subject,
                self.pin,
                self.nonce,
                self.rule,
                sorted(self.parents),
                self.by,
                approval,
                signature,
            ]
        )


# --------------------------------------------------------------------------- reading


def read_act(group: str, block: IdentityBlock) -> Act | None:
    """The act that a block claims; None if it is of no kind that matters.

    Raises:
        RemoteProtocolError: malformed, for another identity or purpose, or written for
            another place of the chain.
    """
    kinds = _KINDS.keys() & set(block.topics)
    own = _OWN_TOPICS.intersection(block.topics)
    try:
        # Stock code ignores a block of two kinds, and so it is here.
        if len(own) == 1 and not kinds:
            return _own(group, next(iter(own)), block)
        if own or len(kinds) != 1:
            return None
        kind = _KINDS[kinds.pop()]
        return _key(group, block) if kind == RENEW else _info(group, kind, block)
    except (ValueError, RecursionError):
        raise RemoteProtocolError("identity block is malformed", reason=MALFORMED) from None
    except RemoteProtocolError as error:
        if error.reason in (WRONG_PURPOSE, WRONG_PLACE):
            raise
        raise RemoteProtocolError(str(error), reason=MALFORMED) from None


def _key(group: str, block: IdentityBlock) -> Act:
    value = _load(block.content)
    old, new = _text(value, "old_keys", MAX_KEY_ID), _text(value, "new_keys", MAX_KEY_ID)
    match value.get("walyoff"):
        case {"v": 3} as disclosed:
            approval = None
        case said:
            disclosed = None
            approval, _ = _field(group, RENEW, said, block, subject="", pin=pin_of(new))
    return Act(
        kind=RENEW,
        approval=approval,
        signature=_signature(value),
        signed=f"{old}--{new}".encode(),
        old=old,
        new=new,
        disclosed=disclosed,
    )


def _info(group: str, kind: str, block: IdentityBlock) -> Act:
    value = _load(block.content)
    info = value.get("info_content")
    if not isinstance(info, dict | list):
        raise RemoteProtocolError("identity block without content")
    signature = _signature(value)
    # Stock code signs the JSON as it writes it again; so do we read it.
    signed = json.dumps(info).encode()
    if kind == DOCUMENT:
        return Act(kind=kind, signature=signature, signed=signed)
    if not isinstance(info, dict):
        raise RemoteProtocolError("identity block names nobody")
    did = _text(info, "did", MAX_DID)
    approval, pin = _field(group, kind, info.get("walyoff"), block, subject=did, pin=None)
    return Act(
        kind=kind,
        subject=did,
        pin=pin,
        approval=approval,
        signature=signature,
        signed=signed,
    )


def _field(
    group: str, kind: str, value: Any, block: IdentityBlock, *, subject: str, pin: bytes | None
) -> tuple[Approval | None, bytes]:
    """Our field in a stock block: the approval, and the pin."""
    match value:
        case None:
            # The content of a stock leaving is that of the joining: a replay of the one as
            # the other is refused because a content acts once.
            return None, b""
        case {"v": 1, "act": str() as said, "group": str() as named, "pin": str() as written}:
            if said != kind or named != group:
                raise RemoteProtocolError("act for another purpose", reason=WRONG_PURPOSE)
            return None, _pin(written)
        case {
            "v": 2,
            "act": str() as said,
            "group": str() as named,
            "subject": str() as about,
            "pin": str() as written,
            "nonce": str() as nonce,
            "rule": str() as rule,
            "after": list() as after,
            "by": str() as by,
            "sig": str() as signature,
        } if len(value) == 10:
            # A control key block is about its new keys.
            if said != kind or named != group or about != subject:
                raise RemoteProtocolError("act for another purpose", reason=WRONG_PURPOSE)
            found = _pin(written)
            if pin is not None and found != pin:
                raise RemoteProtocolError("act about other keys", reason=WRONG_PURPOSE)
            claim = Claim(
                group=group,
                kind=kind,
                by=expect_str(by, "actor", limit=MAX_DID),
                subject=subject,
                pin=found,
                rule=expect_str(rule, "rule", limit=16),
                nonce=expect_bytes(bytes.fromhex(nonce), "nonce", size=NONCE_SIZE),
                parents=_place(after, block),
            )
            raw = base64.b64decode(signature, validate=True)
            raw = expect_bytes(raw, "approval", limit=MAX_APPROVAL)
            return Approval(by=claim.by, body=claim.body(), signature=raw), found
    raise RemoteProtocolError("our field is malformed")


def _own(group: str, topic: str, block: IdentityBlock) -> Act:
    fields = unpack(block.content, MAX_OWN)
    if not isinstance(fields, list) or not fields:
        raise RemoteProtocolError("own block is no array")
    if topic == TOPIC_SEGMENT and len(fields) == 5:
        return _old_segment(group, block.content)
    version, kind, named, subject, pin, nonce, rule, after, by, approval, signature = (
        expect_array(fields, 11, "own block")
    )
    if expect_int(version, "version", high=255) != 2:
        raise RemoteProtocolError("own block of an unknown version")
    kind = expect_str(kind, "act", limit=16)
    if expect_str(named, "group", limit=MAX_DID) != group:
        raise RemoteProtocolError("act of another identity", reason=WRONG_PURPOSE)
    if kind not in ((SEGMENT,) if topic == TOPIC_SEGMENT else (RULES, ADMIN)):
        raise RemoteProtocolError("act of another kind", reason=WRONG_PURPOSE)
    rule = expect_str(rule, "rule", limit=16)
    if kind == RULES and rule not in RULES_KNOWN:
        raise RemoteProtocolError("unknown rule", reason=WRONG_PURPOSE)
    claim = Claim(
        group=group,
        kind=kind,
        by=expect_str(by, "actor", limit=MAX_DID),
        subject=expect_str(subject, "subject", limit=MAX_DID),
        pin=expect_bytes(pin, "pin", limit=PIN_SIZE),
        rule=rule,
        nonce=expect_bytes(nonce, "nonce", size=NONCE_SIZE),
        parents=_place(after, block),
    )
    body = claim.body()
    given = expect_bytes(approval, "approval", limit=MAX_APPROVAL)
    return Act(
        kind=kind,
        subject=claim.subject,
        pin=claim.pin,
        rule=rule,
        approval=Approval(by=claim.by, body=body, signature=given),
        signature=expect_bytes(signature, "signature", limit=MAX_OWN),
        signed=body,
    )


def _old_segment(group: str, content: bytes) -> Act:
    version, named, chain, number, signature = decode_segment(content)
    if version != 1 or named != group or number != 0:
        raise RemoteProtocolError("segment of another place", reason=WRONG_PURPOSE)
    return Act(
        kind=SEGMENT,
        subject=chain,
        signature=signature,
        signed=segment_body(group, chain, number),
    )


def _place(after: Any, block: IdentityBlock) -> tuple[str, ...]:
    if not isinstance(after, list) or len(after) > MAX_PARENTS:
        raise RemoteProtocolError("act without its place")
    names = [expect_str(name, "parent", limit=MAX_REF) for name in after]
    if names != sorted(block.parents):
        raise RemoteProtocolError("act was written for another place", reason=WRONG_PLACE)
    return tuple(names)


# -------------------------------------------------------------------------- segments


def segment_body(group: str, chain: str, number: int) -> bytes:
    """What the control keys sign of a segment block of version 1."""
    return pack([SEGMENT_DOMAIN, group, chain, number])


def encode_segment(group: str, chain: str, number: int, signature: bytes) -> bytes:
    """The content of a segment block of version 1."""
    return pack([1, group, chain, number, signature])


def decode_segment(content: bytes) -> tuple[int, str, str, int, bytes]:
    """(version, group, chain, number, signature). Raises RemoteProtocolError."""
    fields = expect_array(unpack(content, MAX_OWN), 5, "segment")
    return (
        expect_int(fields[0], "segment version", high=255),
        expect_str(fields[1], "segment group", limit=MAX_DID),
        expect_str(fields[2], "segment chain", limit=64),
        expect_int(fields[3], "segment number", high=1 << 31),
        expect_bytes(fields[4], "segment signature", limit=MAX_OWN),
    )


# ---------------------------------------------------------------------------- fields


def _load(content: bytes) -> dict[str, Any]:
    if len(content) > MAX_CONTENT or content.count(b"{") + content.count(b"[") > MAX_BRACKETS:
        raise RemoteProtocolError("identity block is too large or too deep")
    value = json.loads(content.decode())
    if not isinstance(value, dict):
        raise RemoteProtocolError("identity block is no map")
    return value


def _text(value: Mapping[str, Any], name: str, limit: int) -> str:
    text = value.get(name)
    if not isinstance(text, str) or not 0 < len(text) <= limit:
        raise RemoteProtocolError(f"{name} is no text of at most {limit}")
    # JSON can carry lone surrogates, which cannot be hashed or sent on.
    text.encode()
    return text


def _signature(value: Mapping[str, Any]) -> bytes:
    text = _text(value, "signature", MAX_CONTENT)
    try:
        return base64.b64decode(text, altchars=b"-_", validate=True)
    except binascii.Error:
        raise RemoteProtocolError("signature is no base64") from None


def _pin(text: str) -> bytes:
    return expect_bytes(bytes.fromhex(text), "pin", size=PIN_SIZE)


def expand(approval: bytes) -> bytes:
    """A compact signature as stock code writes it. Raises RemoteProtocolError."""
    parts: Sequence[Any] = unpack(approval, MAX_APPROVAL)
    if not isinstance(parts, list) or not 0 < len(parts) <= 4:
        raise RemoteProtocolError("approval is no signature")
    raw = [expect_bytes(part, "signature", limit=MAX_APPROVAL) for part in parts]
    return "-".join(part.hex() for part in raw).encode()
