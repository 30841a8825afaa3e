"""The chains of this device: which are open, what is appended, listed, handed over.

Decided here: when a chain is open in Walytis and how its methods answer. How a block from
outside comes in is `guard`'s; what is on disk is `chainfiles`'.
"""

from __future__ import annotations

import functools
import logging
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from walyoff.child import packs
from walyoff.child.births import Birth
from walyoff.child.blocks import MAX_CONTENT, MAX_TOPIC, MAX_TOPICS, BlockFile, check_cid
from walyoff.child.chainfiles import (
    GENESIS,
    POSITION_LINE,
    ChainFiles,
    content_of,
    decode_files,
)
from walyoff.child.copies import sift
from walyoff.child.dag import causal_order
from walyoff.child.guard import Refusals
from walyoff.child.judging import Judge
from walyoff.child.open_chain import OpenChain, open_chain_class
from walyoff.child.upstream import Stock
from walyoff.errors import (
    LocalProtocolError,
    PayloadTooLargeError,
    RemoteProtocolError,
)
from walyoff.files import sync_folder

#: Most blocks of one answer to "chain.blocks", and most bytes of their contents.
MAX_LISTED = 1_000
MAX_LISTED_BYTES = 16 << 20
#: Most bytes of files in one export or import: well under a frame of the child protocol.
MAX_FILES_BYTES = 48 << 20

_log = logging.getLogger(__name__)

#: (payload, topics, short ids of the parents) -> content
Prepare = Callable[[bytes, Sequence[str], Sequence[bytes]], bytes]
#: names of the parents -> content
Make = Callable[[Sequence[str]], bytes]


class Chains:
    """All chains that this device holds."""

    def __init__(
        self, stock: Stock, hub: Any, home: Path, emit: Callable[[str, Any], None]
    ) -> None:
        self._stock = stock
        self._folder = home / "walytis"
        self._positions = home / "positions"
        self._positions.mkdir(mode=0o700, exist_ok=True)
        self._emit = emit
        self._lock = threading.RLock()
        self._files: dict[str, ChainFiles] = {}
        self._open: dict[str, OpenChain] = {}
        self._class = open_chain_class(stock, hub, self)
        #: Called after blocks were admitted to a chain, and after some were refused.
        self._watchers: list[Callable[[str], None]] = []
        self._judges: dict[str, Judge] = {}
        self._refusals: dict[str, Refusals] = {}
        self._guarded: dict[str, Prepare] = {}
        stock.client.files.local = self._read_local
        for leftover in self._folder.glob(".import-*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def methods(self) -> dict[str, Callable[..., Any]]:
        """The RPC methods, by name."""
        return {
            "chain.create": lambda: {"chain": self.create()},
            "chain.open": self.open,
            "chain.close": self.close,
            "chain.append": self._append,
            "chain.blocks": self._blocks,
            "chain.leaves": self.leaves,
            "chain.leaves_of": self.leaves_of,
            "chain.announce": self.announce,
            "chain.export": self._export,
            "chain.import": self.import_files,
        }

    def watch(self, watcher: Callable[[str], None]) -> None:
        """Call with a chain's id after blocks were admitted to it."""
        self._watchers.append(watcher)

    # -------------------------------------------------------------------- guard

    def guard(self, chain: str, judge: Judge, prepare: Prepare | None = None) -> None:
        """From now on admit to a chain what a judge admits.

        `prepare` makes the content of an own block from its payload, topics and parents.
        """
        with self._lock:
            self._judges[chain] = judge
            if prepare is not None:
                self._guarded[chain] = prepare

    def judge_of(self, chain: str) -> Judge | None:
        """The judge of a chain, if it has one."""
        return self._judges.get(chain)

    def judge(self, chain: str, block: BlockFile) -> None:
        """Raise RemoteProtocolError unless a block's content authenticates."""
        judge = self._judges.get(chain)
        if judge is not None:
            judge.place(self.files(chain), block)

    def prepare(
        self, chain: str, payload: bytes, topics: Sequence[str], parents: Sequence[bytes]
    ) -> bytes:
        """The content of an own block. Raises LocalProtocolError if it would be refused."""
        prepare = self._guarded.get(chain)
        return payload if prepare is None else prepare(payload, topics, parents)

    def refusals(self, chain: str) -> Refusals:
        """What was refused on a chain since the start."""
        with self._lock:
            return self._refusals.setdefault(chain, Refusals())

    def has_refused(self, chain: str) -> None:
        """Tell the watchers that the statistics of a chain have changed."""
        for watcher in self._watchers:
            watcher(chain)

    def admit_aside(self, chain: str) -> int:
        """Admit what was kept until keys came; returns how many blocks."""
        with self._lock:
            opened = self._open.get(chain)
        if opened is None:
            return 0
        admitted: int = opened.admit_aside()
        if admitted:
            self.admitted(chain, self.files(chain).top)
        return admitted

    def aside(self, chain: str) -> int:
        """How many blocks of a chain wait for a key."""
        opened = self._open.get(chain)
        return 0 if opened is None else len(opened.aside)

    # --------------------------------------------------------------- life cycle

    def create(self, birth: Birth | None = None) -> str:
        """Make a new chain and open it; returns its id, which commits to the birth."""
        chain = self._class(None, birth=birth)
        with self._lock:
            self._open[chain.blockchain_id] = chain
        return str(chain.blockchain_id)

    def open(self, chain: str, *, listen: bool = True) -> None:
        """Open a chain that is held here: it is announced and followed. Idempotent.

        One that does not listen can be written to, and takes nothing from outside.
        """
        with self._lock:
            if chain not in self._open:
                self.files(chain).file_birth()
                self._open[chain] = self._class(chain, listen=listen)

    def close(self, chain: str) -> None:
        """Stop following a chain; its blocks stay readable. Idempotent."""
        with self._lock:
            opened = self._open.pop(chain, None)
        if opened is not None:
            opened.close()

    def close_all(self) -> None:
        """Stop following all chains."""
        with self._lock:
            opened = list(self._open)
        for chain in opened:
            self.close(chain)

    def has(self, chain: str) -> bool:
        """Whether a chain is held here."""
        check_cid(chain)
        folder = self._folder / chain
        return (
            chain in self._files or (folder / "ReceivedBlocks").is_dir() or packs.holds(folder)
        )

    def folder(self, chain: str) -> Path:
        """Where a chain lies, in stock layout."""
        check_cid(chain)
        return self._folder / chain

    def files(self, chain: str) -> ChainFiles:
        """The blocks of a chain that is held here. Raises LocalProtocolError if it is not."""
        check_cid(chain)
        with self._lock:
            files = self._files.get(chain)
            if files is None:
                if not self.has(chain):
                    raise LocalProtocolError(f"chain {chain} is not held here")
                files = self.new_files(chain)
                files.load()
                self._files[chain] = files
            return files

    def top(self, chain: str) -> int:
        """The highest position of a chain that is held here, without reading it."""
        check_cid(chain)
        files = self._files.get(chain)
        if files is not None:
            return files.top
        try:
            return (self._positions / chain).stat().st_size // POSITION_LINE
        except FileNotFoundError:
            return 0

    def release(self, chain: str) -> None:
        """Forget what is in memory of a chain that is not open; its files stay."""
        with self._lock:
            if chain not in self._open:
                self._files.pop(chain, None)

    def discard(self, chain: str) -> None:
        """Remove a chain that nobody here needs, and all that is remembered of it."""
        check_cid(chain)
        with self._lock:
            if chain in self._open:
                raise LocalProtocolError("an open chain is not discarded")
            for known in (self._files, self._judges, self._refusals, self._guarded):
                known.pop(chain, None)
            shutil.rmtree(self._folder / chain, ignore_errors=True)
            (self._positions / chain).unlink(missing_ok=True)

    def is_open(self, chain: str) -> bool:
        """Whether a chain is announced and followed."""
        return chain in self._open

    def new_files(self, chain: str, folder: Path | None = None) -> ChainFiles:
        """The blocks of a chain, not read yet."""
        return ChainFiles(chain, folder or self._folder / chain, self._positions / chain)

    def adopt_files(self, files: ChainFiles) -> None:
        """Take over what a chain's birth has made."""
        with self._lock:
            self._files[files.chain] = files

    def admitted(self, chain: str, top: int) -> None:
        """Tell everybody that a chain has grown."""
        self._emit("chain.block", {"chain": chain, "top": top})
        for watcher in self._watchers:
            watcher(chain)

    def _read_local(self, cid: str) -> bytes | None:
        for files in list(self._files.values()):
            if cid in files:
                return files.read(cid)
        return None

    # ------------------------------------------------------------------- blocks

    def append(
        self, chain: str, content: bytes | Make, topics: Sequence[str]
    ) -> tuple[str, int]:
        """Write a block; returns its name and position. Durable when it returns.

        A function makes the content when the names of the block's parents are known.
        """
        check_append(b"-" if callable(content) else content, topics)
        with self._lock:
            opened = self._open.get(chain)
        if opened is None:
            raise LocalProtocolError(f"chain {chain} is not open")
        ref, position = opened.append(content, list(topics))
        return ref, position

    def _append(self, chain: str, content: bytes, topics: list[str]) -> dict[str, Any]:
        ref, position = self.append(chain, content, topics)
        return {"ref": ref, "position": position}

    def _blocks(self, chain: str, after: int, limit: int) -> dict[str, Any]:
        if not isinstance(after, int) or not isinstance(limit, int) or limit < 1:
            raise LocalProtocolError("after and limit are positive integers")
        files = self.files(chain)
        blocks: list[list[Any]] = []
        size = 0
        for position, entry in files.after(after, min(limit, MAX_LISTED)):
            content = content_of(files.read(entry.cid))
            size += len(content)
            if size > MAX_LISTED_BYTES and blocks:
                break
            blocks.append([entry.cid, position, list(entry.topics), content])
        return {"blocks": blocks, "top": files.top}

    def leaves(self, chain: str) -> list[str]:
        """The newest blocks of a chain."""
        return self.files(chain).leaves()

    def leaves_of(self, chains: Sequence[str]) -> dict[str, list[str]]:
        """The newest blocks of chains, as far as they are held here."""
        found = {}
        for chain in chains:
            try:
                found[chain] = self.leaves(chain)
            except (LocalProtocolError, RemoteProtocolError):
                # A member whose chain has not come here yet, or that is no DID at all.
                continue
        return found

    def announce(self, chain: str) -> None:
        """Tell everybody on the chain's topic its leaves now, as stock code does in 20 s."""
        with self._lock:
            opened = self._open.get(chain)
        if opened is None:
            raise LocalProtocolError(f"chain {chain} is not open")
        opened.announce()

    def export(
        self,
        chain: str,
        known: Sequence[str] | None = None,
        limit: int = MAX_FILES_BYTES,
        after: int = 0,
    ) -> tuple[list[bytes], int | None]:
        """Block files in causal order, up to a size in bytes, after a position.

        With them the position to go on from, or None when these were the last.
        """
        if not known and chain not in self._files and self.has(chain):
            return self.new_files(chain).export_unread(limit, after)
        return self.files(chain).export(known, limit, after)

    def _export(
        self, chain: str, known: list[str] | None, limit_bytes: int, after: int = 0
    ) -> dict[str, Any]:
        if known is not None and not all(isinstance(cid, str) for cid in known):
            raise LocalProtocolError("known is a list of block names")
        limit = min(int(limit_bytes), MAX_FILES_BYTES)
        files, more = self.export(chain, known, limit, int(after))
        return {"files": files, "after": more}

    def import_files(
        self, chain: str, files: Sequence[bytes], *, sync: bool = True
    ) -> dict[str, Any]:
        """Take blocks that somebody handed over; says how many were new or refused.

        Blocks of an unknown chain make it known if the first block is among them. Durable
        when it returns; without `sync` an unknown chain's are with the next ones.

        Raises:
            RemoteProtocolError: the chain is unknown and its first block is not there.
        """
        check_cid(chain)
        refused: Counter[str] = Counter()

        def refuse(reason: str) -> None:
            refused[reason] += 1

        decoded = decode_files(files, refuse)
        ordered = [
            (b, decoded[b.cid][1]) for b in causal_order({c: b[0] for c, b in decoded.items()})
        ]
        with self._lock:
            if not self.has(chain):
                admitted = self._import_new(chain, ordered, refuse, sync=sync)
                self.admitted(chain, self.files(chain).top)
                return {"admitted": admitted, "refused": refused}
            known = self.files(chain)
            opened = self._open.get(chain)
        judge = self._judges.get(chain)
        check = None if judge is None else functools.partial(judge_later, judge, known)
        if judge is not None and (look := judge.look(known)) is not None:
            ordered = sift(look, ordered, refuse)
        if opened is None:
            admitted = known.add_closed(ordered, refuse, judge=check)
        else:
            admitted = opened.feed_many(ordered, refuse, check)
        if admitted:
            self.admitted(chain, known.top)
        return {"admitted": admitted, "refused": dict(refused)}

    def _import_new(
        self,
        chain: str,
        ordered: list[tuple[Any, bytes]],
        refuse: Callable[[str], None],
        *,
        sync: bool,
    ) -> int:
        if all(block.cid != chain for block, _ in ordered):
            raise RemoteProtocolError("the chain's first block is missing", reason="no-genesis")
        # Built beside its place, so that a crash leaves no half of a chain.
        temporary = self._folder / f".import-{chain}"
        shutil.rmtree(temporary, ignore_errors=True)
        (self._positions / chain).unlink(missing_ok=True)
        building = self.new_files(chain, temporary)
        judge = self._judges.get(chain)
        check = None if judge is None else functools.partial(judge_later, judge, building)
        if judge is not None and (look := judge.look(building)) is not None:
            ordered = sift(look, ordered, refuse)
        building.add_closed(ordered, refuse, judge=check, sync=sync)
        # What a power loss left there is no chain.
        shutil.rmtree(self._folder / chain, ignore_errors=True)
        building.move(self._folder / chain)
        if sync:
            sync_folder(self._folder)
        self.adopt_files(building)
        return len(building)


def judge_later(judge: Judge, files: ChainFiles, block: BlockFile) -> None:
    """The judge of a chain whose birth is among the blocks."""
    if GENESIS not in block.topics:
        judge.place(files, block)


def check_append(content: bytes, topics: Sequence[str]) -> None:
    """Refuse what stock code would choke on, before it sees it."""
    if not isinstance(content, bytes) or not content:
        raise LocalProtocolError("a block's content is non-empty bytes")
    if len(content) > MAX_CONTENT:
        raise PayloadTooLargeError(len(content), MAX_CONTENT, "block content")
    # The chain's own id is added to the topics.
    if not topics or len(topics) >= MAX_TOPICS or len(set(topics)) != len(topics):
        raise LocalProtocolError(f"a block has 1 to {MAX_TOPICS - 1} different topics")
    for topic in topics:
        if not isinstance(topic, str) or "\0" in topic or topic == GENESIS:
            raise LocalProtocolError("a topic is a string without NUL, and not 'genesis'")
        if not 0 < len(topic.encode("utf-8", "replace")) <= MAX_TOPIC:
            raise LocalProtocolError(f"a topic has 1 to {MAX_TOPIC} bytes")
        try:
            topic.encode()
        except UnicodeEncodeError as error:
            raise LocalProtocolError("a topic is valid Unicode") from error
