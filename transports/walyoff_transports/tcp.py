"""The TCP transport: plain streams, and UDP multicast for broadcasts on a local network.

It has no encryption and no names, and needs none: what is confidential, authentic and a
member is decided above it. It shows how small a transport can be, and is the floor that
benchmarks compare others with. As it stands it talks on this machine only; give
`tcp_transport` another address to use it on a local network.

Addresses are `tcp:HOST:PORT` with a numeric host, IPv6 in brackets: names would have to be
looked up, which tells others whom a device wants to reach. A datagram is a version byte, the
sender's 16-byte instance, a 16-byte digest of the topic, and the payload.
"""

from __future__ import annotations

import ipaddress
import logging
import re
import secrets
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager

import anyio
from anyio.abc import ByteStream, ObjectReceiveStream
from anyio.streams.memory import MemoryObjectSendStream
from blake3 import blake3

from walyoff.abc import Broadcast, Transport, TransportFactory, TransportHost
from walyoff.errors import LocalProtocolError, PayloadTooLargeError, TransportError
from walyoff.fanout import Fanout
from walyoff.sockets import SocketStream
from walyoff.tasks import background_tasks

_log = logging.getLogger(__name__)

NAME = "tcp"
#: Where broadcasts go: a group of the block for private use (RFC 2365), and a port.
GROUP = ("239.255.119.97", 47119)
VERSION = 1
INSTANCE_SIZE = TOPIC_SIZE = 16
HEADER_SIZE = 1 + INSTANCE_SIZE + TOPIC_SIZE
#: What a datagram holds, in bytes, when it may be cut into eleven packets of a local network.
MAX_BROADCAST = 16 * 1024
MAX_DATAGRAM = HEADER_SIZE + MAX_BROADCAST
MAX_TOPIC = 256
#: Seconds for `connect`.
CONNECT_TIME = 5.0
BACKLOG = 256
#: Streams that wait to be accepted; more are closed at once.
MAX_WAITING = 128
#: Broadcasts that wait for one consumer; the oldest are dropped.
BUFFER = 256
#: Bytes of datagrams that the system keeps for this process while it is busy.
RECEIVE_BUFFER = 1 << 20

_ADDRESS = re.compile(r"tcp:(?:\[([0-9a-fA-F:.]{2,45})\]|([0-9.]{7,15})):([0-9]{1,5})", re.A)


def parse_address(address: str) -> tuple[str, int]:
    """The (host, port) of an address. Raises LocalProtocolError."""
    found = _ADDRESS.fullmatch(address)
    try:
        if found is None:
            raise ValueError
        host, port = str(ipaddress.ip_address(found[1] or found[2])), int(found[3])
        if not 0 < port < 65536:
            raise ValueError
    except ValueError:
        raise LocalProtocolError("the address is not tcp:HOST:PORT with a number") from None
    return host, port


def format_address(host: str, port: int) -> str:
    """The address of a listening socket."""
    return f"{NAME}:[{host}]:{port}" if ":" in host else f"{NAME}:{host}:{port}"


class TcpTransport:
    """`walyoff.abc.Transport` on sockets; made by `open_transport`."""

    def __init__(self, listener: socket.socket, datagrams: socket.socket) -> None:
        self._listener = listener
        self._datagrams = datagrams
        self._accepting: MemoryObjectSendStream[ByteStream] | None = None
        self._instance = secrets.token_bytes(INSTANCE_SIZE)
        self._fanout: Fanout[Broadcast] = Fanout(BUFFER)

    def __repr__(self) -> str:
        state = "listening" if self._accepting else "not listening"
        return f"<TcpTransport {self.addresses[0]} [{state}]>"

    @property
    def name(self) -> str:
        """ "tcp"."""
        return NAME

    @property
    def max_broadcast(self) -> int:
        """The largest broadcast payload, in bytes."""
        return MAX_BROADCAST

    @property
    def addresses(self) -> Sequence[str]:
        """The one address that this device listens on."""
        return [format_address(*self._listener.getsockname()[:2])]

    async def connect(self, address: str) -> ByteStream:
        """Open a connection within 5 seconds.

        Raises:
            LocalProtocolError: the address is not one of this transport's.
            TransportError: nobody could be reached there.
        """
        host, port = parse_address(address)
        try:
            with anyio.fail_after(CONNECT_TIME):
                return await _connect(host, port)
        except TimeoutError as error:
            raise TransportError(f"no connection within {CONNECT_TIME:g} s") from error
        except OSError as error:
            raise TransportError(f"no connection: {error.strerror or error}") from error

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[ObjectReceiveStream[ByteStream]]:
        """Accept connections while the context is open; at most 128 wait, more are closed.

        Raises:
            TransportError: this transport listens already.
        """
        if self._accepting is not None:
            raise TransportError("this transport is listening already")
        send, receive = anyio.create_memory_object_stream[ByteStream](MAX_WAITING)
        self._accepting = send
        with send, receive:
            try:
                yield receive
            finally:
                self._accepting = None
                with anyio.CancelScope(shield=True):
                    while receive.statistics().current_buffer_used:
                        await anyio.aclose_forcefully(receive.receive_nowait())

    async def broadcast(self, topic: str, payload: bytes) -> None:
        """Send one datagram to everybody on the network who uses this transport.

        Raises:
            PayloadTooLargeError: it is larger than `max_broadcast`.
            LocalProtocolError: the topic is empty or too long.
            TransportError: the system did not take it.
        """
        if len(payload) > MAX_BROADCAST:
            raise PayloadTooLargeError(len(payload), MAX_BROADCAST, "broadcast")
        header = bytes([VERSION]) + self._instance + _digest(topic)
        # Others run between two broadcasts; the receiver among them, before it loses any.
        await anyio.lowlevel.checkpoint()
        try:
            self._datagrams.sendto(header + payload, GROUP)
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

    async def accept_all(self) -> None:
        """Accept for as long as the transport is open; close what nobody listens for."""
        while True:
            await anyio.wait_readable(self._listener)
            try:
                sock, peer = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                continue
            except OSError as error:
                # Out of file descriptors, most likely: others may give some back.
                _log.warning("a connection could not be accepted: %s", error)
                await anyio.sleep(0.1)
                continue
            stream = _stream(sock, peer[0])
            try:
                if self._accepting is None:
                    raise anyio.WouldBlock
                self._accepting.send_nowait(stream)
            except (anyio.WouldBlock, anyio.BrokenResourceError, anyio.ClosedResourceError):
                await anyio.aclose_forcefully(stream)

    async def receive_all(self) -> None:
        """Hand out datagrams for as long as the transport is open."""
        while True:
            await anyio.wait_readable(self._datagrams)
            try:
                data, (host, port) = self._datagrams.recvfrom(MAX_DATAGRAM + 1)
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


def _stream(sock: socket.socket, source: str | None = None) -> SocketStream:
    # Small frames leave at once: sessions gather what belongs together by themselves.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return SocketStream(sock, source=source)


async def _connect(host: str, port: int) -> ByteStream:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        try:
            sock.connect((host, port))
        except BlockingIOError:
            await anyio.wait_writable(sock)
        if code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(code, "it was refused")
        if sock.getsockname() == sock.getpeername():
            # TCP can connect a port to itself when nobody listens there.
            raise OSError(0, "nobody is there")
        return _stream(sock)
    except BaseException:
        sock.close()
        raise


def _listen(host: str, port: int, stack: ExitStack) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setblocking(False)
    listener.bind((host, port))
    listener.listen(BACKLOG)
    return listener


def _join(interface: str, stack: ExitStack) -> socket.socket:
    sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    local = socket.inet_aton(interface)
    sock.setblocking(False)
    # All processes on the machine that use this transport share the port.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, local)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 1)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
    sock.bind(GROUP)
    membership = socket.inet_aton(GROUP[0]) + local
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
    return sock


def tcp_transport(
    bind: str = "127.0.0.1", port: int = 0, *, interface: str = "127.0.0.1"
) -> TransportFactory:
    """A factory of TCP transports that listen on one numeric address.

    Port 0 takes a free one. `interface` is the IPv4 address of the network interface for
    broadcasts. Opening raises TransportError when the system refuses.
    """

    @asynccontextmanager
    async def opener(host: TransportHost) -> AsyncIterator[Transport]:
        with ExitStack() as stack:
            try:
                listener, datagrams = _listen(bind, port, stack), _join(interface, stack)
            except OSError as error:
                raise TransportError(f"no sockets: {error.strerror or error}") from error
            transport = TcpTransport(listener, datagrams)
            async with background_tasks() as tasks:
                tasks.start_soon(transport.accept_all)
                tasks.start_soon(transport.receive_all)
                yield transport

    return opener


#: The `tcp` entry point of `walyoff.transports`.
open_transport = tcp_transport()
