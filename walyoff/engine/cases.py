"""What members said about messages: in memory while it is needed, in the store for good.

Decided here: what is loaded and when it is dropped again, and which requests have room. Who has
agreed is decided in `consent`, what follows from it in `forgetting`.

Statements are written in the transaction of the batch that they came with, so what is judged
is what is held.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio

from walyoff.engine.consent import PROPOSE, Case, Statement
from walyoff.errors import StoreError
from walyoff.records import HASH_SIZE
from walyoff.wire import expect_bytes, pack, unpack

if TYPE_CHECKING:
    from walyoff.abc import Store

#: Requests that are open at once in a channel, and of those by one device: a liar makes any
#: number. What is beyond is still judged when somebody answers, but asked for by nobody.
MAX_OPEN = 4096
MAX_OPEN_OF_ONE = 256


class Cases:
    """The cases of one channel's messages."""

    def __init__(self, store: Store, channel: str) -> None:
        self._store = store
        self._channel = channel
        #: Those that are in memory.
        self.table: dict[bytes, Case] = {}
        #: Messages whose request stands, or that have to be destroyed as soon as they come.
        self.open: dict[bytes, None] = {}
        self._pins: Counter[bytes] = Counter()
        self._lost: list[tuple[str, int, int, Statement]] = []
        self._lock = anyio.Lock()

    async def restore(self) -> None:
        """Begin with what the store has."""
        self.table.clear()
        self.open.clear()
        self._lost.clear()
        value = await self._store.get(self._open_key)
        if value is not None:
            for row in unpack(value, 1 << 20):
                message = expect_bytes(row, "message", size=HASH_SIZE)
                await self.load(message)
                self.open[message] = None

    @asynccontextmanager
    async def prepared(self, said: Iterable[Statement | None]) -> AsyncIterator[None]:
        """Have at hand what was said before about the messages of statements."""
        wanted = list(dict.fromkeys(s.message for s in said if s is not None))
        self._pins.update(wanted)
        try:
            for message in wanted:
                await self.load(message)
            yield
        finally:
            self._pins.subtract(wanted)
            self._pins += Counter()

    async def load(self, message: bytes) -> Case:
        """What was said about a message, at hand until it is released."""
        async with self._lock:
            # One at a time: what is loaded is what is stored, or newer and in memory.
            case = self.table.get(message)
            if case is None:
                value = await self._store.get(self._key(message))
                case = self.table.setdefault(message, Case.decode(value) if value else Case())
        return case

    async def look(self, message: bytes) -> Case:
        """The same, for one look: of messages that are forgotten there is no end."""
        async with self._lock:
            case = self.table.get(message)
            if case is None:
                value = await self._store.get(self._key(message))
                case = Case.decode(value) if value else Case()
        return case

    def release(self, message: bytes) -> None:
        """Nothing is to be judged about a message now."""
        if message not in self.open and not self._pins[message]:
            self.table.pop(message, None)

    def hear(self, author: str, seq: int, time_ms: int, said: Statement) -> dict[str, bytes]:
        """A statement of an accepted record; returns what is to be stored with the batch.

        With it goes `open_row`. Nothing if the case is not at hand: `hear_lost` takes it up.
        """
        case = self.table.get(said.message)
        if case is None:
            # The store failed and was read again meanwhile: what it has is read first.
            self._lost.append((author, seq, time_ms, said))
            return {}
        case.hear(author, seq, time_ms, said)
        if said.message not in self.open and self._has_room(author, said):
            self.open[said.message] = None
        return {self._key(said.message): case.encode()}

    def _has_room(self, author: str, said: Statement) -> bool:
        if len(self.open) >= MAX_OPEN:
            return False
        if said.act != PROPOSE:
            return True
        own = sum(
            1
            for message in self.open
            if (case := self.table.get(message))
            and (word := case.words.get(author))
            and word.act == PROPOSE
        )
        return own < MAX_OPEN_OF_ONE

    async def hear_lost(self) -> list[bytes]:
        """Take up the statements whose case was not at hand; returns what they are about."""
        for *_, said in list(self._lost):
            await self.load(said.message)
        lost, self._lost = self._lost, []
        values: dict[str, bytes | None] = {}
        for author, seq, time_ms, said in lost:
            values.update(self.hear(author, seq, time_ms, said))
        if values:
            values.update(self.open_row())
            try:
                await self._store.put(values)
            except StoreError:
                self._lost += lost
                raise
        return [said.message for *_, said in lost]

    def open_row(self) -> dict[str, bytes]:
        """Which requests are open, for the store."""
        return {self._open_key: pack(list(self.open))}

    async def save_open(self) -> None:
        """Write that down."""
        await self._store.put({**self.open_row()})

    def _key(self, message: bytes) -> str:
        return f"consent/{self._channel}/{message.hex()}"

    @property
    def _open_key(self) -> str:
        return f"consents/{self._channel}"


__all__ = ["Cases"]
