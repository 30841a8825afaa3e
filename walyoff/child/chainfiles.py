"""The blocks of one chain on disk: stock layout, a pack beside it, our order of admission.

Decided here: at which position this device admitted a block, and what a crash leaves of it.
Whether it may follow is `dag`'s; whether anybody may write what it says, `judging`'s.

A chain is a folder in the layout of stock Walytis (`ReceivedBlocks/CID[:4]/CID`, and index
files in `KnownBlocksIndex`), so stock code can open it; blocks that were handed over are in a
pack until it does. The files are the truth: what a crash left torn is removed, and the index
is written again from the files when it disagrees. Positions are an append-only list of CIDs
beside it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from walyoff.child.blocks import MAX_FILE, BlockFile, check_cid, decode_block
from walyoff.child.chainindex import append_index, repair_index
from walyoff.child.dag import (
    GENESIS,
    GENESIS_BLOCKS,
    ChainDag,
    Entry,
    causal_order,
    parent_ids,
)
from walyoff.child.packs import Pack
from walyoff.errors import LedgerError, RemoteProtocolError
from walyoff.files import make_folder, replace_file, sync_folder

#: A CID and a newline.
POSITION_LINE = 47

_log = logging.getLogger(__name__)


class ChainFiles(ChainDag):
    """The known blocks of one chain. Safe to use from many threads."""

    def __init__(self, chain: str, folder: Path, positions: Path) -> None:
        super().__init__(chain)
        self.folder = folder
        self._positions_path = positions
        #: CIDs by position - 1; None where a block was lost.
        self._order: list[str | None] = []
        self._position: dict[str, int] = {}
        #: What was added and could not be written yet (a full disk).
        self._unplaced: list[str] = []
        self._pack = Pack(folder)
        self._spreading = threading.Lock()

    def __repr__(self) -> str:
        return f"<ChainFiles {self.chain} [{len(self)} blocks]>"

    # ------------------------------------------------------------------ reading

    @property
    def top(self) -> int:
        """The highest position."""
        return len(self._order)

    def read(self, cid: str) -> bytes:
        """The file of a known block. Raises LedgerError when it cannot be read."""
        check_cid(cid)
        with self._lock:
            packed = self._pack.read(cid)
        if packed is not None:
            return packed
        try:
            with open(self._path(cid), "rb") as file:
                return file.read(MAX_FILE + 1)
        except OSError as error:
            raise LedgerError(f"block {cid} cannot be read") from error

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

    def place(self, cid: str) -> int:
        """Where a block came among those that are held; what has no position yet came last."""
        with self._lock:
            return self._position.get(cid, len(self._order) + 1)

    def export(
        self, known: Sequence[str] | None, limit_bytes: int, after: int = 0
    ) -> tuple[list[bytes], int | None]:
        """Block files in causal order that are not the known ones or their ancestors.

        Only those after a position; with them the position to go on from, or None when these
        were the last. Stops when the sum exceeds the limit.
        """
        with self._lock:
            have = self.with_ancestors(known or ())
            order = list(enumerate(self._order[after:], after + 1))
        wanted = ((p, c) for p, c in order if c in self._entries and c not in have)
        return self._read_up_to(wanted, limit_bytes)

    def export_unread(self, limit_bytes: int, after: int = 0) -> tuple[list[bytes], int | None]:
        """The same of all blocks of a chain that was not loaded, without decoding them.

        Who gets them decodes them, and so finds out what a crash left torn here.
        """
        with self._lock:
            self._pack.load()
        wanted = enumerate(self._stored_order()[after:], after + 1)
        return self._read_up_to(wanted, limit_bytes)

    def _read_up_to(
        self, wanted: Iterable[tuple[int, str | None]], limit_bytes: int
    ) -> tuple[list[bytes], int | None]:
        files: list[bytes] = []
        size = 0
        for position, cid in wanted:
            if cid is None:
                continue
            try:
                data = self.read(cid)
            except (LedgerError, RemoteProtocolError) as error:
                # One that is lost must not keep the others back.
                _log.warning("chain %s: %s", self.chain, error)
                continue
            files.append(data)
            size += len(data)
            if size >= limit_bytes:
                return files, position
        return files, None

    # ------------------------------------------------------------------ writing

    def write_block(self, block: BlockFile, data: bytes) -> None:
        """Write a block's file so that a crash leaves all of it or nothing."""
        path = self._path(block.cid)
        make_folder(path.parent)
        replace_file(path, data)

    def admit(self, block: BlockFile) -> int | None:
        """Take a checked and written block into the order; None if it was there already."""
        with self._lock:
            if block.cid in self._entries:
                return None
            self._remember(block)
            self._unplaced.append(block.cid)
            self._place()
            return self._position[block.cid]

    def add_closed(
        self,
        blocks: Iterable[tuple[BlockFile, bytes]],
        refuse: Callable[[str], None] | None = None,
        judge: Callable[[BlockFile], None] | None = None,
        *,
        sync: bool = True,
    ) -> int:
        """Check, judge, write and admit blocks, without stock code.

        Those that may not follow are passed over, and told to `refuse` by reason. Durable
        when it returns, unless the next ones are to see to it.

        Raises:
            RemoteProtocolError: one may not follow, and there is no `refuse`; those before
                it stay.
            OSError: they could not be written; the next call tries it again.
        """
        added = 0
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
                    self._pack.put(block.cid, data)
                    self._remember(block)
                    self._unplaced.append(block.cid)
                    added += 1
            finally:
                # Once for all of them: each takes a flush of the disk.
                if self._unplaced:
                    self._pack.flush(sync=sync)
                    # Their order is the pack's, as long as there is one.
                    self._place(sync=False)
        return added

    def move(self, folder: Path) -> None:
        """Move the chain's folder. Raises LedgerError when its first block is not in it."""
        with self._lock:
            if self.chain not in self._entries:
                raise LedgerError(f"chain {self.chain} has no first block here")
            os.replace(self.folder, folder)
            self.folder = folder
            self._pack.move(folder)

    def packed(self) -> list[str]:
        """What is in the pack: blocks that were handed over and are not spread yet."""
        with self._lock:
            return [cid for cid in self._pack if cid in self._entries]

    def spread(self, cids: Sequence[str]) -> None:
        """Give blocks of the pack files of their own, as stock code has them.

        The pack goes when all of it was. A kill leaves some blocks twice, which does no harm.
        """
        with self._spreading:
            self._file(cids)
            with self._lock:
                # Unless more came meanwhile.
                if set(self._pack) <= set(cids):
                    # What the pack says of their order is said by the positions alone now.
                    self._sync_positions()
                    self._pack.remove()

    def file_birth(self) -> None:
        """Give the first blocks files of their own: stock code knows a chain by them."""
        birth = [cid for cid in self.packed() if GENESIS in self._entries[cid].topics]
        with self._spreading:
            self._file(birth)

    def _file(self, cids: Sequence[str]) -> None:
        fresh = [cid for cid in cids if not self._path(cid).is_file()]
        for cid in fresh:
            path = self._path(cid)
            make_folder(path.parent)
            replace_file(path, self.read(cid), sync_name=False)
        # Before the pack goes; one folder has many of them.
        for folder in {self._path(cid).parent for cid in fresh}:
            sync_folder(folder)
        if fresh:
            with self._lock:
                append_index(self.folder, [self._entries[cid].long_id for cid in fresh])

    # ------------------------------------------------------------------ loading

    def load(self) -> None:
        """Read what is on disk, and repair what a crash left.

        Raises LedgerError when the chain has no first block.
        """
        with self._lock:
            self._forget()
            self._unplaced.clear()
            self._pack.load()
            stored, filed = self._stored_blocks()
            for block in causal_order(stored):
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
            # Parents before children, so the chain's first block is the first record.
            long_ids = [e.long_id for e in self.in_order() if e.cid in filed]
            if long_ids and repair_index(self.folder, long_ids):
                _log.warning("chain %s: its index was written again", self.chain)

    def _stored_blocks(self) -> tuple[dict[str, BlockFile], set[str]]:
        """All blocks on disk, and which of them have files of their own."""
        found: dict[str, BlockFile] = {}
        filed: set[str] = set()
        for cid in list(self._pack):
            try:
                found[cid] = decode_block(self._pack.read(cid) or b"", cid)
            except (RemoteProtocolError, LedgerError) as error:
                _log.warning("chain %s: passing over block %s: %s", self.chain, cid, error)
                self._pack.drop(cid)
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
            filed.add(block.cid)
        return found, filed

    def _path(self, cid: str) -> Path:
        return self.folder / "ReceivedBlocks" / cid[:4] / cid

    def _block_paths(self) -> list[Path]:
        return sorted((self.folder / "ReceivedBlocks").glob("*/*"))

    # ---------------------------------------------------------------- positions

    def _place(self, *, sync: bool = True) -> None:
        """Give positions to what was added; what fails is done by the next call."""
        self._append_positions(self._unplaced, sync=sync)
        self._unplaced.clear()

    def _sync_positions(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(self._positions_path, os.O_RDONLY)
            try:
                os.fdatasync(fd)
            finally:
                os.close(fd)
            sync_folder(self._positions_path.parent)

    def _append_positions(self, cids: Sequence[str], *, sync: bool = True) -> None:
        fd = os.open(self._positions_path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            # Over a torn end, if an earlier write failed half way.
            end = len(self._order) * POSITION_LINE
            os.ftruncate(fd, end)
            with open(fd, "wb", closefd=False) as file:
                file.seek(end)
                file.write("".join(f"{cid}\n" for cid in cids).encode())
            if sync:
                os.fdatasync(fd)
        finally:
            os.close(fd)
        if sync and not self._order:
            sync_folder(self._positions_path.parent)
        for cid in cids:
            self._order.append(cid)
            self._position[cid] = len(self._order)

    def _stored_order(self) -> list[str]:
        try:
            data = self._positions_path.read_bytes()
        except FileNotFoundError:
            data = b""
        whole = len(data) // POSITION_LINE * POSITION_LINE
        return [
            data[start : start + POSITION_LINE - 1].decode("ascii", "replace")
            for start in range(0, whole, POSITION_LINE)
        ]

    def _load_positions(self) -> None:
        stored = self._stored_order()
        with contextlib.suppress(FileNotFoundError):
            # Cut a torn end.
            os.truncate(self._positions_path, len(stored) * POSITION_LINE)
        self._order = []
        self._position = {}
        for cid in stored:
            if cid in self._entries:
                self._order.append(cid)
                self._position[cid] = len(self._order)
            else:
                self._order.append(None)
        # What a power loss took the positions of was handed over last, in the pack's order.
        known = dict.fromkeys(cid for cid in self._pack if cid in self._entries)
        known |= dict.fromkeys(entry.cid for entry in self.in_order())
        missing = [cid for cid in known if cid not in self._position]
        if missing:
            self._append_positions(missing)


def content_of(data: bytes) -> bytes:
    """The content of a block file that was decoded before. Raises LedgerError."""
    _, found, content = data.partition(b"\0" * 5)
    if not found:
        raise LedgerError("block file without content")
    return content


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


__all__ = [
    "GENESIS",
    "GENESIS_BLOCKS",
    "POSITION_LINE",
    "ChainFiles",
    "content_of",
    "decode_files",
    "parent_ids",
]
