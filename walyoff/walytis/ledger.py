"""A Walytis chain as a `walyoff.abc.Ledger`.

The chain lives in the child process. Its events are hints that may be lost, so readers page
through the chain from their own position: on a hint, after a restart of the child, and now
and then.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from weakref import WeakKeyDictionary

import anyio
from anyio.abc import ObjectReceiveStream, ObjectSendStream

from walyoff.abc import Block
from walyoff.errors import (
    ChildError,
    LocalProtocolError,
    PayloadTooLargeError,
    RemoteProtocolError,
    WalyoffError,
)
from walyoff.tasks import background_tasks
from walyoff.walytis.process import Child
from walyoff.wire import expect_array, expect_bytes, expect_int, expect_str

#: The topic of anchor blocks.
TOPIC = "walyoff"
#: Largest payload: what was measured to pass pubsub and Kubo, less the block's header.
MAX_PAYLOAD = 1_000_000 - 16_384
#: Seconds after which a reader looks without a hint.
RECONCILE_INTERVAL = 30.0
#: Seconds between attempts while the child is not there.
RETRY_INTERVAL = 0.5
#: Blocks of one page, and pages waiting for a reader.
PAGE = 256
WAITING = 64
#: Seconds for an append, which takes some hundredths of one: after them it counts as hung,
#: and the child is replaced.
APPEND_TIME = 20.0
#: Files that one call hands over, in bytes, and its deadline in seconds.
MAX_FILES_BYTES = 32 << 20
FILES_TIME = 60.0
#: Characters of a block's name.
MAX_REF = 64

_log = logging.getLogger(__name__)

#: How many ledgers that are not closed use a chain, by child.
_users: WeakKeyDictionary[Child, Counter[str]] = WeakKeyDictionary()


class WalytisLedger:
    """One chain, followed until the last ledger of it on the same child is closed."""

    #: The child's event that a ledger has grown.
    _hint = "chain.block"

    def __init__(self, child: Child, chain_id: str) -> None:
        self._child = child
        self._chain = chain_id
        self._wakes: set[anyio.Event] = set()
        child.on_restart.append(self._reopen)
        _users.setdefault(child, Counter())[chain_id] += 1

    def __repr__(self) -> str:
        return f"<WalytisLedger {self._chain} [{len(self._wakes)} readers]>"

    @classmethod
    async def create(cls, child: Child) -> WalytisLedger:
        """Make a new chain. Raises ChildError."""
        answer = _map(await child.call("chain.create", {}, timeout=60.0))
        return cls(child, expect_str(answer.get("chain"), "chain", limit=MAX_REF))

    @classmethod
    async def open(cls, child: Child, chain_id: str) -> WalytisLedger:
        """Follow a chain that is held here.

        Raises:
            LocalProtocolError: it is not held here; `import_chain` first.
            ChildError: the child is not there now.
        """
        await child.call("chain.open", {"chain": chain_id}, timeout=60.0)
        return cls(child, chain_id)

    @property
    def chain_id(self) -> str:
        """The chain's id."""
        return self._chain

    @property
    def max_payload(self) -> int:
        """The largest payload of one block, in bytes."""
        return MAX_PAYLOAD

    async def append(self, payload: bytes) -> Block:
        """Write a block (see `walyoff.abc.Ledger.append`)."""
        if not payload:
            raise LocalProtocolError("a block's payload is not empty")
        if len(payload) > MAX_PAYLOAD:
            raise PayloadTooLargeError(len(payload), MAX_PAYLOAD, "block payload")
        answer = _map(await self._append(bytes(payload)))
        return Block(
            ref=expect_str(answer.get("ref"), "ref", limit=MAX_REF),
            position=expect_int(answer.get("position"), "position"),
            payload=bytes(payload),
        )

    async def _append(self, payload: bytes) -> Any:
        args = {"chain": self._chain, "content": payload, "topics": [TOPIC]}
        return await self._child.call("chain.append", args, timeout=APPEND_TIME)

    @asynccontextmanager
    async def blocks(self, after: int = 0) -> AsyncIterator[ObjectReceiveStream[Block]]:
        """All blocks after a position, then new ones (see `walyoff.abc.Ledger.blocks`)."""
        send, receive = anyio.create_memory_object_stream[Block](WAITING)
        with send, receive:
            async with self._child.events(self._hint) as hints, background_tasks() as tasks:
                reader = _Reader(after, self._wakes)
                try:
                    tasks.start_soon(self._hear, hints, reader)
                    tasks.start_soon(self._follow, send, reader)
                    yield receive
                finally:
                    reader.close()

    async def _hear(self, hints: ObjectReceiveStream[Any], reader: _Reader) -> None:
        async for hint in hints:
            if isinstance(hint, dict) and self._concerns(hint):
                reader.set()

    def _concerns(self, hint: dict[str, Any]) -> bool:
        return hint.get("chain") == self._chain

    async def _follow(self, send: ObjectSendStream[Block], reader: _Reader) -> None:
        while True:
            # Renewed before looking: what comes from here on wakes the wait below.
            reader.renew()
            try:
                await self._read_all(send, reader)
            except (anyio.ClosedResourceError, anyio.BrokenResourceError):
                # The consumer closed its stream before it left the context.
                return
            except WalyoffError as error:
                _log.debug("reading %s: %s", self._chain, error)
                await anyio.sleep(RETRY_INTERVAL)
                continue
            with anyio.move_on_after(RECONCILE_INTERVAL):
                await reader.wait()

    async def _read_all(self, send: ObjectSendStream[Block], reader: _Reader) -> None:
        while True:
            answer = _map(await self._page(reader.position))
            page = _list(answer.get("blocks"))
            for item in page:
                ref, number, topics, content = expect_array(item, 4, "block")
                if TOPIC in _list(topics):
                    block = Block(
                        ref=expect_str(ref, "ref", limit=MAX_REF),
                        position=expect_int(number, "position"),
                        payload=expect_bytes(content, "content", limit=1 << 21),
                    )
                    await send.send(block)
                reader.position = expect_int(number, "position")
            if not page:
                return

    async def _page(self, after: int) -> Any:
        args = {"chain": self._chain, "after": after, "limit": PAGE}
        return await self._child.call("chain.blocks", args)

    # ------------------------------------------------------------------- hand-over

    async def announce(self) -> None:
        """Tell the nodes that follow the chain what the newest blocks are, now.

        Worth it when a node came that may have missed some: Walytis itself does so only
        every 20 seconds. Raises ChildError.
        """
        await self._child.call("chain.announce", {"chain": self._chain})

    async def leaves(self) -> list[str]:
        """The names of the newest blocks: all that another device needs to know."""
        return _refs(await self._child.call("chain.leaves", {"chain": self._chain}))

    async def export(self, known: Sequence[str] | None = None) -> list[bytes]:
        """Block files in causal order that are not the known ones or their ancestors.

        With None the whole chain, birth included. At most 32 MiB: ask again with what was
        imported.
        """
        return await export_chain(self._child, self._chain, known)

    async def import_files(self, files: Sequence[bytes]) -> tuple[int, dict[str, int]]:
        """Take blocks from another device; (how many were new, refused by reason)."""
        return await import_chain(self._child, self._chain, files)

    # ------------------------------------------------------------------ life cycle

    async def _follow_chain(self) -> None:
        await self._child.call("chain.open", {"chain": self._chain}, timeout=60.0)

    async def _unfollow_chain(self) -> None:
        await self._child.call("chain.close", {"chain": self._chain}, timeout=5)

    async def _reopen(self) -> None:
        await self._follow_chain()
        for wake in self._wakes:
            wake.set()

    async def aclose(self) -> None:
        """Stop following the chain. Idempotent."""
        if self._reopen in self._child.on_restart:
            self._child.on_restart.remove(self._reopen)
            users = _users[self._child]
            users[self._chain] -= 1
            if users[self._chain]:
                return
            with anyio.CancelScope(shield=True), anyio.move_on_after(5):
                try:
                    await self._unfollow_chain()
                except ChildError:
                    # A child that is gone follows nothing.
                    _log.debug("closing %s: no child", self._chain)


class _Reader:
    """How far a reader has come, and what wakes it; its ledger knows it while it reads."""

    def __init__(self, position: int, known: set[anyio.Event]) -> None:
        self.position = position
        self._event = anyio.Event()
        self._known = known
        known.add(self._event)

    def set(self) -> None:
        self._event.set()

    async def wait(self) -> None:
        await self._event.wait()

    def renew(self) -> None:
        self.close()
        self._event = anyio.Event()
        self._known.add(self._event)

    def close(self) -> None:
        self._known.discard(self._event)


async def export_chain(
    child: Child, chain: str, known: Sequence[str] | None = None
) -> list[bytes]:
    """Block files of any chain that is held here. Raises LocalProtocolError, ChildError."""
    args = {
        "chain": chain,
        "known": None if known is None else list(known),
        "limit_bytes": MAX_FILES_BYTES,
    }
    answer = _map(await child.call("chain.export", args, timeout=FILES_TIME))
    return [item for item in _list(answer.get("files")) if isinstance(item, bytes)]


async def import_chain(
    child: Child, chain: str, files: Sequence[bytes]
) -> tuple[int, dict[str, int]]:
    """Take block files of a chain, known or not; (how many were new, refused by reason).

    Raises:
        RemoteProtocolError: the chain is not known and its first block is not there.
        LocalProtocolError: more files than one call may carry.
        ChildError: the child is not there now; some may have been taken.
    """
    size = sum(map(len, files))
    if size > MAX_FILES_BYTES:
        raise PayloadTooLargeError(size, MAX_FILES_BYTES, "hand-over of block files")
    args = {"chain": chain, "files": list(files)}
    answer = _map(await child.call("chain.import", args, timeout=FILES_TIME))
    refused = answer.get("refused")
    counts = refused if isinstance(refused, dict) else {}
    return expect_int(answer.get("admitted"), "admitted"), {
        str(reason): count for reason, count in counts.items() if isinstance(count, int)
    }


def _map(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise RemoteProtocolError("the child's answer is no map")
    return value


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _refs(value: Any) -> list[str]:
    return [item for item in _list(value) if isinstance(item, str)]
