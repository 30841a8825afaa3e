"""Acts under keys that their actor has replaced since.

Decided here: which of an actor's acts show that its keys are new, and which ones they void. A
device that was removed from a person keeps the person's keys of then. What it writes in the
person's name has no place among the ancestors of what the person writes with newer keys;
what the person wrote before has.

All actors are judged together, by one settling in which none of them has left by old keys
that nobody heeded: whether one of them is a member can depend on what another one does with
its newer keys. What was voided is left out when they are judged again, until nothing more is.
So the cost is that of a few readings, however many actors there are.

Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from walyoff.child.acts import LEAVE, RENEW, RULES
from walyoff.child.births import Birth
from walyoff.child.outcome import OUTDATED
from walyoff.child.placing import Node
from walyoff.child.settling import Pass, settle

#: Times that all are judged. Each but the last voids acts of somebody who was taken for none
#: of the members because of what the one before voided.
MAX_JUDGINGS = 8


def without_outdated(
    nodes: Sequence[Node], birth: Birth | None, refused: Counter[str]
) -> Sequence[Node]:
    """All acts, but those under keys that their actor has replaced since, as another act shows.

    Only what a member writes shows that keys are new: otherwise who was removed could renew
    its own, and so undo what it had done as a member. It need not count: the removed device
    can write a renewal that comes before the person's.
    """
    acts: dict[str, list[Node]] = {}
    for node in nodes:
        if node.by is not None and node.generation:
            acts.setdefault(node.by, []).append(node)
    renewed = {by: own for by, own in acts.items() if len({n.generation for n in own}) > 1}
    if not renewed:
        return nodes
    judge = Pass(nodes, birth, settle(nodes, birth), final=True)
    left_out = unheeded = _unheeded_leavings(renewed, nodes, judge)
    outdated = 0
    for _ in range(MAX_JUDGINGS):
        if left_out:
            rest = _without(nodes, left_out)
            judge = Pass(rest, birth, settle(rest, birth), final=True)
        found = outdated
        for own in renewed.values():
            found |= _replaced(own, judge)
        if found == outdated:
            break
        outdated = found
        left_out = unheeded | outdated
    left = _without(nodes, outdated)
    if outdated:
        refused[OUTDATED] += len(nodes) - len(left)
    return left


def _without(nodes: Sequence[Node], left_out: int) -> list[Node]:
    """Acts without some; of renewals among these it stays known that they are void."""
    return [
        replace(node, void=True) if node.bit & left_out else node
        for node in nodes
        if not node.bit & left_out or node.act.kind == RENEW
    ]


def _replaced(own: Iterable[Node], judge: Pass) -> int:
    """Those of an actor's acts that are beside what it wrote with newer keys as a member."""
    outdated = 0
    # What is an ancestor of all acts with newer keys, and of those with these keys too.
    common, following, generation = -1, -1, 0
    for node in sorted(own, key=lambda n: -n.generation):
        if node.generation != generation:
            common, generation = following, node.generation
        # The rules stand: without them the control keys alone would be enough again.
        if not node.bit & common and node.act.kind != RULES:
            outdated |= node.bit
        if judge.is_by_member(node):
            following &= node.past
    return outdated


def _unheeded_leavings(
    renewed: dict[str, list[Node]], nodes: Sequence[Node], everything: Pass
) -> int:
    """Leavings of actors by themselves that do not make them strangers to their newer keys.

    They are by older keys, and beside the newer ones: of somebody who has the old ones, or of
    one who left, got newer keys, and wants to be back. In the second case others acted on the
    leaving before they heard of the newer keys: control keys are renewed when a member leaves.
    """
    found = 0
    heeding: list[Node] | None = None
    for by, own in renewed.items():
        generation = max(node.generation for node in own)
        shown = sum(node.bit for node in own if node.generation == generation)
        known = _all_pasts(node for node in own if node.generation == generation)
        beside = sum(
            node.bit
            for node in own
            if node.act.kind == LEAVE
            and node.act.subject == by
            and node.generation < generation
            and not node.bit & known
        )
        if not beside:
            continue
        if heeding is None:
            heeding = [node for node in nodes if everything.is_by_member(node)]
        for node in heeding:
            if node.past & beside and node.by != by and not node.past & shown:
                beside &= ~node.past
        found |= beside
    return found


def _all_pasts(nodes: Iterable[Node]) -> int:
    past = 0
    for node in nodes:
        past |= node.past
    return past
