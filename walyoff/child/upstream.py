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
import logging
import os
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from walyoff.child import patches
from walyoff.child.ipfs_client import IpfsClient
from walyoff.child.lean import bare_package, lean_imports, stand_in
from walyoff.child.oqs_adapter import import_multi_crypt
from walyoff.child.patches import VERSIONS, check_versions
from walyoff.sealing import Sealing

_IPFS_MODULE = "walytis_beta_tools._experimental.ipfs_interface"

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

    The node need not run yet, and nothing in the home is touched: somebody else may own it.

    Raises:
        LedgerError: the installed versions are not those that this was made for.
    """
    check_versions()
    os.environ.update(
        IPFS_TK_MODE="EMBEDDED",
        WALYTIS_BETA_DATA_DIR=str(home / "walytis"),
        WALYTIS_BETA_API_TYPE="WALYTIS_BETA_DIRECT_API",
        WALY_LOG_DIR="DISABLED",
        AUTO_LOAD_BAP_MODULES="false",
    )
    client = IpfsClient(kubo, hub, _scratch(home))
    with _import_lock, lean_imports():
        import_multi_crypt()
        stand_in(_IPFS_MODULE, ipfs=client)
        stand_in("ipfs_tk_generics", __path__=[])
        stand_in("ipfs_tk_generics.client", IpfsClient=IpfsClient)
        stand_in("ipfs_tk_peer_monitor", PeerMonitor=patches.InertPeerMonitor)
        core = importlib.import_module("walytis_beta.walytis_beta")
        patches.shorten_peer_file_interval(importlib.import_module("walytis_beta.networking"))
        # Only annotations of the block classes want the API package, and it is a heavy one.
        stand_in("walytis_beta_api", Blockchain=core.Blockchain)
        bare_package("walytis_identities")
        keys = importlib.import_module("walytis_identities.key_objects")
        blocks = importlib.import_module("walytis_identities.did_manager_blocks")
    _quieten()
    return Stock(client, core.Blockchain, core, blocks, keys)


def _scratch(home: Path) -> Path:
    """Where stock code writes each new block first, to a temporary file."""
    return home / "child" / "blocks"


def _prepare(home: Path) -> None:
    """Make the folders that stock code uses, empty of what another process left."""
    data, scratch = home / "walytis", _scratch(home)
    for folder in (data, scratch):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for leftover in scratch.iterdir():
        if leftover.is_file():
            leftover.unlink(missing_ok=True)
    tempfile.tempdir = str(scratch)
    importlib.import_module("walytis_beta.walytis_beta_appdata").set_appdata_dir(str(data))


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
    server: Any,
    kubo: Any,
    hub: Any,
    home: Path,
    owned: Callable[[], Sealing] = Sealing,
) -> Callable[[], None]:
    """Load the stock code and register all methods; returns what ends it.

    It takes about half a second, most of which passes before `owned` is called: that waits
    until the node runs and the home is this process's, and gives its sealing.
    """
    # Imported here because both need the stand-ins' dependencies only when they are used.
    from walyoff.child.chains import Chains  # noqa: PLC0415
    from walyoff.child.identities import Identities  # noqa: PLC0415

    stock = load_stock(kubo, hub, Path(home))
    sealing = owned()
    _prepare(Path(home))
    chains = Chains(stock, hub, Path(home), server.emit)
    identities = Identities(stock, chains, Path(home), server.emit, sealing)
    for name, function in {**chains.methods(), **identities.methods()}.items():
        server.register(name, function)
    return chains.close_all


__all__ = ["VERSIONS", "Stock", "check_versions", "install", "load_stock"]
