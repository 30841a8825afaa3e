"""The registers of the groups that are open here, as methods of the child.

One thread follows what happens on their segments, so that nobody who admits a block waits
for the opening of the next segment.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from walyoff.child.acts import chain_of
from walyoff.child.chains import Chains
from walyoff.child.ipfs_client import IpfsClient
from walyoff.child.judging import Verify
from walyoff.child.reader import SECOND_REGISTER, Reading
from walyoff.child.segments import SEGMENT_BLOCKS, SegmentedLedger
from walyoff.errors import LocalProtocolError
from walyoff.files import make_folder, sweep_new

#: Seconds between looks at segments whose time is over.
_TICK_S = 1.0

_log = logging.getLogger(__name__)


class Registers:
    """The registers of all open groups, by DID. Safe to use from many threads."""

    def __init__(
        self,
        client: IpfsClient,
        chains: Chains,
        *,
        verify: Verify,
        control_keys: Callable[[str], Any],
        home: Path,
        emit: Callable[[str, Any], None],
    ) -> None:
        self._client = client
        self._chains = chains
        self._verify = verify
        #: The newest control keys of a group that are held here.
        self._newest = control_keys
        self._emit = emit
        self._folder = home / "segments"
        make_folder(self._folder)
        sweep_new(self._folder)
        self._registers: dict[str, SegmentedLedger] = {}
        #: The control keys that may name segments, oldest first.
        self._control: dict[str, list[str]] = {}
        self._grown: queue.Queue[str] = queue.Queue()
        chains.watch(self._grown.put)
        threading.Thread(target=self._keep, daemon=True, name="segments").start()

    def methods(self) -> dict[str, Callable[..., Any]]:
        """The RPC methods, by name."""
        return {
            "group.ledger_open": self.open_ledger,
            "group.ledger_close": lambda did: self._register(did).close(),
            "group.append": self.append,
            "group.blocks": lambda did, after, limit: self._register(did).blocks(after, limit),
            "group.leaves": lambda did: self._register(did).leaves(),
            "group.wanted": lambda did, theirs: self._register(did).wanted(_names(theirs)),
            "group.export_segments": self.export_segments,
            "group.import_segments": lambda did, files: self._register(did).import_files(files),
            "group.segments": self.segments,
            "group.statistics": self.statistics,
            "chain.keys": self.take_keys,
        }

    def take_reading(self, did: str, reading: Reading) -> None:
        """The chain of a group was read."""
        self._control[did] = [*reading.keys, *reading.void_keys]
        if reading.refused[SECOND_REGISTER]:
            _log.warning(
                "the founder of %s names a second register; here it stays %s",
                did,
                reading.segment,
            )

    def make(
        self,
        did: str,
        root: str,
        *,
        guarded: bool,
        limit: int | None,
        told: Sequence[tuple[str, str, str]],
    ) -> None:
        """Begin the register of a group, unless it was begun before."""
        if did not in self._registers:
            self._registers[did] = SegmentedLedger(
                did=did,
                root=root,
                chains=self._chains,
                state=self._folder / chain_of(did),
                guarded=guarded,
                limit=limit or SEGMENT_BLOCKS,
                control_keys=lambda: self._control[did],
                sign=lambda body: self._newest(did).sign(body),
                verify=self._verify,
                told=told,
            )

    def get(self, did: str) -> SegmentedLedger | None:
        """The register of a group that is open."""
        return self._registers.get(did)

    def forget(self, did: str) -> None:
        """Keep the register of a group no longer; its segments stay on disk."""
        self._registers.pop(did, None)
        self._control.pop(did, None)

    def _register(self, did: str) -> SegmentedLedger:
        ledger = self._registers.get(did)
        if ledger is None:
            raise LocalProtocolError("the group is not open, or names no segment yet")
        return ledger

    def open_ledger(self, did: str) -> dict[str, str]:
        """Follow a group's newest segment; the first and the newest. Idempotent."""
        ledger = self._register(did)
        ledger.follow()
        return {"first": ledger.tree.root, "newest": ledger.tree.head().chain}

    def append(self, did: str, content: bytes) -> dict[str, Any]:
        """Write an anchor to a group's newest segment."""
        ref, place = self._register(did).append(content)
        return {"ref": ref, "position": place}

    def export_segments(
        self,
        did: str,
        known: list[str] | None,
        limit_bytes: int,
        after: list[Any] | None = None,
    ) -> dict[str, Any]:
        """Block files of all segments that a device with these leaves lacks, in pieces."""
        names = None if known is None else _names(known)
        place = None if after is None else (str(after[0]), int(after[1]))
        files, more = self._register(did).export(names, int(limit_bytes), place)
        return {"files": files, "after": more}

    def segments(self, did: str) -> list[dict[str, Any]]:
        """The segments of a group's register, earlier ones first."""
        ledger = self._register(did)
        return [
            {
                "chain": s.chain,
                "number": s.number,
                "parent": s.parent,
                "link": s.link,
                "connected": s.connected,
                "held": self._chains.has(s.chain),
                "open": self._chains.is_open(s.chain),
                "blocks": self._chains.top(s.chain),
            }
            for s in ledger.tree.in_order()
        ]

    def statistics(self, did: str) -> dict[str, Any]:
        """What the guard refused, by reason, and the state of the register."""
        ledger = self._register(did)
        return {
            "identity": self._chains.refusals(chain_of(did)).statistics(),
            "ledger": ledger.statistics(),
            "segments": len(ledger.tree.segments),
            "complete": ledger.complete(),
            **self._client.files.statistics(),
        }

    def take_keys(self, chain: str, keys: list[list[bytes]]) -> None:
        """The anchor keys of a register's epochs, [[epoch id, key], ...], newest last.

        `chain` is any of its segments. They stay in memory: a new process is told again.
        """
        pairs = [(item[0], item[1]) for item in keys if len(item) == 2]
        for ledger in list(self._registers.values()):
            if chain in ledger.tree:
                ledger.take_keys(pairs)
                return
        raise LocalProtocolError("no register of this device has that segment")

    def _keep(self) -> None:
        """Follow what happens on the segments, and open the next ones."""
        next_tick = 0.0
        while True:
            chains = set()
            try:
                chains.add(self._grown.get(timeout=_TICK_S))
                while not self._grown.empty():
                    chains.add(self._grown.get_nowait())
            except queue.Empty:
                pass
            for did, ledger in list(self._registers.items()):
                try:
                    grown = [chain for chain in chains if chain in ledger.tree]
                    for chain in grown:
                        ledger.grew(chain)
                    if grown:
                        self._emit("group.block", {"did": did})
                    if ledger.wants_next(time.monotonic()):
                        ledger.advance()
                        self._emit("group.block", {"did": did})
                    if time.monotonic() >= next_tick:
                        ledger.tick(time.monotonic())
                except Exception:
                    _log.exception("the segments of %s could not be kept", did)
            if time.monotonic() >= next_tick:
                next_tick = time.monotonic() + _TICK_S


def _names(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise LocalProtocolError("names of blocks are a list of strings")
    return value
