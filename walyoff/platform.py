"""Where identities and ledgers come from, as a device needs them.

The real one is `walyoff.walytis.platform`, on Walytis chains in the child process; another,
in memory, is in `walyoff.testing` for simulations. A device never sees the difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from walyoff.abc import Identity, IpfsNode, Ledger, Store
from walyoff.engine.chain_serving import Chain


@dataclass(frozen=True, slots=True, kw_only=True)
class Foundation:
    """What a channel stands on."""

    identity: Identity
    ledger: Ledger
    #: The fingerprint of the identity's first control keys, 32 bytes.
    pin: bytes
    #: The chains that members keep equal over their sessions, by name.
    chains: Mapping[str, Chain]


class Platform(Protocol):
    """Makes and opens what channels stand on."""

    @property
    def ipfs(self) -> IpfsNode | None:
        """The embedded node, for transports that use it, if there is one."""

    async def create_device(self) -> str:
        """Make a DID for this device, on a chain of its own."""

    async def device_files(self, did: str) -> list[bytes]:
        """The block files of a DID's own chain, for a join."""

    async def certify(self, did: str, body: bytes) -> bytes:
        """Sign with the control keys of a DID that are held here, outside of any channel."""

    async def family_files(self, did: str) -> dict[str, list[bytes]]:
        """The chains below an identity that is open here, by DID, for a join."""

    async def renew_device(self, did: str) -> None:
        """Replace the control keys of this device's DID."""

    async def forget(self, did: str) -> None:
        """Delete the control keys of an identity that this device has left."""

    def create(
        self, device: str, first: str | None = None, *, rule: str = "any"
    ) -> AbstractAsyncContextManager[Foundation]:
        """Make an identity with this device as its first member, or one above it."""

    def open(
        self, did: str, *, pin: bytes, device: str
    ) -> AbstractAsyncContextManager[Foundation]:
        """Open an identity that this device belongs to."""

    def adopt(self, grant: bytes, *, device: str) -> AbstractAsyncContextManager[Foundation]:
        """Take up an identity from what a member granted. Raises RemoteProtocolError."""

    async def grant(self, did: str) -> bytes:
        """Everything that a new member needs of an identity, its secrets included."""


class StoreFactory(Protocol):
    """Opens the store of a device's home."""

    def __call__(
        self, home: Path, passphrase: str | None
    ) -> AbstractAsyncContextManager[Store]:
        """The store, while the context is open."""


class PlatformFactory(Protocol):
    """Opens a platform for a device's home."""

    def __call__(self, home: Path) -> AbstractAsyncContextManager[Platform]:
        """The platform, while the context is open."""
