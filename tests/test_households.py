"""Whose chains belong to an identity, and who may become a member of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest

from walyoff.child.acts import DID_PREFIX
from walyoff.child.family import MAX_DEPTH
from walyoff.child.households import Households
from walyoff.errors import LocalProtocolError

PIN = b"p" * 32


@dataclass
class State:
    did: str
    pin: bytes = PIN
    current: bool = True
    joined_at: int = 0


@dataclass
class Readings:
    """What the chains say, without the chains; also in their place."""

    members: dict[str, dict[str, State]] = field(default_factory=dict)

    def read(self, did: str, pin: bytes | None) -> Any:
        return self if did not in self.members else _Reading(self.members[did])

    def has(self, chain: str) -> bool:
        return f"{DID_PREFIX}{chain}" in self.members

    def judge_of(self, chain: str) -> object:
        # An identity that is open has a judge of its own.
        return self


@dataclass
class _Reading:
    members: dict[str, State]


def named(name: str) -> str:
    return f"{DID_PREFIX}{name}"


def row(*names: str) -> tuple[Readings, Households]:
    """Identities, each a member of the one before; all but the last are open here."""
    readings = Readings()
    for above, below in pairwise(names):
        readings.members[named(above)] = {named(below): State(named(below))}
    readings.members[named(names[-1])] = {}
    chains: Any = readings
    found = Households(chains, readings.read, lambda _: None, lambda *_: True, lambda did: PIN)
    for name in names[:-1]:
        found.look(named(name), PIN)
    return readings, found


def test_nobody_joins_below_the_level_at_which_devices_count() -> None:
    names = [f"level{n}" for n in range(MAX_DEPTH)]
    readings, households = row(*names, "device")
    deepest = named(names[-1])
    # As deep as devices count: one more device beside the one that is there.
    readings.members[named("friend")] = {}
    households.check_new(deepest, named("friend"), PIN)
    # What has a device below it is one level too deep, at whatever place it is invited.
    readings.members[named("person")] = {named("phone"): State(named("phone"))}
    readings.members[named("phone")] = {}
    with pytest.raises(LocalProtocolError, match=rf"{MAX_DEPTH + 1} levels under"):
        households.check_new(deepest, named("person"), PIN)
    households.check_new(named(names[-2]), named("person"), PIN)


def test_nobody_joins_in_a_circle() -> None:
    readings, households = row("club", "team", "person", "device")
    for above, below in (("person", "club"), ("person", "person"), ("team", "club")):
        with pytest.raises(LocalProtocolError, match="circle"):
            households.check_new(named(above), named(below), PIN)
    readings.members[named("other")] = {}
    households.check_new(named("person"), named("other"), PIN)
