"""The TCP transport: plain streams, and UDP multicast for broadcasts on a local network.

It has no encryption and no names, and needs none: what is confidential, authentic and a
member is decided above it. It shows how small a transport can be, and is the floor that
benchmarks compare others with. Without `listen` it talks on this machine only.

Addresses are `tcp:HOST:PORT` with a numeric host, IPv6 in brackets: names would have to be
looked up, which tells others whom a device wants to reach.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, suppress

import anyio
from anyio.abc import ByteStream, ObjectReceiveStream

from walyoff.abc import Broadcast, Transport, TransportFactory, TransportHost
from walyoff.errors import LocalProtocolError, TransportError
from walyoff.sockets import TcpListener, connect_tcp
from walyoff.tasks import background_tasks
from walyoff_transports.listening import Waiting, hosts, keep_port, old_port, reachable, shown
from walyoff_transports.multicast import MAX_BROADCAST, Multicast

NAME = "tcp"
#: Seconds for `connect`.
CONNECT_TIME = 5.0
#: Connections that the system keeps until they are accepted.
BACKLOG = 256

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

    def __init__(self, listeners: Sequence[TcpListener], multicast: Multicast) -> None:
        self._listeners = listeners
        self._multicast = multicast
        self.waiting = Waiting()

    def __repr__(self) -> str:
        return f"<TcpTransport {', '.join(self.addresses)} [{self.waiting!r}]>"

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
        """An address for each one that this device listens at."""
        return shown(
            format_address(host, listener.port)
            for listener in self._listeners
            for host in reachable(listener.host)
        )

    async def connect(self, address: str) -> ByteStream:
        """Open a connection within 5 seconds.

        Raises:
            LocalProtocolError: the address is not one of this transport's.
            TransportError: nobody could be reached there.
        """
        host, port = parse_address(address)
        try:
            with anyio.fail_after(CONNECT_TIME):
                return await connect_tcp(host, port)
        except TimeoutError as error:
            raise TransportError(f"no connection within {CONNECT_TIME:g} s") from error
        except OSError as error:
            raise TransportError(f"no connection: {error.strerror or error}") from error

    def listen(self) -> AbstractAsyncContextManager[ObjectReceiveStream[ByteStream]]:
        """Take connections; see `Waiting.taken`."""
        return self.waiting.taken()

    async def broadcast(self, topic: str, payload: bytes) -> None:
        """Send to everybody on the network; see `Multicast.broadcast`."""
        await self._multicast.broadcast(topic, payload)

    def subscribe(
        self, topic: str
    ) -> AbstractAsyncContextManager[ObjectReceiveStream[Broadcast]]:
        """Receive other devices' broadcasts; see `Multicast.subscribe`."""
        return self._multicast.subscribe(topic)


def _listen(at: Sequence[str], port: int) -> list[TcpListener]:
    """A listener at each address, all on one port. Raises OSError."""
    listeners: list[TcpListener] = []
    try:
        for host in at:
            listeners.append(TcpListener(host, port, backlog=BACKLOG))
            port = listeners[0].port
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def tcp_transport(
    bind: str | None = None, port: int = 0, *, interface: str = "127.0.0.1"
) -> TransportFactory:
    """A factory of TCP transports.

    They listen at `bind`, a numeric address, or else where the device says. Port 0 takes the
    port of the last time if it is free, else another. `interface` is the IPv4 address of the
    network interface for broadcasts. Opening raises TransportError when the system refuses.
    """

    @asynccontextmanager
    async def opener(host: TransportHost) -> AsyncIterator[Transport]:
        at = hosts(host, bind)
        with ExitStack() as stack:
            try:
                listeners = []
                with suppress(OSError):
                    listeners = _listen(at, port or old_port(host.state_dir))
                listeners = listeners or _listen(at, port)
                for listener in listeners:
                    stack.callback(listener.close)
                multicast = Multicast(interface, stack)
            except OSError as error:
                raise TransportError(f"no sockets: {error.strerror or error}") from error
            keep_port(host.state_dir, listeners[0].port)
            transport = TcpTransport(listeners, multicast)
            async with background_tasks() as tasks:
                for listener in listeners:
                    tasks.start_soon(transport.waiting.accept_all, listener)
                tasks.start_soon(multicast.receive_all)
                yield transport

    return opener


#: The `tcp` entry point of `walyoff.transports`.
open_transport = tcp_transport()
