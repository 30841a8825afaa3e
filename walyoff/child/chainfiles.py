"""The blocks of one chain on disk: stock layout, our own order of admission.

Decided here: whether a well-formed block belongs to a chain, and at which position this
device admitted it. Never decided here: whether anybody may write what it says.

A chain is a folder in the layout of stock Walytis (`ReceivedBlocks/CID[:4]/CID`, and index
files in `KnownBlocksIndex`), so stock code can open it. The files are the truth: what a crash
left torn is removed, and the index is written again from the files when it disagrees.
Positions are an append-only list of CIDs beside it.
"""

from __future__ import annotations

import contextlib
import heapq
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from walyoff.child.blocks import (
    MAX_FILE,
    BlockFile,
    check_cid,
    decode_block,
    from_base255,
    index_record,
)
from walyoff.errors import LedgerError, RemoteProtocolError

GENESIS = "genesis"
#: Stock chains are born with five blocks in a row; a later one with that topic is no birth.
GENESIS_BLOCKS = 5
#: Stock code wants two parents of every block but the first ones.
MIN_PARENTS = 2
#: The name that stock code gives the first index file: a time before any block's.
_FIRST_INDEX = "2000.09.22_00.00.00.000000"
#: A CID and a newline.
POSITION_LINE = 47
#: Digits of the longest id's length in base 255.
MAX_LENGTH_DIGITS = 4

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What is kept in memory of a block."""

    cid: str
    created: datetime
    topics: tuple[str, ...]
    parents: tuple[str, ...]
    short_id: bytes
    long_id: bytes
    #: The longest way to the first block.
    height: int
    content_hash: bytes


def write_atomically(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace a file so that a crash leaves the old or the new content."""
    temporary = path.with_name(f".{path.name}.{threading.get_ident()}.new")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


class ChainFiles:
    """The known blocks of one chain. Safe to use from many threads."""

    def __init__(self, chain: str, folder: Path, positions: Path) -> None:
        check_cid(chain)
        self.chain = chain
        self.folder = folder
        self._positions_path = positions
        self._lock = threading.RLock()
        self._entries: dict[str, Entry] = {}
        self._leaves: set[str] = set()
        #: CIDs by position - 1; None where a block was lost.
        self._order: list[str | None] = []
        self._position: dict[str, int] = {}
        #: How many blocks hold a content, by its hash; and the birth by height.
        self._contents: Counter[bytes] = Counter()
        self._births: dict[int, str] = {}
        #: Folders of blocks that exist.
        self._folders: set[str] = set()

    def __repr__(self) -> str:
        return f"<ChainFiles {self.chain} [{len(self._entries)} blocks]>"

    def __contains__(self, cid: object) -> bool:
        return cid in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    # ------------------------------------------------------------------ reading

    @property
    def top(self) -> int:
        """The highest position."""
        return len(self._order)

    def entry(self, cid: str) -> Entry | None:
        """What is known of a block."""
        return self._entries.get(cid)

    def leaves(self) -> list[str]:
        """The blocks that are nobody's parents, in order of their CIDs."""
        with self._lock:
            return sorted(self._leaves)

    def read(self, cid: str) -> bytes:
        """The file of a known block. Raises LedgerError when it cannot be read."""
        check_cid(cid)
        try:
            with open(self._path(cid), "rb") as file:
                return file.read(MAX_FILE + 1)
        except OSError as error:
            raise LedgerError(f"block {cid} cannot be read") from error

    def with_topic(self, topic: str) -> list[Entry]:
        """The known blocks that have a topic, oldest admitted first."""
        with self._lock:
            return [entry for entry in self._entries.values() if topic in entry.topics]

    def holds_content(self, block: BlockFile) -> bool:
        """Whether another known block has the same content."""
        return self._contents[block.content_hash] > 0 and block.cid not in self._entries

    def in_past(self, starts: Iterable[str], wanted: Iterable[str]) -> list[str]:
        """Those of the wanted blocks that are among these blocks and their ancestors."""
        with self._lock:
            looked_for = {cid for cid in wanted if cid in self._entries}
            if not looked_for:
                return []
            floor = min(self._entries[cid].height for cid in looked_for)
            found: set[str] = set()
            seen: set[str] = set()
            # The highest first: what is looked for is near the top of most chains' past.
            stack = [cid for cid in starts if cid in self._entries]
            while stack and found != looked_for:
                cid = stack.pop()
                if cid in seen:
                    continue
                seen.add(cid)
                if cid in looked_for:
                    found.add(cid)
                entry = self._entries[cid]
                if entry.height > floor:
                    stack.extend(p for p in entry.parents if p in self._entries)
            return [cid for cid in self._entries if cid in found]

    def after(self, position: int, limit: int) -> list[tuple[int, Entry]]:
        """(position, entry) of blocks after a position, without the chain's birth."""
        found: list[tuple[int, Entry]] = []
        with self._lock:
            for index in range(max(0, position), len(self._order)):
                cid = self._order[index]
                entry = None if cid is None else self._entries.get(cid)
                if entry is None or self._position.get(entry.cid) != index + 1:
                    continue
                if GENESIS in entry.topics:
                    continue
                found.append((index + 1, entry))
                if len(found) >= limit:
                    break
        return found

    def position(self, cid: str) -> int:
        """The position of a known block."""
        with self._lock:
            return self._position[cid]

    def in_order(self) -> list[Entry]:
        """All known blocks, parents before children, smallest CID first among the ready.

        The order depends on nothing but the set of blocks, so it is the same everywhere.
        """
        with self._lock:
            waiting = {
                cid: len({p for p in entry.parents if p in self._entries})
                for cid, entry in self._entries.items()
            }
            children: dict[str, list[str]] = {}
            for cid, entry in self._entries.items():
                for parent in set(entry.parents):
                    children.setdefault(parent, []).append(cid)
            ready = [cid for cid, count in waiting.items() if count == 0]
            heapq.heapify(ready)
            ordered: list[Entry] = []
            while ready:
                cid = heapq.heappop(ready)
                ordered.append(self._entries[cid])
                for child in children.get(cid, ()):
                    waiting[child] -= 1
                    if waiting[child] == 0:
                        heapq.heappush(ready, child)
            return ordered

    def without_ancestors(self, cids: Iterable[str]) -> list[str]:
        """Those of the known blocks that are not ancestors of another one of them."""
        with self._lock:
            wanted = list(dict.fromkeys(cids))
            if len(wanted) < 2:
                return wanted
            floor = min(self._entries[cid].height for cid in wanted)
            seen: set[str] = set()
            stack = [parent for cid in wanted for parent in self._entries[cid].parents]
            while stack:
                cid = stack.pop()
                if cid in seen:
                    continue
                seen.add(cid)
                entry = self._entries.get(cid)
                # Nothing below the lowest wanted block can be one of them.
                if entry is not None and entry.height > floor:
                    stack.extend(entry.parents)
            return [cid for cid in wanted if cid not in seen]

    def export(self, known: Sequence[str] | None, limit_bytes: int) -> list[bytes]:
        """Block files in causal order that are not the known ones or their ancestors.

        Stops before the sum exceeds the limit, but gives one block in any case, so that
        repeated calls make progress.
        """
        with self._lock:
            have: set[str] = set()
            stack = [cid for cid in known or () if cid in self._entries]
            while stack:
                cid = stack.pop()
                if cid not in have:
                    have.add(cid)
                    stack.extend(p for p in self._entries[cid].parents if p in self._entries)
            wanted = [cid for cid in self._order if cid in self._entries and cid not in have]
        files: list[bytes] = []
        size = 0
        for cid in dict.fromkeys(wanted):
            data = self.read(str(cid))
            size += len(data)
            if size > limit_bytes and files:
                break
            files.append(data)
        return files

    # ----------------------------------------------------------------- checking

    def check(self, block: BlockFile) -> None:
        """Raise RemoteProtocolError unless a block may follow those that are known here.

        The rules are those of stock Walytis, and stricter where stock code has none.
        """
        with self._lock:
            if GENESIS in block.topics:
                self._check_genesis(block)
                return
            if self.chain not in block.topics:
                raise RemoteProtocolError("block of another chain", reason="wrong-chain")
            if len(block.parents) < MIN_PARENTS or len(set(block.parents)) != len(
                block.parents
            ):
                raise RemoteProtocolError("block parents are few or repeated", reason="parents")
            self._check_parents_known(block)
            parents = list(block.parents)
            if len(parents) == MIN_PARENTS and self.chain in parents:
                parents.remove(self.chain)
            if len(self.without_ancestors(parents)) != len(parents):
                raise RemoteProtocolError("block parents are ancestors", reason="parents")

    def _check_genesis(self, block: BlockFile) -> None:
        if block.topics != (GENESIS,):
            raise RemoteProtocolError("genesis block with other topics", reason="genesis")
        if not block.parents:
            if block.cid != self.chain:
                raise RemoteProtocolError("first block of another chain", reason="wrong-chain")
            return
        self._check_parents_known(block)
        entries = [self._entries[parent] for parent in block.parents]
        if (
            any(GENESIS not in entry.topics for entry in entries)
            or max(entry.height for entry in entries) + 1 >= GENESIS_BLOCKS
        ):
            raise RemoteProtocolError("genesis block after the birth", reason="genesis")
        # One block at each height: a birth is a row, and a second one is somebody else's.
        height = max(entry.height for entry in entries) + 1
        if self._births.get(height, block.cid) != block.cid:
            raise RemoteProtocolError("second genesis block of its place", reason="genesis")

    def _check_parents_known(self, block: BlockFile) -> None:
        for parent_id, parent in zip(parent_ids(block), block.parents, strict=True):
            known = self._entries.get(parent)
            if known is None:
                raise RemoteProtocolError("block parent is unknown", reason="unknown-parents")
            if known.short_id != parent_id:
                # The id says more than the CID, and stock code compares all of it.
                raise RemoteProtocolError("block parent id is false", reason="parents")

    # ------------------------------------------------------------------ writing

    def write_block(self, block: BlockFile, data: bytes) -> None:
        """Write a block's file so that a crash leaves all of it or nothing."""
        path = self._path(block.cid)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(path, data)

    def admit(self, block: BlockFile) -> int | None:
        """Take a checked and written block into the order; None if it was there already."""
        with self._lock:
            if block.cid in self._entries:
                return None
            self._remember(block)
            self._append_positions([block.cid])
            return self._position[block.cid]

    def add_closed(
        self,
        blocks: Iterable[tuple[BlockFile, bytes]],
        refuse: Callable[[str], None] | None = None,
        judge: Callable[[BlockFile], None] | None = None,
    ) -> int:
        """Check, judge, write, index and admit blocks, without stock code.

        Those that may not follow are passed over, and told to `refuse` by reason. A crash of
        the machine may lose what was added last: whoever handed it over has it still.

        Raises:
            RemoteProtocolError: one may not follow, and there is no `refuse`; those before
                it stay.
        """
        added: list[str] = []
        records = bytearray()
        with self._lock:
            try:
                for block, data in blocks:
                    if block.cid in self._entries:
                        continue
                    try:
                        self.check(block)
                        if judge is not None:
                            judge(block)
                    except RemoteProtocolError as error:
                        if refuse is None:
                            raise
                        refuse(error.reason)
                        continue
                    self._write_fast(block.cid, data)
                    self._remember(block)
                    records += index_record(block.long_id)
                    added.append(block.cid)
            finally:
                # Once for all of them: each takes a flush of the disk.
                if added:
                    self._append_index(bytes(records))
                    self._append_positions(added)
        return len(added)

    def _write_fast(self, cid: str, data: bytes) -> None:
        """Write a file that may be torn by a crash; reading it at a start would tell."""
        path = self._path(cid)
        if cid[:4] not in self._folders:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._folders.add(cid[:4])
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.write(fd, data)
        finally:
            os.close(fd)

    def load(self) -> None:
        """Read what is on disk, and repair what a crash left.

        Raises LedgerError when the chain has no first block.
        """
        with self._lock:
            self._entries.clear()
            self._leaves.clear()
            self._contents.clear()
            self._births.clear()
            found: dict[str, BlockFile] = {}
            for path in self._block_paths():
                try:
                    check_cid(path.name)
                    block = decode_block(path.read_bytes(), path.name)
                except (RemoteProtocolError, OSError) as error:
                    _log.warning(
                        "chain %s: removing block file %s: %s", self.chain, path.name, error
                    )
                    with contextlib.suppress(OSError):
                        path.unlink()
                    continue
                found[block.cid] = block
            for block in causal_order(found):
                try:
                    self.check(block)
                except RemoteProtocolError as error:
                    _log.warning(
                        "chain %s: ignoring block %s: %s", self.chain, block.cid, error
                    )
                    continue
                self._remember(block)
            if self.chain not in self._entries:
                raise LedgerError(f"chain {self.chain} has no first block here")
            self._load_positions()
            self._repair_index()

    def _remember(self, block: BlockFile) -> None:
        parents = [self._entries[p] for p in block.parents if p in self._entries]
        height = max((parent.height for parent in parents), default=-1) + 1
        self._entries[block.cid] = Entry(
            cid=block.cid,
            created=block.created,
            topics=block.topics,
            parents=block.parents,
            short_id=block.short_id,
            long_id=block.long_id,
            height=height,
            content_hash=block.content_hash,
        )
        self._contents[block.content_hash] += 1
        if GENESIS in block.topics:
            self._births[height] = block.cid
        self._leaves.difference_update(block.parents)
        self._leaves.add(block.cid)

    def _path(self, cid: str) -> Path:
        return self.folder / "ReceivedBlocks" / cid[:4] / cid

    def _block_paths(self) -> list[Path]:
        return sorted((self.folder / "ReceivedBlocks").glob("*/*"))

    # ---------------------------------------------------------------- positions

    def _append_positions(self, cids: Sequence[str]) -> None:
        fd = os.open(self._positions_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(fd, "".join(f"{cid}\n" for cid in cids).encode())
            os.fdatasync(fd)
        finally:
            os.close(fd)
        for cid in cids:
            self._order.append(cid)
            self._position[cid] = len(self._order)

    def _load_positions(self) -> None:
        try:
            data = self._positions_path.read_bytes()
        except FileNotFoundError:
            data = b""
        whole = len(data) // POSITION_LINE * POSITION_LINE
        if whole != len(data):
            os.truncate(self._positions_path, whole)
        self._order = []
        self._position = {}
        for start in range(0, whole, POSITION_LINE):
            cid = data[start : start + POSITION_LINE - 1].decode("ascii", "replace")
            if cid in self._entries:
                self._order.append(cid)
                self._position[cid] = len(self._order)
            else:
                self._order.append(None)
        missing = [e.cid for e in self.in_order() if e.cid not in self._position]
        if missing:
            self._append_positions(missing)

    # -------------------------------------------------------------------- index

    def _append_index(self, records: bytes) -> None:
        folder = self.folder / "KnownBlocksIndex"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        names = sorted(os.listdir(folder)) or [_FIRST_INDEX]
        with open(folder / names[0], "ab") as file:
            file.write(records)
            file.flush()
            os.fsync(file.fileno())

    def _repair_index(self) -> None:
        folder = self.folder / "KnownBlocksIndex"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        names = sorted(os.listdir(folder))
        records = [index_record(self._entries[str(c)].long_id) for c in self._order if c]
        wanted = sorted(set(records))
        if sum(map(len, wanted)) == sum((folder / name).stat().st_size for name in names):
            present = b"".join((folder / name).read_bytes() for name in names)
            first = index_record(self._entries[self.chain].long_id)
            if present.startswith(first) and sorted(_split_index(present)) == wanted:
                return
        if names:
            _log.warning("chain %s: writing its index again", self.chain)
        # The genesis block has to be the first record; admission order begins with it.
        ordered = b"".join(dict.fromkeys(index_record(e.long_id) for e in self.in_order()))
        write_atomically(folder / _FIRST_INDEX, ordered)
        for name in os.listdir(folder):
            if name != _FIRST_INDEX:
                (folder / name).unlink()


def index_differs(folder: Path, long_ids: Sequence[bytes]) -> bool:
    """Whether the stock index of a chain lists other blocks than these."""
    try:
        names = sorted(os.listdir(folder / "KnownBlocksIndex"))
        present = b"".join((folder / "KnownBlocksIndex" / name).read_bytes() for name in names)
    except OSError:
        return True
    return sorted(_split_index(present)) != sorted(index_record(i) for i in long_ids)


def content_of(data: bytes) -> bytes:
    """The content of a block file that was decoded before. Raises LedgerError."""
    _, found, content = data.partition(b"\0" * 5)
    if not found:
        raise LedgerError("block file without content")
    return content


def parent_ids(block: BlockFile) -> list[bytes]:
    """The short ids of a block's parents."""
    return list(block.parent_ids)


def causal_order(blocks: dict[str, BlockFile]) -> list[BlockFile]:
    """Blocks with parents before children, as far as the parents are among them."""
    ordered: list[BlockFile] = []
    done: set[str] = set()
    for start in sorted(blocks):
        stack = [start]
        while stack:
            cid = stack[-1]
            if cid in done:
                stack.pop()
                continue
            # A CID is a hash over the parents' ids, so there are no cycles.
            pending = [p for p in blocks[cid].parents if p in blocks and p not in done]
            if pending:
                stack.extend(pending)
                continue
            done.add(cid)
            ordered.append(blocks[cid])
            stack.pop()
    return ordered


def decode_files(
    files: Iterable[bytes], refuse: Callable[[str], None]
) -> dict[str, tuple[BlockFile, bytes]]:
    """Decode files from outside; what is not a block is counted by reason."""
    found: dict[str, tuple[BlockFile, bytes]] = {}
    for data in files:
        try:
            if not isinstance(data, bytes):
                raise RemoteProtocolError("block file is not bytes")
            block = decode_block(data)
        except RemoteProtocolError as error:
            refuse(error.reason)
            continue
        found[block.cid] = (block, data)
    return found


def _split_index(data: bytes) -> list[bytes]:
    """The records of index files; what is torn or no record comes as one that matches none."""
    records: list[bytes] = []
    start = 0
    while start < len(data):
        mark = data.find(b"\0", start, start + MAX_LENGTH_DIGITS + 1)
        # 6 is the separator after each record; ids themselves may end with zeros.
        end = mark + 1 + from_base255(data[start:mark]) + 6 if mark > start else len(data)
        records.append(data[start:end])
        start = end
    return records
