"""Which acts of a chain count, leavings first.

Decided here: the rules of `reader`, on acts that have their places (`placing`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from walyoff.child.acts import (
    ADMIN,
    DOCUMENT,
    JOIN,
    LEAVE,
    RENEW,
    RULE_ADMINS,
    RULE_ANY,
    RULES,
    SEGMENT,
    WRONG_PURPOSE,
)
from walyoff.child.births import Birth
from walyoff.child.branches import Branches
from walyoff.child.founding import find_founding, find_register, state
from walyoff.child.outcome import (
    ALREADY_MEMBER,
    NO_ACTOR,
    NO_KEYS_YET,
    NOT_A_MEMBER,
    NOT_AN_ADMIN,
    OLD_KEYS,
    OUTDATED,
    REPLAYED,
    SECOND_FIRST_KEY,
    SECOND_REGISTER,
    STALE_RENEWAL,
    MemberState,
    Reading,
    RefusedError,
)
from walyoff.child.placing import Node
from walyoff.child.renewals import Succession

#: Rounds of settling leavings; each settles one more of a chain of removers, at the least.
MAX_ROUNDS = 64


def settle(nodes: Sequence[Node], birth: Birth | None) -> list[Node]:
    """The leavings that count.

    Γ(S) are those whose authors are not cut when exactly S cut. The more cut, the fewer
    count, so applied in turn from the empty set it closes in from above and below (the
    well-founded semantics of logic programs). What stays undecided are members who put one
    another out: those leavings count.
    """
    above = Pass(nodes, birth, []).leavings
    for _ in range(MAX_ROUNDS):
        below = Pass(nodes, birth, above).leavings
        again = Pass(nodes, birth, below).leavings
        if again == above:
            return above
        above = again
    return above


class Pass:
    """One reading in the common order, with given leavings as those that cut.

    The final one takes the given leavings for those that count.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        birth: Birth | None,
        cutters: Sequence[Node],
        *,
        final: bool = False,
    ) -> None:
        self.result = Reading()
        #: The leavings whose authors may remove.
        self.leavings: list[Node] = []
        self._standing = frozenset(node.bit for node in cutters) if final else None
        self._cutters: dict[str, list[Node]] = {}
        for cutter in cutters:
            self._cutters.setdefault(cutter.act.subject, []).append(cutter)
        #: By joining, the acts that no leaving takes from it; by leaving, what it ends.
        self._kept: dict[int, int] = {}
        self._ended: dict[int, int] = {}
        self._joinings: dict[str, list[Node]] = {}
        self._leavings: dict[str, list[Node]] = {}
        #: By joining, what its number is ranked by; and all ranks that count, leavings' too.
        self._numbers: dict[int, int] = {}
        self._ranks: list[int] = []
        #: By content, the joining without actor that counted first; and all with one content.
        self._contents: dict[bytes, Node] = {}
        self._copies = _copies(nodes)
        self._written = _written(nodes)
        self._founding = find_founding(nodes, birth)
        state(self._founding, nodes, self._is_cut)
        self._grants: dict[str, list[Node]] = {}
        #: Signed contents without actor that have acted: each acts once.
        self._acted: set[bytes] = set()
        self._keys: list[Node] = []
        #: By new keys, the blocks that brought them in: anybody can copy one elsewhere.
        self._key_bits: dict[str, int] = {}
        self._branches = Branches(nodes)
        renewals = [(node.act, node.renewal) for node in nodes if node.act.kind == RENEW]
        self._succession = Succession(birth, renewals)
        self._segments: list[Node] = []
        for node in nodes:
            try:
                self._take(node)
            except RefusedError as refused:
                self.result.refused[refused.reason] += 1
        self._conclude()

    # ---------------------------------------------------------------------- rights

    def _rule(self, past: int) -> str:
        """The rule for an act with these ancestors: the birth's, and of two the laxer one."""
        if (birth := self._founding.birth) is not None and birth.rule:
            return birth.rule
        rules = {node.act.rule for node in self._founding.stated if node.bit & past}
        return RULE_ADMINS if rules == {RULE_ADMINS} else RULE_ANY

    @staticmethod
    def _fits(joining: Node, node: Node) -> bool:
        return joining.act.pin in node.pins

    def _is_cut(self, joining: Node, node: Node) -> bool:
        """Whether a leaving ends the joining that is neither the act nor written after it."""
        kept = self._kept.get(joining.bit)
        if kept is None:
            kept = -1
            for cutter in self._cutters.get(joining.act.subject, ()):
                if self._ends(cutter) & joining.bit:
                    kept &= cutter.past | cutter.bit
            self._kept[joining.bit] = kept
        return not kept & node.bit

    def _ends(self, leaving: Node) -> int:
        """The joinings that a leaving ends, among all acts."""
        ended = self._ended.get(leaving.bit)
        if ended is None:
            ended = leaving.past | self._founding.roots
            for copies in self._copies:
                if ended & copies:
                    ended |= copies
            self._ended[leaving.bit] = ended
        return ended

    def _supports(self, node: Node) -> list[Node]:
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

    def _note_shown(self, node: Node) -> None:
        """A member acted; whether it counts or not, it shows its keys (`outdated`)."""
        if node.by is not None:
            shown = self.result.shown
            shown[node.by] = max(node.generation, shown.get(node.by, 0))

    def is_by_member(self, node: Node) -> bool:
        """True if the actor is a member in the view of its act, as the whole reading says."""
        return bool(self._supports(node))

    def _check_right(self, node: Node, *, managing: bool) -> bool:
        """Raise unless the act may be done; True if it needed an actor."""
        if not self._founding.candidates & node.past:
            if not self._founding.needs_no_actor(node):
                raise RefusedError(NO_ACTOR)
            if node.act.signed in self._acted:
                raise RefusedError(REPLAYED)
            return False
        supports = self._supports(node)
        if not supports:
            raise RefusedError(NO_ACTOR)
        self._note_shown(node)
        if managing and self._rule(node.past) == RULE_ADMINS:
            grants = [g for g in self._grants.get(node.by or "", ()) if g.bit & node.past]
            standing = sum(joining.bit for joining in supports)
            if not any(standing & g.past for g in grants):
                raise RefusedError(NOT_AN_ADMIN)
        return True

    def _check_keys(self, node: Node) -> None:
        """Raise unless the control keys that signed were the newest in the act's past.

        Or they follow on these by renewals that do not count.
        """
        in_past = [key for key in self._keys if self._key_bits[key.act.new] & node.past]
        if not in_past:
            raise RefusedError(NO_KEYS_YET)
        newest = in_past[-1].act.new
        allowed = {newest}
        if not self._founding.candidates & node.past:
            allowed.add(self._keys[-1].act.new)
        if node.signers & allowed:
            return
        follow = self._branches.follow
        if not any(follow(key, newest, self._key_bits, node.past) for key in node.signers):
            raise RefusedError(OLD_KEYS)

    # ------------------------------------------------------------------------ acts

    def _take(self, node: Node) -> None:
        kind = node.act.kind
        if node.void:
            raise RefusedError(OUTDATED)
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
            # They decide nothing here, and their contents are none of other kinds: those of
            # stock code name no member.
            return
        else:
            self._take_update(node)

    def _take_keys(self, node: Node) -> None:
        known = [key.act.new for key in self._keys]
        if node.act.old == node.act.new:
            if node.act.new in known:
                self._key_bits[node.act.new] |= node.bit
                raise RefusedError(REPLAYED)
            if known:
                raise RefusedError(SECOND_FIRST_KEY)
        else:
            acted = self._check_right(node, managing=False)
            if not known:
                raise RefusedError(NO_KEYS_YET)
            if node.act.new in known:
                self._key_bits[node.act.new] |= node.bit
                raise RefusedError(REPLAYED)
            # Of two renewals of the same keys the first in the common order counts. Who has
            # seen the newest keys but was never given them may begin from older ones.
            recovers = acted and self._key_bits[known[-1]] & node.past
            if node.act.old != known[-1] and not recovers:
                raise RefusedError(STALE_RENEWAL)
            if not acted:
                self._succession.take(node.act)
        self._keys.append(node)
        self._key_bits[node.act.new] = node.bit

    def _repeats(self, node: Node) -> bool:
        """Note a joining whose content was copied elsewhere: it is the same membership.

        That is of contents that say neither who acts nor where; whoever reads them can copy
        them, under a name that comes first.
        """
        first = self._contents.get(node.act.signed)
        needed = self._founding.candidates & node.past
        if first is None or needed or not self._founding.needs_no_actor(node):
            return False
        self._numbers[node.bit] = self._numbers[first.bit]
        self._joinings[node.act.subject].append(node)
        return True

    def _take_joining(self, node: Node) -> None:
        if self._repeats(node):
            raise RefusedError(REPLAYED)
        acted = self._check_right(node, managing=True)
        self._check_keys(node)
        did = node.act.subject
        if node.bit & self._founding.roots and did in self._joinings:
            # The same membership once more: it gets no number of its own.
            self._numbers[node.bit] = self._numbers[self._joinings[did][0].bit]
            self._joinings[did].append(node)
            return
        if self._is_member(did, node):
            raise RefusedError(ALREADY_MEMBER)
        if not acted:
            self._acted.add(node.act.signed)
            self._contents[node.act.signed] = node
        self._joinings.setdefault(did, []).append(node)
        self._numbers[node.bit] = self._rank(node)

    def _take_leaving(self, node: Node) -> None:
        if self._standing is None:
            acted = self._check_right(node, managing=node.by != node.act.subject)
            if not acted:
                self._check_keys(node)
            self.leavings.append(node)
        elif node.bit not in self._standing:
            self._check_right(node, managing=node.by != node.act.subject)
            raise RefusedError(NO_ACTOR)
        else:
            acted = bool(self._founding.candidates & node.past)
            if acted:
                self._note_shown(node)
        # Under any keys of its past: who is still a member can always be rid of another one,
        # also if the renewal that it relied on turns out not to count.
        if not self._is_member(node.act.subject, node):
            raise RefusedError(NOT_A_MEMBER)
        if not acted:
            self._acted.add(node.act.signed)
        self._leavings.setdefault(node.act.subject, []).append(node)
        self._rank(node)

    def _rank(self, node: Node) -> int:
        """Note where a joining or leaving stands among them, wherever a copy of it came."""
        rank = self._written.get(node.bit, node.bit)
        self._ranks.append(rank)
        return rank

    def _is_member(self, did: str, node: Node) -> bool:
        """Whether a DID is a member in the view of an act."""
        ended = 0
        for leaving in self._leavings.get(did, ()):
            if leaving.bit & node.past:
                ended |= self._ends(leaving)
        joinings = self._joinings.get(did, ())
        return any(j.bit & node.past and not j.bit & ended for j in joinings)

    def _take_admin(self, node: Node) -> None:
        if self._rule(node.past) != RULE_ADMINS:
            raise RefusedError(WRONG_PURPOSE)
        self._check_right(node, managing=True)
        self._check_keys(node)
        if not self._is_member(node.act.subject, node):
            raise RefusedError(NOT_A_MEMBER)
        self._grants.setdefault(node.act.subject, []).append(node)

    def _take_rules(self, node: Node) -> None:
        if node not in self._founding.stated:
            raise RefusedError(NO_ACTOR)
        if node.act.rule == RULE_ADMINS and node.by is not None:
            self._grants.setdefault(node.by, []).append(node)

    def _take_segment(self, node: Node) -> None:
        acted = self._check_right(node, managing=False)
        self._check_keys(node)
        if acted and any(named.bit & node.past for named in self._segments):
            raise RefusedError(REPLAYED)
        birth = self._founding.birth
        if birth is not None and birth.register not in ("", node.act.subject):
            raise RefusedError(SECOND_REGISTER)
        if not acted:
            self._acted.add(node.act.signed)
        self._segments.append(node)
        self.result.segments[node.ref] = node.act.subject

    def _take_update(self, node: Node) -> None:
        self._check_right(node, managing=False)
        self._check_keys(node)
        if not self._is_member(node.act.subject, node):
            raise RefusedError(NOT_A_MEMBER)
        self._acted.add(node.act.signed)

    # ---------------------------------------------------------------------- result

    def _conclude(self) -> None:
        result = self.result
        result.keys = [key.act.new for key in self._keys]
        result.void_keys = self._branches.others(result.keys)
        result.next = self._succession.next
        result.segment = find_register(self._founding.birth, self._segments)
        if self._founding.birth is not None:
            others = sum(node.act.subject != result.segment for node in self._segments)
            result.refused += Counter({SECOND_REGISTER: others})
        if self._founding.candidates:
            result.rule = self._rule(-1)
        found: list[tuple[int, MemberState]] = []
        numbers = {rank: number for number, rank in enumerate(sorted(self._ranks))}
        for did, joinings in self._joinings.items():
            ended = 0
            for leaving in self._leavings.get(did, ()):
                ended |= self._ends(leaving)
            alive = [joining for joining in joinings if not joining.bit & ended]
            # The newest, wherever copies of an older one come: epochs name who is out by the
            # number, and who came back was given those that name an earlier one.
            shown = alive[0] if alive else max(joinings, key=lambda j: self._numbers[j.bit])
            number = numbers[self._numbers[shown.bit]]
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


def _written(nodes: Sequence[Node]) -> dict[int, int]:
    """By joining or leaving without actor of which there are copies, the one that was meant.

    Anybody can copy one to an earlier place, and nobody to one whose past has more in it: the
    guard admits no copy that is written above the first one.
    """
    same: dict[bytes, list[Node]] = {}
    for node in nodes:
        if node.act.kind in (JOIN, LEAVE) and node.act.approval is None:
            same.setdefault(node.act.signature, []).append(node)
    return {
        node.bit: max(copies, key=lambda copy: (copy.past.bit_count(), -copy.bit)).bit
        for copies in same.values()
        if len(copies) > 1
        for node in copies
    }


def _copies(nodes: Sequence[Node]) -> list[int]:
    """Joinings with one content each, of those that say neither who acts nor where."""
    found: dict[bytes, int] = {}
    for node in nodes:
        if node.act.kind == JOIN and node.act.approval is None:
            found[node.act.signed] = found.get(node.act.signed, 0) | node.bit
    return [bits for bits in found.values() if bits.bit_count() > 1]
