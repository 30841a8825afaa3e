"""`Identity`: a DID with members, and the values that say who they are.

Who is a member is decided by an implementation, from the chains alone, the same on every
device that holds the same blocks. What a member may do with messages is decided above.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from anyio.abc import ObjectReceiveStream


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A device that is a member of an identity, or stands under one, as the chains say."""

    did: str
    #: The fingerprint (32 bytes) of the member's first control keys, fixed when it joined.
    pin: bytes
    #: True from its joining block to its leaving block.
    current: bool
    #: Which membership it is: a later one of the same device has a larger number. Of a direct
    #: member: how many membership blocks came before its joining block.
    joined_at: int
    #: From the device to the direct member of the identity that it belongs to; a device that is
    #: a member itself is alone in it.
    path: tuple[str, ...] = ()
    #: The memberships along the path, in its order: (name of the link, `joined_at` of it). The
    #: link of a direct member is named by `walyoff.records.device_id`.
    links: tuple[tuple[bytes, int], ...] = ()
    #: "admin" if it may invite and remove where only admins may, else "member".
    role: str = "member"

    @property
    def voice(self) -> str:
        """The direct member of the identity that this device speaks for."""
        return self.path[-1] if self.path else self.did


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedLink:
    """A membership that is over, of one whose identity is the channel's or still under it."""

    #: The name of the link (`Member.links`).
    link: bytes
    joined_at: int
    #: False if it was a device's.
    identity: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Governance:
    """Who may change an identity, and how this device stands in it."""

    #: "any" if every member may invite and remove, or "admins".
    rule: str = "any"
    #: The direct members who are admins.
    admins: tuple[str, ...] = ()
    #: The direct member for which this device acts; None if it is none.
    actor: str | None = None
    #: The fingerprint of the newest control keys, and of those that are lacking here.
    newest_key: bytes = b""
    lacking: tuple[bytes, ...] = ()
    #: True if a member has left since the newest control keys were made.
    renewal_due: bool = False
    #: True if a member above this device had its control keys replaced since it acted here
    #: last, by keys that this device has: until it acts, the older ones speak for it. To renew
    #: the keys here is such an act.
    keys_unshown: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """A verified snapshot of an identity's members: all devices under it."""

    did: str
    members: tuple[Member, ...]
    #: The memberships that are over, the topmost of each path.
    ended: tuple[EndedLink, ...] = ()
    #: The direct members of now: devices, people, other groups.
    direct: tuple[str, ...] = ()
    #: All DIDs whose chains this identity stands on, besides its own.
    kin: tuple[str, ...] = ()
    #: Blocks on the chain that claimed to change the identity and were refused, by reason.
    refused: dict[str, int] = field(default_factory=dict)
    governance: Governance = field(default_factory=Governance)

    def current(self) -> list[Member]:
        """The members of now, in order of joining."""
        return [member for member in self.members if member.current]


class Identity(Protocol):
    """A DID with members, seen by one member device."""

    @property
    def did(self) -> str:
        """The identity's DID; also the channel's id."""

    @property
    def member_did(self) -> str:
        """The DID of this device."""

    @property
    def membership(self) -> Membership:
        """The newest verified snapshot."""

    def changes(self) -> AbstractAsyncContextManager[ObjectReceiveStream[Membership]]:
        """New snapshots, newest last, as the chain changes. Slow consumers get the newest."""

    async def certify(self, body: bytes) -> bytes:
        """Sign a certificate body with this device's control keys (slow: milliseconds)."""

    async def verify(self, did: str, body: bytes, signature: bytes) -> int:
        """Check that control keys of a member, past or present, signed a certificate body.

        That is of a device under the identity, or of an identity between the two. Returns
        which of the DID's keys it were: 1 for the first, and more for each renewal.

        Raises:
            NotAMemberError: the DID was never a member.
            RemoteProtocolError: the signature does not hold, or the keys are not pinned.
        """

    async def control_keys(self) -> str:
        """The current control keys: `|family:time:hex of the public key|...|`, or nothing."""

    async def refresh(self) -> Membership:
        """Read the chains now; `membership` is that snapshot from here on."""

    async def add_member(
        self,
        did: str,
        chain: Sequence[bytes],
        *,
        family: Mapping[str, Sequence[bytes]] | None = None,
        purpose: str = "any",
        proof: tuple[bytes, bytes] | None = None,
        newer: Sequence[bytes] = (),
    ) -> None:
        """Make a DID a member, given the block files of its own chain. Idempotent.

        An identity becomes one with the chains of those below it, by DID. With a purpose only
        a "device" or only an "identity" does. A proof is a text and the signature of the DID's
        control keys over it, which is checked before anything is written. `newer` are files
        that other members hold of these chains (see `newer`); each proves itself, and what
        does not hold is dropped.

        Raises:
            RemoteProtocolError: the chain is another's, its keys are in doubt, or the proof
                does not hold.
            LocalProtocolError: it would stand under itself, or too deep, or is of the other
                kind, or its control keys were replaced.
        """

    async def shown(
        self, did: str, chain: Sequence[bytes], family: Mapping[str, Sequence[bytes]]
    ) -> Sequence[str]:
        """The names of the blocks of a DID's chain and of those below it.

        At most as many as `walyoff.frames.MAX_REFS`; of what cannot be read there are none.
        """

    async def newer(self, names: Sequence[str], limit: int) -> list[bytes]:
        """Block files that are held here of the chains of these blocks, beyond them.

        About so many bytes at most, parents first, of chains of identities and their members,
        whichever of this device's identities they belong to. Names may be of anything.
        """

    async def remove_member(self, did: str) -> None:
        """End a membership, or this device's own; control keys follow. Idempotent.

        Raises:
            LocalProtocolError: only admins may remove others, or the only admin would leave.
            NotAMemberError: this device is no member.
        """

    async def make_admin(self, did: str) -> None:
        """Let a direct member invite and remove. Raises as `remove_member`."""

    async def renew_keys(self) -> None:
        """Replace the control keys; others get them by `give_keys` and `take_keys`.

        Raises NotAMemberError if this device is no member.
        """

    async def give_keys(self, wanted: Sequence[bytes]) -> bytes:
        """The control keys of these fingerprints, secrets included; empty if none is here.

        For members alone, inside a session.
        """

    async def take_keys(self, secrets: bytes) -> int:
        """Keep control keys that the chain names; returns how many were new.

        Raises RemoteProtocolError when they are malformed.
        """


__all__ = [
    "EndedLink",
    "Governance",
    "Identity",
    "Member",
    "Membership",
]
