"""Identities of a simulated world that stand under one another.

Decided here: what a simulated chain says of its members, and which chains of a family travel
between devices. Who is a device of a family is decided where it is for real chains: in
`walyoff.child.family`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio

from walyoff.abc import EndedLink, Member, Membership
from walyoff.child.family import MAX_DEPTH, Family, State, flatten
from walyoff.errors import LocalProtocolError, RemoteProtocolError
from walyoff.testing.chains import MAX_FILE, SimChain
from walyoff.testing.governing import MEMBERSHIP_ACTS
from walyoff.wire import expect_array, expect_bytes, expect_str, pack, unpack

if TYPE_CHECKING:
    from walyoff.testing.world import SimWorld

#: How the DIDs of identities begin; those of devices are their names.
GROUP = "did:sim:group-"
PIN = bytes(32)


@dataclass(slots=True)
class SimMember:
    """A member as a simulated chain says."""

    did: str
    pin: bytes
    current: bool
    joined_at: int


def read_chain(chain: SimChain) -> dict[str, SimMember]:
    """The same on all devices that hold the same blocks, as `walyoff.child.reader`."""
    members: dict[str, SimMember] = {}
    count = 0
    for payload in chain.common_order():
        act, did = unpack(payload, 4096)
        if act not in MEMBERSHIP_ACTS:
            continue
        known = members.get(did)
        joins = act == "join"
        if joins == (known is not None and known.current):
            continue
        joined_at = known.joined_at if known and not joins else count
        members.pop(did, None) if joins else None
        members[did] = SimMember(did, PIN, joins, joined_at)
        count += 1
    return members


class SimFamily:
    """The chains of one identity's family on one device, as `engine.chain_serving.Chain`.

    A leaf is named `DID/block`, a file is `pack([DID, file])`.
    """

    def __init__(self, world: SimWorld, device: str, did: str) -> None:
        self._world = world
        self._device = device
        self._did = did
        self._read: tuple[int, Membership] | None = None
        self._found: tuple[int, Family] | None = None

    def chain(self, did: str) -> SimChain | None:
        """The chain of an identity, if this device holds it."""
        return self._world.held(self._device, f"{did}/identity")

    def members(self, did: str, pin: bytes) -> Mapping[str, State] | None:
        """What a chain says; see `walyoff.child.family.Read`."""
        chain = self.chain(did)
        return None if chain is None else read_chain(chain)

    def family(self) -> Family:
        """The family of now."""
        version = self._world.version(self._device)
        if self._found is None or self._found[0] != version:
            self._found = version, flatten(self._did, self.members)
        return self._found[1]

    def membership(self) -> Membership:
        """The same as applications see it."""
        version = self._world.version(self._device)
        if self._read is None or self._read[0] != version:
            self._read = version, self._membership(self.family())
        return self._read[1]

    def _membership(self, family: Family) -> Membership:
        members = self.members(self._did, PIN) or {}
        return Membership(
            did=self._did,
            members=tuple(
                Member(
                    did=kin.did,
                    pin=PIN,
                    current=kin.current,
                    joined_at=kin.joined_at,
                    path=kin.path,
                    links=kin.links,
                )
                for kin in family.devices
            ),
            ended=tuple(
                EndedLink(link=e.link, joined_at=e.joined_at, identity=e.identity)
                for e in family.ended
            ),
            direct=tuple(m.did for m in members.values() if m.current),
            kin=tuple(family.pins),
            refused=dict(family.refused),
        )

    # ------------------------------------------------------------------ hand-over

    async def export_all(self) -> dict[str, list[bytes]]:
        """The chains below the identity, by DID."""
        chains = {did: self.chain(did) for did in self.family().pins}
        await anyio.lowlevel.checkpoint()
        return {did: c.missing([]) for did, c in chains.items() if c is not None}

    async def take_all(self, files: Mapping[str, Sequence[bytes]]) -> int:
        """Keep the chains that belong to the family, from the top down; how many were new."""
        left = dict(files)
        new = 0
        for _ in range(MAX_DEPTH + 1):
            for did in [d for d in (self._did, *self.family().pins) if d in left]:
                chain = self._world.chain(self._device, f"{did}/identity")
                new += await chain.take(left.pop(did))
        return new

    def check_new(self, member: str) -> None:
        """Raise LocalProtocolError if a DID would stand under itself."""
        below = flatten(member, self.members).pins
        if member == self._did or self._did in below:
            raise LocalProtocolError("identities must not control themselves in a circle")

    def shown(self, chains: Mapping[str, Sequence[bytes]]) -> list[str]:
        """The names of the blocks in files of chains, by DID."""
        return [
            f"{did}/{unpack(file, MAX_FILE)[0]}"
            for did, files in chains.items()
            if did.startswith(GROUP)
            for file in files
        ]

    def newer(self, names: Sequence[str]) -> list[bytes]:
        """What this device holds of chains of these blocks, beyond them."""
        dids = dict.fromkeys(name.partition("/")[0] for name in names)
        held = {did: chain for did in dids if (chain := self.chain(did)) is not None}
        return _missing(held, names)

    # ------------------------------------------------------------------ as a chain

    def _held(self) -> dict[str, SimChain]:
        dids = (self._did, *self.family().pins)
        return {did: chain for did in dids if (chain := self.chain(did)) is not None}

    async def leaves(self) -> tuple[list[str], int]:
        """See `walyoff.engine.chain_serving.Chain`."""
        found = []
        for did, chain in self._held().items():
            found += [f"{did}/{ref}" for ref in (await chain.leaves())[0]]
        return found, 0

    async def wanted(self, theirs: Sequence[str]) -> list[str] | None:
        """See `walyoff.engine.chain_serving.Chain`."""
        own, _ = await self.leaves()
        return own if set(theirs) - set(own) else None

    async def export(self, known: Sequence[str]) -> AsyncGenerator[list[bytes], None]:
        """See `walyoff.engine.chain_serving.Chain`."""
        await anyio.lowlevel.checkpoint()
        yield _missing(self._held(), known)

    async def take(self, files: Sequence[bytes]) -> int:
        """See `walyoff.engine.chain_serving.Chain`."""
        by_did: dict[str, list[bytes]] = {}
        for file in files:
            did, data = expect_array(unpack(file, MAX_FILE), 2, "file")
            name = expect_str(did, "DID", limit=256)
            by_did.setdefault(name, []).append(expect_bytes(data, "file", limit=MAX_FILE))
        if any(not did.startswith("did:sim:") for did in by_did):
            raise RemoteProtocolError("not a DID of this world")
        return await self.take_all(by_did)


def _missing(chains: Mapping[str, SimChain], known: Sequence[str]) -> list[bytes]:
    return [
        pack([did, file])
        for did, chain in chains.items()
        for file in chain.missing([n.removeprefix(f"{did}/") for n in known])
    ]


__all__ = ["SimFamily", "SimMember", "read_chain"]
