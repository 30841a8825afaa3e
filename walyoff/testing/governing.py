"""Control keys and roles of a simulated identity.

A simulated chain has, besides joinings and leavings, the act "renew" (with the fingerprint of
new control keys, who acted, and under which keys of its own); who holds which keys is noted in
the world. What a chain with hostile members says is not simulated: that is
`walyoff.child.reader`, and tested there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import anyio

from walyoff.abc import Governance, Member, Membership
from walyoff.errors import LocalProtocolError, NotAMemberError, RemoteProtocolError
from walyoff.wire import pack, unpack

if TYPE_CHECKING:
    from walyoff.testing.chains import SimChain
    from walyoff.testing.world import SimWorld

#: The fingerprint of the keys that an identity begins with.
FIRST_KEYS = bytes(32)
MEMBERSHIP_ACTS = ("join", "leave")


class SimGovernance:
    """The part of a `SimIdentity` that is about its rules."""

    _world: SimWorld
    _device: str
    _did: str
    _member_did: str

    @property
    def membership(self) -> Membership:
        """See `walyoff.abc.Identity`."""
        raise NotImplementedError

    @property
    def _chain(self) -> SimChain:
        raise NotImplementedError

    def _held(self) -> set[bytes]:
        held = self._world.control_keys
        return held.setdefault((self._member_did, self._did), {FIRST_KEYS})

    def _keys_of(self, actor: str) -> tuple[bytes, bool]:
        return newest_keys(self._world, self._device, self._member_did, actor)

    def govern(self, members: Sequence[Member]) -> Governance:
        """What the chain says of rules and keys."""
        read = [unpack(payload, 4096) for payload in self._chain.common_order()]
        acts = [act for act, _ in read]
        newest = _named_by(self._chain)[-1]
        renewed = max((at for at, act in enumerate(acts) if act == "renew"), default=-1)
        actor = next((m.voice for m in members if m.did == self._member_did), None)
        shown = {(by, own) for act, about in read if act == "renew" for _, by, own in [about]}
        own, has_newest = self._keys_of(actor or "")
        return Governance(
            actor=actor,
            newest_key=newest,
            lacking=() if newest in self._held() else (newest,),
            renewal_due="leave" in acts[renewed + 1 :],
            keys_unshown=has_newest and own != FIRST_KEYS and (actor, own) not in shown,
        )

    async def make_admin(self, did: str) -> None:
        """See `walyoff.abc.Identity`: every member may do everything here."""
        await anyio.lowlevel.checkpoint()
        raise LocalProtocolError("every member of this identity may invite and remove")

    async def renew_keys(self) -> None:
        """See `walyoff.abc.Identity`."""
        await anyio.lowlevel.checkpoint()
        if not any(m.did == self._member_did for m in self.membership.current()):
            raise NotAMemberError("this device is not a member of the identity any more")
        new = self._world.random.randbytes(32)
        self._held().add(new)
        actor = self.membership.governance.actor
        self._chain.append(pack(["renew", [new, actor, self._keys_of(actor or "")[0]]]))

    async def give_keys(self, wanted: Sequence[bytes]) -> bytes:
        """See `walyoff.abc.Identity`."""
        await anyio.lowlevel.checkpoint()
        found = [key for key in wanted if key in self._held()]
        return pack(found) if found else b""

    async def take_keys(self, secrets: bytes) -> int:
        """See `walyoff.abc.Identity`."""
        await anyio.lowlevel.checkpoint()
        given = unpack(secrets, 1 << 16)
        if not isinstance(given, list):
            raise RemoteProtocolError("control keys are no list")
        named = _named_by(self._chain)
        new = [key for key in given if key in named and key not in self._held()]
        self._held().update(new)
        # News for the groups above it too.
        self._world.grew(self._device, f"{self._did}/identity")
        return len(new)


def newest_keys(world: SimWorld, device: str, member: str, did: str) -> tuple[bytes, bool]:
    """The newest control keys of an identity on a device; whether the chain names no newer."""
    chain = world.held(device, f"{did}/identity")
    if chain is None:
        # A device's own chain is not simulated.
        return FIRST_KEYS, True
    named = _named_by(chain)
    held = world.control_keys.get((member, did), {FIRST_KEYS})
    newest = next(key for key in reversed(named) if key in held)
    return newest, newest == named[-1]


def generation_of(keys: bytes) -> int | None:
    """What a signature under an identity's control keys is made with; None for the first."""
    return None if keys == FIRST_KEYS else int.from_bytes(keys)


def check_proof(world: SimWorld, device: str, did: str, text: bytes, signature: bytes) -> None:
    """Raise unless the newest control keys of who joins signed, as a device knows them."""
    chain = world.held(device, f"{did}/identity")
    named = [FIRST_KEYS] if chain is None else _named_by(chain)
    for keys in named:
        if world.sign(did, text, generation_of(keys)) == signature:
            if keys != named[-1]:
                raise LocalProtocolError("who joins has control keys that were replaced")
            return
    raise RemoteProtocolError("the signature does not hold", reason="wrong-signature")


def _named_by(chain: SimChain) -> list[bytes]:
    """The control keys that a chain names, oldest first."""
    acts = (unpack(payload, 4096) for payload in chain.common_order())
    return [FIRST_KEYS, *(bytes(about[0]) for act, about in acts if act == "renew")]


__all__ = ["FIRST_KEYS", "MEMBERSHIP_ACTS", "SimGovernance"]
