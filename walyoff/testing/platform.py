"""What Walytis is to a real device, in a simulated world: identities, and a platform.

Decided here: which acts the chain of a simulated identity gets, and what a grant brings. Who is
a member of what is decided in `walyoff.testing.kin`; rules and keys, in `governing`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import anyio
from anyio.abc import ObjectReceiveStream

from walyoff.abc import IpfsNode, Membership
from walyoff.errors import LocalProtocolError, NotAMemberError, RemoteProtocolError
from walyoff.platform import Foundation
from walyoff.testing.chains import SimChain, SimLedger
from walyoff.testing.governing import (
    SimGovernance,
    check_proof,
    generation_of,
    newest_keys,
)
from walyoff.testing.kin import GROUP, SimFamily
from walyoff.wire import expect_array, pack, unpack

if TYPE_CHECKING:
    from walyoff.testing.world import SimWorld


class SimIdentity(SimGovernance):
    """An `Identity` whose chain is a `SimChain` of joinings and leavings."""

    def __init__(
        self, world: SimWorld, device: str, did: str, member_did: str, family: SimFamily
    ) -> None:
        self._world = world
        self._device = device
        self._did = did
        self._member_did = member_did
        self._family = family
        self._read: tuple[Membership, int, Membership] | None = None

    @property
    def did(self) -> str:
        """See `walyoff.abc.Identity`."""
        return self._did

    @property
    def member_did(self) -> str:
        """See `walyoff.abc.Identity`."""
        return self._member_did

    @property
    def membership(self) -> Membership:
        """See `walyoff.abc.Identity`."""
        base = self._family.membership()
        # What it holds grows without news on the chain.
        if (
            self._read is None
            or self._read[0] is not base
            or self._read[1] != len(self._held())
        ):
            governed = replace(base, governance=self.govern(base.current()))
            self._read = base, len(self._held()), governed
        return self._read[2]

    @property
    def _chain(self) -> SimChain:
        return self._world.chain(self._device, f"{self._did}/identity")

    async def refresh(self) -> Membership:
        """See `walyoff.abc.Identity`."""
        await anyio.lowlevel.checkpoint()
        return self.membership

    @asynccontextmanager
    async def changes(self) -> AsyncIterator[ObjectReceiveStream[Membership]]:
        """See `walyoff.abc.Identity`."""
        send, receive = anyio.create_memory_object_stream[Membership](1)
        async with anyio.create_task_group() as tasks:
            last = self.membership

            async def follow() -> None:
                nonlocal last
                while True:
                    if self.membership != last:
                        last = self.membership
                        await send.send(last)
                    else:
                        await self._world.growth(self._device)

            with send, receive:
                tasks.start_soon(follow)
                yield receive
                tasks.cancel_scope.cancel()

    async def certify(self, body: bytes) -> bytes:
        """See `walyoff.abc.Identity`."""
        await anyio.lowlevel.checkpoint()
        return self._world.sign(self._member_did, body)

    async def verify(self, did: str, body: bytes, signature: bytes) -> int:
        """See `walyoff.abc.Identity`."""
        await anyio.lowlevel.checkpoint()
        if did not in self.membership.kin:
            raise NotAMemberError(f"{did} was never a member")
        for generation in range(self._world.generations[did], 0, -1):
            if self._world.sign(did, body, generation) == signature:
                return generation
        raise RemoteProtocolError("the signature does not hold", reason="wrong-signature")

    async def control_keys(self) -> str:
        """See `walyoff.abc.Identity`: there are none."""
        await anyio.lowlevel.checkpoint()
        return ""

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
        """See `walyoff.abc.Identity`."""
        await anyio.lowlevel.checkpoint()
        if did.startswith(GROUP):
            await self._world.chain(self._device, f"{did}/identity").take(chain)
            below = SimFamily(self._world, self._device, did)
            await below.take_all(family or {})
            for file in newer:
                with suppress(RemoteProtocolError):
                    await below.take((file,))
        elif list(chain) != [did.encode()]:
            raise RemoteProtocolError("not the chain of this DID")
        if proof is not None:
            check_proof(self._world, self._device, did, *proof)
        kind = "identity" if did.startswith(GROUP) else "device"
        if purpose not in ("any", kind):
            raise LocalProtocolError(f"what joins is a {kind}: invite it as one")
        self._family.check_new(did)
        if did not in self.membership.direct:
            self._world.chain(self._device, f"{self._did}/identity").append(pack(["join", did]))

    async def shown(
        self, did: str, chain: Sequence[bytes], family: Mapping[str, Sequence[bytes]]
    ) -> list[str]:
        """See `walyoff.abc.Identity`."""
        await anyio.lowlevel.checkpoint()
        return self._family.shown({did: chain, **family})

    async def newer(self, names: Sequence[str], limit: int) -> list[bytes]:
        """See `walyoff.abc.Identity`."""
        await anyio.lowlevel.checkpoint()
        return self._family.newer(names)

    async def remove_member(self, did: str) -> None:
        """See `walyoff.abc.Identity`."""
        await anyio.lowlevel.checkpoint()
        if did in self.membership.direct:
            chain = self._world.chain(self._device, f"{self._did}/identity")
            chain.append(pack(["leave", did]))


class SimPlatform:
    """A `Platform` in a `SimWorld`."""

    def __init__(self, world: SimWorld, device: str) -> None:
        self._world = world
        self._device = device

    @property
    def ipfs(self) -> IpfsNode | None:
        """There is none."""
        return None

    async def create_device(self) -> str:
        """A new DID."""
        await anyio.lowlevel.checkpoint()
        return f"did:sim:{self._device}"

    async def device_files(self, did: str) -> list[bytes]:
        """The chain of a DID; that of a device is its name."""
        await anyio.lowlevel.checkpoint()
        if did.startswith(GROUP):
            return self._world.chain(self._device, f"{did}/identity").missing([])
        return [did.encode()]

    async def family_files(self, did: str) -> dict[str, list[bytes]]:
        """The chains below an identity."""
        return await SimFamily(self._world, self._device, did).export_all()

    async def certify(self, did: str, body: bytes) -> bytes:
        """Sign for a DID."""
        await anyio.lowlevel.checkpoint()
        keys, _ = newest_keys(self._world, self._device, await self.create_device(), did)
        return self._world.sign(did, body, generation_of(keys))

    async def renew_device(self, did: str) -> None:
        """New control keys, which everybody in this world knows of at once."""
        await anyio.lowlevel.checkpoint()
        self._world.generations[did] += 1

    async def forget(self, did: str) -> None:
        """Delete the control keys of an identity."""
        await anyio.lowlevel.checkpoint()
        self._world.control_keys.pop((await self.create_device(), did), None)

    @asynccontextmanager
    async def create(
        self, device: str, first: str | None = None, *, rule: str = "any"
    ) -> AsyncIterator[Foundation]:
        """A new identity; rules are not simulated."""
        did = f"{GROUP}{self._world.random.randbytes(8).hex()}"
        chain = self._world.chain(self._device, f"{did}/identity")
        chain.append(pack(["join", first or device]))
        yield self._found(did, device)

    @asynccontextmanager
    async def open(self, did: str, *, pin: bytes, device: str) -> AsyncIterator[Foundation]:
        """An identity of this device."""
        yield self._found(did, device)

    @asynccontextmanager
    async def adopt(self, grant: bytes, *, device: str) -> AsyncIterator[Foundation]:
        """An identity that was granted."""
        did, identity, ledger, family = expect_array(unpack(grant, 1 << 26), 4, "grant")
        await self._world.chain(self._device, f"{did}/identity").take(identity)
        await self._world.chain(self._device, f"{did}/ledger").take(ledger)
        await SimFamily(self._world, self._device, did).take_all(family)
        found = self._found(did, device)
        if not any(m.did == device for m in found.identity.membership.current()):
            raise RemoteProtocolError("this device is not a member", reason="not-a-member")
        yield found

    async def grant(self, did: str) -> bytes:
        """The chains."""
        identity = self._world.chain(self._device, f"{did}/identity").missing([])
        ledger = self._world.chain(self._device, f"{did}/ledger").missing([])
        return pack([did, identity, ledger, await self.family_files(did)])

    def _found(self, did: str, member: str) -> Foundation:
        chain = self._world.chain(self._device, f"{did}/identity")
        ledger = self._world.chain(self._device, f"{did}/ledger")
        chain.followed = ledger.followed = True
        family = SimFamily(self._world, self._device, did)
        return Foundation(
            identity=SimIdentity(self._world, self._device, did, member, family),
            ledger=SimLedger(ledger, self._world.append_s),
            pin=bytes(32),
            chains={"identity": family, "ledger": ledger},
        )


__all__ = ["SimIdentity", "SimPlatform"]
