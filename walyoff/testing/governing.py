"""Control keys and roles of a simulated identity.

A simulated chain has, besides joinings and leavings, the acts "renew" (with the fingerprint
of new control keys) and "rules"; who holds which keys is noted in the world. What a chain with
hostile members says is not simulated: that is `walyoff.child.reader`, and tested there.
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

    def _named(self) -> list[bytes]:
        acts = (unpack(payload, 4096) for payload in self._chain.common_order())
        return [FIRST_KEYS, *(bytes.fromhex(about) for act, about in acts if act == "renew")]

    def govern(self, members: Sequence[Member]) -> Governance:
        """What the chain says of rules and keys."""
        acts = [unpack(payload, 4096)[0] for payload in self._chain.common_order()]
        newest = self._named()[-1]
        renewed = max((at for at, act in enumerate(acts) if act == "renew"), default=-1)
        return Governance(
            actor=next((m.voice for m in members if m.did == self._member_did), None),
            newest_key=newest,
            lacking=() if newest in self._held() else (newest,),
            renewal_due="leave" in acts[renewed + 1 :],
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
        self._chain.append(pack(["renew", new.hex()]))

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
        new = [key for key in given if key in self._named() and key not in self._held()]
        self._held().update(new)
        return len(new)


__all__ = ["FIRST_KEYS", "MEMBERSHIP_ACTS", "SimGovernance"]
