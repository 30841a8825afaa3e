"""What says again what an identity's chain says already, and when it is admitted none the less.

Decided here: which blocks are *repeats*. Whoever knows a chain's id can write to it, without
any key, whatever members signed there: with other parents, times and topics, in other
spellings, with fields that nobody reads. All of it carries a signature of the control keys
that is another block's, as nobody makes one without the keys. So a block repeats

- if it is not spelled byte by byte as stock code, or we, write it, with these fields and no
  others;
- if its control keys' signature is in another block. That signature does not cover the
  approval of a renewal, or of a block of our own, nor what a device's renewal discloses:
  there one whose approval holds, or that is by the renewal key that was committed to, is
  none, as the other one may have been made from it.

- if keys that were replaced signed it, as far as is known here, and there are many such blocks
  already (`Late`). A former member has the keys of its time for ever.

Of what was written before another one that says the same nobody can tell which came first;
so who holds one admits no second one, unless it is needed: a member's block builds on it. Who
announces needs a block that members alone can have put there (`Standing.PLACED`); who hands
over, as a member does, one that is signed (`Standing.PROVEN`).
"""

from __future__ import annotations

import base64
import enum
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from blake3 import blake3

from walyoff.child.acts import (
    LEAVE,
    RENEW,
    TOPIC_KEY,
    Act,
    Approval,
    Claim,
    IdentityBlock,
    is_own,
    pin_of,
    read_act,
)
from walyoff.child.blocks import BlockFile
from walyoff.child.dag import GENESIS, ChainDag
from walyoff.child.renewals import as_field, signed_renewal
from walyoff.errors import RemoteProtocolError
from walyoff.wire import pack

#: Why a repeat is refused.
REPEATED = "replayed"

#: What stock code calls its version of these blocks, as it writes it.
_VERSION = "[0, 0, 1]"
_KEY_FIELDS = ["old_keys", "new_keys", "signature", "priblocks_version"]
_INFO_FIELDS = ["info_content", "signature", "priblocks_version"]
#: Our field in a control key block, in the order in which we write it.
_OWN_FIELDS = list(Claim(group="", kind="", by="", nonce=b"", parents=()).as_field(b""))
_DISCLOSED_FIELDS = list(as_field("", b"", b"", b""))
_NAME_CONTEXT = b"walyoff/copies/1"

Verify = Callable[[str, bytes, bytes], bool]
#: Whether an approval holds, as far as its author's chain is known here.
Approves = Callable[[Approval], bool]


class Standing(enum.IntEnum):
    """What can be told of a block without its place."""

    REPEAT = 0
    #: Its signers are not known here, or it is no act.
    NEW = 1
    #: Control keys of the chain signed it.
    PROVEN = 2
    #: And what they signed says its place.
    PLACED = 3


@dataclass(slots=True)
class Late:
    """How many blocks by keys that were replaced may still come."""

    #: The newest keys that count, as far as is known here, and those that follow on them; and
    #: the blocks that brought the newest in.
    current: set[str]
    renewals: Collection[str]
    #: Of those that do not build on the renewal, by who did not know of it.
    beside: int
    #: Of those that do, by who has seen the newer keys and was never given them: renewals
    #: and leavings, since the start. Other looks take from it, too.
    above: Iterator[int]
    #: Whether somebody who is a member now signed by its newest keys: there is always room
    #: for that, as such a member can write as much as it likes in any case.
    is_members: Approves


class Look(Protocol):
    """What is on a chain, and what was seen since."""

    def take(self, block: BlockFile, *, ordered: bool = False) -> Standing:
        """How a block stands that comes next; what it says is known from now on.

        If blocks come `ordered`, after all that they build on, then not of one whose signers
        are not known: it is forged, and the real one may follow.
        """


class IdentityLook:
    """A look at an identity's chain."""

    def __init__(
        self,
        group: str,
        files: ChainDag,
        *,
        pins: Collection[bytes],
        names: Collection[bytes],
        keys: Iterable[str],
        promised: Collection[bytes],
        late: Late | None,
        verify: Verify,
        approves: Approves,
    ) -> None:
        """`names` are those of the signatures on the chain, `keys` its control keys.

        `promised` are the fingerprints of the renewal keys that the chain commits to.
        """
        self._group = group
        self._files = files
        self._pins = pins
        self._names = names
        self._keys = list(keys)
        self._promised = set(promised)
        self._late = late
        self._verify = verify
        self._approves = approves
        #: The same of what was seen since.
        self._more: set[bytes] = set()
        self._contents: set[bytes] = set()

    def take(self, block: BlockFile, *, ordered: bool = False) -> Standing:
        """See `Look.take`."""
        act = self._act(block)
        if act is None:
            return Standing.NEW
        if not is_spelled(act, block.topics, block.content):
            return Standing.REPEAT
        name = name_of(act)
        if (name in self._names or name in self._more) and (
            block.content_hash in self._contents
            or self._files.holds_content(block)
            or not self._is_authors(act)
        ):
            return Standing.REPEAT
        standing = self._signed(act)
        if standing >= Standing.PROVEN and not self._is_in_time(act, block):
            return Standing.REPEAT
        if standing >= Standing.PROVEN or not ordered:
            self._more.add(name)
            self._contents.add(block.content_hash)
        return standing

    def _act(self, block: BlockFile) -> Act | None:
        if block.cid in self._files or GENESIS in block.topics:
            return None
        named = IdentityBlock(
            ref=block.cid, topics=block.topics, parents=block.parents, content=block.content
        )
        try:
            return read_act(self._group, named)
        except RemoteProtocolError:
            return None

    def _is_in_time(self, act: Act, block: BlockFile) -> bool:
        """Whether there is room for a block, if it is by keys that were replaced."""
        late = self._late
        if late is None or any(
            self._verify(key, act.signature, act.signed) for key in late.current
        ):
            if late is not None and act.kind == RENEW:
                late.current.add(act.new)
            return True
        above = bool(self._files.in_past(block.parents, late.renewals))
        if above and act.kind not in (RENEW, LEAVE):
            # Whatever it says: it counts for nobody.
            return False
        if act.approval is not None and late.is_members(act.approval):
            return True
        if not above:
            late.beside -= 1
            return late.beside >= 0
        return next(late.above, None) is not None

    def _is_authors(self, act: Act) -> bool:
        """Whether what control keys do not sign of an act is by its author."""
        if act.approval is not None:
            return self._approves(act.approval)
        return promised_next(self._group, act, self._promised, self._verify) is not None

    def _signed(self, act: Act) -> Standing:
        keys = self._keys
        if act.kind == RENEW:
            first = act.old == act.new and pin_of(act.new) in self._pins
            keys = [act.old] if first or act.old in keys else []
        if not any(self._verify(key, act.signature, act.signed) for key in reversed(keys)):
            return Standing.NEW
        if act.kind == RENEW:
            self._keys += [act.new] if act.new not in self._keys else []
            following = promised_next(self._group, act, self._promised, self._verify)
            self._promised |= {following} if following else set()
        if act.approval is None:
            return Standing.PROVEN
        # What control keys sign of a renewal does not say its place; the approval does.
        placed = act.kind != RENEW or self._approves(act.approval)
        return Standing.PLACED if placed else Standing.PROVEN


def promised_next(
    group: str, act: Act, promised: Collection[bytes], verify: Verify
) -> bytes | None:
    """What a device's renewal commits to; None if it is not by a key that was promised."""
    try:
        renewal = signed_renewal(group, act, verify)
    except RemoteProtocolError:
        return None
    if renewal is None:
        return None
    is_promised = renewal.signer == act.old or pin_of(renewal.signer) in promised
    return renewal.next if is_promised else None


def sift(
    look: Look, blocks: Sequence[tuple[BlockFile, bytes]], refuse: Callable[[str], None]
) -> list[tuple[BlockFile, bytes]]:
    """Of blocks that are handed over, parents first, those that may be admitted."""
    aside: dict[str, tuple[BlockFile, bytes]] = {}
    kept: list[tuple[BlockFile, bytes]] = []
    for block, data in blocks:
        standing = look.take(block, ordered=True)
        if standing is Standing.REPEAT:
            aside[block.cid] = (block, data)
            continue
        if standing >= Standing.PROVEN and aside:
            needed = _below(block, aside)
            kept += [aside.pop(cid) for cid in list(aside) if cid in needed]
        kept.append((block, data))
    for _ in aside:
        refuse(REPEATED)
    return kept


def _below(block: BlockFile, aside: dict[str, tuple[BlockFile, bytes]]) -> set[str]:
    """The repeats on which a block builds, itself or over other repeats."""
    found: set[str] = set()
    stack = list(block.parents)
    while stack:
        cid = stack.pop()
        if cid in aside and cid not in found:
            found.add(cid)
            stack.extend(aside[cid][0].parents)
    return found


# -------------------------------------------------------------------------- spelling


def name_of(act: Act) -> bytes:
    """The name of a block's control keys' signature, the same in every spelling of it."""
    try:
        parts = [bytes.fromhex(part) for part in act.signature.decode().split("-")]
    except ValueError:
        parts = [act.signature]
    return blake3(_NAME_CONTEXT + pack(parts)).digest()


def is_spelled(act: Act, topics: Collection[str], content: bytes) -> bool:
    """Whether an act's content has the one spelling, and the fields, that it is written in.

    What stock code signs it signs as JSON that it writes again, so what stands inside of
    that is the author's.
    """
    if is_own(topics):
        # msgpack: what is not canonical was refused when it was read.
        return _is_signature(act.signature)
    try:
        value = json.loads(content)
        if json.dumps(value).encode() != content:
            return False
        fields = list(value)
        if TOPIC_KEY in topics:
            if "walyoff" in value:
                return fields == [*_KEY_FIELDS, "walyoff"] and (
                    _is_plain(act, value) and _is_field(value["walyoff"])
                )
            return fields == _KEY_FIELDS and _is_plain(act, value)
        return fields == _INFO_FIELDS and _is_plain(act, value)
    except (ValueError, TypeError, RecursionError):
        return False


def _is_plain(act: Act, value: dict[str, Any]) -> bool:
    return (
        json.dumps(value["priblocks_version"]) == _VERSION
        and base64.urlsafe_b64encode(act.signature).decode() == value["signature"]
        and _is_signature(act.signature)
    )


def _is_signature(signature: bytes) -> bool:
    """Signatures as hexadecimal digits, one of each key."""
    try:
        text = signature.decode("ascii")
        return "-".join(bytes.fromhex(part).hex() for part in text.split("-")) == text
    except ValueError:
        return False


def _is_field(value: Any) -> bool:
    if not isinstance(value, dict) or type(value.get("v")) is not int:
        return False
    if list(value) == _OWN_FIELDS:
        digits, encoded = ["pin", "nonce"], ["sig"]
    elif list(value) == _DISCLOSED_FIELDS:
        digits, encoded = ["next"], ["key", "sig"]
    else:
        return False
    return all(bytes.fromhex(value[name]).hex() == value[name] for name in digits) and all(
        base64.b64encode(base64.b64decode(value[name])).decode() == value[name]
        for name in encoded
    )


__all__ = [
    "REPEATED",
    "Approves",
    "IdentityLook",
    "Late",
    "Look",
    "Standing",
    "is_spelled",
    "name_of",
    "promised_next",
    "sift",
]
