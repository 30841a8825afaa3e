"""Broadcasts as UDP multicast on one network: one datagram for all who are there.

A datagram is a version byte, the sender's 16-byte instance, a 16-byte digest of the topic,
and the payload. All processes of a machine that use it share the port.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

import anyio
from anyio.abc import ObjectReceiveStream
from blake3 import blake3

from walyoff.abc import Broadcast
from walyoff.errors import LocalProtocolError, PayloadTooLargeError, TransportError
from walyoff.fanout import Fanout

#: Where broadcasts go: a group of the block for private use (RFC 2365), and a port.
GROUP = ("239.255.119.97", 47119)
VERSION = 1
INSTANCE_SIZE = TOPIC_SIZE = 16
HEADER_SIZE = 1 + INSTANCE_SIZE + TOPIC_SIZE
#: What a datagram holds, in bytes, when it may be cut into eleven packets of a local network.
MAX_BROADCAST = 16 * 1024
MAX_DATAGRAM = HEADER_SIZE + MAX_BROADCAST
#: Characters of a topic.
MAX_TOPIC = 256
#: Broadcasts that wait for one consumer; the oldest are dropped.
BUFFER = 256
#: Bytes of datagrams that the system keeps for this process while it is busy.
RECEIVE_BUFFER = 1 << 20


class Multicast:
    """Broadcasts on the network of one interface."""

    def __init__(self, interface: str, stack: ExitStack) -> None:
        """`interface` is its IPv4 address. Raises OSError."""
        self._socket = _join(interface, stack)
        self._instance = secrets.token_bytes(INSTANCE_SIZE)
        self._fanout: Fanout[Broadcast] = Fanout(BUFFER)

    async def broadcast(self, topic: str, payload: bytes) -> None:
        """Send one datagram to everybody on the network.

        Raises:
            PayloadTooLargeError: it is larger than `MAX_BROADCAST`.
            LocalProtocolError: the topic is empty or too long.
            TransportError: the system did not take it.
        """
        if len(payload) > MAX_BROADCAST:
            raise PayloadTooLargeError(len(payload), MAX_BROADCAST, "broadcast")
        header = bytes([VERSION]) + self._instance + _digest(topic)
        # Others run between two broadcasts; the receiver among them, before it loses any.
        await anyio.lowlevel.checkpoint()
        try:
            self._socket.sendto(header + payload, GROUP)
        except BlockingIOError:
            # As good as lost on the way.
            return
        except OSError as error:
            raise TransportError(f"no broadcast: {error.strerror or error}") from error

    @asynccontextmanager
    async def subscribe(self, topic: str) -> AsyncIterator[ObjectReceiveStream[Broadcast]]:
        """Receive other devices' broadcasts; a slow consumer loses the oldest of 256.

        Raises:
            LocalProtocolError: the topic is empty or too long.
        """
        async with self._fanout.subscribe(_digest(topic).hex()) as stream:
            yield stream

    async def receive_all(self) -> None:
        """Hand out datagrams until cancelled."""
        while True:
            await anyio.wait_readable(self._socket)
            try:
                data, (host, port) = self._socket.recvfrom(MAX_DATAGRAM + 1)
            except OSError:
                continue
            if not HEADER_SIZE <= len(data) <= MAX_DATAGRAM or data[0] != VERSION:
                continue
            if data[1 : 1 + INSTANCE_SIZE] != self._instance:
                digest = data[1 + INSTANCE_SIZE : HEADER_SIZE]
                item = Broadcast(sender=f"{host}:{port}", payload=data[HEADER_SIZE:])
                self._fanout.publish(digest.hex(), item)


def _digest(topic: str) -> bytes:
    if not 0 < len(topic) <= MAX_TOPIC:
        raise LocalProtocolError(f"a topic has 1 to {MAX_TOPIC} characters")
    return blake3(topic.encode(errors="surrogatepass")).digest(TOPIC_SIZE)


def _join(interface: str, stack: ExitStack) -> socket.socket:
    sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    local = socket.inet_aton(interface)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, local)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 1)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
    sock.bind(GROUP)
    membership = socket.inet_aton(GROUP[0]) + local
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
    return sock
