"""Where the acts of a chain stand: the common order, and what each has among its ancestors.

Decided here: what can be told of a block from itself and its ancestors alone: its form, the
control keys of its past that signed it, and what its actor signed. Whether an actor's own
signature holds is told by the actor's chain (`Placed.resolved`); whether the act counts is
decided in `settling`.

What an actor signs has its place in it, so several blocks with the same signed content are
one act. A former member can write such a block with a signature that does not hold, or under
older control keys, and choose its name: so the act has all signatures of all its blocks, and
it is enough that one holds.

Pure: no I/O, no clock, no cryptography.
"""

from __future__ import annotations

import heapq
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from walyoff.child.acts import JOIN, MALFORMED, RENEW, Act, IdentityBlock, pin_of, read_act
from walyoff.child.births import Birth
from walyoff.child.outcome import (
    BAD_SIGNATURE,
    NO_KEYS_YET,
    NOT_PINNED,
    REPLAYED,
    STALE_RENEWAL,
    RefusedError,
)
from walyoff.child.renewals import Renewal, signed_renewal
from walyoff.errors import RemoteProtocolError

_log = logging.getLogger(__name__)

#: verify(key group id, signature as stock writes it, signed data)
Verify = Callable[[str, bytes, bytes], bool]
#: approved(member's DID, its pin, compact signature, body): which of that DID's keys signed,
#: the first ones being 1; 0 if none did
Approved = Callable[[str, bytes, bytes, bytes], int]


def in_common_order(blocks: Iterable[IdentityBlock]) -> Iterator[IdentityBlock]:
    """Parents before children, the smallest name first among the ready: the same everywhere."""
    known = {block.ref: block for block in blocks}
    waiting = {
        ref: sum(parent in known for parent in set(block.parents))
        for ref, block in known.items()
    }
    children: dict[str, list[str]] = {}
    for ref, block in known.items():
        for parent in set(block.parents):
            children.setdefault(parent, []).append(ref)
    ready = [ref for ref, count in waiting.items() if count == 0]
    heapq.heapify(ready)
    while ready:
        ref = heapq.heappop(ready)
        yield known[ref]
        for child in children.get(ref, ()):
            waiting[child] -= 1
            if waiting[child] == 0:
                heapq.heappush(ready, child)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Node:
    """An act that keys of the identity signed, with its place as sets of bits."""

    ref: str
    #: Its own bit, and those of all acts among its ancestors.
    bit: int
    past: int
    act: Act
    #: The control keys that signed it.
    signers: frozenset[str]
    #: What is said to be the actor's signature, and the pins that the actor may have.
    approvals: frozenset[bytes]
    asked: frozenset[bytes]
    #: The pins under which the actor's signature holds; empty if it does not.
    pins: frozenset[bytes] = frozenset()
    #: Which of the actor's own keys signed, the first ones being 1; 0 if none did.
    generation: int = 0
    #: What a device's renewal says, signed.
    renewal: Renewal | None = None
    #: Whether it is known to count for nothing (`outdated`).
    void: bool = False
    #: Where it came among the blocks that are held here, see `IdentityBlock.place`.
    place: int

    @property
    def by(self) -> str | None:
        """Who acts, as it says."""
        return None if self.act.approval is None else self.act.approval.by


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """The acts of one chain in the common order."""

    nodes: list[Node]
    refused: Counter[str]
    birth: Birth | None

    def actors(self) -> set[tuple[str, bytes]]:
        """Whose chains tell whether signatures hold: DIDs, each with the pin of its keys."""
        return {(node.by, pin) for node in self.nodes if node.by for pin in node.asked}

    def resolved(self, approved: Approved) -> list[Node]:
        """The acts, with the signatures of their actors checked."""
        return [self._resolved(node, approved) for node in self.nodes]

    @staticmethod
    def _resolved(node: Node, approved: Approved) -> Node:
        if node.act.approval is None or not node.asked:
            return node
        by, body = node.act.approval.by, node.act.approval.body
        found = {
            pin: max(approved(by, pin, signature, body) for signature in node.approvals)
            for pin in node.asked
        }
        pins = frozenset(pin for pin, generation in found.items() if generation)
        return replace(node, pins=pins, generation=max(found.values()))


def place_acts(
    group: str,
    pin: bytes | None,
    blocks: Iterable[IdentityBlock],
    verify: Verify,
    birth: Birth | None = None,
) -> Placed:
    """The acts of a chain, given all its blocks in any order.

    The first keys must have the pin, and the one that the DID itself commits to, if it does.
    """
    refused: Counter[str] = Counter()
    if pin and birth is not None and pin != birth.pin:
        # Nothing counts under other first keys. Who was a member can name any number of them,
        # and the blocks of the chain are looked at for none.
        refused[NOT_PINNED] = 1
        return Placed(nodes=[], refused=refused, birth=birth)
    places = _Places(group, [known for known in (pin, birth and birth.pin) if known], verify)
    for block in in_common_order(blocks):
        try:
            places.take(block)
        except RefusedError as error:
            refused[error.reason] += 1
            _log.debug("%s: block %s refused: %s", group, block.ref, error.reason)
    return Placed(nodes=[draft.node() for draft in places.drafts], refused=refused, birth=birth)


@dataclass(slots=True, kw_only=True)
class _Draft:
    """A node that more blocks may be about."""

    block: IdentityBlock
    bit: int
    past: int
    act: Act
    asked: frozenset[bytes]
    renewal: Renewal | None
    signers: set[str] = field(default_factory=set)
    approvals: set[bytes] = field(default_factory=set)

    def node(self) -> Node:
        return Node(
            ref=self.block.ref,
            bit=self.bit,
            past=self.past,
            act=self.act,
            signers=frozenset(self.signers),
            approvals=frozenset(self.approvals),
            asked=self.asked,
            renewal=self.renewal,
            place=self.block.place,
        )


class _Places:
    """What can be told of each block from itself and its ancestors."""

    def __init__(self, group: str, pins: Iterable[bytes], verify: Verify) -> None:
        """The first keys must have all of these fingerprints."""
        self.drafts: list[_Draft] = []
        self._group = group
        self._first_pins = frozenset(pins)
        self._verify = verify
        #: The acts among a block's ancestors and in itself, by block name.
        self._pasts: dict[str, int] = {}
        #: By new keys, the bits of the control key blocks that their keys signed: anybody can
        #: copy one, and each act looks through them.
        self._keys: dict[str, int] = {}
        #: By DID and pin, the bits of the joinings.
        self._pins: dict[str, dict[bytes, int]] = {}
        #: By what was signed by a member, and the control keys that follow on which.
        self._known: dict[tuple[bytes, str, str], _Draft] = {}

    def take(self, block: IdentityBlock) -> None:
        """Place a block whose ancestors were taken. Raises RefusedError."""
        past = 0
        for parent in block.parents:
            past |= self._pasts.get(parent, 0)
        self._pasts[block.ref] = past
        try:
            act = read_act(self._group, block)
        except RemoteProtocolError as error:
            raise RefusedError(error.reason) from None
        if act is None:
            return
        signer = self._signer(act, past)
        try:
            renewal = signed_renewal(self._group, act, self._verify)
        except RemoteProtocolError as error:
            raise RefusedError(error.reason or MALFORMED) from None
        if act.approval is not None:
            name = (act.approval.body, act.old, act.new)
            if known := self._known.get(name):
                self._pasts[block.ref] = past | known.bit
                known.signers.add(signer)
                known.approvals.add(act.approval.signature)
                raise RefusedError(REPLAYED)
        draft = _Draft(
            block=block,
            bit=1 << len(self.drafts),
            past=past,
            act=act,
            asked=self._pins_of_actor(act, past),
            renewal=renewal,
            signers={signer},
        )
        self.drafts.append(draft)
        self._pasts[block.ref] = past | draft.bit
        if act.approval is not None:
            draft.approvals.add(act.approval.signature)
            self._known[name] = draft
        if act.kind == RENEW:
            self._keys[act.new] = self._keys.get(act.new, 0) | draft.bit
        if act.kind == JOIN:
            pins = self._pins.setdefault(act.subject, {})
            pins[act.pin] = pins.get(act.pin, 0) | draft.bit

    def _signer(self, act: Act, past: int) -> str:
        """The keys of the block's own past that signed it, newest first."""
        if act.kind == RENEW and act.old == act.new:
            if self._first_pins - {pin_of(act.new)}:
                raise RefusedError(NOT_PINNED)
            keys = [act.old]
        else:
            keys = [key for key, bits in reversed(self._keys.items()) if bits & past]
            if not keys:
                raise RefusedError(NO_KEYS_YET)
            if act.kind == RENEW:
                if act.old not in keys:
                    raise RefusedError(STALE_RENEWAL)
                keys = [act.old]
        for key in keys:
            if self._verify(key, act.signature, act.signed):
                return key
        raise RefusedError(BAD_SIGNATURE)

    def _pins_of_actor(self, act: Act, past: int) -> frozenset[bytes]:
        if act.approval is None:
            return frozenset()
        joined = self._pins.get(act.approval.by, {})
        return frozenset(pin for pin, bits in joined.items() if bits & past)
