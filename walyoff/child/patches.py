"""What is changed of stock Walytis, in one place, and for which versions.

Stock files on disk stay as they are. Two kinds of change are made: methods of the stock chain
class that a subclass answers from memory (`answers_from_files`), and modules of ours that
stand where stock code looks for others (`upstream`, `ipfs_client`). `PATCHES` lists all of
them with the reason, and with what would have to be true upstream to drop each.

One thing is *not* changed: the recursion limit. Stock code recurses over chains that it
catches up with, and 1,200 missed blocks end it; but here it is only given blocks whose parents
are known, so it never recurses, and a high limit would let deep JSON from outside overflow the
C stack, which no handler catches.

Other versions are refused: the places that are replaced may have moved.
"""

from __future__ import annotations

import importlib.util
import inspect
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from walyoff.child.blocks import decode_id
from walyoff.errors import LedgerError

#: What the changes were made for; anything else is refused.
VERSIONS = {
    "walytis_beta": "2.4.43",
    "walytis_beta_api": "2.4.20",
    "walytis-identities": "0.5.3",
}
#: Stock's peer files are written this often; 20 s makes its end take as long.
PEER_FILE_INTERVAL_S = 1
_INTERVAL_NAME = "PM_FILE_WRITE_INTERVALL_SEC"
#: What blocks of ours have for their creator. It is a claim that nobody checks, and the node's
#: name would tell everybody who has the chain which device wrote when.
CREATOR = "walyoff"
#: The methods that are answered from memory, and their parameters after `self`.
_REPLACED = {
    "is_block_known": ("block_id",),
    "find_block": ("short_id",),
    "remove_ancestors": ("blocks", "short_ids"),
    "load_latest_block_ids": ("amount", "since_date", "topics"),
    "get_genesis_block": (),
    "ensure_ipfs_pinned": (),
    "save_block": ("block",),
    "publish_new_block": ("block",),
    "listen_for_blocks": (),
    "terminate_networking": (),
    "download_and_process_block": ("long_id", "live"),
    "create_block": ("content", "topics"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """One change of stock behaviour."""

    name: str
    #: What stock code does.
    why: str
    #: What would have to be true upstream to drop it.
    until: str


PATCHES = (
    Patch(
        name="ancestors in memory",
        why="remove_ancestors walks to the first block at each add; find_block scans files",
        until="both answer from an index whose cost does not grow with the chain",
    ),
    Patch(
        name="pins one by one",
        why="list_pins asks the node for all pins at each add, to look for one: O(pins)",
        until="an add asks about one CID",
    ),
    Patch(
        name="creator",
        why="each block says for ever which node wrote it, so which device, and when",
        until="the creator's name can be chosen, or left out",
    ),
    Patch(
        name="read deadline",
        why="a read of a block that nobody has hangs on the pubsub thread for ever",
        until="downloads can be cancelled, and reception does not wait for them",
    ),
    Patch(
        name="peer files",
        why="ending waits for a thread that writes peers every 20 s; its entries are dialled",
        until="ending wakes the thread, and addresses are dialled on request only",
    ),
    Patch(
        name="guard",
        why="any announced block is decoded by code that raises, loops or stores what it gets",
        until="blocks are decoded totally, and an application can refuse one before it counts",
    ),
    Patch(
        name="repair",
        why="a torn index file makes the start raise; a doubled entry comes twice",
        until="files are replaced atomically, or checked and cut at the start",
    ),
    Patch(
        name="no listeners",
        why="upstream's conversation listeners can be used before any authentication",
        until="joining and key requests are off unless they are asked for",
    ),
)


def check_versions() -> None:
    """Raise LedgerError unless the installed upstream packages are the known ones."""
    for name, wanted in VERSIONS.items():
        found = _version(name)
        if found != wanted:
            raise LedgerError(f"{name} {found} is installed; {wanted} is needed")


def _version(name: str) -> str:
    """The installed version of a distribution, as the folder beside its package says it."""
    package = name.replace("-", "_")
    spec = importlib.util.find_spec(package)
    for place in (spec and spec.submodule_search_locations) or ():
        said = [p.name for p in Path(place).parent.glob(f"{package}-*.dist-info")]
        if len(said) == 1:
            return said[0].removeprefix(f"{package}-").removesuffix(".dist-info")
    # However else it is installed. This reads all of its description, and is slow to import.
    from importlib.metadata import version  # noqa: PLC0415

    return version(name)


class InertPeerMonitor:
    """Stock's peer monitor dials addresses it read from files; ours are dialled elsewhere."""

    def __init__(self, _client: Any, _path: str) -> None:
        self.file_write_interval_sec = PEER_FILE_INTERVAL_S

    def register_contact_event(self, _peer_id: str) -> None:
        """Nothing is remembered."""

    def peers(self) -> list[Any]:
        """No peers are known here."""
        return []

    def terminate(self, _wait: bool = False) -> None:
        """Nothing to end."""


def shorten_peer_file_interval(networking: ModuleType) -> None:
    """Let the end of a chain wait for one second. Raises LedgerError if there is no such."""
    if not isinstance(getattr(networking, _INTERVAL_NAME, None), int | float):
        raise LedgerError(f"walytis_beta.networking has no {_INTERVAL_NAME}")
    setattr(networking, _INTERVAL_NAME, PEER_FILE_INTERVAL_S)


def check_class(blockchain: Any) -> None:
    """Raise LedgerError unless a stock chain class has the methods that are replaced."""
    for name, wanted in _REPLACED.items():
        method = getattr(blockchain, name, None)
        if method is None:
            raise LedgerError(f"the stock chain class has no {name}")
        found = tuple(inspect.signature(method).parameters)[1:]
        if found != wanted:
            raise LedgerError(f"stock {name} takes {found}; {wanted} is known")


def check_creator(blockchain: Any) -> None:
    """Raise LedgerError unless stock code takes a block's creator from where it is replaced."""
    code = inspect.unwrap(blockchain.create_block).__code__
    if "ipfs_peer_id" not in code.co_names:
        raise LedgerError("stock create_block does not ask for ipfs_peer_id")


def answers_from_files(blockchain: Any) -> Any:
    """The stock chain class, with its questions about known blocks answered from memory.

    A subclass has `files`, a `ChainFiles`. While a chain is being born, when it has no id,
    stock code answers itself.

    Raises:
        LedgerError: the class is not as it is known.
    """
    check_class(blockchain)
    check_creator(blockchain)

    class FromFiles(blockchain):  # type: ignore[misc]
        """Answers from memory."""

        files: Any
        blockchain_id: str

        @property
        def ipfs_peer_id(self) -> str:
            """The creator of new blocks: stock code wants it for nothing else here."""
            return CREATOR

        @ipfs_peer_id.setter
        def ipfs_peer_id(self, _peer_id: str) -> None:
            """Stock code sets the node's; it stays out of blocks."""

        def is_block_known(self, block_id: Any) -> bool:
            return _cid(block_id) in self.files

        def find_block(self, short_id: Any) -> bytearray | None:
            if not self.blockchain_id:
                return super().find_block(short_id)  # type: ignore[no-any-return]
            entry = self.files.entry(_cid(short_id))
            return None if entry is None else bytearray(entry.long_id)

        def remove_ancestors(self, blocks: Any, short_ids: bool = True) -> list[bytearray]:
            if not self.blockchain_id:
                return super().remove_ancestors(blocks, short_ids)  # type: ignore[no-any-return]
            kept = self.files.without_ancestors(_cid(block) for block in blocks)
            entries = [self.files.entry(cid) for cid in kept]
            return [bytearray(e.short_id if short_ids else e.long_id) for e in entries if e]

        def load_latest_block_ids(self, *_args: Any, **_kwargs: Any) -> list[bytearray]:
            # Asked for at the start, to find the leaves; stock takes the newest by their
            # own dates, which misses leaves and lets a future date hide them.
            entries = [self.files.entry(cid) for cid in self.files.leaves()]
            return [bytearray(entry.long_id) for entry in entries if entry]

        def get_genesis_block(self) -> bytearray:
            entry = self.files.entry(self.blockchain_id) if self.blockchain_id else None
            if entry is None:
                return super().get_genesis_block()  # type: ignore[no-any-return]
            return bytearray(entry.long_id)

        def ensure_ipfs_pinned(self) -> None:
            """Blocks are pinned when they are written, admitted or spread."""

    return FromFiles


def _cid(block_id: Any) -> str:
    return decode_id(bytes(block_id)).cid


__all__ = [
    "CREATOR",
    "PATCHES",
    "VERSIONS",
    "InertPeerMonitor",
    "answers_from_files",
    "check_class",
    "check_creator",
    "check_versions",
    "shorten_peer_file_interval",
]
