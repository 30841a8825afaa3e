"""Tests for plug-ins, and worlds to test applications in; needs pytest.

`StoreConformance` and `ChunkConformance`, `TransportConformance`, `LedgerConformance` and
`CipherConformance` check what `walyoff.abc` promises: inherit one, give its factory. `SimWorld`
runs whole devices in memory. Names are loaded when they are first used.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from walyoff.testing.chains import SimLedger
    from walyoff.testing.ciphers import CipherConformance
    from walyoff.testing.ledgers import LedgerConformance
    from walyoff.testing.memory import MemoryDisk, MemoryStore, open_memory_store
    from walyoff.testing.network import LINKS, Link, SimNetwork, SimTransport
    from walyoff.testing.store_chunks import ChunkConformance
    from walyoff.testing.stores import StoreConformance
    from walyoff.testing.transport_base import temporary_hosts
    from walyoff.testing.transports import TransportConformance
    from walyoff.testing.virtual import DeadlockError, SimRuntime, VirtualTimeLoop
    from walyoff.testing.world import SimWorld

_HOMES = {
    "chains": ("SimLedger",),
    "ciphers": ("CipherConformance",),
    "ledgers": ("LedgerConformance",),
    "memory": ("MemoryDisk", "MemoryStore", "open_memory_store"),
    "network": ("LINKS", "Link", "SimNetwork", "SimTransport"),
    "store_chunks": ("ChunkConformance",),
    "stores": ("StoreConformance",),
    "transports": ("TransportConformance", "temporary_hosts"),
    "virtual": ("DeadlockError", "SimRuntime", "VirtualTimeLoop"),
    "world": ("SimWorld",),
}
_PARTS = {
    "stores": ("store_base", "store_log", "store_writes"),
    "transports": ("transport_base", "transport_streams", "transport_broadcasts"),
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "LINKS",
    "ChunkConformance",
    "CipherConformance",
    "DeadlockError",
    "LedgerConformance",
    "Link",
    "MemoryDisk",
    "MemoryStore",
    "SimLedger",
    "SimNetwork",
    "SimRuntime",
    "SimTransport",
    "SimWorld",
    "StoreConformance",
    "TransportConformance",
    "VirtualTimeLoop",
    "open_memory_store",
    "temporary_hosts",
]


def __getattr__(name: str) -> object:
    home = _MODULES.get(name)
    if home is None:
        raise AttributeError(f"module 'walyoff.testing' has no attribute {name!r}")
    module = f"walyoff.testing.{home}"
    if "pytest" in sys.modules:
        # So that a failed check says what was on both sides of its `==`.
        names = [f"walyoff.testing.{part}" for part in (home, *_PARTS.get(home, ()))]
        fresh = [part for part in names if part not in sys.modules]
        sys.modules["pytest"].register_assert_rewrite(*fresh)
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value
