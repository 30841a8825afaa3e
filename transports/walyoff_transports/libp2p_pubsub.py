"""The host's pubsub as the application's loop sees it: what `topic.Pubsub` asks for."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
from anyio.abc import ObjectReceiveStream
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from walyoff.abc import Broadcast

if TYPE_CHECKING:
    from walyoff_transports.libp2p_loop import Hosted, TrioThread
    from walyoff_transports.libp2p_node import Node

#: Messages of one topic between the two loops, and before the topic takes them; the oldest
#: are dropped.
BUFFER = 1_024


class HostedPubsub:
    """Pubsub of the host that runs at the moment."""

    def __init__(self, running: Callable[[], Hosted[Node]]) -> None:
        #: Gives the host, or raises TransportError.
        self._running = running
        self._open: set[_Subscription] = set()

    async def publish(self, topic: str, payload: bytes) -> None:
        """Publish once on pubsub, without any promise. Raises TransportError."""
        hosted = self._running()
        await hosted.thread.call(hosted.value.publish, topic, payload)

    async def topic_peers(self, topic: str) -> list[str]:
        """The peer ids that the host sees on a topic. Raises TransportError."""
        hosted = self._running()
        return await hosted.thread.call(hosted.value.topic_peers, topic)

    @asynccontextmanager
    async def subscribe(self, topic: str) -> AsyncIterator[ObjectReceiveStream[Broadcast]]:
        """Receive messages, own ones included; the stream ends when the host does.

        One subscription of a topic at a time, which is what `Topic` makes.

        Raises:
            TransportError: the host is not running.
        """
        hosted = self._running()
        send, receive = anyio.create_memory_object_stream[Broadcast](BUFFER)
        with send, receive:
            subscription = _Subscription(hosted.thread, send, receive)
            self._open.add(subscription)
            try:
                await hosted.thread.call(hosted.value.subscribe, topic, subscription.take)
                yield receive
            finally:
                self._open.discard(subscription)
                with anyio.CancelScope(shield=True), contextlib.suppress(Exception):
                    await hosted.thread.call(hosted.value.unsubscribe, topic)

    def end_all(self) -> None:
        """The host is gone: end all subscriptions."""
        for subscription in list(self._open):
            subscription.end()


class _Subscription:
    """Hands messages from the trio thread to the application's, a few at a time."""

    def __init__(
        self,
        thread: TrioThread,
        send: MemoryObjectSendStream[Broadcast],
        receive: MemoryObjectReceiveStream[Broadcast],
    ) -> None:
        self._thread = thread
        self._send = send
        self._receive = receive
        # Its appends and pops are atomic.
        self._queue: deque[Broadcast] = deque(maxlen=BUFFER)
        self._posted = False

    def take(self, sender: str, payload: bytes) -> None:
        """In the trio thread."""
        self._queue.append(Broadcast(sender=sender, payload=payload))
        if not self._posted:
            self._posted = True
            self._thread.post(self._hand_over)

    def _hand_over(self) -> None:
        # Before the queue is emptied, so that what comes meanwhile is posted again.
        self._posted = False
        with contextlib.suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):
            while self._queue:
                broadcast = self._queue.popleft()
                try:
                    self._send.send_nowait(broadcast)
                except anyio.WouldBlock:
                    self._receive.receive_nowait()
                    self._send.send_nowait(broadcast)

    def end(self) -> None:
        """Let the consumer take what waits, and then see the end."""
        self._send.close()
