"""How one link keeps the channel's chains equal on both sides.

Decided here: when tips are named and compared, and that what a peer brings is asked for until
it brings no more. What a block must prove is decided by the chains. Other chains are those of
somebody who asks to join (`newcomers`).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Protocol

import anyio

from walyoff import frames
from walyoff.engine.link import ANSWER_BACKLOG, LinkState
from walyoff.errors import WalyoffError

if TYPE_CHECKING:
    from walyoff.engine.driver import Engine
    from walyoff.engine.link import SessionLink

log = logging.getLogger("walyoff.engine")

#: New blocks are named to the other side after this: by then most know them already.
ANNOUNCE_AFTER = 2.0
#: Block files of one frame, by size.
FILES_BYTES = 4 * 1024 * 1024


class Chain(Protocol):
    """A Walytis chain that members keep equal over their sessions."""

    async def leaves(self) -> tuple[list[str], int]:
        """The blocks at the tips, and the number of blocks."""

    async def wanted(self, theirs: list[str]) -> list[str] | None:
        """The blocks at the tips here, if a device with those has more; else None."""

    def export(self, known: list[str]) -> AsyncGenerator[list[bytes], None]:
        """The files of blocks that are not ancestors of the known ones, parents first.

        In pieces of a few megabytes at most, so that one is sent while the next is read.
        """

    async def take(self, files: list[bytes]) -> int:
        """Check and admit block files; how many were new. Raises RemoteProtocolError."""


class ChainServer:
    """The chains of a channel on one link."""

    def __init__(
        self,
        engine: Engine,
        session: SessionLink,
        state: LinkState,
        chains: Mapping[str, Chain],
        grown: Callable[[], Awaitable[None]],
    ) -> None:
        """`grown` is called when the other side has brought blocks."""
        self._engine = engine
        self._session = session
        self._state = state
        self._chains = chains
        self._on_grown = grown
        #: The tips of the other side's chains, as it named them last.
        self._leaves: dict[str, tuple[str, ...]] = {}
        #: New blocks of the answer that is coming in, by chain.
        self._brought: Counter[str] = Counter()
        #: Set when a question could not be answered.
        self._unanswered = anyio.Event()
        #: How often this link has brought blocks.
        self.grown = 0

    def unanswered(self) -> None:
        """A question could not be answered: the chains are compared again."""
        self._unanswered.set()

    async def announce(self) -> None:
        """Say what this device holds of the channel's chains, unless the other side has it."""
        for name, chain in self._chains.items():
            try:
                leaves, count = await chain.leaves()
            except WalyoffError as error:
                log.warning("leaves of %s are not available: %s", name, error)
                continue
            named = tuple(leaves[: frames.MAX_REFS])
            if self._leaves.get(name) != named:
                self._state.send(frames.ChainHave(name, named, count))

    async def announce_growth(self) -> None:
        """Say so when this device wrote blocks: the ledger's own announcements may be lost."""
        anchors = self._engine.anchors
        named = anchors.blocks_written
        while True:
            while named == anchors.blocks_written:
                await anchors.written.wait()
            await anyio.sleep(ANNOUNCE_AFTER)
            named = anchors.blocks_written
            await self.announce()

    async def compare_again(self) -> None:
        """After a failure (the ledger's process was replaced) compare the chains again."""
        while True:
            await self._unanswered.wait()
            await anyio.sleep(ANNOUNCE_AFTER)
            self._unanswered = anyio.Event()
            await self.announce()
            for name in list(self._leaves):
                try:
                    await self._compare(name)
                except WalyoffError as error:
                    log.warning("%s could not be compared: %s", name, error)
                    self._unanswered.set()

    async def answer(
        self, question: frames.ChainHave | frames.ChainWant | frames.ChainFiles
    ) -> None:
        """Answer what the other side says of chains. Raises WalyoffError."""
        match question:
            case frames.ChainHave(name, leaves, _) if name in self._chains:
                self._leaves[name] = leaves
                await self._compare(name)
            case frames.ChainHave():
                # Nothing is kept of it: there is no end of names.
                pass
            case frames.ChainWant(name, known) if name in self._chains:
                await self._send(name, list(known))
            case frames.ChainFiles(name, files, last) if name in self._chains:
                await self._take(name, list(files), last)
            case frames.ChainWant():
                await self._engine.newcomers.answer(self._state, question)
            case frames.ChainFiles():
                self._engine.newcomers.take(self._state, question)

    async def _compare(self, name: str) -> None:
        """Ask for what the other side has and this one lacks."""
        own = await self._chains[name].wanted(list(self._leaves.get(name, ())))
        if own is not None:
            self._state.send(frames.ChainWant(name, tuple(own[: frames.MAX_REFS])))

    async def _take(self, name: str, files: list[bytes], last: bool) -> None:
        chain = self._chains[name]
        if files:
            self._brought[name] += await chain.take(files)
        # What came may name more, or have grown meanwhile: ask on as long as it brings any.
        if last and self._brought.pop(name, 0):
            self.grown += 1
            await self._on_grown()
            await self._compare(name)

    async def _send(self, name: str, known: list[str]) -> None:
        chain = self._chains[name]
        async with aclosing(chain.export(known)) as pieces:
            async for files in pieces:
                for part in frames_of(files):
                    self._state.send(frames.ChainFiles(name, part, False))
                    await self._session.drained(ANSWER_BACKLOG)
        self._state.send(frames.ChainFiles(name, (), True))


def frames_of(files: list[bytes]) -> Iterator[tuple[bytes, ...]]:
    """Block files, as many as fit into each frame."""
    part: list[bytes] = []
    size = 0
    for file in files:
        if part and (size + len(file) > FILES_BYTES or len(part) == frames.MAX_FILES):
            yield tuple(part)
            part, size = [], 0
        part.append(file)
        size += len(file)
    if part:
        yield tuple(part)
