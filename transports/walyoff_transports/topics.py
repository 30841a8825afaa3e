"""The topics that a transport on pubsub has open; the IPFS and libp2p transports share this.

Both speak of the same topics in the same envelopes, so a device on one hears a device on the
other. A topic is joined when it is first used and left a while after its last use, since
joining takes the network a moment each time.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import anyio
from anyio.abc import ObjectReceiveStream, TaskGroup, TaskStatus

from walyoff.abc import Broadcast
from walyoff.errors import LocalProtocolError, PayloadTooLargeError, TransportError
from walyoff_transports.gossip import MAX_PAYLOAD
from walyoff_transports.topic import Pubsub, Topic

_log = logging.getLogger(__name__)

TOPIC_PREFIX = "walyoff/1/"
#: Characters of a topic, without the prefix.
MAX_TOPIC = 256
#: Topics that are kept open although nobody uses them at the moment.
MAX_IDLE_TOPICS = 64


class Topics:
    """Broadcasts and subscriptions on a pubsub."""

    def __init__(self, pubsub: Pubsub, tasks: TaskGroup) -> None:
        self._pubsub = pubsub
        self._tasks = tasks
        self._topics: dict[str, Topic] = {}
        self._lock = anyio.Lock()

    def __len__(self) -> int:
        return len(self._topics)

    async def broadcast(self, topic: str, payload: bytes) -> None:
        """See `TopicBroadcasts.broadcast`."""
        if len(payload) > MAX_PAYLOAD:
            raise PayloadTooLargeError(len(payload), MAX_PAYLOAD, "broadcast")
        async with self._use(topic) as opened:
            await opened.send(bytes(payload))

    @asynccontextmanager
    async def subscribe(self, topic: str) -> AsyncIterator[ObjectReceiveStream[Broadcast]]:
        """See `TopicBroadcasts.subscribe`."""
        async with self._use(topic) as opened, opened.fanout.subscribe("") as stream:
            yield stream

    @asynccontextmanager
    async def _use(self, name: str) -> AsyncIterator[Topic]:
        if not 0 < len(name) <= MAX_TOPIC or "\0" in name:
            raise LocalProtocolError(f"a topic has 1 to {MAX_TOPIC} characters and no NUL")
        async with self._lock:
            topic = self._topics.get(name)
            if topic is None or topic.closed:
                self._leave_idle()
                topic = Topic(self._pubsub, TOPIC_PREFIX + name)
                # Its calls have deadlines. Giving it up halfway would mean to join and leave,
                # after which gossip does not let a node join again for a while.
                with anyio.CancelScope(shield=True):
                    await self._tasks.start(self._run, topic)
                self._topics[name] = topic
            topic.users += 1
        try:
            yield topic
        finally:
            topic.release()

    async def _run(self, topic: Topic, *, task_status: TaskStatus[None]) -> None:
        try:
            await topic.run(task_status=task_status)
        except TransportError as error:
            if not topic.started:
                raise
            _log.info("a topic ended: %s", error)
        finally:
            for name, known in list(self._topics.items()):
                if known is topic:
                    del self._topics[name]

    def _leave_idle(self) -> None:
        idle = [topic for topic in self._topics.values() if topic.users == 0]
        idle.sort(key=lambda topic: topic.last_used)
        for topic in idle[: max(0, len(idle) - MAX_IDLE_TOPICS + 1)]:
            topic.close()


class TopicBroadcasts:
    """The broadcasts of a transport on a pubsub."""

    _topics: Topics

    @property
    def max_broadcast(self) -> int:
        """The largest broadcast payload, in bytes."""
        return MAX_PAYLOAD

    async def broadcast(self, topic: str, payload: bytes) -> None:
        """Publish, and repeat in the background what peers did not acknowledge.

        Waits while 16 messages on the topic are in flight: that is the back-pressure.

        Raises:
            PayloadTooLargeError: it is larger than `max_broadcast`.
            LocalProtocolError: the topic is empty or too long.
            TransportError: it could not be handed on.
        """
        await self._topics.broadcast(topic, payload)

    def subscribe(
        self, topic: str
    ) -> AbstractAsyncContextManager[ObjectReceiveStream[Broadcast]]:
        """Receive other devices' broadcasts; a slow consumer loses the oldest of 256.

        Raises:
            LocalProtocolError: the topic is empty or too long.
            TransportError: the subscription could not be made.
        """
        return self._topics.subscribe(topic)


__all__ = ["MAX_IDLE_TOPICS", "MAX_TOPIC", "TOPIC_PREFIX", "TopicBroadcasts", "Topics"]
