"""Named streams with any number of consumers, where a slow one loses the oldest."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

import anyio
from anyio.abc import ObjectReceiveStream
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

T = TypeVar("T")


class Fanout(Generic[T]):
    """Hands each published item to all who subscribed to its name; never waits."""

    def __init__(self, buffer: int) -> None:
        self._buffer = buffer
        self._consumers: dict[
            str, list[tuple[MemoryObjectSendStream[T], MemoryObjectReceiveStream[T]]]
        ] = {}
        self._closed = False
        #: Items that slow consumers lost.
        self.dropped = 0

    def names(self) -> list[str]:
        """The names that somebody subscribed to."""
        return list(self._consumers)

    def count(self, name: str) -> int:
        """How many subscribed to a name."""
        return len(self._consumers.get(name, ()))

    def publish(self, name: str, item: T) -> None:
        """Hand an item to everybody; full consumers lose their oldest."""
        for send, receive in self._consumers.get(name, ()):
            try:
                send.send_nowait(item)
            except anyio.WouldBlock:
                self.dropped += 1
                receive.receive_nowait()
                send.send_nowait(item)
            except (anyio.ClosedResourceError, anyio.BrokenResourceError):
                # The consumer closed its stream before it left the context.
                continue

    def close(self) -> None:
        """End all streams: consumers get what waits, then EndOfStream. Idempotent."""
        self._closed = True
        for consumers in self._consumers.values():
            for send, _ in consumers:
                send.close()

    @asynccontextmanager
    async def subscribe(self, name: str) -> AsyncIterator[ObjectReceiveStream[T]]:
        """Receive what is published under a name while the context is open."""
        send, receive = anyio.create_memory_object_stream[T](self._buffer)
        consumer = (send, receive)
        with send, receive:
            if self._closed:
                send.close()
            self._consumers.setdefault(name, []).append(consumer)
            try:
                yield receive
            finally:
                self._consumers[name].remove(consumer)
                if not self._consumers[name]:
                    del self._consumers[name]
