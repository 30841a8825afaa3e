"""Families: which devices stand under an identity whose members are identities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from walyoff.child import family
from walyoff.child.family import Family, Kin, Path, State, flatten
from walyoff.records import device_id


@dataclass
class Membership:
    did: str
    pin: bytes
    current: bool
    joined_at: int


class Chains:
    """Chains of joinings and leavings, read as `walyoff.child.reader` reads them."""

    def __init__(self) -> None:
        self.members: dict[str, dict[str, Membership]] = {}
        self.count: dict[str, int] = {}

    def join(self, group: str, *members: str, pin: bytes | None = None) -> Chains:
        for did in members:
            known = self.members.setdefault(group, {})
            if did in known and known[did].current:
                continue
            at = self.count.get(group, 0)
            self.count[group] = at + 1
            known.pop(did, None)
            known[did] = Membership(did, pin or did.encode(), True, at)
        return self

    def leave(self, group: str, did: str) -> Chains:
        member = self.members.get(group, {}).get(did)
        if member is not None and member.current:
            member.current = False
            self.count[group] += 1
        return self

    def read(self, did: str, pin: bytes) -> Mapping[str, State] | None:
        # Another pin is another identity, of which nothing is held.
        return self.members.get(did) if pin in (b"", did.encode()) else None

    def family(self, root: str = "G") -> Family:
        return flatten(root, self.read)

    def kin(self, did: str, root: str = "G") -> Kin:
        return next(kin for kin in self.family(root).devices if kin.did == did)


def current(found: Family) -> dict[str, tuple[str, ...]]:
    return {kin.did: kin.path for kin in found.devices if kin.current}


def test_a_flat_identity_is_as_its_chain_says() -> None:
    chains = Chains().join("G", "a", "b", "c").leave("G", "b").join("G", "d")
    found = chains.family()
    assert [(k.did, k.path, k.current, k.joined_at) for k in found.devices] == [
        ("a", ("a",), True, 0),
        ("b", ("b",), False, 1),
        ("c", ("c",), True, 2),
        ("d", ("d",), True, 4),
    ]
    # What homes have kept of flat channels stays true.
    assert [(e.link, e.joined_at) for e in found.ended] == [(device_id("b"), 1)]
    assert found.devices[1].links == ((device_id("b"), 1),)
    assert found.height == 1


def test_devices_stand_under_people_and_people_under_groups() -> None:
    chains = Chains().join("G", "T", "x").join("T", "P", "Q").join("P", "a", "b").join("Q", "c")
    assert current(chains.family()) == {
        "a": ("a", "P", "T"),
        "b": ("b", "P", "T"),
        "c": ("c", "Q", "T"),
        "x": ("x",),
    }
    found = chains.family()
    assert found.identities == {"T", "P", "Q"}
    assert set(found.pins) == {"T", "P", "Q", "a", "b", "c", "x"}
    assert found.height == 3


def test_any_broken_link_ends_it_and_the_topmost_one_is_named() -> None:
    chains = Chains().join("G", "P", "Q").join("P", "a", "b").join("Q", "c")
    chains.leave("P", "a")
    assert set(current(chains.family())) == {"b", "c"}
    assert [(e.joined_at, e.identity) for e in chains.family().ended] == [(0, False)]
    chains.leave("G", "P")
    assert set(current(chains.family())) == {"c"}
    ended = chains.family().ended
    assert [(e.link, e.identity) for e in ended] == [(device_id("P"), True)]
    # What a former member writes on its own chain changes nothing for the others.
    numbers = {k.did: k.joined_at for k in chains.family().devices}
    chains.join("P", "a", "new").leave("P", "b")
    assert chains.family().ended == ended
    after = {k.did: k.joined_at for k in chains.family().devices}
    assert {did: after[did] for did in numbers} == numbers


def test_a_device_on_two_paths_is_a_member_while_one_of_them_holds() -> None:
    chains = Chains().join("G", "P", "Q").join("P", "a").join("Q", "a")
    assert current(chains.family()) == {"a": ("a", "P")}
    chains.leave("G", "P")
    assert current(chains.family()) == {"a": ("a", "Q")}
    chains.leave("Q", "a")
    assert current(chains.family()) == {}


def test_cycles_and_depth_end_and_are_counted() -> None:
    chains = Chains().join("G", "P").join("P", "Q", "a").join("Q", "P", "G", "Q", "b")
    found = chains.family()
    assert set(current(found)) == {"a", "b"}
    assert found.refused == {family.CYCLE: 3}
    deep = Chains()
    for level in range(family.MAX_DEPTH + 3):
        deep.join(f"{level}", f"{level + 1}", f"device {level}")
    found = deep.family("0")
    assert len(current(found)) == family.MAX_DEPTH
    assert found.refused == {family.TOO_DEEP: 2}


def test_many_devices_of_one_member_leave_room_for_the_others() -> None:
    chains = Chains().join("G", "P", "Q").join("Q", "c")
    chains.join("P", *(f"d{n}" for n in range(family.MAX_CHILDREN + 5)))
    found = chains.family()
    assert "c" in current(found)
    assert len(current(found)) == family.MAX_CHILDREN + 1
    assert found.refused == {family.TOO_MANY: 1}
    # As many paths as there are through people who share everything, as many through each.
    shared = Chains().join("G", *(f"P{n}" for n in range(70)))
    for n in range(70):
        shared.join(f"P{n}", *(f"d{m}" for m in range(70)))
    found = shared.family()
    assert found.refused[family.TOO_MANY] > 0
    assert len(current(found)) >= family.MAX_PATHS // 70 - 1


def test_chains_that_name_one_another_cost_no_more_than_the_paths_that_count() -> None:
    # Four thousand ways to each of these, for the price of some thousand joinings.
    chains = Chains().join("G", "x", *(f"0.{n}" for n in range(4)))
    for level in range(5):
        for n in range(4):
            chains.join(f"{level}.{n}", *(f"{level + 1}.{m}" for m in range(4)))
    for n in range(4):
        chains.join(f"5.{n}", *(f"d{m}" for m in range(family.MAX_CHILDREN)))
    looked = 0
    down = Path.down

    def counting(path: Path, member: State, place: int) -> Path:
        nonlocal looked
        looked += 1
        return down(path, member, place)

    with mock.patch.object(Path, "down", counting):
        found = chains.family()
    assert "x" in current(found)
    # Counted, shared out, and taken.
    assert looked <= 3 * (family.MAX_PATHS + family.MAX_CHILDREN)


def test_a_member_with_thousands_crowds_out_nobody_elses() -> None:
    # The flood comes first, and is nearer; some of it has left, so that is in the way as well.
    chains = Chains().join("G", "flood", "P", "Q")
    for n in range(8):
        chains.join("flood", f"f{n}").join(f"f{n}", *(f"f{n}.{m}" for m in range(1000)))
        for m in range(n * 100):
            chains.leave(f"f{n}", f"f{n}.{m}")
    chains.join("P", "T").join("T", "U").join("U", "far", *(f"p{n}" for n in range(900)))
    chains.join("Q", "gone", "back").leave("Q", "gone").leave("Q", "back").join("Q", "back")
    found = chains.family()
    there = current(found)
    assert there["far"] == ("far", "U", "T", "P")
    assert {f"p{n}" for n in range(900)} <= set(there)
    assert "back" in there
    assert found.refused[family.TOO_MANY] > 0
    # The flood has what the others left, and of its own those who are there now come first.
    assert sum(did.startswith("f") and did != "far" for did in there) > 3000
    assert sum(len(kin.links) > 0 for kin in found.devices) <= family.MAX_PATHS
    assert found == chains.family()
    # Those of the past are known too: they must stay out.
    assert next(kin for kin in found.devices if kin.did == "gone").current is False
    # Who has left with thousands has no room before those who are there.
    chains.leave("G", "flood")
    left = chains.family()
    assert set(current(left)) == {"far", "back", *(f"p{n}" for n in range(900))}


def test_another_pin_for_a_device_counts_only_where_nobody_nearer_names_one() -> None:
    chains = Chains().join("G", "P", "Q").join("P", "a").join("Q", "a", pin=b"mine")
    found = chains.family()
    assert found.refused == {family.OTHER_PIN: 1}
    assert [(k.path, k.pin) for k in found.devices] == [(("a", "P"), b"a")]
    # Who has left does not take a name from those who are there.
    chains = Chains().join("G", "P", "Q").join("P", "a", pin=b"mine").join("Q", "a")
    chains.leave("G", "P")
    assert [(k.path, k.pin) for k in chains.family().devices] == [(("a", "Q"), b"a")]


DIDS = st.sampled_from(["P", "Q", "R", "a", "b", "c"])
EVENTS = st.lists(
    st.tuples(st.booleans(), st.sampled_from(["G", "P", "Q", "R"]), DIDS), max_size=60
)


@settings(max_examples=300, deadline=None)
@given(EVENTS)
def test_each_new_membership_of_a_device_has_a_larger_number(
    events: list[tuple[bool, str, str]],
) -> None:
    chains = Chains()
    last: dict[str, int] = {}
    ended: dict[str, int] = {}
    for joins, group, member in events:
        chains.join(group, member) if joins else chains.leave(group, member)
        found = chains.family()
        for kin in found.devices:
            assert kin.joined_at >= last.get(kin.did, 0)
            last[kin.did] = kin.joined_at
            if not kin.current:
                ended[kin.did] = kin.joined_at
            elif kin.did in ended:
                # Else the statement of the earlier end would shut it out.
                assert kin.joined_at > ended[kin.did]


@settings(max_examples=300, deadline=None)
@given(EVENTS)
def test_who_lost_a_membership_is_named_and_who_came_back_is_not(
    events: list[tuple[bool, str, str]],
) -> None:
    chains = Chains()
    for joins, group, member in events:
        before = set(current(chains.family()))
        chains.join(group, member) if joins else chains.leave(group, member)
        found = chains.family()
        names = {(e.link, e.joined_at) for e in found.ended}
        for kin in found.devices:
            named = any(
                link == name and number <= over
                for name, number in kin.links
                for link, over in names
            )
            if kin.current:
                # An epoch that names nothing of its path may be given to it.
                assert not named, kin
            elif kin.did in before:
                assert named, kin


def test_what_a_did_says_of_its_keys_itself_counts_before_what_anybody_says() -> None:
    """A member who is nearer claims another one's device, with keys of its own."""
    chains = Chains().join("G", "p", "q").join("q", "phone")
    chains.join("p", "phone", pin=b"other keys")

    def committed(did: str) -> bytes | None:
        return did.encode() if did == "phone" else None

    assert flatten("G", chains.read).pins["phone"] == b"other keys"
    found = flatten("G", chains.read, committed)
    assert found.pins["phone"] == b"phone"
    assert [kin.path for kin in found.devices if kin.did == "phone"] == [("phone", "q")]
    assert found.refused == {family.OTHER_PIN: 1}
