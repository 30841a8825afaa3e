"""Acts under keys that their actor has replaced since.

Decided here: which of an actor's acts show that its keys are new, and which ones they void. A
device that was removed from a person keeps the person's keys of then. What it writes in the
person's name has no place among the ancestors of what the person writes with newer keys;
what the person wrote before has.

Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from walyoff.child.acts import LEAVE, RULES
from walyoff.child.births import Birth
from walyoff.child.outcome import OUTDATED
from walyoff.child.placing import Node
from walyoff.child.settling import Pass, settle


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
    renewed = [own for own in acts.values() if len({n.generation for n in own}) > 1]
    if not renewed:
        return nodes
    everything = Pass(nodes, birth, settle(nodes, birth), final=True)
    outdated = 0
    for own in renewed:
        judge = everything
        if unsaid := _own_leavings(own, nodes, everything):
            rest = [node for node in nodes if node not in unsaid]
            judge = Pass(rest, birth, settle(rest, birth), final=True)
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
    if outdated:
        refused[OUTDATED] += outdated.bit_count()
    return [node for node in nodes if not node.bit & outdated]


def _own_leavings(own: list[Node], nodes: Sequence[Node], everything: Pass) -> list[Node]:
    """An actor's leavings of itself that do not make it a stranger to its newer keys.

    They are by older keys, and beside the newer ones: of somebody who has the old ones, or of
    one who left, got newer keys, and wants to be back. In the second case others acted on the
    leaving before they heard of the newer keys: control keys are renewed when a member leaves.
    """
    generation = max(node.generation for node in own)
    newest = [node for node in own if node.generation == generation]
    shown = sum(node.bit for node in newest)
    beside = [
        node
        for node in own
        if node.act.kind == LEAVE
        and node.act.subject == node.by
        and node.generation < generation
        and not any(node.bit & new.past for new in newest)
    ]
    return [
        leaving
        for leaving in beside
        if not any(
            node.by not in (None, leaving.by)
            and node.past & leaving.bit
            and not node.past & shown
            and everything.is_by_member(node)
            for node in nodes
        )
    ]
