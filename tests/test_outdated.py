"""Acts under keys that their actors have replaced: what is voided, by which rule, at what cost.

The oracle judges each actor by a settling of its own, and once. Where it and the rule differ,
what it gives is not consistent with itself.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest

from tests.test_founding import birth
from tests.test_reader import GROUP, K0, K1, K2, PIN, verify
from tests.test_reader_rules import A, B, C, D, E, Group, approved
from walyoff.child import outdated
from walyoff.child.acts import LEAVE
from walyoff.child.outcome import Reading
from walyoff.child.placing import Node, place_acts
from walyoff.child.settling import Pass, settle

DIDS = [A, B, C, D, E]


def judged(group: Group, rest: Sequence[Node]) -> Pass:
    return Pass(rest, group.birth, settle(rest, group.birth), final=True)


def one_by_one(group: Group, nodes: Sequence[Node]) -> Sequence[Node]:
    """The oracle: a settling for each actor, without its own unheeded leavings alone."""
    acts: dict[str, list[Node]] = {}
    for node in nodes:
        if node.by is not None and node.generation:
            acts.setdefault(node.by, []).append(node)
    everything = judged(group, nodes)
    found = 0
    for by, own in acts.items():
        newest = [n for n in own if n.generation == max(n.generation for n in own)]
        shown = sum(n.bit for n in newest)
        unheeded = [
            n
            for n in own
            if n.act.kind == LEAVE
            and n.act.subject == by
            and n not in newest
            and not any(n.bit & new.past for new in newest)
            and not any(
                other.by not in (None, by)
                and other.past & n.bit
                and not other.past & shown
                and everything.is_by_member(other)
                for other in nodes
            )
        ]
        found |= outdated._replaced(own, judged(group, [n for n in nodes if n not in unheeded]))
    return [node for node in nodes if not node.bit & found]


def resolved(group: Group) -> list[Node]:
    return place_acts(GROUP, PIN, group.blocks, verify, group.birth).resolved(approved)


def refs(nodes: Sequence[Node]) -> list[str]:
    return [node.ref for node in nodes if not node.void]


def by_the_rule(group: Group, nodes: Sequence[Node]) -> Sequence[Node]:
    return outdated.without_outdated(nodes, group.birth, Counter())


def random_chain(rng: random.Random, rule: str, renewed: Sequence[str]) -> Group:
    """Anything by anybody, on any parents; those who renewed use either of their keys."""
    group = Group(rule, rng.randrange(1 << 30), birth(rule))
    for did in (B, C, D):
        group.do(A, "join", did)
        if rule == "admins" and rng.random() < 0.6:
            group.own(A, "admin", did)
    for _ in range(rng.randrange(3, 14)):
        by, subject = rng.choice(DIDS), rng.choice(DIDS)
        act = rng.choice(["join", "leave", "leave", "leave", "renew", "segment"])
        seen = Group.__new__(Group)
        seen.blocks = group.blocks[: max(3, len(group.blocks) - rng.randrange(6))]
        parents = seen.tips() if rng.random() < 0.7 else [rng.choice(group.blocks[1:]).ref]
        signer = f"{by} 2" if by in renewed and rng.random() < 0.5 else by
        if act == "renew":
            group.key(K0, rng.choice([K1, K2]), by=by, parents=parents, signer=signer)
        elif act == "segment":
            group.own(by, "segment", "QmSegment", parents=parents)
        else:
            subject = by if rng.random() < 0.2 else subject
            group.do(by, act, subject, signer=signer, parents=parents)
    return group


@pytest.mark.parametrize("rule", ["any", "admins"])
@pytest.mark.parametrize("renewed", [[B], [B, C]], ids=["one", "two"])
def test_one_settling_for_all_gives_what_one_for_each_gave(
    rule: str, renewed: list[str]
) -> None:
    rng = random.Random(1)
    voided = 0
    for _ in range(120):
        group = random_chain(rng, rule, renewed)
        nodes = resolved(group)
        found = by_the_rule(group, nodes)
        assert refs(found) == refs(one_by_one(group, nodes))
        voided += refs(found) != refs(nodes)
    assert voided >= 10


@pytest.mark.parametrize("rule", ["any", "admins"])
def test_where_many_have_newer_keys_the_result_is_consistent_with_itself(rule: str) -> None:
    """Whoever is a member with newer keys in the end had its older acts judged by them."""
    rng = random.Random(2)
    differ = 0
    for _ in range(150):
        group = random_chain(rng, rule, DIDS)
        nodes = resolved(group)
        found = by_the_rule(group, nodes)
        assert remaining(group, found) == 0
        if refs(before := one_by_one(group, nodes)) != refs(found):
            assert remaining(group, before)
            differ += 1
        shuffled = list(group.blocks)
        rng.shuffle(shuffled)
        assert group.read(shuffled) == group.read()
    assert differ <= 10


def remaining(group: Group, nodes: Sequence[Node]) -> int:
    """Acts under keys that were replaced, as these acts read."""
    judge = judged(group, nodes)
    found = 0
    for by in DIDS:
        own = [n for n in nodes if n.by == by and n.generation and not n.void]
        found |= outdated._replaced(own, judge)
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rule", ["any", "admins"])
def test_removed_devices_of_two_persons_put_neither_out_together(rule: str, seed: int) -> None:
    """The one removes the other person, which the other's lets leave: B and C have new keys."""
    group = Group(rule, seed, birth(rule))
    for did in (B, C):
        group.do(A, "join", did)
    if rule == "admins":
        group.own(A, "admin", C)
    before = group.tips()
    group.own(B, "segment", "QmOne", parents=before)
    for did in (B, C):
        group.key(K0, K1, by=did, signer=f"{did} 2", parents=before)
    group.do(C, "leave", B, parents=before)
    group.do(B, "leave", B, parents=before)
    assert group.current() == {A, B, C}


def with_puppets(count: int) -> Group:
    """Each left by its older keys, and lets somebody in beside that by its newer ones."""
    group = Group("any", 1, birth())
    puppets = [f"did:puppet{n}" for n in range(count)]
    for did in puppets:
        group.do(A, "join", did)
    before = group.tips()
    for did in puppets:
        group.do(did, "leave", did, parents=before)
        group.do(did, "join", f"{did} friend", signer=f"{did} 2", parents=before)
    return group


def test_puppets_cost_no_settling_each(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: Counter[str] = Counter()
    take = Pass._take

    def counted(self: Pass, node: Node) -> None:
        counts["acts"] += 1
        take(self, node)

    monkeypatch.setattr(Pass, "_take", counted)
    found: list[float] = []
    for count in (20, 40, 80):
        group = with_puppets(count)
        nodes = resolved(group)
        counts.clear()
        members: Reading = judged(group, by_the_rule(group, nodes)).result
        assert sum(m.current for m in members.members.values()) == 1 + 2 * count
        found.append(counts["acts"] / len(nodes))
    # So many times each act is looked at, however many puppets there are.
    assert max(found) <= 16
    assert found[-1] <= found[0]
