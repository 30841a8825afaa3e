"""What an identity's chain says, by our own rules: who its members are and with which keys.

Decided here: which blocks count. Anyone who knows the chain's id can write to it, and stock
code believes joining blocks unseen; here nothing counts that the identity's control keys did
not sign at that place. What does not count is counted by reason, never raised: one bad block
must not hide the good ones.

Pure logic: blocks in causal order go in, with a function that checks a signature; no I/O, no
clock, no cryptography.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from blake3 import blake3

from walyoff.errors import RemoteProtocolError
from walyoff.wire import expect_array, expect_bytes, expect_int, expect_str, pack, unpack

PIN_DOMAIN = b"walyoff/pin/1"
PIN_SIZE = 32
#: The topics of stock blocks.
TOPIC_KEY = "control_key"
TOPIC_JOIN = "member_joining"
TOPIC_LEAVE = "member_leaving"
TOPIC_UPDATE = "member_update"
TOPIC_DOC = "did_doc"
#: Our own block that names the anchor segments of a channel.
TOPIC_SEGMENT = "walyoff_segment"
_STOCK_TOPICS = frozenset(
    {
        *(TOPIC_KEY, TOPIC_JOIN, TOPIC_LEAVE, TOPIC_UPDATE, TOPIC_DOC),
        *("key_ownership", "endra_corresp_reg"),
    }
)
#: Blocks without one of these topics cannot say anything about an identity.
TOPICS = _STOCK_TOPICS | {TOPIC_SEGMENT}
DID_PREFIX = "did:walytisidentities:"
SEGMENT_DOMAIN = "walyoff/segment/1"

#: An identity block: a key group's id is 6 KiB, a document lists keys of all members.
MAX_CONTENT = 256 * 1024
#: Opening brackets in its JSON: it is flat, and the parser recurses in C.
MAX_BRACKETS = 512
MAX_KEY_ID = 64 * 1024
MAX_DID = 256
MAX_SEGMENT = 64 * 1024

# Why a block does not count.
MALFORMED = "malformed"
NOT_PINNED = "key-not-pinned"
SECOND_FIRST_KEY = "second-first-key"
STALE_RENEWAL = "stale-renewal"
BAD_SIGNATURE = "bad-signature"
REPLAYED = "replayed"
WRONG_PURPOSE = "wrong-purpose"
ALREADY_MEMBER = "already-member"
NOT_A_MEMBER = "not-a-member"
NO_KEYS_YET = "no-keys-yet"

_log = logging.getLogger(__name__)

#: verify(key group id, signature as stock writes it, signed data)
Verify = Callable[[str, bytes, bytes], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityBlock:
    """One block of an identity's chain."""

    ref: str
    topics: tuple[str, ...]
    parents: tuple[str, ...]
    content: bytes


@dataclass(slots=True, kw_only=True)
class MemberState:
    """A member as the chain says."""

    did: str
    #: Empty when a stock block named no pin.
    pin: bytes
    current: bool
    joined_at: int


@dataclass(slots=True, kw_only=True)
class Reading:
    """What the chain says."""

    members: dict[str, MemberState] = field(default_factory=dict)
    #: Key group ids, oldest first.
    keys: list[str] = field(default_factory=list)
    #: Valid segment blocks: block name -> chain.
    segments: dict[str, str] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)

    @property
    def segment(self) -> str | None:
        """The channel's first segment: of several, that of the smallest block name."""
        return self.segments[min(self.segments)] if self.segments else None


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


def segment_body(group: str, chain: str, number: int) -> bytes:
    """What the control keys sign of a segment block."""
    return pack([SEGMENT_DOMAIN, group, chain, number])


def read_identity(
    group: str, pin: bytes | None, blocks: Iterable[IdentityBlock], verify: Verify
) -> Reading:
    """Read blocks that come in causal order with a deterministic tie-break.

    Without a pin the first key block is believed: only for finding the pin of a chain that
    was handed over by somebody who is trusted to know it.
    """
    reader = _Reader(group, pin, verify)
    for block in blocks:
        try:
            reader.take(block)
        except _RefusedError as refused:
            reader.result.refused[refused.reason] += 1
            _log.info("%s: block %s refused: %s", group, block.ref, refused.reason)
    return reader.result


class _RefusedError(Exception):
    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _Reader:
    def __init__(self, group: str, pin: bytes | None, verify: Verify) -> None:
        self.result = Reading()
        self._group = group
        self._pin = pin
        self._verify = verify
        #: For each block the newest key generation among its ancestors and itself.
        self._generation: dict[str, int] = {}
        #: Signed contents that have acted: each acts once.
        self._acted: set[bytes] = set()
        self._membership_blocks = 0

    def take(self, block: IdentityBlock) -> None:
        generation = max((self._generation.get(p, 0) for p in block.parents), default=0)
        self._generation[block.ref] = generation
        kinds = _STOCK_TOPICS.intersection(block.topics)
        if TOPIC_SEGMENT in block.topics and not kinds:
            self._take_segment(block)
        # Stock code ignores a block of two kinds, and so it is here.
        elif len(kinds) == 1:
            kind = next(iter(kinds))
            if kind == TOPIC_KEY:
                self._take_key(block)
            elif kind in (TOPIC_JOIN, TOPIC_LEAVE, TOPIC_UPDATE, TOPIC_DOC):
                self._take_info(kind, block)

    # ------------------------------------------------------------------ keys

    def _take_key(self, block: IdentityBlock) -> None:
        value = _load(block.content)
        old, new = _text(value, "old_keys", MAX_KEY_ID), _text(value, "new_keys", MAX_KEY_ID)
        signature = _signature(value)
        keys = self.result.keys
        if old == new:
            if new in keys:
                raise _RefusedError(REPLAYED)
            if self._pin is not None and pin_of(new) != self._pin:
                raise _RefusedError(NOT_PINNED)
        elif not keys:
            raise _RefusedError(NO_KEYS_YET)
        elif old != keys[-1] or new in keys:
            # Two renewals of the same keys: the first in the common order counts.
            raise _RefusedError(STALE_RENEWAL)
        if not self._verify(old, signature, f"{old}--{new}".encode()):
            raise _RefusedError(BAD_SIGNATURE)
        if old == new and keys:
            raise _RefusedError(SECOND_FIRST_KEY)
        keys.append(new)
        self._generation[block.ref] = len(keys) - 1

    def _acceptable(self, block: IdentityBlock) -> list[str]:
        """The keys current at this place: in the common order, and in the block's own past.

        The second matter when keys were renewed while another device wrote.
        """
        keys = self.result.keys
        if not keys:
            raise _RefusedError(NO_KEYS_YET)
        return list(dict.fromkeys([keys[-1], keys[self._generation[block.ref]]]))

    def _check_signature(self, block: IdentityBlock, signature: bytes, data: bytes) -> None:
        if not any(self._verify(key, signature, data) for key in self._acceptable(block)):
            raise _RefusedError(BAD_SIGNATURE)

    # ---------------------------------------------------------------- members

    def _take_info(self, kind: str, block: IdentityBlock) -> None:
        value = _load(block.content)
        info = value.get("info_content")
        if not isinstance(info, dict):
            raise _RefusedError(MALFORMED)
        signature = _signature(value)
        # Stock code signs the JSON as it writes it again; so do we read it.
        try:
            signed = json.dumps(info).encode()
        except (ValueError, RecursionError):
            raise _RefusedError(MALFORMED) from None
        if kind == TOPIC_DOC:
            # Documents decide nothing here; their contents must not act as something else.
            self._check_signature(block, signature, signed)
            self._acted.add(signed)
            return
        did = _text(info, "did", MAX_DID)
        if signed in self._acted:
            raise _RefusedError(REPLAYED)
        own = self._own_field(kind, info)
        member = self.result.members.get(did)
        is_member = member is not None and member.current
        if kind == TOPIC_JOIN and is_member:
            raise _RefusedError(ALREADY_MEMBER)
        if kind != TOPIC_JOIN and not is_member:
            raise _RefusedError(NOT_A_MEMBER)
        self._check_signature(block, signature, signed)
        self._acted.add(signed)
        if kind == TOPIC_UPDATE:
            return
        if kind == TOPIC_JOIN:
            # Dicts keep the place of a key that is set again; a joiner goes to the end.
            self.result.members.pop(did, None)
            self.result.members[did] = MemberState(
                did=did, pin=own, current=True, joined_at=self._membership_blocks
            )
        elif member is not None:
            member.current = False
        self._membership_blocks += 1

    def _own_field(self, kind: str, info: Mapping[str, Any]) -> bytes:
        """The pin in our own field; empty if it is a stock block. Raises _RefusedError."""
        own = info.get("walyoff")
        if own is None:
            # The content of a stock leaving is that of the joining: a replay of the one as
            # the other was refused before, as its content has acted already.
            return b""
        act = {TOPIC_JOIN: "join", TOPIC_LEAVE: "leave"}.get(kind)
        match own:
            case {"v": 1, "act": str() as said, "group": str() as group, "pin": str() as pin}:
                if said != act or group != self._group:
                    raise _RefusedError(WRONG_PURPOSE)
            case _:
                raise _RefusedError(MALFORMED)
        try:
            raw = bytes.fromhex(pin)
        except ValueError:
            raise _RefusedError(MALFORMED) from None
        if len(raw) != PIN_SIZE:
            raise _RefusedError(MALFORMED)
        return raw

    # --------------------------------------------------------------- segments

    def _take_segment(self, block: IdentityBlock) -> None:
        try:
            version, group, chain, number, signature = decode_segment(block.content)
        except RemoteProtocolError:
            raise _RefusedError(MALFORMED) from None
        if version != 1 or group != self._group or number != 0:
            raise _RefusedError(WRONG_PURPOSE)
        body = segment_body(group, chain, number)
        if body in self._acted:
            raise _RefusedError(REPLAYED)
        self._check_signature(block, signature, body)
        self._acted.add(body)
        self.result.segments[block.ref] = chain


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedPart:
    """What an identity block has signed, of whatever kind it is."""

    signature: bytes
    data: bytes
    #: The keys that must have signed, where the block names them: control key blocks do.
    old: str | None = None
    new: str | None = None


def signed_part(group: str, topics: tuple[str, ...], content: bytes) -> SignedPart:
    """What is signed in a block of an identity's chain.

    Raises:
        RemoteProtocolError: it is no identity block, or malformed.
    """
    kinds = TOPICS.intersection(topics)
    if len(kinds) != 1:
        raise RemoteProtocolError("not an identity block", reason="not-identity")
    kind = next(iter(kinds))
    if kind == TOPIC_SEGMENT:
        version, named, chain, number, signature = decode_segment(content)
        if version != 1 or named != group:
            raise RemoteProtocolError("segment of another group", reason=WRONG_PURPOSE)
        return SignedPart(signature=signature, data=segment_body(group, chain, number))
    try:
        value = _load(content)
        signature = _signature(value)
        if kind == TOPIC_KEY:
            old = _text(value, "old_keys", MAX_KEY_ID)
            new = _text(value, "new_keys", MAX_KEY_ID)
            data = f"{old}--{new}".encode()
            return SignedPart(signature=signature, data=data, old=old, new=new)
        info = value.get("info_content")
        if not isinstance(info, dict | list):
            raise _RefusedError(MALFORMED)
        return SignedPart(signature=signature, data=json.dumps(info).encode())
    except (_RefusedError, ValueError, RecursionError):
        raise RemoteProtocolError("identity block is malformed", reason=MALFORMED) from None


def encode_segment(group: str, chain: str, number: int, signature: bytes) -> bytes:
    """The content of a segment block."""
    return pack([1, group, chain, number, signature])


def decode_segment(content: bytes) -> tuple[int, str, str, int, bytes]:
    """(version, group, chain, number, signature). Raises RemoteProtocolError."""
    fields = expect_array(unpack(content, MAX_SEGMENT), 5, "segment")
    return (
        expect_int(fields[0], "segment version", high=255),
        expect_str(fields[1], "segment group", limit=MAX_DID),
        expect_str(fields[2], "segment chain", limit=64),
        expect_int(fields[3], "segment number", high=1 << 31),
        expect_bytes(fields[4], "segment signature", limit=MAX_SEGMENT),
    )


# ---------------------------------------------------------------------------- fields


def _load(content: bytes) -> dict[str, Any]:
    if len(content) > MAX_CONTENT or content.count(b"{") + content.count(b"[") > MAX_BRACKETS:
        raise _RefusedError(MALFORMED)
    try:
        value = json.loads(content.decode())
    except (ValueError, RecursionError):
        raise _RefusedError(MALFORMED) from None
    if not isinstance(value, dict):
        raise _RefusedError(MALFORMED)
    return value


def _text(value: Mapping[str, Any], name: str, limit: int) -> str:
    text = value.get(name)
    if not isinstance(text, str) or not 0 < len(text) <= limit:
        raise _RefusedError(MALFORMED)
    try:
        # JSON can carry lone surrogates, which cannot be hashed or sent on.
        text.encode()
    except UnicodeEncodeError:
        raise _RefusedError(MALFORMED) from None
    return text


def _signature(value: Mapping[str, Any]) -> bytes:
    text = _text(value, "signature", MAX_CONTENT)
    try:
        return base64.b64decode(text, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise _RefusedError(MALFORMED) from None
