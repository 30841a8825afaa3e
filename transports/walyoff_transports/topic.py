"""One pubsub topic of a transport: publishes, acknowledges, repeats, hands out."""

from __future__ import annotations

import contextlib
import logging
import math
import secrets
from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import anyio
from anyio.abc import ObjectReceiveStream, TaskStatus

from walyoff.abc import Broadcast
from walyoff.errors import RemoteProtocolError, TransportError
from walyoff.fanout import Fanout
from walyoff.tasks import background_tasks
from walyoff_transports.gossip import (
    INSTANCE_SIZE,
    MAX_ACKS,
    WINDOW,
    Ack,
    Data,
    Received,
    ReceiveWindow,
    SendWindow,
    decode,
    encode_acks,
)

_log = logging.getLogger(__name__)

#: Seconds that an acknowledgement waits for company.
ACK_DELAY = 0.02
#: So many messages are acknowledged at once, before their sender's window is full.
ACK_AT_ONCE = WINDOW // 2
#: Seconds between looks at who is on the topic, while messages are in flight, once
#: somebody was found, and before.
PEERS_INTERVAL = 1.0
FIRST_PEERS_INTERVAL = 0.03
#: Broadcasts that wait for one consumer; the oldest are dropped.
BUFFER = 256
#: Seconds after which a topic that nobody uses is left.
IDLE_TIME = 60.0


class Pubsub(Protocol):
    """What a topic needs of a node: a part of `walyoff.abc.IpfsNode`."""

    async def publish(self, topic: str, payload: bytes) -> None:
        """Publish once on pubsub, without any promise. Raises TransportError."""

    def subscribe(
        self, topic: str
    ) -> AbstractAsyncContextManager[ObjectReceiveStream[Broadcast]]:
        """Receive pubsub messages, own ones included, oldest dropped when slow."""

    async def topic_peers(self, topic: str) -> list[str]:
        """The peer ids that the node sees on a topic."""


class Topic:
    """A topic for as long as `run` runs."""

    def __init__(self, pubsub: Pubsub, name: str) -> None:
        self._pubsub = pubsub
        self._name = name
        self._fanout: Fanout[Broadcast] = Fanout(BUFFER)
        self._received = Received()
        self._window = SendWindow(secrets.token_bytes(INSTANCE_SIZE), anyio.current_time())
        self._acks: dict[tuple[str, bytes], ReceiveWindow] = {}
        self._ack_count = 0
        self._ack_at = math.inf
        self._peers_at = 0.0
        self._opened = anyio.current_time()
        self._changed = anyio.Event()
        self._room = anyio.Event()
        self._scope = anyio.CancelScope()
        #: How many subscribers and broadcasts there are at the moment.
        self.users = 0
        self.last_used = self._opened
        self.started = False
        self.closed = False
        #: Envelopes that made no sense, duplicates included.
        self.refused = 0
        self.duplicates = 0

    def __repr__(self) -> str:
        window = self._window
        return (
            f"<Topic {self._name} [{self.users} users | {window.repeated} repeated, "
            f"{window.given_up} given up | {self.duplicates} duplicates]>"
        )

    @property
    def fanout(self) -> Fanout[Broadcast]:
        """Where what arrives is handed out, under the name ""."""
        return self._fanout

    def release(self) -> None:
        """One user less."""
        self.users -= 1
        self.last_used = anyio.current_time()
        self._changed.set()

    def close(self) -> None:
        """End `run`."""
        self._scope.cancel()

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Subscribe, then serve until closed, unused, or the node is gone.

        Raises:
            TransportError: the subscription could not be made (before `started`).
        """
        try:
            with self._scope:
                async with (
                    self._pubsub.subscribe(self._name) as stream,
                    background_tasks() as tasks,
                ):
                    tasks.start_soon(self._keep_time)
                    self.started = True
                    task_status.started()
                    async for broadcast in stream:
                        await self._take(broadcast)
        finally:
            self.closed = True
            self._fanout.close()
            self._room.set()

    async def send(self, payload: bytes) -> None:
        """Publish as soon as the window has room.

        Raises:
            TransportError: it could not be handed on.
        """
        while not self._window.has_room and not self.closed:
            self._room = anyio.Event() if self._room.is_set() else self._room
            await self._room.wait()
        if self.closed:
            raise TransportError("the node is gone")
        seq, envelope = self._window.add(payload, anyio.current_time())
        try:
            await self._pubsub.publish(self._name, envelope)
        except BaseException:
            self._window.withdraw(seq)
            self._room.set()
            raise
        self._changed.set()

    async def _take(self, broadcast: Broadcast) -> None:
        try:
            message = decode(broadcast.payload)
        except RemoteProtocolError:
            self.refused += 1
            return
        if isinstance(message, Data):
            await self._take_data(broadcast.sender, message)
        else:
            await self._take_acks(broadcast.sender, message)

    async def _take_data(self, sender: str, data: Data) -> None:
        if data.instance == self._window.instance:
            return
        window = self._received.window(sender, data.instance)
        if window.accept(data.seq):
            self._fanout.publish("", Broadcast(sender=sender, payload=data.payload))
        else:
            self.duplicates += 1
        if len(self._acks) < MAX_ACKS:
            self._acks[sender, data.instance] = window
        self._ack_count += 1
        if self._ack_count >= ACK_AT_ONCE:
            await self._send_acks()
        elif self._ack_at == math.inf:
            self._ack_at = anyio.current_time() + ACK_DELAY
            self._changed.set()

    async def _take_acks(self, sender: str, acks: Iterable[Ack]) -> None:
        now = anyio.current_time()
        for ack in acks:
            await self._publish(self._window.on_ack(sender, ack, now))
        self._room.set()

    async def _send_acks(self) -> None:
        acks = [window.ack(instance) for (_, instance), window in self._acks.items()]
        self._acks.clear()
        self._ack_count, self._ack_at = 0, math.inf
        if acks:
            await self._publish([encode_acks(acks)])

    async def _publish(self, envelopes: Iterable[bytes]) -> None:
        # A failure here is a loss like any other.
        with contextlib.suppress(TransportError):
            for envelope in envelopes:
                await self._pubsub.publish(self._name, envelope)

    async def _keep_time(self) -> None:
        while True:
            now = anyio.current_time()
            self._changed = anyio.Event()
            if self.users == 0 and self._window.idle and now - self.last_used > IDLE_TIME:
                self._scope.cancel()
            if now >= self._ack_at:
                await self._send_acks()
            if not self._window.idle:
                if now >= self._peers_at:
                    await self._look_for_peers(now)
                await self._publish(self._window.due(now))
                self._room.set()
            with anyio.move_on_after(max(self._next_deadline() - anyio.current_time(), 0)):
                await self._changed.wait()

    def _next_deadline(self) -> float:
        deadline = min(self._ack_at, self.last_used + IDLE_TIME + 1.0)
        if (repeat := self._window.deadline) is not None:
            deadline = min(deadline, repeat, self._peers_at)
        elif self.users:
            deadline = self._ack_at
        return deadline

    async def _look_for_peers(self, now: float) -> None:
        try:
            peers = await self._pubsub.topic_peers(self._name)
        except TransportError:
            peers = []
        self._window.set_peers(peers, now)
        self._peers_at = now + (PEERS_INTERVAL if peers else FIRST_PEERS_INTERVAL)
