"""What members who may not, former members and puppets write moves nobody whom it may not."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from tests.hostile_acts import PUPPETS, History
from tests.test_founding import REGISTER, birth
from tests.test_reader import GROUP, PIN, verify
from tests.test_reader_rules import A, B, C, Group, approved
from walyoff.child.outcome import Reading
from walyoff.child.placing import Node, place_acts
from walyoff.child.reader import settle_placed
from walyoff.child.settling import Pass

#: Chains that each test looks at.
CHAINS = 12


def chains(
    seed: int, attackers: Callable[[History], list[str]], *rules: str
) -> Iterator[tuple[random.Random, History, list[str]]]:
    """Histories that leave somebody to attack them."""
    rng = random.Random(seed)
    found = 0
    while found < CHAINS:
        history = History(rng, rng.choice(rules or ("any", "admins")))
        if who := attackers(history):
            found += 1
            yield rng, history, who


def plain(history: History) -> list[str]:
    """Members who may not invite and remove."""
    return [did for did, member in history.current().items() if not member.admin]


def plain_with_newer_keys(history: History) -> list[str]:
    return [did for did in plain(history) if did in history.with_newer_keys()]


def standing(reading: Reading, *but: str) -> dict[str, tuple[bool, bool]]:
    """Who is a member, and who an admin."""
    left_out = {*PUPPETS, *but}
    members = reading.members.values()
    return {m.did: (m.current, m.admin) for m in members if m.did not in left_out}


def look(history: History, rng: random.Random) -> Reading:
    """The reading, which is the same in any order, with what nobody may change."""
    reading = history.group.read()
    shuffled = list(history.group.blocks)
    rng.shuffle(shuffled)
    assert history.group.read(shuffled) == reading
    assert (reading.rule, reading.segment) == (history.rule, REGISTER)
    assert not {
        did for did in PUPPETS if did in reading.members and reading.members[did].current
    }
    return reading


@pytest.mark.parametrize("seed", range(2))
def test_what_former_members_write_besides_leavings_changes_nothing(seed: int) -> None:
    for rng, history, out in chains(seed, History.out):
        before = history.group.read()
        history.attack(out, leavings=False)
        after = look(history, rng)
        assert after.members == before.members
        assert after.keys == before.keys


def test_by_leavings_former_members_put_out_those_alone_who_can_be_named() -> None:
    """Whom a leaving names, and whom they or the former members had let in."""
    fallen = 0
    for seed in range(2):
        for rng, history, out in chains(seed, History.out):
            before = set(history.current())
            written = history.attack(out)
            # And at least one in return, just before.
            did = rng.choice(out)
            remover, at = rng.choice(history.removals[did])
            place = [history.group.blocks[at - 1].ref]
            history.group.do(did, "leave", remover, parents=place)
            written.append((did, "leave", remover))
            look(history, rng)
            now = set(history.current())
            assert now <= before
            gone = {subject for _, act, subject in written if act == "leave"} | set(out)
            while more := {d for by in gone for d in history.invited.get(by, ())} - gone:
                gone |= more
            assert before - now <= gone
            fallen += now != before
    assert fallen


@pytest.mark.parametrize("seed", range(2))
def test_a_member_who_may_not_manage_moves_nobody_but_itself(seed: int) -> None:
    for rng, history, members in chains(seed, plain, "admins"):
        did = rng.choice(members)
        before = standing(history.group.read(), did)
        history.attack([did])
        assert standing(look(history, rng), did) == before


@pytest.mark.parametrize("seed", range(2))
def test_who_has_a_members_replaced_keys_moves_nobody_where_admins_rule(seed: int) -> None:
    for rng, history, members in chains(seed, plain_with_newer_keys, "admins"):
        before = history.group.read()
        history.attack([rng.choice(members)], old=True)
        after = look(history, rng)
        assert standing(after) == standing(before)
        assert after.keys == before.keys


# ------------------------------------------------------------------------------ cost


def plainly(self: Pass, joining: Node, node: Node) -> bool:
    """The rule as `reader` says it."""
    return any(
        self._ends(cutter) & joining.bit and not cutter.past & node.bit and cutter is not node
        for cutter in self._cutters.get(joining.act.subject, ())
    )


def test_what_is_kept_of_a_joining_is_what_no_leaving_cuts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = []
    for _, history, out in chains(4, History.out):
        history.attack(out)
        told.append((history, history.group.read()))
    monkeypatch.setattr(Pass, "_is_cut", plainly)
    for history, reading in told:
        assert history.group.read() == reading


def test_who_joined_and_left_often_costs_no_look_at_each_leaving_for_each_act(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts: Counter[str] = Counter()
    ends = Pass._ends

    def counted(self: Pass, leaving: Node) -> int:
        counts["looks"] += 1
        return ends(self, leaving)

    monkeypatch.setattr(Pass, "_ends", counted)
    found = []
    for times in (20, 40):
        group = Group("any", 1, birth())
        for _ in range(times):
            group.do(A, "join", C)
            group.do(A, "leave", C)
        group.do(A, "join", C)
        for n in range(times):
            group.do(C, "join", f"{B} {n}")
        placed = place_acts(GROUP, PIN, group.blocks, verify, group.birth)
        counts.clear()
        settle_placed(placed, approved)
        found.append(counts["looks"])
    # With the square of the leavings, not with their cube.
    assert found[1] <= 5 * found[0]
