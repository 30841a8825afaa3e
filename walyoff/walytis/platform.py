"""The real platform: identities and ledgers on Walytis chains, in the child process."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

from walyoff.abc import IpfsNode
from walyoff.child.repo import multiaddr
from walyoff.errors import ChildError, LocalProtocolError
from walyoff.platform import Foundation, Platform
from walyoff.sealing import Sealing
from walyoff.walytis.decoding import decode_grant
from walyoff.walytis.identity import WalytisIdentity
from walyoff.walytis.newer import MAX_CHAIN_NAME, by_chain, pack_files, unpack_files
from walyoff.walytis.process import Child, open_child
from walyoff.walytis.register import RegisterLedger
from walyoff.walytis.spawning import ChildProcess
from walyoff.wire import expect_bytes, expect_str

#: Seconds until the Walytis part of a child answers; normally one.
SEAL_TIME = 60.0
#: Seconds for reading or writing an identity of stock software, with all its chains.
STOCK_TIME = 300.0
_NOT_SEALED = Sealing()


class WalytisPlatform:
    """Satisfies `walyoff.platform.Platform`."""

    def __init__(self, child: Child, *, segment_blocks: int | None = None) -> None:
        self._child = child
        self._options: dict[str, Any] = {"guarded": True, "segment_blocks": segment_blocks}
        self._identities: dict[str, WalytisIdentity] = {}

    @property
    def ipfs(self) -> IpfsNode:
        """The embedded Kubo node."""
        return self._child

    async def create_device(self) -> str:
        """A new DID with its own chain. Takes some tenths of a second."""
        did, _ = await WalytisIdentity.create_device_did(self._child)
        return did

    async def device_files(self, did: str) -> list[bytes]:
        """The own chain of a DID."""
        return await WalytisIdentity.export_did(self._child, did)

    async def family_files(self, did: str) -> dict[str, list[bytes]]:
        """The chains below an identity."""
        return await WalytisIdentity.export_family(self._child, did)

    async def certify(self, did: str, body: bytes) -> bytes:
        """Sign with a DID's control keys."""
        signature = await self._child.call("did.sign", {"did": did, "data": body})
        if not isinstance(signature, bytes):
            raise ChildError("the child's answer is no signature")
        return signature

    async def renew_device(self, did: str) -> None:
        """Replace the control keys of the device's DID."""
        await WalytisIdentity.renew_did(self._child, did)

    async def forget(self, did: str) -> None:
        """Delete the control keys of an identity."""
        await WalytisIdentity.forget(self._child, did)

    @asynccontextmanager
    async def create(
        self, device: str, first: str | None = None, *, rule: str = "any"
    ) -> AsyncIterator[Foundation]:
        """A new identity; its keys, its rules and its first segment are on the chain."""
        options = {"first": first, "rule": rule, **self._options}
        async with self._founded(
            await WalytisIdentity.create(self._child, device, **options)
        ) as foundation:
            yield foundation

    async def read_stock(
        self, chains: Path, member: Path, group: Path, unlock: dict[str, str]
    ) -> tuple[str, str, bytes]:
        """Take over an identity of stock software; see `walyoff.stock`."""
        args = {
            "chains": str(chains), "member": str(member), "group": str(group),
            "unlock": unlock,
        }  # fmt: skip
        found = await self._child.call("did.read_stock", args, timeout=STOCK_TIME)
        return (
            expect_str(found["did"], "DID", limit=MAX_CHAIN_NAME),
            expect_str(found["group"], "DID", limit=MAX_CHAIN_NAME),
            expect_bytes(found["pin"], "pin", size=32),
        )

    async def write_stock(self, folder: Path, did: str, group: str) -> None:
        """Write what stock software needs; see `walyoff.stock`."""
        args = {"folder": str(folder), "did": did, "group": group}
        await self._child.call("did.write_stock", args, timeout=STOCK_TIME)

    @asynccontextmanager
    async def open(self, did: str, *, pin: bytes, device: str) -> AsyncIterator[Foundation]:
        """An identity that this device belongs to."""
        async with self._founded(
            await WalytisIdentity.open(self._child, did, pin, device, **self._options)
        ) as foundation:
            yield foundation

    @asynccontextmanager
    async def adopt(self, grant: bytes, *, device: str) -> AsyncIterator[Foundation]:
        """An identity that a member granted.

        Raises:
            LocalProtocolError: it is open here already.
            RemoteProtocolError: the grant does not hold.
        """
        if decode_grant(grant)["did"] in self._identities:
            raise LocalProtocolError("this device is in the channel already")
        async with self._founded(
            await WalytisIdentity.adopt(self._child, grant, device, **self._options)
        ) as foundation:
            yield foundation

    async def grant(self, did: str) -> bytes:
        """All that a new member needs, secrets included."""
        return await self._identities[did].grant()

    def _founded(self, identity: WalytisIdentity) -> AbstractAsyncContextManager[Foundation]:
        return _found(self._identities, identity)


@asynccontextmanager
async def _found(
    identities: dict[str, WalytisIdentity], identity: WalytisIdentity
) -> AsyncIterator[Foundation]:
    async with identity:
        ledger = await identity.ledger()
        identities[identity.did] = identity
        try:
            yield Foundation(
                identity=identity,
                ledger=ledger,
                pin=identity.pin,
                chains={"identity": _IdentityChains(identity), "ledger": _LedgerChain(ledger)},
            )
        finally:
            del identities[identity.did]
            await ledger.aclose()


class _LedgerChain:
    """The register, for comparison between members: all its segments."""

    def __init__(self, ledger: RegisterLedger) -> None:
        self._ledger = ledger

    async def leaves(self) -> tuple[list[str], int]:
        return await self._ledger.leaves(), 0

    async def wanted(self, theirs: list[str]) -> list[str] | None:
        return await self._ledger.wanted(theirs)

    def export(self, known: list[str]) -> AsyncGenerator[list[bytes], None]:
        return self._ledger.pieces(known)

    async def take(self, files: list[bytes]) -> int:
        admitted, _ = await self._ledger.import_files(files)
        return admitted


class _IdentityChains:
    """The identity's chain and its members' chains, compared as one.

    Leaves are named and files packed as in `walyoff.walytis.newer`.
    """

    def __init__(self, identity: WalytisIdentity) -> None:
        self._identity = identity

    async def leaves(self) -> tuple[list[str], int]:
        found = await self._identity.leaves()
        return [f"{chain}/{ref}" for chain, refs in found.items() for ref in refs], 0

    async def wanted(self, theirs: list[str]) -> list[str] | None:
        own, _ = await self.leaves()
        return own if set(theirs) - set(own) else None

    async def export(self, known: list[str]) -> AsyncGenerator[list[bytes], None]:
        yield pack_files(await self._identity.sync_files(by_chain(known)))

    async def take(self, files: list[bytes]) -> int:
        return await self._identity.import_files(unpack_files(files))


@asynccontextmanager
async def open_platform(
    home: Path,
    listen: Sequence[str] | None = None,
    *,
    sealing: Sealing = _NOT_SEALED,
    segment_blocks: int | None = None,
    process: ChildProcess | None = None,
) -> AsyncIterator[Platform]:
    """The platform of a home: its child process lives as long as the context.

    `listen` are IP addresses for the node; None keeps those of the last start (127.0.0.1 at
    first). `sealing` is for the home's keys. `segment_blocks` is for tests: the blocks of one
    segment. `process` was started already.

    Raises:
        LocalProtocolError: one is no IP address.
    """
    addresses = [multiaddr(host) for host in listen or ()]
    async with open_child(home, sealing=sealing, listen=addresses, process=process) as child:
        if sealing.plain and sealing.active:
            # It answers when all that an older version wrote in clear has been sealed.
            await child.call("did.sealed", {}, timeout=SEAL_TIME)
        yield WalytisPlatform(child, segment_blocks=segment_blocks)


__all__ = ["WalytisPlatform", "open_platform"]
