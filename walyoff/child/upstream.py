"""Brings Walytis and the key classes of WalytisIdentities into the child, on our terms.

Import order is everything here. Stock modules start a second IPFS node, compile liboqs and
open listeners as side effects of being imported; modules of our own stand in the places
where they would look for those things, before they are imported. What is never imported
cannot be reached: no code of upstream that listens for conversations is in this process.

What is replaced in stock code, and why, is in `patches`; other versions than those that it
knows are refused.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from walyoff.child import patches
from walyoff.child.ipfs_client import IpfsClient
from walyoff.child.oqs_adapter import import_multi_crypt
from walyoff.child.patches import VERSIONS, check_versions
from walyoff.errors import LedgerError
from walyoff.sealing import Sealing

_IPFS_MODULE = "walytis_beta_tools._experimental.ipfs_interface"

_NOT_SEALED = Sealing()

_log = logging.getLogger(__name__)
_import_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Stock:
    """The stock classes that are used."""

    client: IpfsClient
    #: The core `Blockchain` class and the module that holds it.
    blockchain: Any
    walytis: ModuleType
    #: Stock identity block classes and key classes.
    blocks: ModuleType
    keys: ModuleType


def load_stock(kubo: Any, hub: Any, home: Path) -> Stock:
    """Import the stock code with our node inside. Once in a process.

    Raises:
        LedgerError: the installed versions are not those that this was made for.
    """
    check_versions()
    data = home / "walytis"
    scratch = home / "child" / "blocks"
    for folder in (data, scratch):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for leftover in scratch.iterdir():
        if leftover.is_file():
            leftover.unlink(missing_ok=True)
    # Stock code writes each new block to a temporary file first.
    tempfile.tempdir = str(scratch)
    os.environ.update(
        IPFS_TK_MODE="EMBEDDED",
        WALYTIS_BETA_DATA_DIR=str(data),
        WALYTIS_BETA_API_TYPE="WALYTIS_BETA_DIRECT_API",
        WALY_LOG_DIR="DISABLED",
        AUTO_LOAD_BAP_MODULES="false",
    )
    client = IpfsClient(kubo, hub, scratch)
    with _import_lock:
        import_multi_crypt()
        _stand_in(_IPFS_MODULE, ipfs=client)
        _stand_in("ipfs_tk_generics", __path__=[])
        _stand_in("ipfs_tk_generics.client", IpfsClient=IpfsClient)
        _stand_in("ipfs_tk_peer_monitor", PeerMonitor=patches.InertPeerMonitor)
        core = importlib.import_module("walytis_beta.walytis_beta")
        patches.shorten_peer_file_interval(importlib.import_module("walytis_beta.networking"))
        importlib.import_module("walytis_beta.walytis_beta_appdata").set_appdata_dir(str(data))
        # Only annotations of the block classes want the API package, and it is a heavy one.
        _stand_in("walytis_beta_api", Blockchain=core.Blockchain)
        _bare_package("walytis_identities")
        keys = importlib.import_module("walytis_identities.key_objects")
        blocks = importlib.import_module("walytis_identities.did_manager_blocks")
    _quieten()
    return Stock(client, core.Blockchain, core, blocks, keys)


def _stand_in(name: str, **content: Any) -> None:
    if name in sys.modules:
        raise LedgerError(f"{name} was imported before its stand-in")
    module = ModuleType(name)
    module.__dict__.update(content)
    sys.modules[name] = module


def _bare_package(name: str) -> None:
    """Make submodules importable without running the package's own __init__."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise LedgerError(f"{name} is not installed")
    _stand_in(name, __path__=list(spec.submodule_search_locations))


def _quieten() -> None:
    # Stock code logs every step of every block, at debug level, to the console.
    prefixes = ("walytis", "brenthy", "multi_crypt", "strict_typing")
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if not isinstance(logger, logging.Logger) or name.startswith("walyoff"):
            continue
        if name.startswith(prefixes) or name in _STOCK_LOGGERS:
            logger.setLevel(logging.WARNING)


_STOCK_LOGGERS = {
    *("Walytis", "Networking", "API", "BlockCreation", "BlockProcess", "BlockRecords"),
    *("BlockchainModel", "BlockModel", "Generics", "Ancestry", "Appdata", "Join"),
    *("WalId", "DM", "GDM", "Keys", "CKM", "GDM_Join", "DMWS", "WalId.Keys"),
}


def install(
    server: Any, kubo: Any, hub: Any, home: Path, sealing: Sealing = _NOT_SEALED
) -> Callable[[], None]:
    """Load the stock code and register all methods; returns what ends it.

    Runs in a thread of its own once Kubo is up; it takes about half a second.
    """
    # Imported here because both need the stand-ins' dependencies only when they are used.
    from walyoff.child.chains import Chains  # noqa: PLC0415
    from walyoff.child.identities import Identities  # noqa: PLC0415

    stock = load_stock(kubo, hub, Path(home))
    chains = Chains(stock, hub, Path(home), server.emit)
    identities = Identities(stock, chains, Path(home), server.emit, sealing)
    for name, function in {**chains.methods(), **identities.methods()}.items():
        server.register(name, function)
    return chains.close_all


__all__ = ["VERSIONS", "Stock", "check_versions", "install", "load_stock"]
