"""What an identity's chain says, by our own rules: its members, their roles, its keys.

Decided here: which acts count. Anyone who knows the chain's id can write to it, and stock
code believes joining blocks unseen. What does not count is counted by reason, never raised:
one bad block must not hide the good ones.

An act counts if (1) the identity's control keys of its place signed it, (2) the member who
acts signed it too, and (3) that member had joined in the act's own past and was not put out
by a leaving that the act does not precede:

    a joining J is *cut* for an act B by a leaving L of the same member
    if J is among the ancestors of L and B is not

So what somebody writes at the same time as its own leaving, or later, or with old parents so
that it looks so, counts for nothing. Leavings themselves are settled first (`_settle`): one
whose author is cut by a leaving that stands does not count; of members who put each other
out all are out. More leavings never bring anybody back in, except those of current members.

The rule "the member who acts signs" begins with the identity's first rules block. What has
none among its ancestors, written by stock code or by version 1, counts if it is itself an
ancestor of the rules; on a chain without rules the control keys alone decide.

The reading is a function of the set of blocks: the order is made here, from the blocks.
Pure: no I/O, no clock, no cryptography.
"""

from __future__ import annotations

import heapq
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from walyoff.child.acts import (
    ADMIN,
    DID_PREFIX,
    DOCUMENT,
    JOIN,
    LEAVE,
    MALFORMED,
    MAX_CONTENT,
    MAX_DID,
    MAX_KEY_ID,
    PIN_SIZE,
    RENEW,
    RULE_ADMINS,
    RULE_ANY,
    RULES,
    SEGMENT,
    TOPIC_JOIN,
    TOPIC_KEY,
    TOPIC_LEAVE,
    TOPIC_SEGMENT,
    TOPICS,
    WRONG_PLACE,
    WRONG_PURPOSE,
    Act,
    IdentityBlock,
    chain_of,
    did_of,
    encode_segment,
    pin_of,
    read_act,
    segment_body,
)
from walyoff.errors import RemoteProtocolError

# Why an act does not count; more are in `acts`.
NOT_PINNED = "key-not-pinned"
SECOND_FIRST_KEY = "second-first-key"
STALE_RENEWAL = "stale-renewal"
BAD_SIGNATURE = "bad-signature"
OLD_KEYS = "old-keys"
REPLAYED = "replayed"
ALREADY_MEMBER = "already-member"
NOT_A_MEMBER = "not-a-member"
NO_KEYS_YET = "no-keys-yet"
#: The actor's own keys were newer at that place.
OUTDATED = "outdated-keys"
#: Nobody who was a member at that place acted.
NO_ACTOR = "no-actor"
#: The one who acted may not do so: only admins may.
NOT_AN_ADMIN = "not-an-admin"

#: Rounds of settling leavings; each settles one more of a chain of removers, at the least.
MAX_ROUNDS = 64

_log = logging.getLogger(__name__)

#: verify(key group id, signature as stock writes it, signed data)
Verify = Callable[[str, bytes, bytes], bool]
#: approved(member's DID, its pin, compact signature, body): which of that DID's keys signed,
#: the first ones being 1; 0 if none did
Approved = Callable[[str, bytes, bytes, bytes], int]


@dataclass(slots=True, kw_only=True)
class MemberState:
    """A member as the chain says."""

    did: str
    #: Empty when a stock block named no pin.
    pin: bytes
    current: bool
    joined_at: int
    #: Whether it may invite and remove where only admins may.
    admin: bool = False


@dataclass(slots=True, kw_only=True)
class Reading:
    """What the chain says."""

    members: dict[str, MemberState] = field(default_factory=dict)
    #: Key group ids, oldest first.
    keys: list[str] = field(default_factory=list)
    #: Valid segment blocks: block name -> chain.
    segments: dict[str, str] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    #: Who may invite and remove; None on a chain without rules, where every member may.
    rule: str | None = None
    #: True if a member has left since the newest keys were made.
    renewal_due: bool = False

    @property
    def segment(self) -> str | None:
        """The channel's first segment: of several, that of the smallest block name."""
        return self.segments[min(self.segments)] if self.segments else None

    def may_manage(self, did: str) -> bool:
        """Whether a DID may invite and remove now."""
        member = self.members.get(did)
        if member is None or not member.current:
            return False
        return self.rule != RULE_ADMINS or member.admin


def read_identity(
    group: str,
    pin: bytes | None,
    blocks: Iterable[IdentityBlock],
    verify: Verify,
    approved: Approved = lambda *_: 0,
) -> Reading:
    """Read an identity's chain, given all its blocks in any order.

    Without a pin the first key block is believed: only for finding the pin of a chain that
    was handed over by somebody who is trusted to know it.
    """
    chain = _Chain(group, pin, verify, approved)
    for block in _in_common_order(blocks):
        try:
            chain.take(block)
        except _RefusedError as refused:
            chain.refused[refused.reason] += 1
            _log.debug("%s: block %s refused: %s", group, block.ref, refused.reason)
    nodes = _without_outdated(chain.nodes, chain.refused)
    final = _Pass(nodes, _settle(nodes), final=True)
    final.result.refused += chain.refused
    return final.result


def _without_outdated(nodes: Sequence[_Node], refused: Counter[str]) -> Sequence[_Node]:
    """All acts, but those under keys that their actor has replaced since, as another act shows.

    A device that was removed from a person keeps the person's keys of then. What it writes in
    the person's name has no place among the ancestors of what the person writes with newer
    keys; what the person wrote before has. Only what a member writes shows that keys are new:
    otherwise who was removed could renew its own, and so undo what it had done as a member.
    It need not count: the removed device can write a renewal that comes before the person's.
    """
    acts: dict[str, list[_Node]] = {}
    for node in nodes:
        if node.by is not None and node.generation:
            acts.setdefault(node.by, []).append(node)
    renewed = [own for own in acts.values() if len({n.generation for n in own}) > 1]
    if not renewed:
        return nodes
    everything = _Pass(nodes, _settle(nodes), final=True)
    outdated = 0
    for own in renewed:
        # What is an ancestor of all acts with newer keys, and of those with these keys too.
        common, following, generation = -1, -1, 0
        for node in sorted(own, key=lambda n: -n.generation):
            if node.generation != generation:
                common, generation = following, node.generation
            # The rules stand: without them the control keys alone would be enough again.
            if not node.bit & common and node.act.kind != RULES:
                outdated |= node.bit
            if everything.is_by_member(node):
                following &= node.past
    if outdated:
        refused[OUTDATED] += outdated.bit_count()
    return [node for node in nodes if not node.bit & outdated]


class _RefusedError(Exception):
    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def _in_common_order(blocks: Iterable[IdentityBlock]) -> Iterator[IdentityBlock]:
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
class _Node:
    """An act that keys of the identity signed, with its place as sets of bits."""

    ref: str
    #: Its own bit, and those of all acts among its ancestors.
    bit: int
    past: int
    act: Act
    #: The control keys that signed it.
    signer: str
    #: The pins under which the actor's signature holds; empty if it does not.
    pins: frozenset[bytes]
    #: Which of the actor's own keys signed, the first ones being 1; 0 if none did.
    generation: int

    @property
    def by(self) -> str | None:
        """Who acts, as it says."""
        return None if self.act.approval is None else self.act.approval.by


class _Chain:
    """What can be told of each block from itself and its ancestors."""

    def __init__(
        self, group: str, pin: bytes | None, verify: Verify, approved: Approved
    ) -> None:
        self.nodes: list[_Node] = []
        self.refused: Counter[str] = Counter()
        self._group = group
        self._pin = pin
        self._verify = verify
        self._approved = approved
        #: The acts among a block's ancestors and in itself, by block name.
        self._pasts: dict[str, int] = {}
        #: (bit, new keys) of control key blocks that their keys signed.
        self._keys: list[tuple[int, str]] = []
        #: (bit, pin) of the joinings of a DID.
        self._pins: dict[str, list[tuple[int, bytes]]] = {}
        #: What was signed by a member, and its bit: a copy in the same place is the same act.
        self._bits: dict[bytes, int] = {}

    def take(self, block: IdentityBlock) -> None:
        past = 0
        for parent in block.parents:
            past |= self._pasts.get(parent, 0)
        self._pasts[block.ref] = past
        try:
            act = read_act(self._group, block)
        except RemoteProtocolError as error:
            raise _RefusedError(error.reason) from None
        if act is None:
            return
        signer = self._signer(act, past)
        known = None if act.approval is None else self._bits.get(act.approval.body)
        if known is not None:
            self._pasts[block.ref] = past | known
            raise _RefusedError(REPLAYED)
        bit = 1 << len(self.nodes)
        pins = self._pins_of_actor(act, past)
        node = _Node(
            ref=block.ref,
            bit=bit,
            past=past,
            act=act,
            signer=signer,
            pins=frozenset(pins),
            generation=max(pins.values(), default=0),
        )
        self.nodes.append(node)
        self._pasts[block.ref] = past | bit
        if act.approval is not None:
            self._bits[act.approval.body] = bit
        if act.kind == RENEW:
            self._keys.append((bit, act.new))
        if act.kind == JOIN:
            self._pins.setdefault(act.subject, []).append((bit, act.pin))

    def _signer(self, act: Act, past: int) -> str:
        """The keys of the block's own past that signed it, newest first."""
        if act.kind == RENEW and act.old == act.new:
            if self._pin is not None and pin_of(act.new) != self._pin:
                raise _RefusedError(NOT_PINNED)
            keys = [act.old]
        else:
            keys = [key for bit, key in reversed(self._keys) if bit & past]
            if not keys:
                raise _RefusedError(NO_KEYS_YET)
            if act.kind == RENEW:
                if act.old not in keys:
                    raise _RefusedError(STALE_RENEWAL)
                keys = [act.old]
        for key in dict.fromkeys(keys):
            if self._verify(key, act.signature, act.signed):
                return key
        raise _RefusedError(BAD_SIGNATURE)

    def _pins_of_actor(self, act: Act, past: int) -> dict[bytes, int]:
        approval = act.approval
        if approval is None:
            return {}
        pins = {pin for bit, pin in self._pins.get(approval.by, ()) if bit & past}
        signature, body = approval.signature, approval.body
        found = {pin: self._approved(approval.by, pin, signature, body) for pin in pins}
        return {pin: generation for pin, generation in found.items() if generation}


def _settle(nodes: Sequence[_Node]) -> list[_Node]:
    """The leavings that count.

    Γ(S) are those whose authors are not cut when exactly S cut. The more cut, the fewer
    count, so applied in turn from the empty set it closes in from above and below (the
    well-founded semantics of logic programs). What stays undecided are members who put one
    another out: those leavings count.
    """
    above = _Pass(nodes, []).leavings
    for _ in range(MAX_ROUNDS):
        below = _Pass(nodes, above).leavings
        again = _Pass(nodes, below).leavings
        if again == above:
            return above
        above = again
    return above


class _Pass:
    """One reading in the common order, with given leavings as those that cut.

    The final one takes the given leavings for those that count.
    """

    def __init__(
        self, nodes: Sequence[_Node], cutters: Sequence[_Node], *, final: bool = False
    ) -> None:
        self.result = Reading()
        #: The leavings whose authors may remove.
        self.leavings: list[_Node] = []
        self._nodes = nodes
        self._standing = frozenset(node.bit for node in cutters) if final else None
        self._cutters: dict[str, list[_Node]] = {}
        for cutter in cutters:
            self._cutters.setdefault(cutter.act.subject, []).append(cutter)
        self._joinings: dict[str, list[_Node]] = {}
        self._leavings: dict[str, list[_Node]] = {}
        self._numbers: dict[int, int] = {}
        self._count = 0
        #: Rules blocks that may count, and those that do.
        self._candidates = 0
        self._stated: list[_Node] = []
        #: Acts before the rules, which need no actor.
        self._founding = 0
        self._find_rules()
        self._grants: dict[str, list[_Node]] = {}
        #: Signed contents without actor that have acted: each acts once.
        self._acted: set[bytes] = set()
        self._keys: list[_Node] = []
        #: Renewals that came second, by members in good standing.
        self._rivals: list[_Node] = []
        self._segments = 0
        for node in nodes:
            try:
                self._take(node)
            except _RefusedError as refused:
                self.result.refused[refused.reason] += 1
        self._conclude()

    # ---------------------------------------------------------------------- rules

    def _find_rules(self) -> None:
        """Which rules blocks count: by a member, and not after others that do."""
        stated = 0
        candidates: list[_Node] = []
        for node in self._nodes:
            if node.act.kind != RULES or stated & node.past:
                continue
            joined = [j for j in self._nodes if j.act.kind == JOIN and j.bit & node.past]
            own = [j for j in joined if j.act.subject == node.by and self._fits(j, node)]
            # Only a founder, who is alone, can keep a right to itself.
            if not own or (node.act.rule == RULE_ADMINS and len(joined) > 1):
                continue
            candidates.append(node)
            if any(not self._is_cut(j, node) for j in own):
                stated |= node.bit
                self._stated.append(node)
        for node in candidates:
            self._candidates |= node.bit
        for node in self._stated or candidates:
            self._founding |= node.past

    def _rule(self, past: int) -> str:
        """The rule for an act with these ancestors: of two, the one that forbids less."""
        rules = {node.act.rule for node in self._stated if node.bit & past}
        return RULE_ADMINS if rules == {RULE_ADMINS} else RULE_ANY

    # ---------------------------------------------------------------------- rights

    @staticmethod
    def _fits(joining: _Node, node: _Node) -> bool:
        return joining.act.pin in node.pins

    def _is_cut(self, joining: _Node, node: _Node) -> bool:
        cutters = self._cutters.get(joining.act.subject, ())
        return any(
            c.past & joining.bit and not c.past & node.bit and c is not node for c in cutters
        )

    def _supports(self, node: _Node) -> list[_Node]:
        """The joinings by which the actor is a member in the view of its act."""
        if node.by is None:
            return []
        return [
            joining
            for joining in self._joinings.get(node.by, ())
            if joining.bit & node.past
            and self._fits(joining, node)
            and not self._is_cut(joining, node)
        ]

    def is_by_member(self, node: _Node) -> bool:
        """True if the actor is a member in the view of its act, as the whole reading says."""
        return bool(self._supports(node))

    def _check_right(self, node: _Node, *, managing: bool) -> bool:
        """Raise unless the act may be done; True if it needed an actor."""
        if not self._candidates & node.past:
            if self._candidates and not self._founding & node.bit:
                raise _RefusedError(NO_ACTOR)
            if node.act.signed in self._acted:
                raise _RefusedError(REPLAYED)
            return False
        supports = self._supports(node)
        if not supports:
            raise _RefusedError(NO_ACTOR)
        if managing and self._rule(node.past) == RULE_ADMINS:
            grants = [g for g in self._grants.get(node.by or "", ()) if g.bit & node.past]
            if not any(joining.bit & g.past for g in grants for joining in supports):
                raise _RefusedError(NOT_AN_ADMIN)
        return True

    def _check_keys(self, node: _Node) -> None:
        """Raise unless the control keys that signed were the newest in the act's past."""
        in_past = [key for key in self._keys if key.bit & node.past]
        if not in_past:
            raise _RefusedError(NO_KEYS_YET)
        allowed = {in_past[-1].act.new}
        if not self._candidates & node.past:
            allowed.add(self._keys[-1].act.new)
        for rival in self._rivals:
            # Its author did not know that another renewal came first.
            first = next(k for k in self._keys[1:] if k.act.old == rival.act.old)
            if rival.bit & node.past and not first.bit & node.past:
                allowed.add(rival.act.new)
        if node.signer not in allowed:
            raise _RefusedError(OLD_KEYS)

    # ------------------------------------------------------------------------ acts

    def _take(self, node: _Node) -> None:
        kind = node.act.kind
        if kind == RENEW:
            self._take_keys(node)
        elif kind == JOIN:
            self._take_joining(node)
        elif kind == LEAVE:
            self._take_leaving(node)
        elif kind == ADMIN:
            self._take_admin(node)
        elif kind == RULES:
            self._take_rules(node)
        elif kind == SEGMENT:
            self._take_segment(node)
        elif kind == DOCUMENT:
            # They decide nothing here; their contents must not act as something else.
            self._acted.add(node.act.signed)
        else:
            self._take_update(node)

    def _take_keys(self, node: _Node) -> None:
        known = [key.act.new for key in self._keys]
        if node.act.old == node.act.new:
            if node.act.new in known:
                raise _RefusedError(REPLAYED)
            if known:
                raise _RefusedError(SECOND_FIRST_KEY)
        else:
            acted = self._check_right(node, managing=False)
            if not known:
                raise _RefusedError(NO_KEYS_YET)
            if node.act.new in known:
                raise _RefusedError(REPLAYED)
            # Of two renewals of the same keys the first in the common order counts. Who has
            # seen the newest keys but was never given them may begin from older ones.
            recovers = acted and self._keys[-1].bit & node.past
            if node.act.old != known[-1] and not recovers:
                if any(key.act.old == node.act.old for key in self._keys[1:]):
                    self._rivals.append(node)
                raise _RefusedError(STALE_RENEWAL)
        self._keys.append(node)

    def _take_joining(self, node: _Node) -> None:
        acted = self._check_right(node, managing=True)
        self._check_keys(node)
        did = node.act.subject
        if self._is_member(did, node):
            raise _RefusedError(ALREADY_MEMBER)
        if not acted:
            self._acted.add(node.act.signed)
        self._joinings.setdefault(did, []).append(node)
        self._numbers[node.bit] = self._count
        self._count += 1

    def _take_leaving(self, node: _Node) -> None:
        if self._standing is None:
            acted = self._check_right(node, managing=node.by != node.act.subject)
            if not acted:
                self._check_keys(node)
            self.leavings.append(node)
        elif node.bit not in self._standing:
            self._check_right(node, managing=node.by != node.act.subject)
            raise _RefusedError(NO_ACTOR)
        else:
            acted = bool(self._candidates & node.past)
        # Under any keys of its past: who is still a member can always be rid of another one,
        # also if the renewal that it relied on turns out not to count.
        if not self._is_member(node.act.subject, node):
            raise _RefusedError(NOT_A_MEMBER)
        if not acted:
            self._acted.add(node.act.signed)
        self._leavings.setdefault(node.act.subject, []).append(node)
        self._count += 1

    def _is_member(self, did: str, node: _Node) -> bool:
        """Whether a DID is a member in the view of an act."""
        ended = 0
        for leaving in self._leavings.get(did, ()):
            if leaving.bit & node.past:
                ended |= leaving.past
        joinings = self._joinings.get(did, ())
        return any(j.bit & node.past and not j.bit & ended for j in joinings)

    def _take_admin(self, node: _Node) -> None:
        if self._rule(node.past) != RULE_ADMINS:
            raise _RefusedError(WRONG_PURPOSE)
        self._check_right(node, managing=True)
        self._check_keys(node)
        if not self._is_member(node.act.subject, node):
            raise _RefusedError(NOT_A_MEMBER)
        self._grants.setdefault(node.act.subject, []).append(node)

    def _take_rules(self, node: _Node) -> None:
        if node not in self._stated:
            raise _RefusedError(NO_ACTOR)
        if node.act.rule == RULE_ADMINS and node.by is not None:
            self._grants.setdefault(node.by, []).append(node)

    def _take_segment(self, node: _Node) -> None:
        acted = self._check_right(node, managing=False)
        self._check_keys(node)
        if acted and self._segments & node.past:
            raise _RefusedError(REPLAYED)
        if not acted:
            self._acted.add(node.act.signed)
        self._segments |= node.bit
        self.result.segments[node.ref] = node.act.subject

    def _take_update(self, node: _Node) -> None:
        self._check_right(node, managing=False)
        self._check_keys(node)
        if not self._is_member(node.act.subject, node):
            raise _RefusedError(NOT_A_MEMBER)
        self._acted.add(node.act.signed)

    # ---------------------------------------------------------------------- result

    def _conclude(self) -> None:
        result = self.result
        result.keys = [key.act.new for key in self._keys]
        if self._stated:
            result.rule = self._rule(-1)
        elif self._candidates:
            result.rule = RULE_ANY
        found: list[tuple[int, MemberState]] = []
        for did, joinings in self._joinings.items():
            ended = 0
            for leaving in self._leavings.get(did, ()):
                ended |= leaving.past
            alive = [joining for joining in joinings if not joining.bit & ended]
            shown = alive[0] if alive else joinings[-1]
            number = self._numbers[shown.bit]
            member = MemberState(
                did=did,
                pin=shown.act.pin,
                current=bool(alive),
                joined_at=number,
                admin=any(
                    joining.bit & grant.past
                    for grant in self._grants.get(did, ())
                    for joining in alive
                ),
            )
            found.append((number, member))
        for _, member in sorted(found, key=lambda item: item[0]):
            result.members[member.did] = member
        newest = self._keys[-1].past if self._keys else 0
        result.renewal_due = any(
            not leaving.bit & newest
            for leavings in self._leavings.values()
            for leaving in leavings
        )


__all__ = [
    "ALREADY_MEMBER",
    "BAD_SIGNATURE",
    "DID_PREFIX",
    "MALFORMED",
    "MAX_CONTENT",
    "MAX_DID",
    "MAX_KEY_ID",
    "NOT_AN_ADMIN",
    "NOT_A_MEMBER",
    "NOT_PINNED",
    "NO_ACTOR",
    "NO_KEYS_YET",
    "OLD_KEYS",
    "PIN_SIZE",
    "REPLAYED",
    "RULE_ADMINS",
    "RULE_ANY",
    "SECOND_FIRST_KEY",
    "STALE_RENEWAL",
    "TOPICS",
    "TOPIC_JOIN",
    "TOPIC_KEY",
    "TOPIC_LEAVE",
    "TOPIC_SEGMENT",
    "WRONG_PLACE",
    "WRONG_PURPOSE",
    "IdentityBlock",
    "MemberState",
    "Reading",
    "chain_of",
    "did_of",
    "encode_segment",
    "pin_of",
    "read_identity",
    "segment_body",
]
