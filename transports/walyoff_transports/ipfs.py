"""The IPFS transport: streams and broadcasts of the embedded Kubo node.

Streams are libp2p streams that Kubo mounts on Unix sockets: this module listens on one, and
opens the others. Kubo does not say who is at the far end, which is no loss, since the
session above finds that out by itself. It depends on `walyoff.abc.IpfsNode` alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from anyio.abc import ByteStream, ObjectReceiveStream, TaskGroup

from walyoff.abc import IpfsNode, Transport, TransportHost
from walyoff.errors import LocalProtocolError, TransportError
from walyoff.sockets import UnixListener, connect_unix
from walyoff.tasks import background_tasks
from walyoff_transports.listening import MAX_ADDRESS, Waiting, shown
from walyoff_transports.topics import TopicBroadcasts, Topics

NAME = "ipfs"
PROTOCOL = "/x/walyoff/1"
#: Seconds for `connect`, all in all.
CONNECT_TIME = 10.0
#: Forwards to peers that are kept; one that is closed leaves its streams alive.
MAX_FORWARDS = 64
#: With the default of 100, Kubo's bursts of connections were refused.
BACKLOG = 1_024
#: `sun_path` without its NUL, in bytes.
MAX_SOCKET_PATH = 107

# A device on the libp2p transport gives the addresses of its host, which a node reaches too.
_ADDRESS = re.compile(r"(?:ipfs|libp2p):((?:/[A-Za-z0-9.:_\-]+)+/p2p/([A-Za-z0-9]{20,100}))")


def parse_address(address: str) -> tuple[str, str]:
    """The (multiaddr, peer id) of an address. Raises LocalProtocolError."""
    found = _ADDRESS.fullmatch(address) if len(address) <= MAX_ADDRESS else None
    if found is None:
        raise LocalProtocolError("the address is not an ipfs: multiaddr with a peer id")
    return found.group(1), found.group(2)


class IpfsTransport(TopicBroadcasts):
    """`walyoff.abc.Transport` on an `IpfsNode`; made by `open_transport`."""

    #: Addresses of these transports are reached as well.
    bridges: Sequence[str] = ("libp2p",)

    def __init__(self, ipfs: IpfsNode, run_dir: Path, tasks: TaskGroup) -> None:
        self._ipfs = ipfs
        self._run_dir = run_dir
        self._tasks = tasks
        self._waiting = Waiting()
        self._forwards: OrderedDict[str, str] = OrderedDict()
        self._forward_lock = anyio.Lock()
        self._topics = Topics(ipfs, tasks)

    def __repr__(self) -> str:
        return (
            f"<IpfsTransport {self._ipfs.peer_id} [{self._waiting!r} | "
            f"{len(self._forwards)} forwards, {len(self._topics)} topics]>"
        )

    @property
    def name(self) -> str:
        """ "ipfs"."""
        return NAME

    @property
    def addresses(self) -> Sequence[str]:
        """`ipfs:MULTIADDR/p2p/PEER_ID` for each address of the node, at most 16."""
        return shown(f"{NAME}:{address}" for address in self._ipfs.addresses)

    # --------------------------------------------------------------------- streams

    async def connect(self, address: str) -> ByteStream:
        """Open a stream to the device at an address, within 10 seconds.

        Addresses of the libp2p transport are understood too. A device that does not listen
        shows at the first `receive` only.

        Raises:
            LocalProtocolError: the address is not one of this transport's, or the run
                folder's path is too long for sockets.
            TransportError: nobody could be reached there.
        """
        multiaddr, peer_id = parse_address(address)
        try:
            with anyio.fail_after(CONNECT_TIME):
                # Cheap when it is connected. When it is not, the stream would fail: Kubo
                # dials a peer that was away only after a back-off of some seconds.
                await self._ipfs.connect(multiaddr)
                path = await self._forward(peer_id)
                return await connect_unix(path)
        except TimeoutError as error:
            raise TransportError(f"no connection within {CONNECT_TIME:g} s") from error
        except OSError as error:
            # The child is being replaced, or the forward went with it.
            raise TransportError(f"the stream could not be opened: {error}") from error

    async def _forward(self, peer_id: str) -> str:
        """The socket that leads to a peer."""
        async with self._forward_lock:
            if path := self._forwards.get(peer_id):
                self._forwards.move_to_end(peer_id)
                return path
            while len(self._forwards) >= MAX_FORWARDS:
                oldest, _ = self._forwards.popitem(last=False)
                await self._ipfs.close_streams(PROTOCOL, peer_id=oldest)
            digest = hashlib.blake2b(peer_id.encode(), digest_size=8).hexdigest()
            path = self._socket_path(f"f{digest}")
            await self._ipfs.forward_streams(PROTOCOL, peer_id, path)
            self._forwards[peer_id] = path
            return path

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[ObjectReceiveStream[ByteStream]]:
        """Accept streams while the context is open; at most 128 wait, more are refused.

        Raises:
            TransportError: this transport listens already, or the node is not there.
            LocalProtocolError: the run folder's path is too long for sockets.
        """
        path = self._socket_path("listen")
        async with self._waiting.taken() as streams:
            try:
                with contextlib.closing(self._bind(path)) as listener:
                    try:
                        await self._ipfs.listen_streams(PROTOCOL, path)
                        self._tasks.start_soon(self._waiting.accept_all, listener)
                        yield streams
                    finally:
                        with (
                            anyio.CancelScope(shield=True),
                            contextlib.suppress(TransportError),
                        ):
                            await self._ipfs.close_streams(PROTOCOL)
            finally:
                with contextlib.suppress(OSError):
                    os.unlink(path)

    def _bind(self, path: str) -> UnixListener:
        try:
            return UnixListener(path, backlog=BACKLOG)
        except OSError as error:
            raise TransportError(f"no listening socket could be made: {error}") from error

    def _socket_path(self, name: str) -> str:
        path = str(self._run_dir / name)
        size = len(os.fsencode(path))
        if size > MAX_SOCKET_PATH:
            raise LocalProtocolError(
                f"the run folder's path is too long: sockets have at most {MAX_SOCKET_PATH} "
                f"bytes, this one {size}"
            )
        return path

    async def _release(self) -> None:
        for peer_id in list(self._forwards):
            with contextlib.suppress(TransportError):
                await self._ipfs.close_streams(PROTOCOL, peer_id=peer_id)
        self._forwards.clear()


@asynccontextmanager
async def open_transport(host: TransportHost) -> AsyncIterator[Transport]:
    """The `ipfs` entry point of `walyoff.transports`."""
    if host.ipfs is None:
        raise TransportError("the ipfs transport needs a platform with an IPFS node")
    async with background_tasks() as tasks:
        transport = IpfsTransport(host.ipfs, host.run_dir, tasks)
        try:
            yield transport
        finally:
            with anyio.CancelScope(shield=True):
                await transport._release()
