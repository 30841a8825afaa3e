"""How an identity begins, and that nobody begins it again."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_reader import EVIL, GROUP, K0, K1, K2, PIN, did_pin, sign, verify
from tests.test_reader_rules import A, B, C, D, E, Group, approved, own_key
from walyoff.child import reader
from walyoff.child.acts import RULES_KNOWN, pin_of
from walyoff.child.births import DEVICE_MARK, GREETING, MARK, ROOM, Birth, put_birth, read_birth
from walyoff.errors import LocalProtocolError
from walyoff.wire import pack

STOCK = GREETING + bytes(range(250)) * 4


REGISTER, OTHER = "Qm" + "r" * 44, "Qm" + "x" * 44


def birth(rule: str = "any", founder: str = A, register: str = "") -> Birth:
    pin = did_pin(founder)
    return Birth(pin=PIN, founder=founder, founder_pin=pin, rule=rule, register=register)


def founded(rule: str = "any", seed: int = 0, *, born: bool = True) -> Group:
    """A has removed C, and was removed by B, who is left; the control keys are new."""
    group = Group(rule, seed, birth(rule) if born else None)
    group.do(A, "join", B)
    if rule == "admins":
        group.own(A, "admin", B)
    group.do(A, "join", C)
    group.do(A, "leave", C)
    group.do(B, "leave", A)
    group.key(K0, K1, by=B)
    assert group.current() == {B}
    return group


def by_stranger(group: Group, root: list[str], rule: str) -> None:
    """A former member has the first keys: it founds the identity for a DID of its own."""
    joined = group.do(E, "join", E, parents=root)
    group.own(E, "rules", rule=rule, parents=[joined])
    group.do(E, "join", C, parents=[group.blocks[-1].ref])


def without_approval(group: Group, root: list[str], rule: str) -> None:
    """The same with joinings as earlier versions wrote them."""
    joined = group.legacy("join", E, parents=root)
    joined = group.legacy("join", C, parents=[joined])
    group.own(C, "rules", rule=rule, parents=[joined])


def by_founder(group: Group, root: list[str], rule: str) -> None:
    """The founder, who is out, founds it once more, and with friends."""
    joined = group.do(A, "join", A, parents=root)
    friend = group.do(A, "join", E, parents=[joined])
    group.key(K0, EVIL, by=A, parents=[friend])
    group.own(A, "rules", rule=rule, parents=[group.blocks[-1].ref])
    group.own(A, "admin", E, parents=[group.blocks[-1].ref])
    group.do(A, "join", C, parents=[group.blocks[-1].ref])


def in_founders_name(group: Group, root: list[str], rule: str) -> None:
    """Another one's keys as those of the founder."""
    claim = group.claim(A, "join", A, pin=did_pin(EVIL), parents=root)
    field = claim.as_field(sign(own_key(EVIL), claim.body()))
    info = {"did": A, "invitation": "{}", "walyoff": field}
    joined = group.info("member_joining", info, K0, root)
    rules = group.claim(A, "rules", rule=rule, parents=[joined])
    body = rules.body()
    content = rules.as_block(sign(own_key(EVIL), body), sign(K0, body))
    group.put(["walyoff_rules"], content, [joined])


BEGINNINGS = [by_stranger, without_approval, by_founder, in_founders_name]
Begin = Callable[[Group, list[str], str], None]


def believing(did: str, pin: bytes, signature: bytes, body: bytes) -> int:
    """As `approved`, and somebody holds the keys of another pin."""
    if pin == did_pin(EVIL):
        return int(signature == sign(own_key(EVIL), body))
    return approved(did, pin, signature, body)


def look(group: Group) -> reader.Reading:
    return reader.read_identity(GROUP, PIN, group.blocks, verify, believing, birth=group.birth)


@pytest.mark.parametrize("begin", BEGINNINGS)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rule", ["any", "admins"])
@pytest.mark.parametrize("told", ["any", "admins"])
def test_nobody_founds_an_identity_again(begin: Begin, seed: int, rule: str, told: str) -> None:
    """Which of two beginnings comes first is a matter of names, which can be chosen."""
    group = founded(rule, seed)
    expected = look(group)
    begin(group, [group.blocks[0].ref], told)
    reading = look(group)
    assert reading.members == expected.members
    assert (reading.keys, reading.rule) == (expected.keys, rule)
    # Who is left goes on over it.
    group.do(B, "join", D, key=K1)
    assert {m.did for m in look(group).members.values() if m.current} == {B, D}


@pytest.mark.parametrize("begin", BEGINNINGS[:3])
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("rule", ["any", "admins"])
def test_without_a_birth_the_beginning_that_came_first_here_stays(
    begin: Begin, seed: int, rule: str
) -> None:
    group = founded(rule, seed, born=False)
    begin(group, [group.blocks[0].ref], rule)
    assert group.current() == {B}


def test_the_founder_does_not_change_the_rule() -> None:
    for seed in range(4):
        group = Group("admins", seed, birth("admins"))
        group.do(A, "join", B)
        joining = group.blocks[1].ref
        group.own(A, "rules", rule="any", parents=[joining])
        group.do(B, "join", E)
        assert group.read().rule == "admins"
        assert group.current() == {A, B}


def test_the_founders_joining_written_again_is_the_same_membership() -> None:
    """Numbers name memberships: a former member must not move those of others."""
    for seed in range(8):
        group = Group("any", seed, birth())
        group.do(A, "join", B)
        group.do(A, "join", C)
        before = group.read().members
        for _ in range(3):
            joined = group.do(A, "join", A, parents=[group.blocks[0].ref])
            group.own(A, "rules", rule="any", parents=[joined])
        assert group.read().members == before
        group.do(B, "leave", A)
        group.do(A, "join", E)
        assert group.current() == {B, C}
        # Invited again, it is a member again, under a new number.
        group.do(B, "join", A)
        assert group.current() == {A, B, C}
        assert group.read().members[A].joined_at > before[C].joined_at


def test_a_membership_that_ended_keeps_its_number_when_an_older_one_is_written_again() -> None:
    """Epochs name it by that number; its holder was given those of its earlier absence."""
    for seed in range(12):
        group = Group("any", seed, birth())
        for did in (B, C):
            group.do(A, "join", did)
        for act in ("leave", "join", "leave"):
            group.do(B, act, A)
        before = group.read().members
        assert before[A].joined_at > before[C].joined_at
        group.do(A, "join", A, parents=[group.blocks[0].ref])
        assert group.read().members == before
        # And on a chain without rules, where any outsider can copy a joining.
        group = Group(None, seed)
        for act, did in (("join", B), ("join", C), ("leave", C), ("join", C), ("leave", C)):
            group.legacy(act, did)
        before = group.read().members
        joining = group.blocks[3]
        group.put(joining.topics, joining.content + b" ", [group.blocks[0].ref])
        assert group.read().members[C] == before[C]


@pytest.mark.parametrize("rule", ["any", "admins"])
@pytest.mark.parametrize("seed", range(3))
def test_a_founder_who_was_removed_can_end_the_identity(rule: str, seed: int) -> None:
    """It dates its own leaving before all that it invited; nobody gets in or back by it."""
    group = Group(rule, seed, birth(rule))
    joined = group.blocks[1].ref
    stated = group.tips()
    for did in (B, C, D):
        group.do(A, "join", did)
    if rule == "admins":
        group.own(A, "admin", B)
    before = group.tips()
    group.do(B, "leave", D)
    group.do(B, "leave", A)
    assert group.current() == {B, C}
    group.do(A, "leave", A, parents=stated)
    assert group.current() == set()
    for by in (A, D):
        for parents in (stated, before, None):
            group.do(by, "join", D, parents=parents)
    # Nor does it change the rule, by leaving before that was stated.
    group.do(A, "leave", A, parents=[joined])
    assert group.current() == set()
    assert group.read().rule == rule


@pytest.mark.parametrize("rule", ["any", "admins"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("way", ["on a puppet", "one by one"])
def test_a_founder_who_was_removed_can_end_it_without_having_been_alone(
    rule: str, seed: int, way: str
) -> None:
    """So a rule that who is alone cannot leave would cost it one block."""
    group = Group(rule, seed, birth(rule))
    stated = group.tips()
    for did in (B, C, D):
        group.do(A, "join", did)
    if rule == "admins":
        group.own(A, "admin", B)
    before = group.tips()
    group.do(B, "leave", A)
    assert group.current() == {B, C, D}
    if way == "on a puppet":
        puppet = group.do(A, "join", E, parents=stated)
        group.do(E, "leave", A, parents=[puppet])
        group.do(A, "leave", A, parents=[puppet])
    else:
        for did in (B, C, D):
            group.do(A, "leave", did, parents=before)
    assert group.current() == set()
    shuffled = group.blocks[::-1]
    assert group.read(shuffled) == group.read()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("committed", [True, False], ids=["committed", "before"])
def test_the_founder_puts_no_second_register_beside_the_first(
    seed: int, committed: bool
) -> None:
    """It is a member, and can write on old parents under any name."""
    group = Group("any", seed, birth(register=REGISTER if committed else ""))
    stated = group.tips()
    first = group.own(A, "segment", REGISTER)
    group.do(A, "join", B)
    group.own(A, "segment", OTHER)
    assert (group.read().segment, group.read().refused) == (REGISTER, {reader.REPLAYED: 1})
    beside = group.own(A, "segment", OTHER, parents=stated)
    reading = group.read()
    assert reading.segment == REGISTER
    assert reading.refused == {reader.REPLAYED: 1, reader.SECOND_REGISTER: 1}
    assert list(reading.segments) == ([first] if committed else sorted([first, beside]))
    group.do(B, "leave", A)
    assert group.read().segment == REGISTER
    # Without the commitment who was given them the other way round keeps the other one.
    turned = [replace(block, place=len(group.blocks) - block.place) for block in group.blocks]
    assert group.read(turned).segment == (REGISTER if committed else OTHER)


@pytest.mark.parametrize("seed", range(4))
def test_the_register_stays_when_the_act_that_names_it_is_void(seed: int) -> None:
    """A founder who was removed lets somebody in on old parents, and leaves on top of that."""
    group = Group("any", seed, birth(register=REGISTER))
    stated = group.tips()
    group.own(A, "segment", REGISTER)
    group.do(A, "join", B)
    group.do(B, "leave", A)
    joined = group.do(A, "join", E, parents=stated)
    group.do(A, "leave", A, parents=[joined])
    assert group.read().segments == {}
    assert group.read().segment == REGISTER


def test_a_device_never_has_members() -> None:
    """Who has the keys that a device has replaced cannot make an identity of it."""
    group = Group.__new__(Group)
    group.birth = Birth(pin=PIN)
    group.blocks = []
    group._random = random.Random(1)
    group.key(K0, K0)
    group.key(K0, K1)
    for parents in (None, [group.blocks[0].ref]):
        by_stranger(group, parents or group.tips(), "any")
        without_approval(group, parents or group.tips(), "any")
        group.own(A, "segment", "QmSegment", parents=parents)
    reading = group.read()
    assert (reading.members, reading.keys, reading.segment) == ({}, [K0, K1], None)
    assert reading.rule is None


def test_of_two_renewals_without_commitment_one_counts_whoever_wrote_it() -> None:
    """A thief of replaced keys writes one beside the device's; nothing tells them apart.

    That is of devices of an earlier version, which have committed to nothing.
    """
    found = set()
    for seed in range(20):
        group = Group.__new__(Group)
        group.birth = Birth(pin=PIN)
        group.blocks = []
        group._random = random.Random(seed)
        first = group.key(K0, K0)
        group.key(K0, K1)
        group.key(K1, K2)
        group.key(K0, EVIL, parents=[first])
        keys = group.read().keys
        assert group.read(group.blocks[::-1]).keys == keys
        found.add(tuple(keys))
    assert found == {(K0, K1, K2), (K0, EVIL)}


def test_first_keys_are_those_that_the_did_commits_to() -> None:
    group = Group("any", birth=birth())
    group.do(A, "join", B)
    evil = Group("any", birth=birth())
    evil.blocks = []
    evil.key(EVIL, EVIL)
    evil.do(A, "join", E, key=EVIL)
    mixed = [*evil.blocks, *group.blocks]
    # Whatever somebody tells: without a pin, and with the one of other keys.
    believed = reader.read_identity(GROUP, None, mixed, verify, approved, birth=birth())
    assert believed == group.read(mixed)
    assert set(believed.members) == {A, B}
    assert believed.refused[reader.NOT_PINNED] == 1
    false = reader.read_identity(GROUP, pin_of(EVIL), mixed, verify, approved, birth=birth())
    assert (false.keys, false.members) == ([], {})


_steps = st.lists(
    st.tuples(
        st.sampled_from([A, C, E]),
        st.sampled_from(["join", "leave", "rules", "admin", "legacy-join", "renew", "segment"]),
        st.sampled_from([A, B, C, E]),
        # On the first keys, on the step before, or on any block.
        st.integers(0, 30),
    ),
    max_size=8,
)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["any", "admins"]),
    st.integers(0, 5),
    _steps,
    st.randoms(use_true_random=False),
)
def test_whatever_former_members_write_together_nobody_gets_in(
    rule: str, seed: int, steps: Sequence[tuple[str, str, str, int]], order: random.Random
) -> None:
    group = founded(rule, seed)
    honest = len(group.blocks)
    before = group.read()
    for by, act, subject, place in steps:
        index = (0, -1)[place] if place < 2 else (place - 2) % honest
        parents = [group.blocks[index].ref]
        if act == "renew":
            group.key(K0, EVIL, by=by, parents=parents)
        elif act == "legacy-join":
            group.legacy("join", subject, parents=parents)
        elif act in ("join", "leave"):
            group.do(by, act, subject, parents=parents)
        else:
            told = rule if act == "rules" else ""
            group.own(by, act, subject, rule=told, parents=parents)
    after = group.read()
    now = {m.did for m in after.members.values() if m.current}
    assert now <= {B}
    assert after.rule == rule
    # In return they can put out who removed them, and nothing else.
    if now == {B}:
        assert after.keys == before.keys
    shuffled = list(group.blocks)
    order.shuffle(shuffled)
    assert group.read(shuffled) == after


# ---------------------------------------------------------------------------- form


def test_a_birth_takes_the_place_of_random_bytes() -> None:
    founder = "did:walytisidentities:Qm" + "x" * 44
    for told in (
        Birth(pin=PIN),
        Birth(pin=PIN, next=did_pin("next")),
        birth("admins", founder),
        birth("any", founder, REGISTER),
    ):
        content = put_birth(STOCK, told)
        assert len(content) == len(STOCK)
        assert content.startswith(GREETING)
        assert read_birth(content) == told
    assert read_birth(STOCK) is None
    with pytest.raises(LocalProtocolError):
        birth(founder="x" * ROOM).encode()


@given(st.binary(max_size=200))
def test_any_bytes_are_a_birth_or_none(data: bytes) -> None:
    marks = GREETING + MARK, GREETING + DEVICE_MARK
    for content in (data, GREETING + data, *(mark + data for mark in marks)):
        assert read_birth(content) is None or content.startswith(marks)


@pytest.mark.parametrize(
    "fields",
    [
        [PIN, "", b"", "any"],
        [PIN, A, b"", "any"],
        [PIN, A, did_pin(A), ""],
        [PIN, A, did_pin(A), "none"],
        [b"short", "", b"", ""],
        [PIN, "", b""],
        [PIN, b"short"],
        [PIN],
        [PIN, A, did_pin(A), "any", ""],
        [PIN, A, did_pin(A), "any", "QmShort"],
        [PIN, A, did_pin(A), "any", "../" + "x" * 43],
        [PIN, "", b"", "", REGISTER],
        [PIN, A, did_pin(A), "any", REGISTER, ""],
    ],
)
def test_half_a_birth_is_none(fields: list[object]) -> None:
    body = pack(fields)
    for mark in (MARK, DEVICE_MARK):
        assert read_birth(GREETING + mark + len(body).to_bytes(2) + body) is None
    assert "none" not in RULES_KNOWN
