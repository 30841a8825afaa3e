"""The blocks of one chain in memory: a graph that answers without reading a file.

Decided here: whether a well-formed block may follow those that are known. Never decided here:
whether anybody may write what it says (`judging`), nor what is on disk (`chainfiles`).

Questions cost what they need and not the length of the chain. No I/O.
"""

from __future__ import annotations

import heapq
import threading
from collections import Counter
from collections.abc import Collection, Iterable
from datetime import datetime
from typing import NamedTuple

from walyoff.child.blocks import BlockFile, check_cid
from walyoff.errors import RemoteProtocolError

GENESIS = "genesis"
#: Stock chains are born with five blocks in a row; a later one with that topic is no birth.
GENESIS_BLOCKS = 5
#: Stock code wants two parents of every block but the first ones.
MIN_PARENTS = 2


class Entry(NamedTuple):
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


class ChainDag:
    """The known blocks of one chain. Safe to use from many threads."""

    def __init__(self, chain: str) -> None:
        check_cid(chain)
        self.chain = chain
        self._lock = threading.RLock()
        self._entries: dict[str, Entry] = {}
        self._leaves: set[str] = set()
        #: How many blocks hold a content, by its hash; and the birth by height.
        self._contents: Counter[bytes] = Counter()
        self._births: dict[int, str] = {}

    @property
    def lock(self) -> threading.RLock:
        """Held while the chain grows, and by who looks at it more than once.

        Who judges its blocks takes it before its own: a hand-over holds it when it asks.
        """
        return self._lock

    def __contains__(self, cid: object) -> bool:
        return cid in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    # ------------------------------------------------------------------ reading

    def entry(self, cid: str) -> Entry | None:
        """What is known of a block."""
        return self._entries.get(cid)

    def leaves(self) -> list[str]:
        """The blocks that are nobody's parents, in order of their CIDs."""
        with self._lock:
            return sorted(self._leaves)

    def entries(self) -> list[Entry]:
        """The known blocks, oldest admitted first."""
        with self._lock:
            return list(self._entries.values())

    def with_topic(self, topic: str) -> list[Entry]:
        """The known blocks that have a topic, oldest admitted first."""
        return [entry for entry in self.entries() if topic in entry.topics]

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

    def beside(self, cids: Collection[str]) -> int:
        """How many blocks are neither among these, nor before nor after one of them."""
        with self._lock:
            after = set(cids)
            for entry in self._entries.values():
                if not after.isdisjoint(entry.parents):
                    after.add(entry.cid)
            return len(self._entries) - len(after | self.with_ancestors(cids))

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

    def with_ancestors(self, cids: Iterable[str]) -> set[str]:
        """Those of these blocks that are known, and all that they build on."""
        with self._lock:
            found: set[str] = set()
            stack = [cid for cid in cids if cid in self._entries]
            while stack:
                cid = stack.pop()
                if cid not in found:
                    found.add(cid)
                    stack.extend(p for p in self._entries[cid].parents if p in self._entries)
            return found

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

    # ------------------------------------------------------------------ growing

    def _forget(self) -> None:
        self._entries.clear()
        self._leaves.clear()
        self._contents.clear()
        self._births.clear()

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
