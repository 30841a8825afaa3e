"""Readings of chains that stand on one another."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_reader import sign, verify
from walyoff.child import first_keys, readings
from walyoff.child.acts import TOPIC_RULES, Approval, Claim, IdentityBlock, chain_of, pin_of
from walyoff.child.births import GREETING, ROOM, Birth, put_birth
from walyoff.child.readings import Readings

PREFIX = "did:walytisidentities:Qm"


class Held:
    """Chains that are held, written by their members, each block after the one before."""

    def __init__(self) -> None:
        self.blocks: dict[str, list[IdentityBlock]] = {}
        #: What DIDs commit to, and the chains whose blocks were looked at.
        self.births: dict[str, Birth] = {}
        self.looks: list[str] = []

    def has(self, chain: str) -> bool:
        return chain in self.blocks

    def files(self, chain: str) -> Any:
        found = self.blocks[chain]
        born = self.births.get(chain)
        first = b"" if born is None else put_birth(GREETING + bytes(ROOM), born)
        looks = self.looks

        class Files:
            def __len__(self) -> int:
                return len(found)

            def in_order(self) -> list[Any]:
                looks.append(chain)
                return [
                    SimpleNamespace(cid=b.ref, topics=b.topics, parents=b.parents)
                    for b in found
                ]

            def with_topic(self, topic: str) -> list[Any]:
                return [
                    SimpleNamespace(cid=b.ref, topics=b.topics, parents=b.parents)
                    for b in found
                    if topic in b.topics
                ]

            def read(self, cid: str) -> bytes:
                return next((b.content for b in found if b.ref == cid), first)

            def place(self, cid: str) -> int:
                return next(n for n, b in enumerate(found) if b.ref == cid)

        return Files()

    def put(self, did: str, topic: str, content: bytes) -> None:
        found = self.blocks.setdefault(chain_of(did), [])
        parents = (found[-1].ref,) if found else ()
        ref = f"{did}-{len(found)}"[-60:]
        found.append(IdentityBlock(ref=ref, topics=(topic,), parents=parents, content=content))

    def put_on(self, did: str, length: int, write: Callable[[], None]) -> None:
        """Let one write a block as if the chain had been that long."""
        chain = chain_of(did)
        found = self.blocks[chain]
        self.blocks[chain] = found[:length]
        write()
        block = replace(self.blocks[chain][-1], ref=f"late {len(found)} {did}"[-60:])
        self.blocks[chain] = [*found, block]

    def length(self, did: str) -> int:
        return len(self.blocks[chain_of(did)])

    def claim(self, did: str, by: str, kind: str, **more: Any) -> Claim:
        found = self.blocks[chain_of(did)]
        nonce = len(found).to_bytes(16, "big")
        return Claim(group=did, kind=kind, by=by, nonce=nonce, parents=(found[-1].ref,), **more)

    def key(
        self, did: str, old: str, new: str, *, by: str | None = None, own: str = ""
    ) -> None:
        data = f"{old}--{new}".encode()
        value: dict[str, Any] = {
            "old_keys": old,
            "new_keys": new,
            "signature": base64.urlsafe_b64encode(sign(old, data)).decode(),
        }
        if by is not None:
            claim = self.claim(did, by, "renew", pin=pin_of(new))
            value["walyoff"] = claim.as_field(sign(own, claim.body()))
        self.put(did, "control_key", json.dumps(value).encode())

    def join(self, did: str, by: str, member: str, *, own: str) -> None:
        self.member("join", did, by, member, own=own, key=f"|{did}")

    def member(self, kind: str, did: str, by: str, member: str, *, own: str, key: str) -> None:
        pin = pin_of(f"|{member}")
        claim = self.claim(did, by, kind, subject=member, pin=pin)
        info = {"did": member, "walyoff": claim.as_field(sign(own, claim.body()))}
        signature = sign(key, json.dumps(info).encode())
        value = {
            "info_content": info,
            "signature": base64.urlsafe_b64encode(signature).decode(),
        }
        topic = {"join": "member_joining", "leave": "member_leaving"}[kind]
        self.put(did, topic, json.dumps(value).encode())

    def rules(self, did: str, by: str) -> None:
        claim = self.claim(did, by, "rules", rule="any")
        body = claim.body()
        block = claim.as_block(sign(f"|{by}", body), sign(f"|{did}", body))
        self.put(did, TOPIC_RULES, block)

    def identity(self, did: str, founder: str) -> None:
        self.key(did, f"|{did}", f"|{did}")
        self.join(did, founder, founder, own=f"|{founder}")
        self.rules(did, founder)

    def readings(self) -> Readings:
        return Readings(self, verify, verify)  # type: ignore[arg-type]


@pytest.fixture
def held() -> Iterator[Held]:
    with (
        mock.patch.object(readings, "content_of", lambda file: file),
        mock.patch.object(first_keys, "content_of", lambda file: file),
    ):
        yield Held()


def test_a_long_row_of_identities_that_act_for_one_another_is_read(held: Held) -> None:
    device = PREFIX + "device"
    held.key(device, f"|{device}", f"|{device}")
    before = device
    for n in range(400):
        did = f"{PREFIX}{n}"
        held.identity(did, before)
        before = did
    reading = held.readings().read(before, pin_of(f"|{before}"))
    assert [m.did for m in reading.members.values()] == [f"{PREFIX}398"]


def test_a_reading_is_made_anew_when_the_chain_of_an_actor_grows(held: Held) -> None:
    a, b, c = PREFIX + "a", PREFIX + "b", PREFIX + "c"
    group = PREFIX + "group"
    held.key(a, f"|{a}", f"|{a}")
    held.identity(group, a)
    held.join(group, a, b, own=f"|{a}")
    held.join(group, a, c, own="|renewed")
    made = held.readings()
    assert set(made.read(group, pin_of(f"|{group}")).members) == {a, b}
    # Somebody else's first keys there are nobody's.
    held.key(a, "|renewed", "|renewed")
    assert set(made.read(group, pin_of(f"|{group}")).members) == {a, b}
    held.key(a, f"|{a}", "|renewed")
    assert set(made.read(group, pin_of(f"|{group}")).members) == {a, b, c}


@pytest.mark.parametrize("born", [True, False])
def test_keys_that_a_former_member_names_of_others_cost_no_reading_each(
    held: Held, born: bool
) -> None:
    """It has the group's first keys, and lets others join anew, by as many pins as it likes."""
    device, person, group = PREFIX + "device", PREFIX + "person", PREFIX + "group"
    former = PREFIX + "former"
    held.key(device, f"|{device}", f"|{device}")
    for did, founder in ((person, device), (group, person)):
        held.identity(did, founder)
        birth = Birth(
            pin=pin_of(f"|{did}"),
            founder=founder,
            founder_pin=pin_of(f"|{founder}"),
            rule="any",
        )
        held.births.update({chain_of(did): birth} if born else {})
    for n in range(20):
        for did in (person, group):
            claim = held.claim(group, former, "join", subject=did, pin=pin_of(f"|{n}"))
            info = {"did": did, "walyoff": claim.as_field(b"rubbish")}
            signature = sign(f"|{group}", json.dumps(info).encode())
            value = {
                "info_content": info,
                "signature": base64.urlsafe_b64encode(signature).decode(),
            }
            held.put(group, "member_joining", json.dumps(value).encode())
    held.join(group, group, PREFIX + "evil", own=f"|{group}")
    held.join(group, person, device, own=f"|{person}")
    made = held.readings()
    reading = made.read(group, pin_of(f"|{group}"))
    assert set(reading.members) == {person, device}
    assert sorted(held.looks) == sorted(map(chain_of, (device, person, group)))
    # Nor is anything kept of each, also where one asks for them, as families do.
    for n in range(20):
        assert made.read(person, pin_of(f"|{n}")).members == {}
    assert len(held.looks) == len(made._made) == 3


def test_approvals_that_do_not_hold_are_checked_once(held: Held) -> None:
    """A member writes acts with rubbish for approvals, and all are read at each new block."""
    device, group = PREFIX + "device", PREFIX + "group"
    held.key(device, f"|{device}", f"|{device}")
    held.identity(group, device)
    checks: list[bytes] = []

    def count(key: str, signature: bytes, body: bytes) -> bool:
        checks.append(signature)
        return verify(key, signature, body)

    made = Readings(held, verify, count)  # type: ignore[arg-type]
    for n in range(30):
        held.join(group, device, f"{PREFIX}{n}", own="|rubbish")
    made.read(group, pin_of(f"|{group}"))
    assert len(checks) == 31
    for n in range(10):
        held.join(group, device, f"{PREFIX}good {n}", own=f"|{device}")
        made.read(group, pin_of(f"|{group}"))
    assert len(checks) == 31 + 10
    # Under new keys each is looked at again.
    held.key(device, f"|{device}", "|new")
    assert len(made.read(group, pin_of(f"|{group}")).members) == 11
    assert len(checks) > 41


def test_a_present_member_is_told_by_its_newest_keys(held: Held) -> None:
    """A former member, and who has the keys that a member replaced, are none."""
    a, b, group = PREFIX + "a", PREFIX + "b", PREFIX + "group"
    for did in (a, b):
        held.key(did, f"|{did}", f"|{did}")
    held.identity(group, a)
    held.join(group, a, b, own=f"|{a}")
    made = held.readings()

    def is_members(by: str, key: str) -> bool:
        body = held.claim(group, by, "renew", pin=pin_of("|new")).body()
        approval = Approval(by=by, body=body, signature=sign(key, body))
        return made.is_members(group, pin_of(f"|{group}"), approval)

    assert is_members(b, f"|{b}")
    assert not is_members(b, f"|{a}")
    assert not is_members(PREFIX + "nobody", f"|{b}")
    held.key(b, f"|{b}", "|newer")
    assert is_members(b, "|newer")
    assert not is_members(b, f"|{b}")
    held.member("leave", group, a, b, own=f"|{a}", key=f"|{group}")
    assert not is_members(b, "|newer")


def test_first_keys_that_come_later_are_found(held: Held) -> None:
    device = PREFIX + "device"
    held.key(device, "|other", "|other")
    made = held.readings()
    assert made.read(device, pin_of(f"|{device}")).keys == []
    held.key(device, f"|{device}", f"|{device}")
    assert made.read(device, pin_of(f"|{device}")).keys == [f"|{device}"]
    assert made.read(device, pin_of("|other")).keys == ["|other"]


def read_all(held: Held, order: list[str]) -> dict[str, Any]:
    """What the chains say, read in an order, each from what was read before it."""
    made = held.readings()
    found = {did: made.read(did, pin_of(f"|{did}")) for did in order}
    return {
        did: (found[did].members, found[did].keys, found[did].rule) for did in sorted(order)
    }


def test_a_circle_that_a_former_member_writes_takes_nothing_from_anybody(held: Held) -> None:
    """It has the person's old keys, and writes there as if the group acted for the person."""
    device, friend = PREFIX + "device", PREFIX + "friend"
    person, group = PREFIX + "person", PREFIX + "group"
    for did in (device, friend):
        held.key(did, f"|{did}", f"|{did}")
    held.identity(person, device)
    held.identity(group, person)
    held.join(group, person, friend, own=f"|{person}")
    everybody = [device, friend, person, group]
    expected = read_all(held, everybody)
    assert set(expected[group][0]) == {person, friend}
    # Nobody who is a member did this: the group is none of the person's.
    held.join(person, group, group, own=f"|{group}")
    held.join(person, group, friend, own=f"|{group}")
    for order in itertools.permutations(everybody):
        assert read_all(held, list(order)) == expected


@pytest.mark.parametrize("kind", ["join", "leave"])
def test_a_device_that_puts_out_its_remover_has_the_persons_newest_keys_again(
    held: Held, kind: str
) -> None:
    """The remover's renewal goes with it, so what was voided by the newer keys is not."""
    device, remover, third, boss, friend = (f"{PREFIX}{n}" for n in "drtbf")
    person, group = PREFIX + "person", PREFIX + "group"
    for did in (device, remover, third, boss):
        held.key(did, f"|{did}", f"|{did}")
    held.identity(person, device)
    for did in (remover, third):
        held.join(person, device, did, own=f"|{device}")
    held.identity(group, boss)
    held.join(group, boss, person, own=f"|{boss}")
    of_person, of_group = held.length(person), held.length(group)
    held.member("leave", person, remover, device, own=f"|{remover}", key=f"|{person}")
    held.key(person, f"|{person}", "|newer", by=remover, own=f"|{remover}")
    held.key(group, f"|{group}", "|newest", by=person, own="|newer")

    def current() -> set[str]:
        members = held.readings().read(group, pin_of(f"|{group}")).members
        return {did for did, member in members.items() if member.current}

    def is_shown() -> bool:
        keys = held.readings().read(person, pin_of(f"|{person}")).keys
        shown = held.readings().read(group, pin_of(f"|{group}")).shown
        return shown[person] == len(keys)

    def act(subject: str) -> None:
        key = f"|{group}"
        held.put_on(
            group,
            of_group,
            lambda: held.member(kind, group, person, subject, own=f"|{person}", key=key),
        )

    act(friend if kind == "join" else person)
    assert current() == {boss, person}
    held.put_on(
        person,
        of_person,
        lambda: held.member(
            "leave", person, device, remover, own=f"|{device}", key=f"|{person}"
        ),
    )
    assert current() == ({boss, person, friend} if kind == "join" else {boss})
    if kind == "join":
        # Once another device has renewed the keys, and acted, it is over.
        assert is_shown()
        held.key(person, f"|{person}", "|third", by=third, own=f"|{third}")
        # That it is due is seen by the person's devices, each of which does it.
        assert not is_shown()
        held.key(group, f"|{group}", "|again", by=person, own="|third")
        assert is_shown()
        act(PREFIX + "other")
        assert current() == {boss, person, friend}


_ids = [f"{PREFIX}{n}" for n in range(4)]
_device = PREFIX + "device"
_acts = st.lists(
    st.tuples(
        st.sampled_from(_ids),
        st.sampled_from([*_ids, _device]),
        st.sampled_from(["join", "leave", "renew"]),
        st.sampled_from([*_ids, _device]),
        st.integers(0, 3),
    ),
    max_size=14,
)


@settings(max_examples=60, deadline=None)
@given(_acts, st.permutations([*_ids, _device]), st.permutations([*_ids, _device]))
def test_circles_are_read_alike_in_any_order(
    acts: list[tuple[str, str, str, str, int]], one: list[str], other: list[str]
) -> None:
    """Identities that are members of one another, act for one another and renew their keys."""
    with (
        mock.patch.object(readings, "content_of", lambda file: file),
        mock.patch.object(first_keys, "content_of", lambda file: file),
    ):
        held = Held()
        held.key(_device, f"|{_device}", f"|{_device}")
        for did in _ids:
            held.identity(did, _device)
        newest = {did: f"|{did}" for did in [*_ids, _device]}
        for did, by, act, subject, old in acts:
            if act == "renew":
                new = f"{newest[did]}'"
                held.key(did, newest[did], new, by=by, own=newest[by])
                newest[did] = new
            else:
                own = newest[by].rstrip("'") if old == 0 else newest[by]
                held.member(act, did, by, subject, own=own, key=newest[did])
        assert read_all(held, one) == read_all(held, other)


def test_identities_that_are_believed_by_one_another_alone_do_nothing(held: Held) -> None:
    """Each would be let in by the other one, and neither is the first."""
    a, b, device = PREFIX + "a", PREFIX + "b", PREFIX + "device"
    held.key(device, f"|{device}", f"|{device}")
    for did in (a, b):
        held.key(did, f"|{did}", f"|{did}")
    held.join(a, b, b, own=f"|{b}")
    held.rules(a, b)
    held.join(b, a, a, own=f"|{a}")
    held.rules(b, a)
    held.join(a, b, device, own=f"|{b}")
    assert read_all(held, [a, b]) == read_all(held, [b, a])
