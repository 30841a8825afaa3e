"""The register of an identity's channel as a `walyoff.abc.Ledger`: all its segments as one.

The segments are in the child process (`walyoff.child.segments`), which opens the next one
when the newest is full. Here they are one ledger: positions go on growing over them, and
hand-over between devices compares all of them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

import anyio

from walyoff.errors import ChildError, PayloadTooLargeError
from walyoff.walytis import ledger
from walyoff.walytis.ledger import MAX_FILES_BYTES, PAGE, WalytisLedger
from walyoff.walytis.process import Child
from walyoff.wire import expect_int

#: Seconds for opening: an old segment may have to be read again after a crash.
_OPEN_TIME = 60.0
#: Files that are handed over at a time, in bytes: one piece is sent while the next is read.
PIECE_BYTES = 1 << 20
#: After so many files at once readers wait until none came for a while, in seconds, but not for
#: ever: what blocks say costs ten times what it takes to have them, and messages come by
#: sessions in any case.
MANY_FILES = 64
NO_MORE_AFTER = 0.25
READ_AT_LAST = 5.0

_log = logging.getLogger(__name__)


class RegisterLedger(WalytisLedger):
    """The segments of one identity, followed until the last ledger of it is closed.

    A block's position is 0 when it was written before the history that precedes its segment
    was handed over (a device that joined a moment ago): readers see it with its position
    when that is here.
    """

    _hint = "group.block"

    def __init__(self, child: Child, did: str, chain_id: str, group: Mapping[str, Any]) -> None:
        super().__init__(child, chain_id)
        self._did = did
        #: What opens the group, for a new child.
        self._group = dict(group)
        self._keys: list[list[bytes]] = []
        #: Until when, by the event loop's clock, more of a large hand-over is expected.
        self._more_until = -math.inf

    @classmethod
    async def open_register(
        cls, child: Child, chain_id: str, group: Mapping[str, Any]
    ) -> RegisterLedger:
        """Follow the newest segment of a group, given the arguments that opened it."""
        did = str(group["did"])
        await child.call("group.ledger_open", {"did": did}, timeout=_OPEN_TIME)
        return cls(child, did, chain_id, group)

    async def learn_keys(self, keys: Mapping[bytes, bytes]) -> None:
        """The anchor keys of the epochs, by epoch id, newest last; see `abc.GuardedLedger`.

        They are told again to a new child. Never logged.
        """
        self._keys = [[epoch_id, key] for epoch_id, key in keys.items()]
        await self._tell_keys()

    async def _tell_keys(self) -> None:
        if self._keys:
            args = {"chain": self.chain_id, "keys": self._keys}
            await self._child.call("chain.keys", args, timeout=_OPEN_TIME)

    async def segments(self) -> list[dict[str, Any]]:
        """What is known of each segment, earlier ones first. Raises ChildError."""
        answer = await self._child.call("group.segments", {"did": self._did})
        return [item for item in _list(answer) if isinstance(item, dict)]

    async def statistics(self) -> dict[str, Any]:
        """What the guard refused by reason, segments, downloads. Raises ChildError."""
        answer = await self._child.call("group.statistics", {"did": self._did})
        return answer if isinstance(answer, dict) else {}

    async def is_complete(self) -> bool:
        """See `abc.GuardedLedger`: each segment but the newest shows the link to the next."""
        return (await self.statistics()).get("complete") is True

    # ------------------------------------------------------------------- hand-over

    async def announce(self) -> None:
        """See `WalytisLedger.announce`; of the newest segment."""
        newest = [s for s in await self.segments() if s.get("open")]
        for segment in newest:
            await self._child.call("chain.announce", {"chain": segment["chain"]})

    async def leaves(self) -> list[str]:
        """`CHAIN/BLOCK` for the newest segments, one digest for all others."""
        answer = await self._child.call("group.leaves", {"did": self._did})
        return [name for name in _list(answer) if isinstance(name, str)]

    async def wanted(self, theirs: Sequence[str]) -> list[str] | None:
        """What is held here, if a device with those leaves has more; else None."""
        args = {"did": self._did, "theirs": list(theirs)}
        answer = await self._child.call("group.wanted", args, timeout=ledger.FILES_TIME)
        if answer is None:
            return None
        return [name for name in _list(answer) if isinstance(name, str)]

    async def export(self, known: Sequence[str] | None = None) -> list[bytes]:
        """Files of all segments, each with its chain's name, that are not known there."""
        files, _ = await self._export(known, MAX_FILES_BYTES, None)
        return files

    async def pieces(
        self, known: Sequence[str] | None = None
    ) -> AsyncGenerator[list[bytes], None]:
        """All that `export` begins with, a megabyte at a time."""
        after: Any = None
        while True:
            files, after = await self._export(known, PIECE_BYTES, after)
            if files:
                yield files
            if after is None:
                return

    async def _export(
        self, known: Sequence[str] | None, limit: int, after: Any
    ) -> tuple[list[bytes], Any]:
        args = {
            "did": self._did,
            "known": None if known is None else list(known),
            "limit_bytes": limit,
            "after": after,
        }
        answer = await self._child.call(
            "group.export_segments", args, timeout=ledger.FILES_TIME
        )
        if not isinstance(answer, dict):
            raise ChildError("the child's answer is no map")
        files = [item for item in _list(answer.get("files")) if isinstance(item, bytes)]
        return files, answer.get("after")

    async def import_files(self, files: Sequence[bytes]) -> tuple[int, dict[str, int]]:
        """Take what `export` gave; (how many blocks were new, refused by reason)."""
        size = sum(map(len, files))
        if size > 2 * MAX_FILES_BYTES:
            raise PayloadTooLargeError(size, 2 * MAX_FILES_BYTES, "hand-over of block files")
        args = {"did": self._did, "files": list(files)}
        many = len(files) >= MANY_FILES
        if many:
            self._more_until = math.inf
        try:
            answer = await self._child.call(
                "group.import_segments", args, timeout=ledger.FILES_TIME
            )
        finally:
            if many:
                self._more_until = anyio.current_time() + NO_MORE_AFTER
        if not isinstance(answer, dict):
            raise ChildError("the child's answer is no map")
        refused = answer.get("refused")
        counts = refused if isinstance(refused, dict) else {}
        if counts:
            _log.warning("%s: handed over blocks were refused: %s", self._did, counts)
        return expect_int(answer.get("admitted"), "admitted"), {
            str(reason): n for reason, n in counts.items() if isinstance(n, int)
        }

    # -------------------------------------------------------------- as a ledger

    async def _append(self, payload: bytes) -> Any:
        args = {"did": self._did, "content": payload}
        return await self._child.call("group.append", args, timeout=ledger.APPEND_TIME)

    async def _page(self, after: int) -> Any:
        at_last = anyio.current_time() + READ_AT_LAST
        # A piece that comes meanwhile puts it off.
        while (now := anyio.current_time()) < min(self._more_until, at_last):  # noqa: ASYNC110
            await anyio.sleep(min(self._more_until - now, NO_MORE_AFTER))
        args = {"did": self._did, "after": after, "limit": PAGE}
        return await self._child.call("group.blocks", args, timeout=ledger.APPEND_TIME)

    def _concerns(self, hint: dict[str, Any]) -> bool:
        return hint.get("did") == self._did

    async def _follow_chain(self) -> None:
        # Idempotent; an identity that is entered does the same.
        await self._child.call("group.open", self._group, timeout=_OPEN_TIME)
        await self._tell_keys()
        await self._child.call("group.ledger_open", {"did": self._did}, timeout=_OPEN_TIME)

    async def _unfollow_chain(self) -> None:
        await self._child.call("group.ledger_close", {"did": self._did}, timeout=5)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


__all__ = ["RegisterLedger"]
