"""What transports that accept streams share: where they listen, and the streams that wait.

Decided here: which IP addresses and which port a device has on a transport from one start to
the next, how many streams may wait to be taken, and what becomes of those that nobody takes.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from anyio.abc import ByteStream, ObjectReceiveStream
from anyio.streams.memory import MemoryObjectSendStream

from walyoff.abc import TransportHost
from walyoff.errors import TransportError
from walyoff.files import replace_file, sweep_new
from walyoff.sockets import Listener, address_family, own_addresses

_log = logging.getLogger(__name__)

#: Streams that wait to be accepted; more are closed at once.
MAX_WAITING = 128
#: As `walyoff.abc.Transport.addresses` promises.
MAX_ADDRESSES, MAX_ADDRESS = 16, 256
#: IP addresses that one transport listens at.
MAX_HOSTS = 8
LOOPBACK = "127.0.0.1"


class Waiting:
    """Streams that came in, until the device takes them."""

    def __init__(self) -> None:
        self._send: MemoryObjectSendStream[ByteStream] | None = None

    def __repr__(self) -> str:
        return "listening" if self.open else "not listening"

    @property
    def open(self) -> bool:
        """Whether somebody takes streams now."""
        return self._send is not None

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[ObjectReceiveStream[ByteStream]]:
        """Take streams while the context is open; at most 128 wait, more are refused.

        Raises:
            TransportError: somebody takes them already.
        """
        if self._send is not None:
            raise TransportError("this transport is listening already")
        send, receive = anyio.create_memory_object_stream[ByteStream](MAX_WAITING)
        self._send = send
        with send, receive:
            try:
                yield receive
            finally:
                self._send = None
                with anyio.CancelScope(shield=True):
                    while receive.statistics().current_buffer_used:
                        await anyio.aclose_forcefully(receive.receive_nowait())

    def offer(self, stream: ByteStream) -> bool:
        """Let a stream wait. False if nobody takes any, or too many wait."""
        try:
            if self._send is None:
                return False
            self._send.send_nowait(stream)
        except (anyio.WouldBlock, anyio.BrokenResourceError, anyio.ClosedResourceError):
            return False
        return True

    async def accept_all(self, listener: Listener) -> None:
        """Offer what comes to a listener until it is closed; close what is not wanted."""
        while True:
            try:
                stream = await listener.accept()
            except anyio.ClosedResourceError:
                return
            except OSError as error:
                # Out of file descriptors, most likely: others may give some back.
                _log.warning("a stream could not be accepted: %s", error)
                await anyio.sleep(0.1)
                continue
            if not self.offer(stream):
                await anyio.aclose_forcefully(stream)


def shown(addresses: Iterable[str]) -> list[str]:
    """Those that others may be told: not too long, not too many."""
    return [a for a in addresses if len(a) <= MAX_ADDRESS and a.isascii()][:MAX_ADDRESSES]


def hosts(host: TransportHost, told: str | None = None) -> list[str]:
    """The IP addresses to listen at: those told, or of this start, or of the last one.

    Raises:
        LocalProtocolError: one is no IP address of this machine, or not any more.
    """
    if told is not None:
        return [*own_addresses([told])]
    sweep_new(host.state_dir)
    path = host.state_dir / "listen"
    if host.listen is not None:
        found = own_addresses(host.listen)[:MAX_HOSTS]
        replace_file(path, "\n".join(found).encode())
        return [*found]
    try:
        kept = [str(ipaddress.ip_address(name)) for name in path.read_text().split()]
    except (OSError, ValueError):
        kept = []
    return [*own_addresses(kept[:MAX_HOSTS])] or [LOOPBACK]


def old_port(state_dir: Path) -> int:
    """The port of the last start; 0 if there was none."""
    try:
        port = int((state_dir / "port").read_text())
    except (FileNotFoundError, ValueError):
        return 0
    return port if 0 < port < 65536 else 0


def keep_port(state_dir: Path, port: int) -> None:
    """Note the port for the next start."""
    if port != old_port(state_dir):
        replace_file(state_dir / "port", str(port).encode())


def reachable(host: str) -> list[str]:
    """The addresses of this machine at which a listening socket is reached.

    For 0.0.0.0 and :: they are loopback, and the one from which it reaches the outside.
    """
    address = ipaddress.ip_address(host)
    if not address.is_unspecified:
        return [host]
    outside = "192.0.2.1" if address.version == 4 else "2001:db8::1"
    loopback = LOOPBACK if address.version == 4 else "::1"
    with socket.socket(address_family(host), socket.SOCK_DGRAM) as probe:
        try:
            # Nothing is sent: the system only chooses the route.
            probe.connect((outside, 9))
            return [str(probe.getsockname()[0]), loopback]
        except OSError:
            return [loopback]
