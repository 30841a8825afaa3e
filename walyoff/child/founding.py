"""How an identity begins: whose rules count, and which acts need no actor.

Decided here: from where on "the member who acts signs" holds, and what came before it. All
members hold the first control keys, for ever; so whoever was one can write a second
beginning beside the first, of the same form. What tells them apart is:

- On a chain whose *birth* names a founder (`births`), which nobody can change: only the
  founder's own joining needs no actor, and only the founder's rules blocks count, with the
  rule that the birth names. Several joinings of the founder that need no actor are one
  membership: a leaving of the founder that counts ends all of them, as if it had seen them.
  A birth without founder is a device's, and there nobody ever joins.
- A birth names the *register* as well. One of an earlier version does not: there the register
  is the one that came first here (`Node.place`). Only the founder can write another one
  beside it, under a name that it chooses, and nothing on the chain tells them apart.
- On a chain without a birth, of stock software or an earlier version: the rules blocks that
  came first here (`Node.place`), and those of members whom that beginning knows too. It is
  all that there is; a device that holds the chain cannot be deceived, a newcomer can.

Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from walyoff.child.acts import JOIN, RENEW, RULE_ADMINS, RULES
from walyoff.child.births import Birth
from walyoff.child.placing import Node

#: is_cut(joining, act): whether a leaving takes from an act the joining that it stands on.
IsCut = Callable[[Node, Node], bool]


@dataclass(slots=True, kw_only=True)
class Founding:
    """The beginning of an identity, as sets of bits."""

    #: Rules blocks after which acts need an actor.
    candidates: int = 0
    #: Rules blocks that count.
    stated: list[Node] = field(default_factory=list)
    #: Acts that need no actor; not used where there is a birth.
    founding: int = 0
    #: The founder's joinings that need no actor.
    roots: int = 0
    birth: Birth | None = None

    def needs_no_actor(self, node: Node) -> bool:
        """Whether an act without rules among its ancestors counts by the control keys alone."""
        if self.birth is None:
            return not self.candidates or bool(self.founding & node.bit)
        if self.roots & node.bit:
            return True
        # A device renews its own keys.
        return node.act.kind == RENEW and not self.birth.founder


def find_founding(nodes: Sequence[Node], birth: Birth | None) -> Founding:
    """What may be the beginning; which rules count is told by `state`."""
    found = Founding(birth=birth)
    if birth is not None and birth.founder:
        founder = birth.founder, birth.founder_pin
        for node in nodes:
            act = node.act
            if act.kind == JOIN and (act.subject, act.pin) == founder:
                if not found.candidates & node.past:
                    found.roots |= node.bit
            elif (
                act.kind == RULES
                and (node.by, act.rule) == (birth.founder, birth.rule)
                and birth.founder_pin in node.pins
                and node.past & found.roots
            ):
                found.candidates |= node.bit
    return found


def state(found: Founding, nodes: Sequence[Node], is_cut: IsCut) -> None:
    """Find the rules blocks that count."""
    if found.birth is None:
        _believe_the_first(found, nodes, is_cut)
        return
    roots = [node for node in nodes if node.bit & found.roots]
    for node in nodes:
        own = [root for root in roots if root.bit & node.past]
        if node.bit & found.candidates and not all(is_cut(root, node) for root in own):
            found.stated.append(node)


def find_register(birth: Birth | None, named: Sequence[Node]) -> str | None:
    """The first segment of the channel, given the acts that count which name one."""
    if birth is not None and birth.register:
        return birth.register
    if not named:
        return None
    if birth is not None:
        return min(named, key=lambda node: (node.place, node.ref)).act.subject
    # Two members of an identity of before may have made one each, in good faith.
    return min(named, key=lambda node: node.ref).act.subject


def _believe_the_first(found: Founding, nodes: Sequence[Node], is_cut: IsCut) -> None:
    stated = 0
    candidates: list[Node] = []
    standing: list[tuple[Node, list[Node]]] = []
    for node in nodes:
        if node.act.kind != RULES or stated & node.past:
            continue
        joined = [j for j in nodes if j.act.kind == JOIN and j.bit & node.past]
        own = [j for j in joined if j.act.subject == node.by and j.act.pin in node.pins]
        # Only a founder, who is alone, can keep a right to itself.
        if not own or (node.act.rule == RULE_ADMINS and len(joined) > 1):
            continue
        candidates.append(node)
        if uncut := [j for j in own if not is_cut(j, node)]:
            stated |= node.bit
            standing.append((node, uncut))
    for node in candidates:
        found.candidates |= node.bit
    if standing:
        first = min((node for node, _ in standing), key=lambda node: (node.place, node.ref))
        found.stated = [
            node
            for node, own in standing
            if node is first or any(j.bit & first.past for j in own)
        ]
    for node in found.stated or candidates:
        found.founding |= node.past
