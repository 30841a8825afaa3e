"""A libp2p host, as the transport uses it; everything here runs on the trio loop.

TCP, Noise and yamux, gossipsub, and no discovery of its own. Connections are dialled by this
module, over all addresses that are known of a peer, at most one dial for a peer at a time.
"""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

import trio
from google.protobuf.message import DecodeError
from libp2p.exceptions import BaseLibp2pError
from libp2p.peer.id import ID
from libp2p.protocol_muxer.exceptions import MultiselectClientError
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pubsub import Pubsub
from multiaddr import Multiaddr

from walyoff.errors import TransportError
from walyoff_transports.libp2p_carry import carry
from walyoff_transports.libp2p_dht import Dht, serve_dht
from walyoff_transports.libp2p_guard import (
    guard_connections,
    guard_pubsub,
    guard_streams,
    run_service,
    silence_logging,
)
from walyoff_transports.libp2p_host import Settings, listen, make_host, own_addresses
from walyoff_transports.libp2p_loop import Hosted, TrioThread, trio_thread
from walyoff_transports.libp2p_mdns import discover
from walyoff_transports.libp2p_relay import Relays, relay_of, relaying
from walyoff_transports.libp2p_settings import Services

PROTOCOL = "/x/walyoff/1"
#: The newest that Kubo of 2023 speaks, and the one before.
GOSSIP_PROTOCOLS = ("/meshsub/1.1.0", "/meshsub/1.0.0")
#: Seconds for one address, and for a stream on a connection that is there.
DIAL_TIME, STREAM_TIME = 3.0, 5.0
#: Seconds for one address through a relay: two connections.
RELAY_TIME = 8.0
#: Seconds for the host to close.
CLOSE_TIME = 4.0
#: Peers whose addresses are remembered, and addresses of each.
MAX_KNOWN, MAX_KNOWN_ADDRESSES = 512, 8
#: Numbers only: a name would have to be looked up, which tells others whom we want to reach.
_DIALLED = re.compile(r"/ip[46]/[0-9a-fA-F:.]+/tcp/[0-9]+/p2p/[A-Za-z0-9]+", re.A)
#: What comes from pubsub: the sender's peer id, which is signed, and the data.
Sink = Callable[[str, bytes], None]


class Node:
    """A running host. Get one from `run_node`; all methods are for the trio loop."""

    def __init__(
        self,
        host: Any,
        pubsub: Any,
        nursery: trio.Nursery,
        accept: Callable[[socket.socket, str], None],
    ) -> None:
        self._host = host
        self._swarm = host.get_network()
        self._pubsub = pubsub
        self._nursery = nursery
        self._accept = accept
        self._dials: dict[str, trio.Lock] = {}
        self._known: OrderedDict[str, OrderedDict[str, None]] = OrderedDict()
        self._sinks: dict[str, Sink] = {}
        pubsub.notify_subscriptions = self._deliver
        #: Read by the application's thread as well: set once.
        self.peer_id: str = host.get_id().to_base58()
        self.addresses: tuple[str, ...] = ()
        self.relays = Relays(host, self._open_protocol)
        self.dht: Dht | None = None

    def all_addresses(self) -> tuple[str, ...]:
        """The host's own addresses, and those at relays. From any thread."""
        return (*self.addresses, *self.relays.addresses)

    def connections(self) -> int:
        """How many connections there are."""
        return len(self._swarm.get_connections())

    # --------------------------------------------------------------------- streams

    async def listen(self, on: bool) -> None:
        """Take streams of the protocol from now on, or refuse them."""
        if on:
            self._host.set_stream_handler(PROTOCOL, self._take)
        else:
            self._host.remove_stream_handler(PROTOCOL)

    async def _take(self, stream: Any) -> None:
        near, far = socket.socketpair()
        self._accept(near, stream.muxed_conn.peer_id.to_base58())
        await carry(stream, far)

    async def open(self, address: str, peer_id: str, sock: socket.socket) -> None:
        """Open a stream to a peer and carry it to the socket, which is ours in any case.

        Raises:
            TransportError: the peer was not reached, or does not listen.
        """
        try:
            stream = await self._open(address, peer_id)
        except BaseException:
            sock.close()
            raise
        self._nursery.start_soon(carry, stream, sock)

    async def _open(self, address: str, peer_id: str) -> Any:
        connected = self._connection(peer_id)
        if connected is not None:
            with contextlib.suppress(TransportError):
                return await _new_stream(self._host, connected, PROTOCOL)
            # Perhaps it is dead and nobody noticed yet: a fresh one tells.
            if not connected.is_closed and self._connection(peer_id) is connected:
                await connected.close()
        conn = await self.connect(address, peer_id, look_up=True)
        return await _new_stream(self._host, conn, PROTOCOL)

    async def _open_protocol(self, address: str, peer_id: str, protocol: str) -> Any:
        """A stream of another protocol, to a relay or a host of the DHT."""
        return await _new_stream(self._host, await self.connect(address, peer_id), protocol)

    def _connection(self, peer_id: str) -> Any:
        for conn in self._swarm.get_connections(ID.from_base58(peer_id)):
            if not conn.is_closed and not conn.muxed_conn.event_shutting_down.is_set():
                return conn
        return None

    async def connect(self, address: str, peer_id: str, *, look_up: bool = False) -> Any:
        """A connection to a peer: the one that there is, or a new one to any known address.

        With `look_up`, then to where the DHT says that it is.

        Raises:
            TransportError: none of its addresses answered as that peer.
        """
        if peer_id == self.peer_id:
            raise TransportError("the address is this device's own")
        lock = self._dials.setdefault(peer_id, trio.Lock())
        try:
            async with lock:
                if (connected := self._connection(peer_id)) is not None:
                    return connected
                known = self._remember(peer_id, address)
                try:
                    return await self._dial(peer_id, known)
                except TransportError:
                    found = await self.dht.find(peer_id) if look_up and self.dht else []
                    if not set(found) - set(known):
                        raise
                return await self._dial(peer_id, [a for a in found if a not in known])
        finally:
            if not lock.locked() and self._dials.get(peer_id) is lock:
                del self._dials[peer_id]

    def _remember(self, peer_id: str, address: str) -> list[str]:
        known = self._known.setdefault(peer_id, OrderedDict())
        known[address] = None
        known.move_to_end(address)
        if len(known) > MAX_KNOWN_ADDRESSES:
            known.popitem(last=False)
        self._known.move_to_end(peer_id)
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)
        return list(reversed(known))

    async def _dial(self, peer_id: str, addresses: list[str]) -> Any:
        problem: Exception | None = None
        for address in addresses:
            relayed = relay_of(address) is not None
            if not relayed and not _DIALLED.fullmatch(address):
                problem = problem or ValueError("it is not IP and TCP")
                continue
            try:
                if relayed:
                    with trio.fail_after(RELAY_TIME):
                        return await self.relays.dial(address, peer_id)
                with trio.fail_after(DIAL_TIME):
                    return await self._swarm.dial_addr(
                        Multiaddr(address), ID.from_base58(peer_id)
                    )
            except (TransportError, DecodeError) as error:
                problem = error
            except (BaseLibp2pError, OSError, ValueError, trio.TooSlowError) as error:
                problem = error
        raise TransportError(f"the peer was not reached: {problem}") from problem

    # ---------------------------------------------------------------------- pubsub

    async def publish(self, topic: str, payload: bytes) -> None:
        """Publish once, without any promise. Raises TransportError."""
        try:
            await self._pubsub.publish(topic, payload)
        except BaseLibp2pError as error:
            raise TransportError(f"it was not published: {error}") from error

    async def subscribe(self, topic: str, sink: Sink) -> None:
        """Give what comes on a topic to a sink, own messages included."""
        self._sinks[topic] = sink
        await self._pubsub.subscribe(topic)

    async def unsubscribe(self, topic: str) -> None:
        """End a subscription. Idempotent."""
        if self._sinks.pop(topic, None) is not None:
            await self._pubsub.unsubscribe(topic)

    async def topic_peers(self, topic: str) -> list[str]:
        """The peer ids that are subscribed to a topic and connected."""
        return [peer.to_base58() for peer in self._pubsub.peer_topics.get(topic, ())]

    def _deliver(self, message: Any) -> None:
        for topic in message.topicIDs:
            if sink := self._sinks.get(topic):
                sink(ID(message.from_id).to_base58(), bytes(message.data))


async def _new_stream(host: Any, conn: Any, protocol: str) -> Any:
    stream = None
    try:
        with trio.fail_after(STREAM_TIME):
            stream = await conn.new_stream()
            await host.multiselect_client.select_one_of(
                [protocol], MultiselectCommunicator(stream), int(STREAM_TIME)
            )
    except (BaseLibp2pError, MultiselectClientError, OSError, trio.TooSlowError) as error:
        if stream is not None:
            await stream.reset()
        raise TransportError(f"no stream could be opened: {error!r}") from error
    stream.set_protocol(protocol)
    return stream


# ----------------------------------------------------------------------------- the host


def node_in_thread(
    settings: Settings, accept: Callable[[socket.socket, str], None]
) -> AbstractAsyncContextManager[Hosted[Node]]:
    """Run a host on a trio loop in a thread while the context is open.

    `accept` is called in the application's loop with the sockets of incoming streams, and the
    peer ids that they are from.

    Raises:
        TransportError: the host did not start.
    """

    async def main(thread: TrioThread, ready: Callable[[Node], None]) -> None:
        def hand_over(sock: socket.socket, source: str) -> None:
            if not thread.post(lambda: accept(sock, source)):
                sock.close()

        async with run_node(settings, hand_over) as node:
            ready(node)
            await thread.asked_to_end()

    return trio_thread(main)


@asynccontextmanager
async def run_node(
    settings: Settings, accept: Callable[[socket.socket, str], None]
) -> AsyncIterator[Node]:
    """Run a host while the context is open; `accept` gets the sockets of incoming streams.

    Raises:
        TransportError: it cannot listen.
        OSError: the state folder cannot be used.
    """
    silence_logging()
    host = make_host(settings)
    swarm = host.get_network()
    connections = guard_connections(swarm)
    guard_streams(swarm)
    router = GossipSub(
        protocols=GOSSIP_PROTOCOLS,
        degree=6,
        degree_low=4,
        degree_high=12,
        heartbeat_interval=1,
        # A topic that is left and joined again is deaf for this long (upstream: 10 and 60).
        unsubscribe_back_off=1,
        prune_back_off=1,
        adaptive_gossip_enabled=False,
        # Ten messages a second, own ones included; ours is in `libp2p_guard`.
        spam_protection_enabled=False,
        # It wants three networks, and there may be one.
        eclipse_protection_enabled=False,
    )
    pubsub = Pubsub(host, router, strict_signing=True)
    guard_pubsub(pubsub, time.time_ns())
    async with trio.open_nursery() as nursery, run_service(swarm):
        node = Node(host, pubsub, nursery, accept)
        try:
            await listen(swarm, settings)
            async with run_service(pubsub), run_service(router), AsyncExitStack() as stack:
                node.addresses = own_addresses(host)
                await _use_services(node, host, settings.services, nursery, stack)
                yield node
        finally:
            # Before its service stops, or the listening sockets stay.
            with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_TIME):
                await host.close()
            for connection in connections:
                with trio.CancelScope(shield=True), contextlib.suppress(Exception):
                    await connection.secured_conn.close()
            # It has a thread of its own, which would stay.
            pubsub.seen_messages.stop()
            nursery.cancel_scope.cancel()


async def _use_services(
    node: Node, host: Any, services: Services, nursery: trio.Nursery, stack: AsyncExitStack
) -> None:
    if services.mdns:
        nursery.start_soon(discover, node, host)
    if services.serve:
        await stack.enter_async_context(relaying(host))
        serve_dht(host)
    if services.dht:
        node.dht = Dht(host, node._open_protocol, services.dht, node.all_addresses)
        nursery.start_soon(node.dht.keep_telling)
    if services.relays:
        moved = node.dht.tell_again if node.dht else lambda: None
        nursery.start_soon(node.relays.keep, services.relays, moved)
