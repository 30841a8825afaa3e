"""The devices under an identity whose members may be identities themselves.

Decided here: which devices speak for an identity, through whom, whether now, and how a
membership is named; and where nesting ends (cycles, depth, number), also when somebody wrote
more on a chain. Never decided here: what a single chain says, which is `reader`'s.

An identity is a DID whose chain has members; a DID without any is a device. What is read is a
function of the chains alone, so all who hold the same chains see the same family.

Pure logic: readings of chains go in, devices come out; no I/O, no clock, no cryptography.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from walyoff.records import device_id

#: Links from an identity down to a device: a person's device in a group has two.
MAX_DEPTH = 8
#: Paths to devices of one family, those of the past included; of further ones those are left
#: out that go through the direct members with the most.
MAX_PATHS = 4_096
#: Members, past ones included, that one chain brings into another identity's family.
MAX_CHILDREN = 1_024
#: A number of a membership (`joined_at`) has a digit for each of the first links, from the
#: top; so many memberships of one chain are told apart, and so many levels.
_DIGIT = 1 << 15
_LEVELS = 4
MAX_NUMBER = (1 << 62) - 1

# Why a link does not count.
CYCLE = "cycle"
TOO_DEEP = "too-deep"
TOO_MANY = "too-many"
OTHER_PIN = "other-pin"


class State(Protocol):
    """A member as a chain says; `walyoff.child.reader.MemberState` is one."""

    @property
    def did(self) -> str:
        """The member."""

    @property
    def pin(self) -> bytes:
        """The fingerprint of its first keys; empty if the chain does not say it."""

    @property
    def current(self) -> bool:
        """Whether it has not left."""

    @property
    def joined_at(self) -> int:
        """The number of the membership on that chain; a later one has a larger number."""


#: read(DID, pin): the members that the DID's chain names; None if the chain is not held.
Read = Callable[[str, bytes], Mapping[str, State] | None]
#: The pin that a DID itself commits to (`births`); None if it does not, or is not held.
Committed = Callable[[str], bytes | None]


@dataclass(frozen=True, slots=True)
class Path:
    """How a DID belongs to the family: its links, the topmost first."""

    dids: tuple[str, ...] = ()
    steps: tuple[int, ...] = ()
    #: Where each is among the members of its chain.
    places: tuple[int, ...] = ()
    #: Links from the top that are current.
    live: int = 0
    pin: bytes = b""

    @property
    def current(self) -> bool:
        """True while all links are."""
        return self.live == len(self.dids)

    def down(self, member: State, place: int) -> Path:
        """The path to a member of what this one leads to."""
        return Path(
            (*self.dids, member.did),
            (*self.steps, member.joined_at),
            (*self.places, place),
            self.live + (self.current and member.current),
            member.pin,
        )

    def number(self) -> int:
        """Grows with each new membership along it, and never falls.

        A device that is a member itself has its number on the chain. Else each link has a
        digit, and below a link that has ended all are at their highest: what a former member
        does among its own devices is nobody's business.
        """
        if len(self.steps) == 1:
            return self.steps[0]
        number = 0
        for level in range(_LEVELS):
            digit = self.steps[level] if level < len(self.steps) else 0
            if level == _LEVELS - 1:
                digit = sum(self.steps[level:])
            if self.live < level < len(self.steps):
                digit = _DIGIT
            number = number * _DIGIT + min(digit, _DIGIT - 1)
        return number


@dataclass(frozen=True, slots=True)
class Ended:
    """A membership that is over, of somebody whose identity still belongs to the family."""

    link: bytes
    joined_at: int
    #: False for a device.
    identity: bool


@dataclass(frozen=True, slots=True)
class Kin:
    """A device of the family."""

    did: str
    pin: bytes
    current: bool
    joined_at: int
    #: From the device to the direct member.
    path: tuple[str, ...]
    #: The memberships along the path, in the same order: (name of the link, number).
    links: tuple[tuple[bytes, int], ...]


@dataclass(slots=True)
class Family:
    """What the chains say together."""

    #: In order of joining, those of one identity together.
    devices: list[Kin] = field(default_factory=list)
    ended: list[Ended] = field(default_factory=list)
    #: All DIDs whose chains belong to it, but its own, with their pins.
    pins: dict[str, bytes] = field(default_factory=dict)
    #: Those that are identities.
    identities: set[str] = field(default_factory=set)
    #: Links from its own chain down to the farthest device.
    height: int = 0
    refused: Counter[str] = field(default_factory=Counter)


def link_name(root: str, parent: str, member: str) -> bytes:
    """The name of a membership in a channel, 16 bytes: that of a direct member is its DID's."""
    return device_id(member if parent == root else f"{parent} {member}")


def flatten(root: str, read: Read, committed: Committed = lambda _: None) -> Family:
    """The family of an identity.

    Where there are more paths than count, each direct member has a share of its own: who
    brings thousands crowds out its own, and nobody else's.
    """
    flattener = _Flattener(root, read, committed, None)
    family = flattener.run()
    if not flattener.full:
        return family
    return _Flattener(root, read, committed, _shares(root, read)).run()


def _shares(root: str, read: Read) -> Counter[str]:
    """How many paths each direct member gets: one by one in turn, as far as it has any."""
    members = list((read(root, b"") or {}).values())
    turns = [_paths(root, Path().down(m, place), read) for place, m in enumerate(members)]
    shares: Counter[str] = Counter()
    room = MAX_PATHS
    while turns and room:
        left = []
        for paths in turns[:room]:
            path = next(paths, None)
            if path is not None:
                shares[path.dids[0]] += 1
                room -= 1
                left.append(paths)
        turns = left
    return shares


def _paths(root: str, top: Path, read: Read) -> Iterator[Path]:
    """The paths through a direct member, those of now first."""
    former: list[Path] = []
    level = [top]
    if top.current:
        yield top
    else:
        former, level = [top], []
    for now in (True, False):
        while level:
            below: list[Path] = []
            for child in (c for path in level for c in _below(root, path, read)):
                if now and not child.current:
                    if len(former) < MAX_PATHS:
                        former.append(child)
                    continue
                yield child
                below.append(child)
            level = below
        if now:
            yield from former
            level = former


def _below(root: str, path: Path, read: Read) -> Iterator[Path]:
    if len(path.dids) < MAX_DEPTH:
        for place, member in enumerate((read(path.dids[-1], path.pin) or {}).values()):
            if place == MAX_CHILDREN:
                return
            if member.did != root and member.did not in path.dids:
                yield path.down(member, place)


class _Flattener:
    def __init__(
        self, root: str, read: Read, committed: Committed, shares: Counter[str] | None
    ) -> None:
        self._root = root
        self._read = read
        self._committed = committed
        self._shares = shares
        #: True if there was no room for all.
        self.full = False
        self._family = Family()
        self._found: dict[str, list[Path]] = {}
        self._refused: dict[tuple[str, str, str], None] = {}
        self._ended: dict[tuple[bytes, int], Ended] = {}
        #: Paths that count: in all, and by the direct member that they go through.
        self._paths = 0
        self._used: Counter[str] = Counter()

    def run(self) -> Family:
        # Those who belong to it now come first, so who has left takes no name from them; and
        # then those who are nearer, in the order of their chains.
        former: list[Path] = []
        kept: Counter[str] = Counter()
        level = [Path()]
        while level:
            below: list[Path] = []
            # One by one: chains that name one another have far more paths than are looked at.
            for child in (c for path in level for c in self._below(path)):
                if not child.current:
                    kept[child.dids[0]] += 1
                    if self._fits(child, len(former), kept[child.dids[0]] - 1):
                        former.append(child)
                elif self._take(child):
                    below.append(child)
            level = below
        level = former
        while level:
            level = [c for p in level if self._take(p) for c in self._below(p)]
        family = self._family
        for paths in sorted(self._found.values(), key=_place_of):
            family.devices.append(self._kin(paths))
        family.ended = list(self._ended.values())
        family.refused = Counter(reason for reason, _, _ in self._refused)
        return family

    def _below(self, path: Path) -> Iterator[Path]:
        """The members of what a path leads to."""
        parent = path.dids[-1] if path.dids else self._root
        if path.dids and not self._has_room(path):
            self._refuse(TOO_MANY, parent, "")
            return
        members = self._read(parent, path.pin) or {}
        for place, member in enumerate(members.values()):
            if path.dids and place >= MAX_CHILDREN:
                self._refuse(TOO_MANY, parent, member.did)
                return
            if member.did == self._root or member.did in path.dids:
                self._refuse(CYCLE, parent, member.did)
            elif len(path.dids) == MAX_DEPTH:
                self._refuse(TOO_DEEP, parent, member.did)
            else:
                yield path.down(member, place)

    def _take(self, path: Path) -> bool:
        """Note a member; True if it is an identity, whose members are to be looked at."""
        family = self._family
        did = path.dids[-1]
        parent = path.dids[-2] if len(path.dids) > 1 else self._root
        if not self._has_room(path):
            self._refuse(TOO_MANY, parent, did)
            return False
        # What somebody says of another's keys is nothing against the DID itself.
        known = self._committed(did) if path.pin else None
        # A DID has one pin in a family: the one that the nearest who belong to it name.
        if (known or path.pin) != path.pin or (
            family.pins.setdefault(did, path.pin) != path.pin
        ):
            self._refuse(OTHER_PIN, parent, did)
            return False
        self._paths += 1
        self._used[path.dids[0]] += 1
        is_identity = bool(self._read(did, path.pin))
        if path.live == len(path.dids) - 1:
            link = link_name(self._root, parent, did), path.steps[-1]
            self._ended[link] = Ended(*link, identity=is_identity)
        if is_identity:
            family.identities.add(did)
        else:
            family.height = max(family.height, len(path.dids))
            self._found.setdefault(did, []).append(path)
        return is_identity

    def _has_room(self, path: Path) -> bool:
        """Whether one more path through the same direct member counts."""
        return self._fits(path, self._paths, self._used.get(path.dids[0], 0))

    def _fits(self, path: Path, used: int, used_by_member: int) -> bool:
        if self._shares is not None:
            return used_by_member < self._shares[path.dids[0]]
        self.full = self.full or used >= MAX_PATHS
        return used < MAX_PATHS

    def _refuse(self, reason: str, parent: str, member: str) -> None:
        self._refused[reason, parent, member] = None

    def _kin(self, paths: list[Path]) -> Kin:
        path = paths[0]
        parents = (self._root, *path.dids)
        links = [
            (link_name(self._root, parent, did), step)
            for parent, did, step in zip(parents, path.dids, path.steps, strict=False)
        ]
        return Kin(
            did=path.dids[-1],
            pin=path.pin,
            current=path.current,
            # Each of them grows, so the sum does, whichever way a device comes back.
            joined_at=min(sum(p.number() for p in paths), MAX_NUMBER),
            path=path.dids[::-1],
            links=tuple(links[::-1]),
        )


def _place_of(paths: list[Path]) -> tuple[int, ...]:
    return paths[0].places
