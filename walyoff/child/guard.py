"""What stands between a chain's announcements and the stock code.

Anyone who knows a chain's id can announce anything on its topic. Here an announcement is
decoded within bounds, the announced block and the parents that are missing are fetched with
a deadline and a size limit, and only blocks that were decoded totally and may follow are
handed on, parents first.
"""

from __future__ import annotations

import base64
import binascii
import json
import threading
from collections import Counter
from typing import Any

from walyoff.child.blocks import MAX_LONG_ID, BlockFile, BlockId, decode_block, decode_id
from walyoff.child.chainfiles import parent_ids
from walyoff.errors import RemoteProtocolError

#: The largest announcement, in bytes: a leaf broadcast of many concurrent writers.
MAX_ANNOUNCEMENT = 256 * 1024
#: Most block ids in one announcement.
MAX_ANNOUNCED = 64
#: Most blocks fetched because of one announced block: a segment and some more.
MAX_BRANCH = 4_096
#: Deepest nesting an announcement needs, with room; json recurses in C.
MAX_BRACKETS = 16


class Refusals:
    """Counts what was refused, by reason."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def count(self, reason: str) -> None:
        """One more for this reason."""
        with self._lock:
            self._counts[reason] += 1

    def statistics(self) -> dict[str, int]:
        """How many were refused, by reason."""
        with self._lock:
            return dict(self._counts)


def judge(block: BlockFile) -> None:
    """Raise RemoteProtocolError if the block's content may not be on the chain.

    The place for the rest of the guard: anchors that open under an epoch key, identity
    blocks whose signature holds. Until then any well-formed block is admitted, and readers
    judge its content.
    """


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


def fetch_branch(chain: Any, files: Any, wanted: BlockId, announcer: str) -> int:
    """Fetch a block and its unknown ancestors, and feed them parents first.

    Returns how many were new. What was fetched before a failure is not lost: blocks whose
    ancestors are all known are fed in any case.

    Raises:
        TransportError: a block could not be had in time.
        RemoteProtocolError: a block is malformed, may not follow, or the branch is too long.
    """
    if wanted.cid in chain.files:
        return 0
    fetched: dict[str, tuple[BlockFile, bytes]] = {}
    stack = [(wanted.cid, wanted.short)]
    admitted = 0
    while stack:
        cid, short = stack[-1]
        if cid in chain.files:
            stack.pop()
            continue
        if cid not in fetched:
            if len(fetched) >= MAX_BRANCH:
                raise RemoteProtocolError("branch too long", reason="branch-too-long")
            data = bytes(files.read(cid, announcer))
            block = decode_block(data, cid)
            if block.short_id != short:
                raise RemoteProtocolError("announced id is false", reason="false-id")
            fetched[cid] = (block, data)
        block, data = fetched[cid]
        missing = [
            (parent, parent_id)
            for parent, parent_id in zip(block.parents, parent_ids(block), strict=True)
            if parent not in chain.files
        ]
        if missing:
            stack.extend(missing)
            continue
        admitted += chain.feed(block, data)
        stack.pop()
    return admitted
