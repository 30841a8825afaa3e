"""Who may change an identity: acts of members, former members and members who disagree."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Sequence

import pytest
from blake3 import blake3
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.test_reader import EVIL, GROUP, K0, K1, K2, PIN, did_pin, member_info, sign, verify
from walyoff.child import placing, reader
from walyoff.child.acts import (
    TOPIC_RULES,
    TOPIC_SEGMENT,
    Claim,
    IdentityBlock,
    pin_of,
)
from walyoff.child.births import Birth
from walyoff.child.reader import Reading

A, B, C, D, E = "did:a", "did:b", "did:c", "did:d", "did:e"
TOPICS = {"join": "member_joining", "leave": "member_leaving"}


def own_key(did: str) -> str:
    return f"|own {did}"


def approved(did: str, pin: bytes, signature: bytes, body: bytes) -> int:
    keys = {sign(own_key(did), body): 1, sign(own_key(f"{did} 2"), body): 2}
    return keys.get(signature, 0) if pin in (did_pin(did), b"") else 0


class Group:
    """A chain whose blocks members write; each on all tips unless told otherwise."""

    def __init__(
        self, rule: str | None = "any", seed: int = 0, birth: Birth | None = None
    ) -> None:
        self.blocks: list[IdentityBlock] = []
        self.birth = birth
        self._random = random.Random(seed)
        self.key(K0, K0)
        if rule is None:
            self.legacy("join", A)
            return
        self.do(A, "join", A)
        self.own(A, "rules", rule=rule)

    def tips(self) -> list[str]:
        parents = {p for block in self.blocks for p in block.parents}
        return [block.ref for block in self.blocks if block.ref not in parents]

    def put(self, topics: Sequence[str], content: bytes, parents: Sequence[str] | None) -> str:
        # Names are as random as those of real blocks.
        ref = blake3(self._random.randbytes(16)).hexdigest(8)
        block = IdentityBlock(
            ref=ref,
            topics=tuple(topics),
            parents=tuple(self.tips() if parents is None else parents),
            content=content,
            place=len(self.blocks),
        )
        self.blocks.append(block)
        return ref

    def claim(
        self,
        by: str,
        kind: str,
        subject: str = "",
        *,
        pin: bytes = b"",
        rule: str = "",
        parents: Sequence[str] | None = None,
    ) -> Claim:
        return Claim(
            group=GROUP,
            kind=kind,
            by=by,
            subject=subject,
            pin=pin,
            rule=rule,
            nonce=self._random.randbytes(16),
            parents=tuple(self.tips() if parents is None else parents),
        )

    def do(
        self,
        by: str,
        kind: str,
        subject: str,
        *,
        key: str = K0,
        signer: str | None = None,
        parents: Sequence[str] | None = None,
    ) -> str:
        claim = self.claim(by, kind, subject, pin=did_pin(subject), parents=parents)
        approval = sign(own_key(signer or by), claim.body())
        info = {"did": subject, "invitation": "{}", "walyoff": claim.as_field(approval)}
        return self.info(TOPICS[kind], info, key, claim.parents)

    def info(self, topic: str, info: object, key: str, parents: Sequence[str] | None) -> str:
        content = {
            "info_content": info,
            "signature": base64.urlsafe_b64encode(
                sign(key, json.dumps(info).encode())
            ).decode(),
            "priblocks_version": [0, 0, 1],
        }
        return self.put(["GroupDidManager", topic], json.dumps(content).encode(), parents)

    def legacy(
        self, kind: str, did: str, *, key: str = K0, parents: Sequence[str] | None = None
    ) -> str:
        info = member_info(kind, did, len(self.blocks))
        return self.info(TOPICS[kind], info, key, parents)

    def key(
        self,
        old: str,
        new: str,
        by: str | None = None,
        parents: Sequence[str] | None = None,
        *,
        signer: str | None = None,
    ) -> str:
        content: dict[str, object] = {
            "old_keys": old,
            "new_keys": new,
            "signature": base64.urlsafe_b64encode(sign(old, f"{old}--{new}".encode())).decode(),
            "priblocks_version": [0, 0, 1],
        }
        if by is not None:
            claim = self.claim(by, "renew", pin=pin_of(new), parents=parents)
            content["walyoff"] = claim.as_field(sign(own_key(signer or by), claim.body()))
        return self.put(["DidManager", "control_key"], json.dumps(content).encode(), parents)

    def own(
        self,
        by: str,
        kind: str,
        subject: str = "",
        *,
        rule: str = "",
        key: str = K0,
        parents: Sequence[str] | None = None,
        signer: str | None = None,
    ) -> str:
        claim = self.claim(by, kind, subject, rule=rule, parents=parents)
        body = claim.body()
        content = claim.as_block(sign(own_key(signer or by), body), sign(key, body))
        topic = TOPIC_SEGMENT if kind == "segment" else TOPIC_RULES
        return self.put([topic], content, claim.parents)

    def read(self, blocks: Sequence[IdentityBlock] | None = None) -> Reading:
        found = self.blocks if blocks is None else blocks
        return reader.read_identity(GROUP, PIN, found, verify, approved, birth=self.birth)

    def current(self) -> set[str]:
        return {m.did for m in self.read().members.values() if m.current}


@pytest.fixture(params=range(4))
def three(request: pytest.FixtureRequest) -> Group:
    """Several times: which of two concurrent blocks comes first is a matter of their names."""
    group = Group(seed=request.param)
    for did in (B, C):
        group.do(A, "join", did)
    return group


def test_keys_that_an_actor_has_replaced_act_no_more(three: Group) -> None:
    """A device that was removed from a person keeps the person's and the group's keys."""
    three.do(B, "join", D)
    before = three.tips()
    three.do(B, "join", E, signer=f"{B} 2")
    # On top of all, and as if it had been written before anybody knew.
    three.do(B, "leave", A)
    three.do(B, "leave", C, parents=before)
    assert three.current() == {A, B, C, D, E}
    assert three.read().refused[reader.OUTDATED] == 2
    # What was written before stays, and what others write beside it too.
    three.do(C, "leave", D, parents=before)
    assert three.current() == {A, B, C, E}


def test_members_act_for_the_identity(three: Group) -> None:
    three.do(C, "join", D)
    three.do(B, "leave", C)
    three.own(A, "segment", "QmSegment")
    reading = three.read()
    assert three.current() == {A, B, D}
    assert (reading.rule, reading.segment, reading.refused) == ("any", "QmSegment", {})
    assert [m.joined_at for m in reading.members.values()] == [0, 1, 2, 3]


def test_who_is_no_member_or_signs_for_another_does_nothing(three: Group) -> None:
    three.do(D, "join", D)
    three.do(D, "join", E)
    three.do(A, "join", E, signer=C)
    three.legacy("join", D)
    three.key(K0, EVIL)
    three.key(K0, EVIL, by=D)
    three.own(D, "segment", "QmEvil")
    reading = three.read()
    assert three.current() == {A, B, C}
    assert (reading.keys, reading.segment) == ([K0], None)
    assert reading.refused == {reader.NO_ACTOR: 7}


def test_who_was_removed_undoes_nothing_by_renewing_its_own_keys() -> None:
    """The founder has removed C, and is removed itself; then it acts under newer own keys."""
    for rule in ("any", "admins"):
        group = Group(rule)
        group.do(A, "join", B)
        if rule == "admins":
            group.own(A, "admin", B)
        early = [group.blocks[2].ref]
        group.do(A, "join", C)
        group.do(A, "leave", C)
        group.do(B, "leave", A)
        expected = group.read()
        for parents in (early, [group.blocks[0].ref], None):
            group.do(A, "join", E, signer=f"{A} 2", parents=parents)
            group.do(A, "leave", E, signer=f"{A} 2", parents=parents)
        # And with the rules gone the control keys alone would do.
        group.legacy("join", C, parents=early)
        reading = group.read()
        assert reading.members == expected.members
        assert (reading.rule, group.current()) == (rule, {B})


def backdated(group: Group, by: str, parents: Sequence[str] | None) -> None:
    """All that a former member can write who has kept its keys."""
    group.do(by, "join", by, parents=parents)
    group.do(by, "join", E, parents=parents)
    group.do(E, "join", by, parents=[group.blocks[-1].ref])
    group.do(by, "leave", B, parents=parents)
    group.key(K0, EVIL, by=by, parents=parents)
    group.own(by, "segment", "QmEvil", parents=parents)
    group.own(by, "rules", rule="any", parents=parents)
    group.own(by, "admin", by, parents=parents)
    group.legacy("join", by, parents=parents)
    group.legacy("leave", B, parents=parents)
    group.do(by, "leave", B, parents=[group.blocks[-1].ref])


@pytest.mark.parametrize("old", [True, False], ids=["old parents", "fresh parents"])
@pytest.mark.parametrize("renewed", [True, False])
def test_nothing_counts_that_a_former_member_writes(
    three: Group, old: bool, renewed: bool
) -> None:
    before = three.tips()
    three.do(A, "leave", C)
    if renewed:
        three.key(K0, K1, by=A)
    expected = three.read()
    backdated(three, C, before if old else None)
    reading = three.read()
    assert (reading.members, reading.keys) == (expected.members, expected.keys)
    assert reading.segments == {}
    assert sum(reading.refused.values()) == 11
    # Others go on over it.
    three.do(B, "join", D, key=K1 if renewed else K0)
    assert three.current() == {A, B, D}


def test_nobody_gives_a_member_other_keys_by_a_second_joining(three: Group) -> None:
    expected = three.read().members
    claim = three.claim(C, "join", B, pin=did_pin(EVIL))
    field = claim.as_field(sign(own_key(C), claim.body()))
    info = {"did": B, "invitation": "{}", "walyoff": field}
    three.info(TOPICS["join"], info, K0, claim.parents)
    reading = three.read()
    assert reading.members == expected
    assert reading.refused == {reader.ALREADY_MEMBER: 1}


def test_a_copy_of_an_act_elsewhere_is_no_act(three: Group) -> None:
    before = three.tips()
    genesis = [three.blocks[0].ref]
    three.do(A, "leave", C)
    leaving = three.blocks[-1]
    # If a copy could act first, and in vain, the act itself would be a repetition.
    for parents in (genesis, before, three.tips()):
        three.put(leaving.topics, leaving.content, parents)
    assert three.current() == {A, B}
    refused = three.read().refused
    assert refused == {reader.WRONG_PLACE: 2, reader.REPLAYED: 1}


def test_a_joining_that_was_ended_cannot_be_repeated_beside_itself(three: Group) -> None:
    before = three.tips()
    three.do(A, "join", D)
    joining = three.blocks[-1]
    three.do(A, "leave", D)
    three.put(joining.topics, joining.content, before)
    assert three.current() == {A, B, C}


def test_what_is_written_at_the_same_time_as_ones_own_removal_does_not_count(
    three: Group,
) -> None:
    tips = three.tips()
    three.do(A, "leave", C, parents=tips)
    invited = three.do(C, "join", D, parents=tips)
    three.do(D, "join", E, parents=[invited])
    assert three.current() == {A, B}
    # What it had written before counts, and what others wrote at that time.
    three.do(B, "join", "did:f", parents=tips)
    assert three.current() == {A, B, "did:f"}


def test_of_two_who_remove_each_other_both_are_out(three: Group) -> None:
    tips = three.tips()
    one = three.do(A, "leave", C, parents=tips)
    other = three.do(C, "leave", A, parents=tips)
    assert three.current() == {B}
    # Neither can bring itself back by going on where it stood.
    three.do(A, "join", A, parents=[one])
    three.do(C, "join", C, parents=[other])
    assert three.current() == {B}
    three.do(B, "join", A)
    assert three.current() == {A, B}


@pytest.mark.parametrize("seed", range(4))
def test_who_puts_out_its_remover_can_put_out_others_and_nobody_comes_back(seed: int) -> None:
    """The price of not telling who lies: whom either of the two removed is out."""
    group = Group("any", seed)
    for did in (B, C, D, E):
        group.do(A, "join", did)
    before = group.tips()
    group.do(A, "leave", E)
    group.do(A, "leave", C)
    group.key(K0, K1, by=A)
    group.do(C, "leave", D, parents=before)
    assert group.current() == {A, B, D}
    group.do(C, "leave", A, parents=before)
    assert group.current() == {B}
    # The renewal went with its author.
    assert (group.read().keys, group.read().renewal_due) == ([K0], True)
    group.key(K0, K2, by=B)
    group.do(B, "join", A, key=K2)
    group.do(C, "leave", A, parents=before)
    assert group.current() == {A, B}


def test_three_who_remove_each_other_in_a_ring_are_all_out(three: Group) -> None:
    three.do(A, "join", D)
    tips = three.tips()
    for by, of in ((A, B), (B, C), (C, A)):
        three.do(by, "leave", of, parents=tips)
    assert three.current() == {D}


def test_the_removal_by_one_who_was_removed_meanwhile_does_not_count(three: Group) -> None:
    tips = three.tips()
    three.do(A, "leave", B, parents=tips)
    three.do(B, "leave", C, parents=tips)
    assert three.current() == {A, C}


def test_two_former_members_cannot_bring_each_other_back(three: Group) -> None:
    tips = three.tips()
    three.do(A, "leave", B)
    three.do(A, "leave", C)
    # In return they can put out who removed them, and nobody gets in by that.
    taken = three.do(B, "leave", A, parents=tips)
    three.do(B, "join", C, parents=[taken])
    three.do(C, "join", B, parents=tips)
    assert three.current() == set()


def test_who_was_removed_and_joined_again_acts_again(three: Group) -> None:
    old = three.tips()
    three.do(A, "leave", C)
    three.do(A, "join", C)
    three.do(C, "join", D)
    assert three.current() == {A, B, C, D}
    # Its first membership stays ended.
    three.do(C, "join", E, parents=old)
    assert three.current() == {A, B, C, D}


def test_everybody_may_leave_and_only_once(three: Group) -> None:
    three.do(C, "leave", C)
    three.do(B, "leave", C)
    assert three.current() == {A, B}
    assert three.read().refused == {reader.NOT_A_MEMBER: 1}


# ----------------------------------------------------------------------------- roles


def test_where_admins_rule_only_they_invite_remove_and_name_admins() -> None:
    group = Group("admins")
    group.do(A, "join", B)
    group.do(B, "join", C)
    group.do(B, "leave", A)
    group.own(B, "admin", B)
    assert group.current() == {A, B}
    assert group.read().refused == {reader.NOT_AN_ADMIN: 3}
    group.own(A, "admin", B)
    group.do(B, "join", C)
    reading = group.read()
    assert [m.admin for m in reading.members.values()] == [True, True, False]
    assert reading.rule == "admins"
    assert reading.may_manage(B)
    assert not reading.may_manage(C)
    # Renewing and leaving are everybody's.
    group.key(K0, K1, by=C)
    group.do(C, "leave", C, key=K1)
    assert group.current() == {A, B}
    assert group.read().keys == [K0, K1]


def test_an_admin_who_left_is_none_when_it_comes_back() -> None:
    group = Group("admins")
    for did in (B, C):
        group.do(A, "join", did)
    group.own(A, "admin", B)
    old = group.tips()
    group.do(A, "leave", B)
    group.do(A, "join", B)
    group.do(B, "join", D)
    group.do(B, "join", E, parents=old)
    reading = group.read()
    assert group.current() == {A, B, C}
    assert not reading.members[B].admin
    assert reading.refused == {reader.NOT_AN_ADMIN: 1, reader.NO_ACTOR: 1}


def test_rules_are_set_once_by_the_founder() -> None:
    group = Group("admins")
    group.do(A, "join", B)
    group.own(B, "rules", rule="any")
    group.own(A, "rules", rule="any")
    assert group.read().rule == "admins"
    # Nobody takes the right away from members who are there.
    old = Group(None)
    old.legacy("join", B)
    old.own(B, "rules", rule="admins")
    assert old.read().rule is None
    old.own(B, "rules", rule="any")
    assert old.read().rule == "any"


# --------------------------------------------------------------------------- renewal


def test_renewals_by_members_count_and_old_keys_no_longer(three: Group) -> None:
    tips = three.tips()
    three.key(K0, K1, by=B)
    three.do(A, "join", D, key=K1)
    three.do(A, "join", E, key=K0)
    # Its author had not seen the renewal.
    three.do(C, "join", "did:f", key=K0, parents=tips)
    reading = three.read()
    assert three.current() == {A, B, C, D, "did:f"}
    assert reading.refused == {reader.OLD_KEYS: 1}
    assert not reading.renewal_due
    three.do(A, "leave", B, key=K1)
    assert three.read().renewal_due
    three.key(K1, K2, by=A)
    assert not three.read().renewal_due


def test_of_two_renewals_at_once_one_counts_and_both_authors_go_on(three: Group) -> None:
    tips = three.tips()
    one = three.key(K0, K1, by=A, parents=tips)
    two = three.key(K0, K2, by=B, parents=tips)
    three.do(A, "join", D, key=K1, parents=[one])
    three.do(B, "join", E, key=K2, parents=[two])
    reading = three.read()
    assert reading.keys == [K0, min((one, K1), (two, K2))[1]]
    assert three.current() == {A, B, C, D, E}
    assert reading.refused == {reader.STALE_RENEWAL: 1}
    loser = max((one, K1), (two, K2))[1]
    three.do(C, "join", "did:f", key=loser)
    assert "did:f" not in three.current()


def test_who_never_got_the_newest_keys_begins_from_older_ones(three: Group) -> None:
    three.key(K0, K1, by=B)
    three.key(K0, K2, by=A)
    assert three.read().keys == [K0, K1, K2]
    three.do(C, "join", D, key=K2)
    assert three.current() == {A, B, C, D}
    # On a chain without rules that would be open to everybody who has them.
    old = Group(None)
    old.key(K0, K1)
    old.key(K0, EVIL)
    assert old.read().keys == [K0, K1]


# ---------------------------------------------------------------------------- before


def test_an_identity_of_the_previous_format_is_read_and_then_ruled() -> None:
    group = Group(None)
    for did in (B, C):
        group.legacy("join", did)
    old = group.tips()
    group.legacy("leave", C)
    assert group.current() == {A, B}
    group.own(A, "rules", rule="any")
    expected = group.read().members
    # The keys alone no longer do, wherever they write.
    for parents in (None, old, [group.blocks[1].ref]):
        group.legacy("join", C, parents=parents)
        group.key(K0, EVIL, parents=parents)
        group.do(C, "join", C, parents=parents)
        group.own(C, "rules", rule="any", parents=parents)
    assert group.read().members == expected
    assert group.read().keys == [K0]
    group.do(B, "join", D)
    assert group.current() == {A, B, D}


def test_two_who_write_the_rules_at_once_lose_nothing() -> None:
    group = Group(None)
    group.legacy("join", B)
    tips = group.tips()
    group.own(A, "rules", rule="any", parents=tips)
    group.legacy("join", C, parents=tips)
    group.own(B, "rules", rule="any", parents=[group.blocks[-1].ref])
    group.do(C, "join", D)
    assert group.current() == {A, B, C, D}


# ----------------------------------------------------------------------- any history

_ACTS = ["join", "leave", "renew", "admin", "segment", "rules", "legacy-join", "legacy-leave"]
_DIDS = [A, B, C, D]
_keys = [K0, K1, K2]

histories = st.tuples(
    st.sampled_from(["any", "any", "admins", None]),
    st.integers(0, 3),
    st.lists(
        st.tuples(
            st.sampled_from(_DIDS),
            st.sampled_from(_ACTS),
            st.sampled_from(_DIDS),
            st.sampled_from(_keys),
            # How many of the newest blocks the author has not seen.
            st.integers(0, 4),
            # Whether it has newer keys of its own.
            st.booleans(),
        ),
        max_size=14,
    ),
)
History = tuple[str | None, int, list[tuple[str, str, str, str, int, bool]]]


def tell(history: History) -> Group:
    rule, seed, steps = history
    group = Group(rule, seed)
    for did in (B, C):
        if rule is None:
            group.legacy("join", did)
        else:
            group.do(A, "join", did)
    for by, act, subject, key, unseen, renewed in steps:
        seen = Group.__new__(Group)
        seen.blocks = group.blocks[: max(1, len(group.blocks) - unseen)]
        signer = f"{by} 2" if renewed else by
        write(group, by, act, subject, key=key, parents=seen.tips(), signer=signer)
    return group


def write(
    group: Group,
    by: str,
    act: str,
    subject: str,
    *,
    key: str,
    parents: Sequence[str],
    signer: str | None = None,
) -> None:
    if act == "renew":
        old = _keys[max(0, _keys.index(key) - 1)]
        group.key(old, key, by=by, parents=parents, signer=signer)
    elif act.startswith("legacy"):
        group.legacy(act.removeprefix("legacy-"), subject, key=key, parents=parents)
    elif act in TOPICS:
        group.do(by, act, subject, key=key, parents=parents, signer=signer)
    else:
        rule = "any" if act == "rules" else ""
        group.own(by, act, subject, rule=rule, key=key, parents=parents)


@settings(max_examples=150, deadline=None)
@given(histories, st.randoms(use_true_random=False))
def test_the_same_blocks_in_any_order_give_the_same_reading(
    history: History, order: random.Random
) -> None:
    group = tell(history)
    expected = group.read()
    shuffled = list(group.blocks)
    order.shuffle(shuffled)
    assert group.read(shuffled) == expected


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(
    histories,
    st.lists(
        st.tuples(
            st.sampled_from(_ACTS),
            st.sampled_from(_DIDS),
            st.sampled_from(_keys),
            st.integers(0, 1 << 16),
        ),
        min_size=1,
        max_size=6,
    ),
)
def test_one_who_is_out_gets_nobody_in_and_no_keys(
    history: History, forged: list[tuple[str, str, str, int]]
) -> None:
    """C is removed by B, who stays, and writes anything then, on top of anything."""
    group = tell(history)
    before = group.read()
    assume(before.rule is not None and before.may_manage(B) and C in group.current())
    newest = len(group.blocks)
    group.do(B, "leave", C, key=before.keys[-1])
    before = group.read()
    assume(C not in {m.did for m in before.members.values() if m.current})
    for act, subject, key, place in forged:
        parents = [group.blocks[place % newest].ref]
        write(group, C, act, subject, key=key, parents=parents)
    after = group.read()
    now = {m.did for m in after.members.values() if m.current}
    # Who put C out can be put out by it in return; with nobody else does it do anything.
    if not any(act == "leave" and subject == B for act, subject, _, _ in forged):
        assert now == {m.did for m in before.members.values() if m.current}
        assert after.keys == before.keys
    assert C not in now
    assert now <= {m.did for m in before.members.values() if m.current}


def test_a_renewal_by_replaced_keys_that_comes_first_does_not_hide_the_newer_ones(
    three: Group,
) -> None:
    """A removed device writes its own renewal beside the person's; its name it can choose."""
    before = three.tips()
    for old, new, signer in ((K0, K1, f"{B} 2"), (K0, EVIL, B)):
        claim = three.claim(B, "renew", pin=pin_of(new), parents=before)
        value = {
            "old_keys": old,
            "new_keys": new,
            "signature": base64.urlsafe_b64encode(sign(old, f"{old}--{new}".encode())).decode(),
            "walyoff": claim.as_field(sign(own_key(signer), claim.body())),
        }
        three.put(["DidManager", "control_key"], json.dumps(value).encode(), before)
    three.do(B, "join", D, signer=B, parents=before)
    three.do(B, "leave", A, signer=B, parents=before)
    assert three.read().keys == [K0, K1]
    assert three.current() == {A, B, C}


@pytest.mark.parametrize("seed", range(8))
def test_a_block_with_a_signature_that_does_not_hold_hides_no_act(seed: int) -> None:
    """A former member repeats its removal with rubbish in it, under a name that comes first."""
    group = Group("any", seed)
    for did in (B, C):
        group.do(A, "join", did)
    group.key(K0, K1, by=A)
    group.do(A, "leave", C, key=K1)
    group.do(B, "join", D, key=K1)
    expected = group.read()
    assert group.current() == {A, B, D}
    for block in group.blocks[-2:]:
        info = json.loads(block.content)["info_content"]
        # The approval holds, and control keys of before signed; or it is the other way round.
        group.info(block.topics[1], info, K0, block.parents)
        info["walyoff"]["sig"] = base64.b64encode(b"rubbish").decode()
        for key in (K0, K1):
            group.info(block.topics[1], info, key, block.parents)
    reading = group.read()
    assert reading.members == expected.members
    assert reading.refused == {reader.REPLAYED: 6}


@pytest.mark.parametrize("seed", range(4))
def test_a_removed_device_does_not_put_its_person_out_where_the_person_invites_nobody(
    seed: int,
) -> None:
    """It has the old keys of the person (B) and of the group, and writes on old parents."""
    group = Group("admins", seed)
    for did in (B, C):
        group.do(A, "join", did)
    before = group.tips()
    group.key(K0, K1, by=B, signer=f"{B} 2")
    expected = group.read()
    joined = group.do(B, "join", E, parents=before)
    for parents in (before, [joined], None):
        group.do(B, "leave", B, parents=parents)
    group.do(E, "leave", B, parents=[joined])
    group.own(B, "admin", E, parents=[joined])
    assert group.read().members == expected.members
    assert group.read().keys == [K0, K1]
    # The person itself leaves by its newer keys.
    group.do(B, "leave", B, key=K1, signer=f"{B} 2")
    assert group.current() == {A, C}


@pytest.mark.parametrize("rule", ["any", "admins"])
@pytest.mark.parametrize("seed", range(4))
def test_who_left_by_itself_is_not_back_by_newer_keys_of_its_own(seed: int, rule: str) -> None:
    group = Group(rule, seed)
    for did in (B, C):
        group.do(A, "join", did)
    before = group.tips()
    group.do(B, "leave", B)
    group.key(K0, K1, by=C)
    for parents in (before, [group.blocks[0].ref]):
        group.key(K0, K2, by=B, parents=parents, signer=f"{B} 2")
        group.own(B, "segment", "QmOther", parents=parents)
    assert group.current() == {A, C}
    assert group.read().keys == [K0, K1]


@pytest.mark.parametrize("seed", range(4))
def test_who_is_removed_voids_nothing_by_leaving_earlier(seed: int) -> None:
    """Unless who removed it is a member by its invitation: then nobody can tell who lies."""
    group = Group("any", seed)
    group.do(A, "join", C)
    before = group.tips()
    for did in (B, D):
        group.do(C, "join", did)
    group.do(A, "leave", C)
    for parents in (before, [group.blocks[0].ref], None):
        group.do(C, "leave", C, parents=parents)
    assert group.current() == {A, B, D}
    # B owes its membership to A now, and D to C alone.
    group.do(A, "leave", B)
    group.do(A, "join", B)
    assert group.current() == {A, B, D}


@pytest.mark.parametrize("rule", ["any", None])
@pytest.mark.parametrize("seed", range(12))
def test_what_an_outsider_copies_elsewhere_takes_nothing_from_anybody(
    seed: int, rule: str | None
) -> None:
    """It has no keys: it repeats what it reads, in other places and as something else."""
    group = Group(rule, seed)
    for did in (B, C):
        if rule is None:
            group.legacy("join", did)
        else:
            group.do(A, "join", did)
    if rule is None:
        group.legacy("leave", C)
        group.key(K0, K1)
        group.own(B, "rules", rule="any", key=K1)
    else:
        group.do(A, "leave", C)
        group.key(K0, K1, by=A)
    group.do(B, "join", D, key=K1)
    group.own(B, "segment", "QmSegment", key=K1)
    expected = group.read()
    assert group.current() == {A, B, D}
    newest = group.blocks[-1].ref
    others = ["did_doc", "member_joining", "member_leaving", "member_update", "control_key"]
    for block in list(group.blocks):
        for place in ([], [group.blocks[0].ref], list(block.parents)):
            # Space in JSON is in no signature.
            for content in (block.content, block.content + b" "):
                group.put(block.topics, content, place)
                for topic in others:
                    group.put([topic], content, place)
    reading = group.read()
    assert reading.members == expected.members
    assert (reading.keys, reading.rule) == (expected.keys, expected.rule)
    assert set(reading.segments.values()) == {"QmSegment"}
    # And on top of it everything goes on.
    group.do(B, "join", E, key=K1, parents=[newest, *group.tips()[:60]])
    assert group.current() == {A, B, D, E}


def test_copies_of_control_key_blocks_are_looked_through_by_no_act() -> None:
    """An outsider copies a renewal as often as it likes, with a space more each time."""
    group = Group.__new__(Group)
    group.blocks, group._random = [], random.Random(1)
    group.key(K0, K0)
    group.key(K0, K1)
    for n in range(200):
        for block in group.blocks[:2]:
            group.put(block.topics, block.content + b" " * n, [group.blocks[-1].ref])
    places = placing._Places(GROUP, [PIN], verify)
    for block in placing.in_common_order(group.blocks):
        places.take(block)
    assert list(places._keys) == [K0, K1]
    assert len(places.drafts) == len(group.blocks)


@pytest.mark.parametrize("seed", range(12))
def test_what_an_outsider_copies_on_a_chain_without_rules_brings_nobody_back(seed: int) -> None:
    group = Group(None, seed)
    for did in (B, C):
        group.legacy("join", did)
    group.legacy("leave", C)
    group.legacy("join", E)
    newest = group.blocks[-1].ref
    expected = group.read().members
    assert [m.joined_at for m in expected.values()] == [0, 1, 2, 4]
    for block in list(group.blocks[1:]):
        for place in ([group.blocks[0].ref], list(block.parents)):
            group.put(block.topics, block.content + b" ", place)
    # Nor does it move the numbers of joinings, by which epochs name who is out.
    assert group.read().members == expected
    group.legacy("join", D, parents=[newest, *group.tips()])
    assert group.current() == {A, B, D, E}
