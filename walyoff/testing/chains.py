"""Chains of blocks in a simulated world, and a ledger on one of them.

Decided here: how copies of a chain on several devices become the same, as Walytis' do. What
blocks mean is decided by those who read them; who hears of them, by the world.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
from anyio.abc import ObjectReceiveStream
from blake3 import blake3

from walyoff.abc import Block
from walyoff.errors import LocalProtocolError, PayloadTooLargeError
from walyoff.tasks import background_tasks
from walyoff.wire import expect_array, expect_bytes, expect_str, pack, unpack

if TYPE_CHECKING:
    from walyoff.testing.world import SimWorld

MAX_FILE = 1 << 21
MAX_PAYLOAD = 1_000_000
_WAITING = 64


class SimChain:
    """One device's copy of a chain: blocks with parents, admitted parents first."""

    def __init__(self, world: SimWorld, device: str, name: str) -> None:
        self._world = world
        self._device = device
        self.name = name
        self.blocks: dict[str, tuple[tuple[str, ...], bytes]] = {}
        self.order: list[str] = []
        self.children: set[str] = set()
        self.changed = anyio.Event()
        #: Whether announcements reach it: chains of others' devices are only compared.
        self.followed = False

    def append(self, payload: bytes) -> str:
        """Write a block on top of all that is known, and gossip it as Walytis does."""
        parents = tuple(sorted(set(self.blocks) - self.children))
        nonce = self._world.random.randbytes(8)
        ref = blake3(pack([list(parents), payload, nonce])).hexdigest(16)
        self._admit(ref, parents, payload)
        self._world.gossip(self._device, self.name, pack([ref, list(parents), payload]))
        return ref

    def _admit(self, ref: str, parents: tuple[str, ...], payload: bytes) -> None:
        self.blocks[ref] = (parents, payload)
        self.order.append(ref)
        self.children.update(parents)
        self._world.grew(self._device, self.name)
        changed, self.changed = self.changed, anyio.Event()
        changed.set()

    def common_order(self) -> list[bytes]:
        """The payloads, parents first, in the order that all who hold them agree on."""
        depth: dict[str, int] = {}
        for ref in self.order:
            depth[ref] = 1 + max((depth[p] for p in self.blocks[ref][0]), default=0)
        return [self.blocks[ref][1] for ref in sorted(self.order, key=lambda r: (depth[r], r))]

    async def leaves(self) -> tuple[list[str], int]:
        """See `walyoff.engine.chain_serving.Chain`."""
        await anyio.lowlevel.checkpoint()
        return sorted(set(self.blocks) - self.children), len(self.blocks)

    async def wanted(self, theirs: Sequence[str]) -> list[str] | None:
        """See `walyoff.engine.chain_serving.Chain`."""
        own, _ = await self.leaves()
        return own if set(theirs) - set(own) else None

    async def export(self, known: Sequence[str]) -> AsyncGenerator[list[bytes], None]:
        """See `walyoff.engine.chain_serving.Chain`."""
        await anyio.lowlevel.checkpoint()
        yield self.missing(known)

    def missing(self, known: Sequence[str]) -> list[bytes]:
        """The files of blocks that are not ancestors of the known ones."""
        held: set[str] = set()
        stack = [ref for ref in known if ref in self.blocks]
        while stack:
            ref = stack.pop()
            if ref not in held:
                held.add(ref)
                stack.extend(self.blocks[ref][0])
        return [
            pack([ref, list(self.blocks[ref][0]), self.blocks[ref][1]])
            for ref in self.order
            if ref not in held
        ]

    async def take(self, files: Sequence[bytes]) -> int:
        """See `walyoff.engine.chain_serving.Chain`."""
        await anyio.lowlevel.checkpoint()
        before = len(self.blocks)
        for file in files:
            ref, parents, payload = expect_array(unpack(file, MAX_FILE), 3, "block")
            name = expect_str(ref, "ref", limit=64)
            if name in self.blocks or not set(parents) <= set(self.blocks):
                continue
            self._admit(name, tuple(parents), expect_bytes(payload, "payload", limit=MAX_FILE))
        return len(self.blocks) - before


class SimLedger:
    """A `Ledger` on a `SimChain`. `delay_s` is what an append costs."""

    def __init__(self, chain: SimChain, delay_s: float) -> None:
        self._chain = chain
        self._delay_s = delay_s

    @property
    def max_payload(self) -> int:
        """The largest payload."""
        return MAX_PAYLOAD

    async def append(self, payload: bytes) -> Block:
        """See `walyoff.abc.Ledger`."""
        if not payload:
            raise LocalProtocolError("a block's payload is not empty")
        if len(payload) > MAX_PAYLOAD:
            raise PayloadTooLargeError(len(payload), MAX_PAYLOAD, "block payload")
        await anyio.sleep(self._delay_s)
        ref = self._chain.append(payload)
        return Block(ref=ref, position=len(self._chain.order), payload=payload)

    @asynccontextmanager
    async def blocks(self, after: int = 0) -> AsyncIterator[ObjectReceiveStream[Block]]:
        """See `walyoff.abc.Ledger`."""
        send, receive = anyio.create_memory_object_stream[Block](_WAITING)

        async def follow() -> None:
            position = after
            # A reader that closes its stream early wants no more.
            with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                while True:
                    while position < len(self._chain.order):
                        ref = self._chain.order[position]
                        position += 1
                        payload = self._chain.blocks[ref][1]
                        await send.send(Block(ref=ref, position=position, payload=payload))
                    await self._chain.changed.wait()

        with send, receive:
            async with background_tasks() as tasks:
                tasks.start_soon(follow)
                yield receive


__all__ = ["MAX_FILE", "MAX_PAYLOAD", "SimChain", "SimLedger"]
