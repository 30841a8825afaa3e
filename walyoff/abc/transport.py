"""`Transport`: untrusted pipes between devices, and what a device gives one to work with.

Streams are anyio's: `anyio.abc.ByteStream`, with `anyio.EndOfStream` (the other side is done),
`anyio.ClosedResourceError` (closed here) and `anyio.BrokenResourceError` (the connection is
gone). Who is at the other end is never decided by a transport.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from anyio import TypedAttributeSet, typed_attribute
from anyio.abc import ByteStream, ObjectReceiveStream


class StreamAttribute(TypedAttributeSet):
    """What a stream that was accepted may say, as anyio's typed attributes do."""

    #: What the transport takes the far end for (an address, a peer id): a hint, never
    #: authenticated, by which one source of many streams is told from many sources.
    source: str = typed_attribute()


@dataclass(frozen=True, slots=True, kw_only=True)
class Broadcast:
    """One broadcast as it was received."""

    #: The transport's own name for the sender: a hint, never authenticated.
    sender: str
    payload: bytes


@runtime_checkable
class Transport(Protocol):
    """Untrusted pipes between devices.

    Confidentiality, authenticity and membership come from the layers above, so an
    implementation may be wrong about who is at the other end without harm.
    """

    @property
    def name(self) -> str:
        """The entry-point name, which is also the scheme of this transport's addresses."""

    @property
    def max_broadcast(self) -> int:
        """The largest broadcast payload, in bytes."""

    @property
    def addresses(self) -> Sequence[str]:
        """What another device needs to reach this one, now: `NAME:REST`, best first.

        At most 16 addresses of at most 256 ASCII characters each.
        """

    async def broadcast(self, topic: str, payload: bytes) -> None:
        """Offer a payload to everybody who is subscribed to the topic, without promise.

        It may be lost, repeated or reordered, and returns when it was handed on, not when
        it arrived. Cancelling leaves it sent or not sent.

        Raises:
            PayloadTooLargeError: it is larger than `max_broadcast`.
            TransportError: it could not be handed on.
        """

    def subscribe(
        self, topic: str
    ) -> AbstractAsyncContextManager[ObjectReceiveStream[Broadcast]]:
        """Receive other devices' broadcasts on the topic while the context is open.

        Own broadcasts are filtered out. A consumer that does not keep up loses the oldest.

        Raises:
            TransportError: the subscription could not be made.
        """

    async def connect(self, address: str) -> ByteStream:
        """Open a reliable, ordered byte stream to the device at an address.

        The stream has no half-close: `aclose()` ends both directions. A failure of the far
        side may show only at the first `receive`.

        Raises:
            LocalProtocolError: the address is not one of this transport's.
            TransportError: nobody could be reached there within the transport's deadline.
        """

    def listen(self) -> AbstractAsyncContextManager[ObjectReceiveStream[ByteStream]]:
        """Accept streams that others open to this device, while the context is open.

        Streams that wait unaccepted are bounded in number; more are refused. A stream says
        where it is from (`StreamAttribute.source`) if the transport knows.

        Raises:
            TransportError: listening is impossible now.
        """


class IpfsNode(Protocol):
    """The embedded Kubo node, as transports may use it. Calls have deadlines of their own.

    What was set up (listeners, forwards, subscriptions) is set up again by itself when the
    child process was replaced; `generation` grows by one each time that happens.
    """

    @property
    def peer_id(self) -> str:
        """The node's libp2p peer id, in base58."""

    @property
    def generation(self) -> int:
        """How many times the node was started."""

    @property
    def addresses(self) -> Sequence[str]:
        """The node's multiaddrs, each ending in `/p2p/PEER_ID`."""

    async def connect(self, multiaddr: str) -> None:
        """Connect the swarm to a peer. Raises TransportError."""

    async def listen_streams(self, protocol: str, socket_path: str) -> None:
        """Hand incoming streams of a protocol to the listening Unix socket at a path."""

    async def forward_streams(self, protocol: str, peer_id: str, socket_path: str) -> None:
        """Make connections to a Unix socket at a path streams of a protocol to a peer."""

    async def close_streams(
        self, protocol: str, *, peer_id: str | None = None, socket_path: str | None = None
    ) -> None:
        """End the listener (no peer id) or the forward to a peer."""

    async def publish(self, topic: str, payload: bytes) -> None:
        """Publish once on pubsub, without any promise; at most 1,000,000 bytes."""

    def subscribe(
        self, topic: str
    ) -> AbstractAsyncContextManager[ObjectReceiveStream[Broadcast]]:
        """Receive pubsub messages, own ones included, oldest dropped when slow."""

    async def topic_peers(self, topic: str) -> list[str]:
        """The peer ids that the node sees on a topic."""


class Sealer(Protocol):
    """Makes secrets fit to lie in files: nobody reads them without the home's key."""

    def seal(self, value: bytes, place: str) -> bytes:
        """A value as it goes into a file; the place is a name that stays."""

    def unseal(self, data: bytes, place: str) -> bytes:
        """The inverse. Raises StoreError if it was altered, moved, or put there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportHost:
    """What a device gives a transport to work with."""

    #: A private folder of this transport, mode 0700, kept between starts.
    state_dir: Path
    #: A private folder with a short path, for sockets; emptied at each start.
    run_dir: Path
    #: None on a platform without an IPFS node, as in simulations.
    ipfs: IpfsNode | None
    #: The IP addresses of this machine at which others shall reach the device; None for those
    #: of the last start.
    listen: tuple[str, ...] | None = None
    #: For what is secret in `state_dir`; None where nothing is sealed, as in tests.
    sealer: Sealer | None = None


class TransportFactory(Protocol):
    """The object that a `walyoff.transports` entry point names."""

    def __call__(self, host: TransportHost) -> AbstractAsyncContextManager[Transport]:
        """Open the transport; leaving the context releases everything it holds."""


__all__ = [
    "Broadcast",
    "IpfsNode",
    "Sealer",
    "StreamAttribute",
    "Transport",
    "TransportFactory",
    "TransportHost",
]
