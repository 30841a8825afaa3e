"""The segments of one register as they are held here: read, compared and handed over.

Decided here: what another device is told of them, what it is given, and in which order. Where
a block stands is `segment_tree`'s; how segments come to be and grow is `segments`'.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from blake3 import blake3

from walyoff.child.blocks import MAX_FILE
from walyoff.child.chainfiles import ChainFiles, content_of
from walyoff.child.chains import MAX_FILES_BYTES, MAX_LISTED, MAX_LISTED_BYTES, Chains
from walyoff.child.proofs import unwrap
from walyoff.child.segment_tree import Segment, SegmentTree
from walyoff.errors import LocalProtocolError, RemoteProtocolError
from walyoff.files import replace_file
from walyoff.wire import expect_array, expect_bytes, expect_str, pack, unpack

#: Old segments that stay in memory after they were read: half a megabyte each.
MAX_LOADED = 8
#: Newest segments whose leaves are named one by one; the others make one digest.
RECENT = 2
#: Names of leaves in one message of a session.
MAX_NAMES = 4_096
_OLDER = "older"

_log = logging.getLogger(__name__)


class HeldSegments:
    """All segments of one channel, to read. Safe to use from many threads."""

    def __init__(
        self, did: str, root: str, chains: Chains, state: Path, *, guarded: bool
    ) -> None:
        self.did = did
        self.guarded = guarded
        self._chains = chains
        self._state = state
        self._lock = threading.RLock()
        #: The highest position of each segment; which are in memory; which is the newest.
        self._tops: dict[str, int] = {}
        self._loaded: list[str] = []
        self._followed: str | None = None
        #: Whether the tree has changed since it was last written.
        self._changed = False
        self.tree = self._load(root)

    def _load(self, root: str) -> SegmentTree:
        try:
            tree = SegmentTree.decode(self._state.read_bytes())
        except FileNotFoundError:
            return SegmentTree(root)
        except RemoteProtocolError as error:
            # The chains are the truth; places are given anew.
            _log.warning("the list of segments of %s is damaged: %s", self.did, error)
            return SegmentTree(root)
        return tree if tree.root == root else SegmentTree(root)

    def _keep(self) -> None:
        """Write the tree if it has changed: now and then, and before a place is told."""
        if self._changed:
            self._changed = False
            replace_file(self._state, self.tree.encode())

    def _extend(self) -> None:
        if self.tree.extend(self._tops):
            self._changed = True

    def _look(self, segment: Segment) -> None:
        """Take note of what a segment gained."""
        raise NotImplementedError

    # --------------------------------------------------------------------- reading

    def _files(self, chain: str) -> ChainFiles:
        """The blocks of a segment; of those that are not open a few stay in memory."""
        files = self._chains.files(chain)
        if not self._chains.is_open(chain):
            if chain in self._loaded:
                self._loaded.remove(chain)
            self._loaded.append(chain)
            while len(self._loaded) > MAX_LOADED:
                self._chains.release(self._loaded.pop(0))
        return files

    def blocks(self, after: int, limit: int) -> dict[str, Any]:
        """[name, place, topics, payload] of blocks after a place, in order of places."""
        if not isinstance(after, int) or not isinstance(limit, int) or limit < 1:
            raise LocalProtocolError("after and limit are positive integers")
        with self._lock:
            self._extend()
            self._keep()
            found: list[list[Any]] = []
            size, place = 0, max(after, 0)
            limit = min(limit, MAX_LISTED)
            while len(found) < limit and size < MAX_LISTED_BYTES:
                run = self.tree.run_after(place)
                if run is None:
                    break
                start, chain, before, left = run
                files = self._files(chain)
                page = files.after(before, limit - len(found))
                page = [(at, entry) for at, entry in page if at <= before + left]
                place = start + left
                for at, entry in page:
                    payload = self._payload(content_of(files.read(entry.cid)))
                    size += len(payload)
                    if size > MAX_LISTED_BYTES and found:
                        break
                    place = start + at - before
                    found.append([entry.cid, place, list(entry.topics), payload])
                else:
                    # All of the run, unless the limit cut it.
                    if len(found) < limit:
                        place = start + left
            return {"blocks": found, "top": self.tree.top}

    def _payload(self, content: bytes) -> bytes:
        if not self.guarded:
            return content
        try:
            return unwrap(content)[0]
        except RemoteProtocolError:
            # From before the guard: the reader will refuse it by name.
            return content

    # ------------------------------------------------------------------- comparing

    def listing(self) -> list[list[str | None]]:
        """[chain, parent, link] of all segments but the first, for a joiner."""
        with self._lock:
            return [[s.chain, s.parent, s.link] for s in self.tree.in_order() if s.parent]

    def complete(self) -> bool:
        """Whether all segments that are known of are here and connected."""
        with self._lock:
            return all(
                s.connected and self._chains.has(s.chain) for s in self.tree.segments.values()
            )

    def leaves(self) -> list[str]:
        """What another device has to know to find out whether it lacks something.

        `CHAIN/BLOCK` for each leaf of the newest segments, and `older/DIGEST/COUNT` for
        the others.
        """
        with self._lock:
            newest = self.tree.head().number - RECENT
            names: list[str] = []
            older: list[list[Any]] = []
            for segment in self._held():
                if segment.number > newest:
                    names += [f"{segment.chain}/{leaf}" for leaf in segment.leaves]
                else:
                    older.append([segment.chain, segment.leaves])
            if older:
                digest = blake3(pack(sorted(older))).hexdigest(16)
                names.append(f"{_OLDER}/{digest}/{len(older)}")
            return names[:MAX_NAMES]

    def _held(self) -> list[Segment]:
        held = [s for s in self.tree.in_order() if self._chains.has(s.chain)]
        for segment in held:
            if not segment.leaves or segment.chain == self._followed:
                segment.leaves = self._files(segment.chain).leaves()
        return held

    def wanted(self, theirs: Sequence[str]) -> list[str] | None:
        """The leaves that are held here, if a device with those leaves has more; else None."""
        with self._lock:
            own = set(self.leaves())
            if all(self._has_leaf(name) for name in theirs if name not in own):
                return None
            # The oldest first, as those are what comes first.
            names = [f"{s.chain}/{leaf}" for s in self._held() for leaf in s.leaves]
            return names[:MAX_NAMES]

    def _has_leaf(self, name: str) -> bool:
        chain, _, leaf = name.partition("/")
        if chain == _OLDER:
            return False
        segment = self.tree.segments.get(chain)
        if segment is None or not self._chains.has(chain):
            return False
        return leaf in segment.leaves or leaf in self._files(chain)

    # ------------------------------------------------------------------- hand-over

    def export(
        self, known: Sequence[str] | None, limit: int, after: tuple[str, int] | None = None
    ) -> tuple[list[bytes], tuple[str, int] | None]:
        """`pack([chain, file])` of blocks that a device with these leaves lacks, in order.

        Those after a place (chain, position), if one is given. With them the place to go on
        from, or None when these were the last.
        """
        limit = min(limit, MAX_FILES_BYTES)
        by_chain: dict[str, list[str]] = {}
        for name in known or ():
            chain, _, leaf = name.partition("/")
            by_chain.setdefault(chain, []).append(leaf)
        with self._lock:
            lacking = [
                s.chain
                for s in self._held()
                if not set(s.leaves) <= set(by_chain.get(s.chain, ()))
            ]
        position = 0
        if after is not None and after[0] in lacking:
            lacking = lacking[lacking.index(after[0]) :]
            position = after[1]
        packed: list[bytes] = []
        for chain in lacking:
            files, more = self._chains.export(chain, by_chain.get(chain), limit, position)
            packed += [pack([chain, file]) for file in files]
            limit -= sum(map(len, files))
            position = 0
            if more is not None:
                return packed, (chain, more)
            if limit <= 0:
                following = lacking[lacking.index(chain) + 1 :]
                return packed, (following[0], 0) if following else None
        return packed, None

    def import_files(self, packed: Sequence[bytes]) -> dict[str, Any]:
        """Take what `export` gave on another device; how many were new, refused by reason."""
        admitted = 0
        refused: Counter[str] = Counter()
        for chain, files in _by_chain(packed):
            with self._lock:
                segment = self.tree.segments.get(chain)
                if segment is None:
                    refused["unknown-segment"] += len(files)
                    continue
                answer = self._chains.import_files(chain, files)
                admitted += answer["admitted"]
                refused.update(answer["refused"])
                if answer["admitted"]:
                    # At once: the next files may be of a segment that these name.
                    self._look(segment)
                    self._files(chain)
        return {"admitted": admitted, "refused": dict(refused)}


def _by_chain(packed: Sequence[bytes]) -> list[tuple[str, list[bytes]]]:
    """Files in the given order, those of one chain that follow each other together."""
    groups: list[tuple[str, list[bytes]]] = []
    for item in packed:
        chain, file = expect_array(unpack(item, MAX_FILE + 1024), 2, "block file")
        name = expect_str(chain, "chain", limit=64)
        data = expect_bytes(file, "file", limit=MAX_FILE)
        if not groups or groups[-1][0] != name:
            groups.append((name, []))
        groups[-1][1].append(data)
    return groups


__all__ = ["HeldSegments"]
