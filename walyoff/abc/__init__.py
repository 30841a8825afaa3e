"""The five protocols that walyoff is made of, and the values that cross them.

Nothing here does anything. Each protocol states order, loss, duplication, size limits,
what cancellation does, and every error. Implementations are checked by the suites in
`walyoff.testing`. This is where to import the names from; the modules are for reading, one
protocol each.
"""

from __future__ import annotations

from walyoff.abc.cipher import Aead, Cipher, SealKey, SignKey
from walyoff.abc.identity import EndedLink, Governance, Identity, Member, Membership
from walyoff.abc.ledger import Block, GuardedLedger, Ledger
from walyoff.abc.store import (
    ChannelStore,
    Head,
    LogEntry,
    NewBatch,
    Store,
    StoredBatch,
    StoredContent,
)
from walyoff.abc.transport import (
    Broadcast,
    IpfsNode,
    Sealer,
    StreamAttribute,
    Transport,
    TransportFactory,
    TransportHost,
)

__all__ = [
    "Aead",
    "Block",
    "Broadcast",
    "ChannelStore",
    "Cipher",
    "EndedLink",
    "Governance",
    "GuardedLedger",
    "Head",
    "Identity",
    "IpfsNode",
    "Ledger",
    "LogEntry",
    "Member",
    "Membership",
    "NewBatch",
    "SealKey",
    "Sealer",
    "SignKey",
    "Store",
    "StoredBatch",
    "StoredContent",
    "StreamAttribute",
    "Transport",
    "TransportFactory",
    "TransportHost",
]
