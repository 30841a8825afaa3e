"""Renewals of an identity's control keys that turn out void take nothing from others."""

from __future__ import annotations

import pytest

from tests.test_founding import birth
from tests.test_reader import EVIL, GROUP, K0, K1, K2
from tests.test_reader_rules import A, B, C, D, E, Group
from walyoff.child import reader
from walyoff.child.registers import Registers

F = "did:f"
K3 = "|key 3"


@pytest.fixture(params=["any", "admins"])
def rule(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=range(6), ids=lambda seed: f"seed{seed}")
def group(request: pytest.FixtureRequest, rule: str) -> Group:
    """Which of two renewals comes first is a matter of names."""
    group = Group(rule, request.param, birth(rule))
    for did in (B, C, D):
        group.do(A, "join", did)
    if rule == "admins":
        for did in (B, C):
            group.own(A, "admin", did)
    return group


def test_whom_others_let_in_stays_when_a_renewal_goes_with_its_author(group: Group) -> None:
    """C is removed, and puts out A in return, who had renewed the keys."""
    before = group.tips()
    group.do(A, "leave", C)
    group.key(K0, K1, by=A)
    group.do(B, "join", E, key=K1)
    group.key(K1, K2, by=D)
    group.do(B, "join", F, key=K2)
    group.own(E, "segment", "QmSegment", key=K2)
    assert group.current() == {A, B, D, E, F}
    group.do(C, "leave", A, parents=before)
    reading = group.read()
    assert group.current() == {B, D, E, F}
    assert reading.segment == "QmSegment"
    # D's renewal is on top of the keys that count, and hers are the newest.
    assert (reading.keys, reading.void_keys) == ([K0, K2], [K1])
    # Links of the register that were signed by them still hold.
    registers = Registers.__new__(Registers)
    registers._control = {}
    registers.take_reading(GROUP, reading)
    assert registers._control[GROUP] == [K0, K2, K1]
    # Nobody goes on with those that were replaced.
    group.do(B, "join", "did:g", key=K1)
    group.do(B, "join", "did:h", key=K2)
    assert group.current() == {B, D, E, F, "did:h"}


def test_a_member_voids_no_keys_by_a_renewal_on_old_parents(group: Group) -> None:
    """D may neither invite nor remove where admins rule; its name may come first."""
    before = group.tips()
    group.key(K0, K1, by=A)
    group.do(A, "join", E, key=K1)
    group.key(K1, K2, by=B)
    group.do(A, "join", F, key=K2)
    expected = {m.did: m.current for m in group.read().members.values()}
    tips = group.tips()
    group.key(K0, EVIL, by=D, parents=before)
    assert {m.did: m.current for m in group.read().members.values()} == expected
    assert set(group.read().keys + group.read().void_keys) == {K0, K1, K2, EVIL}
    # Who has not heard of it goes on, and so does everybody by a renewal on top of both.
    group.do(B, "join", "did:g", key=K2, parents=tips)
    assert "did:g" in group.current()
    group.key(K0, K3, by=B)
    group.do(B, "join", "did:h", key=K3)
    assert "did:h" in group.current()
    assert group.read().keys[-1] == K3


def test_a_member_voids_no_keys_by_newer_keys_of_its_own_on_old_parents(group: Group) -> None:
    """D renewed the keys once, and shows newer ones of its own as if it had been before."""
    before = group.tips()
    group.key(K0, K1, by=D)
    group.do(A, "join", E, key=K1)
    group.own(D, "segment", "QmSegment", parents=before, signer=f"{D} 2")
    assert group.read().refused == {reader.OUTDATED: 1}
    assert group.current() == {A, B, C, D, E}


def test_who_is_out_gets_nobody_in_by_renewals_in_a_row(group: Group) -> None:
    before = group.tips()
    group.do(A, "leave", C)
    tips, last = group.tips(), ""
    for place in (before, tips):
        for old, new in ((K0, EVIL), (EVIL, K2), (K2, K3)):
            last = group.key(old, new, by=C, parents=place if old == K0 else [last])
        group.do(C, "join", E, key=K3, parents=[last])
        group.do(E, "join", F, key=K3)
    assert group.current() == {A, B, D}
    # Nor does it keep the others from going on with the keys that they have.
    group.do(A, "join", F, key=K0)
    assert group.current() == {A, B, D, F}
