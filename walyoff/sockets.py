"""Byte streams over connected sockets.

anyio has streams of its own; these exist because anyio's Unix stream on asyncio can be
cancelled at the very moment when data arrives, and then reports an internal error to the
event loop, which users would see (its `wait_readable` has no such race). They also skip the
turn of the event loop that anyio takes before each call, which is most of the time of a
small message.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterable, Mapping
from typing import Any

import anyio
from anyio.abc import ByteStream
from anyio.lowlevel import checkpoint, checkpoint_if_cancelled

from walyoff.abc import StreamAttribute
from walyoff.errors import LocalProtocolError

#: Reads and writes that are done at once without letting others run; then a checkpoint.
MAX_TURNS = 16


class SocketStream(ByteStream):
    """A connected stream socket, which it owns and makes non-blocking."""

    def __init__(self, sock: socket.socket, *, source: str | None = None) -> None:
        """`source` is where an accepted connection is from (`StreamAttribute.source`)."""
        sock.setblocking(False)
        self._source = source
        self._socket = sock
        self._closed = False
        self._turns = 0

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Receive at least one byte. A cancelled call has taken nothing."""
        await self._turn()
        while True:
            self._check()
            try:
                data = self._socket.recv(max_bytes)
            except (BlockingIOError, InterruptedError):
                await self._wait(anyio.wait_readable)
            except OSError as error:
                raise anyio.BrokenResourceError from error
            else:
                if not data:
                    raise anyio.EndOfStream
                return data

    async def send(self, item: bytes) -> None:
        """Send all of it. A cancelled call may have sent a part: close the stream then."""
        await self._turn()
        view = memoryview(item)
        while view:
            self._check()
            try:
                sent = self._socket.send(view)
            except (BlockingIOError, InterruptedError):
                await self._wait(anyio.wait_writable)
            except OSError as error:
                raise anyio.BrokenResourceError from error
            else:
                view = view[sent:]

    async def _turn(self) -> None:
        self._turns += 1
        if self._turns % MAX_TURNS:
            await checkpoint_if_cancelled()
        else:
            await checkpoint()

    async def _wait(self, wait: Any) -> None:
        self._turns = 0
        try:
            await wait(self._socket)
        except (OSError, ValueError) as error:
            raise anyio.BrokenResourceError from error

    def _check(self) -> None:
        if self._closed:
            raise anyio.ClosedResourceError

    async def send_eof(self) -> None:
        """There is no half-close: this ends both directions."""
        await self.aclose()

    async def aclose(self) -> None:
        """Close the socket; whoever waits on it gets ClosedResourceError. Idempotent."""
        if not self._closed:
            self._closed = True
            anyio.notify_closing(self._socket)
            self._socket.close()
        await checkpoint()

    @property
    def extra_attributes(self) -> Mapping[Any, Any]:
        """Where it is from, if that is known."""
        source = self._source
        return {} if source is None else {StreamAttribute.source: lambda: source}


async def connect_unix(path: str) -> SocketStream:
    """Connect to a listening Unix socket. Raises OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        while True:
            try:
                sock.connect(path)
            except BlockingIOError:
                # The listener's backlog is full: nothing tells when it is not any more.
                await anyio.sleep(0.005)
            else:
                return SocketStream(sock)
    except BaseException:
        sock.close()
        raise


class Listener:
    """A listening socket, which it owns."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock

    async def accept(self) -> SocketStream:
        """Accept one connection.

        Raises:
            anyio.ClosedResourceError: the listener was closed.
            OSError: no connection could be made of it (out of file descriptors).
        """
        while True:
            try:
                sock, peer = self._socket.accept()
            except (BlockingIOError, ConnectionAbortedError):
                await anyio.wait_readable(self._socket)
            except OSError:
                if self._socket.fileno() < 0:
                    raise anyio.ClosedResourceError from None
                raise
            else:
                return self._stream(sock, peer)

    def _stream(self, sock: socket.socket, _peer: Any) -> SocketStream:
        return SocketStream(sock)

    def close(self) -> None:
        """Stop listening. Idempotent."""
        if self._socket.fileno() >= 0:
            anyio.notify_closing(self._socket)
            self._socket.close()


class UnixListener(Listener):
    """A listening Unix socket at a path, for this user alone."""

    def __init__(self, path: str, *, backlog: int) -> None:
        """Raises OSError."""
        super().__init__(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        try:
            # Its folder is private, so nobody else sees it before its mode is set.
            self._socket.bind(path)
            self._socket.listen(backlog)
        except BaseException:
            self._socket.close()
            raise


class TcpListener(Listener):
    """A listening TCP socket at a numeric address; port 0 takes a free one."""

    def __init__(self, host: str, port: int, *, backlog: int) -> None:
        """Raises OSError."""
        super().__init__(socket.socket(address_family(host), socket.SOCK_STREAM))
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind((host, port))
            self._socket.listen(backlog)
        except BaseException:
            self._socket.close()
            raise
        #: Where it listens.
        self.host, self.port = self._socket.getsockname()[:2]

    def _stream(self, sock: socket.socket, peer: Any) -> SocketStream:
        return _tcp_stream(sock, peer[0])


async def connect_tcp(host: str, port: int) -> SocketStream:
    """Connect to a numeric address. Raises OSError."""
    sock = socket.socket(address_family(host), socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        try:
            sock.connect((host, port))
        except BlockingIOError:
            await anyio.wait_writable(sock)
        if code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(code, os.strerror(code))
        if sock.getsockname() == sock.getpeername():
            # TCP can connect a port to itself when nobody listens there.
            raise OSError(0, "nobody is there")
        return _tcp_stream(sock)
    except BaseException:
        sock.close()
        raise


def _tcp_stream(sock: socket.socket, source: str | None = None) -> SocketStream:
    # Small frames leave at once: sessions gather what belongs together by themselves.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return SocketStream(sock, source=source)


def own_addresses(names: Iterable[str]) -> tuple[str, ...]:
    """IP addresses of this machine, as a person gave them.

    Raises:
        LocalProtocolError: one is no IP address, or another machine's.
    """
    found = []
    for name in names:
        try:
            host = str(ipaddress.ip_address(name))
        except ValueError:
            raise LocalProtocolError(
                f"{name!r} is no IP address to listen on: try 127.0.0.1, or 0.0.0.0 for all"
            ) from None
        try:
            with socket.socket(address_family(host)) as probe:
                probe.bind((host, 0))
        except OSError as error:
            raise LocalProtocolError(
                f"this machine cannot listen at {host} ({error.strerror}): name an address "
                "that it has, or 0.0.0.0 for all"
            ) from None
        found.append(host)
    return tuple(found)


def address_family(host: str) -> socket.AddressFamily:
    """The family of a numeric address."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET
