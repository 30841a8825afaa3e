"""Brings Walytis and the key classes of WalytisIdentities into the child, on our terms.

Import order is everything here. Stock modules start a second IPFS node, compile liboqs and
open listeners as side effects of being imported; modules of our own stand in the places
where they would look for those things, before they are imported. What is never imported
cannot be reached: no code of upstream that listens for conversations is in this process.

The recursion limit stays as it is: stock code recurses over chains that it catches up with,
but here it is only given blocks whose parents are known, and a high limit would let deep
JSON from outside overflow the C stack.

Versions are pinned in pyproject.toml; others are refused, because the places that are
replaced may have moved.
"""

from __future__ import annotations

import importlib
import importlib.metadata
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

from walyoff.child.ipfs_client import IpfsClient
from walyoff.child.oqs_adapter import import_multi_crypt
from walyoff.errors import LedgerError

#: What the stand-ins were made for; anything else is refused.
VERSIONS = {
    "walytis_beta": "2.4.43",
    "walytis_beta_api": "2.4.20",
    "walytis-identities": "0.5.3",
}
#: Stock's peer files are written this often; 20 s makes its end take as long.
_PEER_FILE_INTERVAL_S = 1
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


class _InertPeerMonitor:
    """Stock's peer monitor dials addresses it read from files; ours are dialled elsewhere."""

    def __init__(self, _client: Any, _path: str) -> None:
        self.file_write_interval_sec = _PEER_FILE_INTERVAL_S

    def register_contact_event(self, _peer_id: str) -> None:
        """Nothing is remembered."""

    def peers(self) -> list[Any]:
        """No peers are known here."""
        return []

    def terminate(self, _wait: bool = False) -> None:
        """Nothing to end."""


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
        _stand_in("ipfs_tk_peer_monitor", PeerMonitor=_InertPeerMonitor)
        core = importlib.import_module("walytis_beta.walytis_beta")
        importlib.import_module("walytis_beta.networking").__dict__[
            "PM_FILE_WRITE_INTERVALL_SEC"
        ] = _PEER_FILE_INTERVAL_S
        importlib.import_module("walytis_beta.walytis_beta_appdata").set_appdata_dir(str(data))
        # Only annotations of the block classes want the API package, and it is a heavy one.
        _stand_in("walytis_beta_api", Blockchain=core.Blockchain)
        _bare_package("walytis_identities")
        keys = importlib.import_module("walytis_identities.key_objects")
        blocks = importlib.import_module("walytis_identities.did_manager_blocks")
    _quieten()
    return Stock(client, core.Blockchain, core, blocks, keys)


def check_versions() -> None:
    """Raise LedgerError unless the installed upstream packages are the known ones."""
    for name, wanted in VERSIONS.items():
        found = importlib.metadata.version(name)
        if found != wanted:
            raise LedgerError(f"{name} {found} is installed; {wanted} is needed")


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


def install(server: Any, kubo: Any, hub: Any, home: Path) -> Callable[[], None]:
    """Load the stock code and register all methods; returns what ends it.

    Runs in a thread of its own once Kubo is up; it takes about half a second.
    """
    # Imported here because both need the stand-ins' dependencies only when they are used.
    from walyoff.child.chains import Chains  # noqa: PLC0415
    from walyoff.child.identities import Identities  # noqa: PLC0415

    stock = load_stock(kubo, hub, Path(home))
    chains = Chains(stock, hub, Path(home), server.emit)
    identities = Identities(stock, chains, Path(home), server.emit)
    for name, function in {**chains.methods(), **identities.methods()}.items():
        server.register(name, function)
    return chains.close_all
