"""The libp2p transport: py-libp2p in this process, for devices that want no IPFS for content.

It speaks with other devices on it, and with devices on the IPFS transport, whose Kubo nodes
are libp2p nodes too: the same stream protocol, the same topics, the same envelopes. TCP,
Noise and yamux; py-libp2p runs on a trio loop in a thread of its own (`libp2p_loop`), and
what it gets wrong is put right in `libp2p_guard`. It is an optional extra: this module
imports it when a transport is opened.

Streams are carried over socket pairs, so for the application they are sockets.
"""

from __future__ import annotations

import contextlib
import logging
import re
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import ModuleType
from typing import TYPE_CHECKING

import anyio
from anyio.abc import ByteStream, ObjectReceiveStream, TaskGroup, TaskStatus

from walyoff.abc import Transport, TransportFactory, TransportHost
from walyoff.errors import LocalProtocolError, TransportError
from walyoff.sockets import SocketStream
from walyoff.tasks import background_tasks
from walyoff_transports.libp2p_pubsub import HostedPubsub
from walyoff_transports.libp2p_settings import Services, read_services
from walyoff_transports.listening import MAX_ADDRESS, Waiting, hosts, shown
from walyoff_transports.topics import TopicBroadcasts, Topics

if TYPE_CHECKING:
    from walyoff_transports.libp2p_loop import Hosted
    from walyoff_transports.libp2p_node import Node

_log = logging.getLogger(__name__)

NAME = "libp2p"
#: Seconds for `connect`, all in all.
CONNECT_TIME = 12.0
#: Seconds before a loop that crashed is started again, from the first to the last.
RESTART_FIRST, RESTART_LAST = 0.1, 10.0

# A device on the IPFS transport gives the addresses of its node, which this one reaches.
_ADDRESS = re.compile(
    r"(?:libp2p|ipfs):((?:/[A-Za-z0-9.:_\-]+)+/p2p/([A-Za-z0-9]{20,100}))", re.A
)


def parse_address(address: str) -> tuple[str, str]:
    """The (multiaddr, peer id) of an address. Raises LocalProtocolError."""
    found = _ADDRESS.fullmatch(address) if len(address) <= MAX_ADDRESS else None
    if found is None:
        raise LocalProtocolError("the address is not a libp2p: multiaddr with a peer id")
    return found.group(1), found.group(2)


#: Takes the socket of an incoming stream.
Accept = Callable[[socket.socket, str], None]
#: Runs a host in a thread while the context is open.
HostOpener = Callable[[Accept], AbstractAsyncContextManager["Hosted[Node]"]]


class Libp2pTransport(TopicBroadcasts):
    """`walyoff.abc.Transport` on py-libp2p; made by `open_transport`."""

    #: Addresses of these transports are reached as well.
    bridges: Sequence[str] = ("ipfs",)

    def __init__(self, tasks: TaskGroup) -> None:
        self._hosted: Hosted[Node] | None = None
        self._waiting = Waiting()
        self._pubsub = HostedPubsub(self.running)
        self._topics = Topics(self._pubsub, tasks)
        #: The host's addresses, also those of the last one while none runs.
        self._addresses: Callable[[], Sequence[str]] = tuple
        #: How many times the host was started.
        self.generation = 0

    def __repr__(self) -> str:
        peer = self._hosted.value.peer_id if self._hosted else "not running"
        return f"<Libp2pTransport {peer} [{self._waiting!r} | {len(self._topics)} topics]>"

    @property
    def name(self) -> str:
        """ "libp2p"."""
        return NAME

    @property
    def addresses(self) -> Sequence[str]:
        """`libp2p:MULTIADDR/p2p/PEER_ID` for each address of the host, at most 16."""
        return shown(f"{NAME}:{address}" for address in self._addresses())

    def running(self) -> Hosted[Node]:
        """The host that runs now. Raises TransportError when there is none."""
        if self._hosted is None:
            raise TransportError("libp2p is not running now")
        return self._hosted

    # --------------------------------------------------------------------- streams

    async def connect(self, address: str) -> ByteStream:
        """Open a stream to the device at an address, within 12 seconds.

        Addresses of the IPFS transport are understood too.

        Raises:
            LocalProtocolError: the address is not one of this transport's.
            TransportError: nobody could be reached there, or it does not listen.
        """
        multiaddr, peer_id = parse_address(address)
        hosted = self.running()
        near, far = socket.socketpair()
        handed = [far]
        try:
            with anyio.fail_after(CONNECT_TIME):
                await hosted.thread.call(_open, hosted.value, multiaddr, peer_id, handed)
        except BaseException as error:
            # The other side of the pair notices, whenever it is ready.
            near.close()
            with contextlib.suppress(IndexError):
                # The loop ended before it began.
                handed.pop().close()
            if isinstance(error, TimeoutError):
                raise TransportError(f"no connection within {CONNECT_TIME:g} s") from error
            raise
        return SocketStream(near)

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[ObjectReceiveStream[ByteStream]]:
        """Take streams; see `Waiting.taken`."""
        async with self._waiting.taken() as streams:
            try:
                await self._tell_listening(on=True)
                yield streams
            finally:
                with anyio.CancelScope(shield=True):
                    await self._tell_listening(on=False)

    async def _tell_listening(self, *, on: bool) -> None:
        # When it is not running, it is told as soon as it runs.
        with contextlib.suppress(TransportError):
            hosted = self.running()
            await hosted.thread.call(hosted.value.listen, on)

    def accept(self, sock: socket.socket, source: str) -> None:
        """Take the socket of an incoming stream from a peer."""
        if not self._waiting.offer(SocketStream(sock, source=source)):
            sock.close()

    # ------------------------------------------------------------------- life cycle

    async def keep(self, open_host: HostOpener, *, task_status: TaskStatus[None]) -> None:
        """Keep a host running until cancelled; one that crashed is replaced.

        Raises:
            TransportError: the first one did not start.
        """
        pause = RESTART_FIRST
        while True:
            began = anyio.current_time()
            try:
                async with open_host(self.accept) as hosted:
                    await self._serve(hosted, task_status)
            except TransportError as error:
                if not self.generation:
                    raise
                _log.warning("libp2p does not start: %s", error)
            if anyio.current_time() - began > RESTART_LAST:
                pause = RESTART_FIRST
            await anyio.sleep(pause)
            pause = min(pause * 2, RESTART_LAST)

    async def _serve(self, hosted: Hosted[Node], task_status: TaskStatus[None]) -> None:
        self._hosted = hosted
        self._addresses = hosted.value.all_addresses
        try:
            if self._waiting.open:
                await self._tell_listening(on=True)
            self.generation += 1
            if self.generation == 1:
                task_status.started()
            await hosted.thread.ended.wait()
            _log.warning("libp2p ended, and is started again: %r", hosted.thread.error)
        finally:
            self._hosted = None
            self._pubsub.end_all()


async def _open(node: Node, multiaddr: str, peer_id: str, handed: list[socket.socket]) -> None:
    """In the trio thread: take the socket and open a stream for it."""
    await node.open(multiaddr, peer_id, handed.pop())


def libp2p_transport(
    bind: str | None = None,
    port: int = 0,
    *,
    services: Services | None = None,
) -> TransportFactory:
    """A factory of libp2p transports.

    They listen at `bind`, a numeric address, or else where the device says; at "" nowhere.
    Port 0 takes the port of the last time if it is free, else another. `services` are those
    of others that it uses and offers; without it, what `services.toml` in the transport's
    folder says.
    """

    @asynccontextmanager
    async def opener(host: TransportHost) -> AsyncIterator[Transport]:
        chosen = read_services(host.state_dir) if services is None else services
        # A second of importing, which the event loop does not have.
        node = await anyio.to_thread.run_sync(_load_node)
        settings = node.Settings(
            state_dir=host.state_dir,
            sealer=host.sealer,
            hosts=() if bind == "" or not chosen.listen else tuple(hosts(host, bind)),
            port=port,
            services=chosen,
        )

        def open_host(accept: Accept) -> AbstractAsyncContextManager[Hosted[Node]]:
            hosted: AbstractAsyncContextManager[Hosted[Node]]
            hosted = node.node_in_thread(settings, accept)
            return hosted

        async with background_tasks() as tasks:
            transport = Libp2pTransport(tasks)
            await tasks.start(transport.keep, open_host)
            yield transport

    return opener


def _load_node() -> ModuleType:
    try:
        from walyoff_transports import libp2p_node  # noqa: PLC0415 - optional, and slow
    except ImportError as error:
        raise TransportError(
            f"the libp2p transport needs an extra: pip install 'walyoff[libp2p]' ({error})"
        ) from error
    return libp2p_node


#: The `libp2p` entry point of `walyoff.transports`.
open_transport = libp2p_transport()
