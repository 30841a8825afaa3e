"""What stands between a chain's announcements and the stock code.

Anyone who knows a chain's id can announce anything on its topic. Here an announcement is
decoded within bounds, the announced block and the parents that are missing are fetched with
a deadline and a size limit, and only blocks that were decoded totally, may follow and whose
content authenticates (see `judging`) are handed on, parents first.
"""

from __future__ import annotations

import base64
import binascii
import json
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from walyoff.child.blocks import MAX_LONG_ID, BlockFile, BlockId, decode_block, decode_id
from walyoff.child.chainfiles import parent_ids
from walyoff.child.copies import REPEATED, Look, Standing
from walyoff.child.judging import MAX_UNPROVEN, Judge, refuse_genesis
from walyoff.child.proofs import UnknownEpochError
from walyoff.errors import RemoteProtocolError

#: The largest announcement, in bytes: a leaf broadcast of many concurrent writers.
MAX_ANNOUNCEMENT = 256 * 1024
#: Most block ids in one announcement.
MAX_ANNOUNCED = 64
#: Most blocks fetched because of one announced block: a segment and some more.
MAX_BRANCH = 4_096
#: Refused blocks that are remembered, so that they are not fetched and judged again.
MAX_REMEMBERED = 4_096
#: Blocks kept until their epoch's key comes, by number and by size.
MAX_ASIDE = 256
MAX_ASIDE_BYTES = 16 << 20
#: Deepest nesting an announcement needs, with room; json recurses in C.
MAX_BRACKETS = 16


class Refusals:
    """Counts what was refused, by reason, and remembers which blocks were."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._blocks: OrderedDict[str, str] = OrderedDict()

    def count(self, reason: str) -> None:
        """One more for this reason."""
        with self._lock:
            self._counts[reason] += 1

    def remember(self, cid: str, reason: str) -> None:
        """A block that will never be admitted: it is fetched and counted once."""
        with self._lock:
            if cid not in self._blocks:
                self._counts[reason] += 1
                self._blocks[cid] = reason
                while len(self._blocks) > MAX_REMEMBERED:
                    self._blocks.popitem(last=False)

    def __contains__(self, cid: object) -> bool:
        return cid in self._blocks

    def bars(self, cid: str) -> bool:
        """Whether a block was refused that nothing can be built on; a repeat may be needed."""
        return self._blocks.get(cid, REPEATED) != REPEATED

    def statistics(self) -> dict[str, int]:
        """How many were refused, by reason."""
        with self._lock:
            return dict(self._counts)


class Aside:
    """Blocks that may be admitted once an epoch's key comes; bounded, the oldest go first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks: OrderedDict[str, tuple[BlockFile, bytes]] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return len(self._blocks)

    def put(self, block: BlockFile, data: bytes) -> None:
        """Keep a block."""
        with self._lock:
            if block.cid in self._blocks:
                return
            self._blocks[block.cid] = (block, data)
            self._size += len(data)
            while len(self._blocks) > MAX_ASIDE or self._size > MAX_ASIDE_BYTES:
                _, (_, old) = self._blocks.popitem(last=False)
                self._size -= len(old)

    def get(self, cid: str) -> tuple[BlockFile, bytes] | None:
        """A block that is kept."""
        return self._blocks.get(cid)

    def take(self) -> dict[str, tuple[BlockFile, bytes]]:
        """All of them; nothing is kept any more."""
        with self._lock:
            blocks, self._blocks, self._size = self._blocks, OrderedDict(), 0
            return dict(blocks)


def decode_announcement(data: bytes) -> list[tuple[str, BlockId]]:
    """The blocks that a stock announcement names, with their text.

    Raises:
        RemoteProtocolError: it is too large, too deep, or no announcement.
    """
    if len(data) > MAX_ANNOUNCEMENT:
        raise RemoteProtocolError("announcement too large", reason="too-large")
    if data.count(b"{") + data.count(b"[") > MAX_BRACKETS:
        raise RemoteProtocolError("announcement too deep", reason="announcement")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RemoteProtocolError("announcement is not JSON", reason="announcement") from error
    match value:
        case {"message": "New block!", "block_id": str() as one}:
            texts = [one]
        case {"message": "Leaf blocks:", "leaf_blocks": list() as texts}:
            pass
        case _:
            raise RemoteProtocolError("announcement of no known kind", reason="announcement")
    if len(texts) > MAX_ANNOUNCED or not all(isinstance(text, str) for text in texts):
        raise RemoteProtocolError("announcement of many blocks", reason="announcement")
    return [(text, decode_id(_from_text(text))) for text in texts]


def to_text(long_id: bytes) -> str:
    """A block id as stock announcements carry it."""
    return base64.urlsafe_b64encode(long_id).rstrip(b"=").decode()


def _from_text(text: str) -> bytes:
    if len(text) > 2 * MAX_LONG_ID:
        raise RemoteProtocolError("announced id too large", reason="too-large")
    try:
        # Stock code writes base64url without padding.
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise RemoteProtocolError(
            "announced id is not base64", reason="announcement"
        ) from error


class Branch:
    """Fetches an announced block and its unknown ancestors, and feeds them parents first.

    What was fetched before a failure is not lost: blocks whose ancestors are all known are
    fed in any case.
    """

    def __init__(self, chain: Any, files: Any, judge: Judge | None, announcer: str) -> None:
        self._chain = chain
        self._files = files
        self._judge = judge
        self._announcer = announcer
        self._fetched: dict[str, tuple[BlockFile, bytes]] = {}
        self._look: Look | None = None
        #: What members built on, as far as it is known before it is admitted.
        self._needed: set[str] = set()
        #: Blocks whose signers are not known: those may be among the ancestors.
        self._unproven = 0

    def fetch(self, wanted: BlockId) -> int:
        """Returns how many blocks were new.

        Raises:
            TransportError: a block could not be had in time.
            RemoteProtocolError: a block is malformed, may not follow, or the branch is too
                long.
        """
        if wanted.cid in self._chain.files or wanted.cid in self._chain.refused:
            return 0
        if self._judge is not None and not self._judge.plausible(wanted.topics):
            raise RemoteProtocolError("announced block of no known kind", reason="bad-topics")
        try:
            return self._climb(wanted)
        except UnknownEpochError:
            for block, data in self._fetched.values():
                if block.cid not in self._chain.files:
                    self._chain.aside.put(block, data)
            raise

    def _climb(self, wanted: BlockId) -> int:
        stack = [(wanted.cid, wanted.short)]
        admitted = 0
        while stack:
            cid, short = stack[-1]
            if cid in self._chain.files:
                stack.pop()
                continue
            if cid not in self._fetched:
                self._get(cid, short, wanted.cid)
            block, data = self._fetched[cid]
            missing = [
                (parent, parent_id)
                for parent, parent_id in zip(block.parents, parent_ids(block), strict=True)
                if parent not in self._chain.files
            ]
            if missing:
                stack.extend(missing)
                continue
            with self._remembering(cid, wanted.cid):
                admitted += self._chain.feed(block, data)
            stack.pop()
        return admitted

    def _get(self, cid: str, short: bytes, wanted: str) -> None:
        if len(self._fetched) >= MAX_BRANCH or self._unproven > MAX_UNPROVEN:
            raise RemoteProtocolError("branch too long", reason="branch-too-long")
        if self._chain.refused.bars(cid):
            raise _AncestorRefusedError
        kept = self._chain.aside.get(cid)
        data = kept[1] if kept else bytes(self._files.read(cid, self._announcer))
        with self._remembering(cid, wanted):
            block = decode_block(data, cid)
        if block.short_id != short:
            raise RemoteProtocolError("announced id is false", reason="false-id")
        # Before its ancestors are fetched: most of what strangers write ends here.
        with self._remembering(cid, wanted):
            refuse_genesis(block)
            self._fetched[cid] = (block, data)
            if self._judge is None:
                return
            if not self._judge.form(block):
                self._unproven += 1
            if cid == wanted:
                self._look = self._judge.look(self._chain.files)
            repeats = self._repeats(block)
            if repeats and cid == wanted:
                raise RemoteProtocolError("block says what another one says", reason=REPEATED)
        if repeats and cid not in self._needed:
            # Not remembered: a member's block may need it, and bring it.
            raise RemoteProtocolError("block builds on a repeat", reason=REPEATED)

    def _repeats(self, block: BlockFile) -> bool:
        """Whether a block is of no use, unless a member built on it (see `copies`)."""
        if self._look is None:
            # All blocks say their place: who built on one is a member.
            self._needed.update(block.parents)
            return bool(self._chain.files.holds_content(block))
        standing = self._look.take(block)
        if standing is Standing.PLACED or block.cid in self._needed:
            self._needed.update(block.parents)
        return standing is Standing.REPEAT

    @contextmanager
    def _remembering(self, cid: str, wanted: str) -> Iterator[None]:
        """What is wrong with a block itself is remembered, of it and of what builds on it."""
        try:
            yield
        except (UnknownEpochError, _AncestorRefusedError):
            raise
        except RemoteProtocolError as error:
            self._chain.refused.remember(cid, error.reason)
            if cid != wanted:
                self._chain.refused.remember(wanted, "bad-ancestor")
            raise _RememberedError(str(error), reason=error.reason) from error


class _RememberedError(RemoteProtocolError):
    """Counted already."""


class _AncestorRefusedError(RemoteProtocolError):
    def __init__(self) -> None:
        super().__init__("an ancestor was refused before", reason="bad-ancestor")


def counted(error: BaseException) -> bool:
    """Whether a failure is in the statistics already."""
    return isinstance(error, _RememberedError)
