"""A simulated network: links with latency, jitter, loss and duplicates; partitions.

`SimNetwork(seed, link)` makes transports; everything that crosses it is delayed on the
event loop's clock, so it runs in real and in virtual time. Streams are reliable and in
order, as the contract says; loss and duplicates are for broadcasts. A partition breaks the
streams between its sides; `hold` stops them silently, as a suspended process does.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
from anyio.abc import ByteStream, ObjectReceiveStream
from anyio.lowlevel import cancel_shielded_checkpoint
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from walyoff.abc import Broadcast, StreamAttribute, TransportHost
from walyoff.errors import LocalProtocolError, PayloadTooLargeError, TransportError
from walyoff.fanout import Fanout

#: Bytes in flight in one direction of a stream before its sender waits.
WINDOW = 1024 * 1024
#: Streams that wait unaccepted, and broadcasts that wait unread.
BACKLOG = 128
MAX_BROADCAST = 1_000_000
CONNECT_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """The condition of a network. Times in seconds, rates in bytes per second."""

    latency: float = 0.0
    jitter: float = 0.0
    #: Part of broadcasts that are lost, and that arrive twice.
    loss: float = 0.0
    duplicate: float = 0.0
    bandwidth: float = math.inf
    #: A stream breaks after so many seconds on average.
    lifetime: float = math.inf


LAN = Link(latency=0.0005, jitter=0.0002)
WIFI = Link(latency=0.004, jitter=0.01, loss=0.01, duplicate=0.005, bandwidth=5e6)
MOBILE = Link(latency=0.06, jitter=0.08, loss=0.03, duplicate=0.01, bandwidth=1e6)
LOSSY = Link(latency=0.03, jitter=0.05, loss=0.3, duplicate=0.1, bandwidth=2e6)
SATELLITE = Link(latency=0.3, jitter=0.05, loss=0.01, bandwidth=1e6)
FLAPPING = Link(latency=0.02, jitter=0.02, loss=0.1, lifetime=8.0)
LINKS: Mapping[str, Link] = {
    "lan": LAN,
    "wifi": WIFI,
    "mobile": MOBILE,
    "lossy": LOSSY,
    "satellite": SATELLITE,
    "flapping": FLAPPING,
}


class _Pipe:
    """One direction of a stream."""

    def __init__(self, network: SimNetwork, source: str, target: str) -> None:
        self._network = network
        self._source = source
        self._target = target
        self._flying: deque[tuple[float, bytes]] = deque()
        self._size = 0
        self._free_at = 0.0
        self._last_arrival = 0.0
        self._ended = False
        self._changed = anyio.Event()

    def wake(self) -> None:
        # Its sender and its receiver may both wait.
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    def end(self) -> None:
        self._ended = True
        self.wake()

    async def _wait(self, until: float = math.inf) -> None:
        with anyio.move_on_after(max(until - anyio.current_time(), 0.0)):
            await self._changed.wait()

    async def send(self, data: bytes) -> None:
        while self._size >= WINDOW and not self._ended:
            await self._wait()
        if self._ended:
            raise anyio.BrokenResourceError
        now = anyio.current_time()
        link = self._network.link(self._source, self._target)
        self._free_at = max(now, self._free_at) + len(data) / link.bandwidth
        arrival = self._free_at + link.latency + link.jitter * self._network.random.random()
        # In order: nothing overtakes what was sent before.
        self._last_arrival = max(arrival, self._last_arrival)
        self._flying.append((self._last_arrival, data))
        self._size += len(data)
        self.wake()
        await anyio.lowlevel.checkpoint()

    async def receive(self, max_bytes: int) -> bytes:
        while True:
            now = anyio.current_time()
            held = self._network.is_held(self._source, self._target)
            if self._flying and self._flying[0][0] <= now and not held:
                _, data = self._flying.popleft()
                if len(data) > max_bytes:
                    self._flying.appendleft((now, data[max_bytes:]))
                    data = data[:max_bytes]
                self._size -= len(data)
                self.wake()
                # What was taken is given: it was too late for a cancellation.
                await cancel_shielded_checkpoint()
                return data
            if self._ended and not self._flying:
                raise anyio.EndOfStream
            arrival = self._flying[0][0] if self._flying and not held else math.inf
            await self._wait(arrival)


class SimStream(ByteStream):
    """One end of a simulated stream."""

    def __init__(self, incoming: _Pipe, outgoing: _Pipe, source: str) -> None:
        self._source = source
        self._incoming = incoming
        self._outgoing = outgoing
        self._closed = False

    async def send(self, item: bytes) -> None:
        """Send; waits while the window is full."""
        if self._closed:
            raise anyio.ClosedResourceError
        await self._outgoing.send(bytes(item))

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Receive at least one byte."""
        if self._closed:
            raise anyio.ClosedResourceError
        return await self._incoming.receive(max_bytes)

    async def send_eof(self) -> None:
        """There is no half-close: this ends both directions."""
        await self.aclose()

    def cut(self) -> None:
        """The network breaks the stream: both sides lose what is on the way."""
        for pipe in (self._incoming, self._outgoing):
            pipe._flying.clear()
            pipe.end()

    async def aclose(self) -> None:
        """End both directions; what was sent still arrives."""
        self._closed = True
        self._outgoing.end()
        self._incoming.end()
        await anyio.lowlevel.checkpoint()

    @property
    def extra_attributes(self) -> Mapping[Any, Any]:
        """The device at the far end."""
        return {StreamAttribute.source: lambda: self._source}


class SimNetwork:
    """Devices by name and the links between them."""

    def __init__(self, seed: int = 0, link: Link = LAN, *, name: str = "sim") -> None:
        self.random = random.Random(seed)  # noqa: S311 - repeatable, that is the point
        #: The name of its transports, and the scheme of their addresses.
        self.name = name
        self._default = link
        self._links: dict[frozenset[str], Link] = {}
        self._transports: dict[str, SimTransport] = {}
        self._apart: set[frozenset[str]] = set()
        self._held: set[frozenset[str]] = set()
        self._streams: list[tuple[frozenset[str], SimStream, float]] = []
        #: What happened, for golden traces: (time, what).
        self.trace: list[tuple[float, str]] = []

    # ------------------------------------------------------------------- conditions

    def link(self, a: str, b: str) -> Link:
        """The condition between two devices."""
        return self._links.get(frozenset((a, b)), self._default)

    def set_link(self, a: str, b: str, link: Link) -> None:
        """Change the condition between two devices from now on."""
        self._links[frozenset((a, b))] = link

    def partition(self, left: Iterable[str], right: Iterable[str]) -> None:
        """Nothing passes between the two sides until `repair`; streams break."""
        sides = list(right)
        for a in left:
            for b in sides:
                self._apart.add(frozenset((a, b)))
        for pair, stream, _ in self._streams:
            if pair in self._apart:
                stream.cut()

    def repair(self) -> None:
        """End all partitions."""
        self._apart.clear()

    def hold(self, a: str, b: str) -> None:
        """Nothing arrives between two devices, and nobody is told, until `release`."""
        self._held.add(frozenset((a, b)))

    def release(self, a: str, b: str) -> None:
        """What was held arrives now."""
        self._held.discard(frozenset((a, b)))
        for pair, stream, _ in self._streams:
            if pair == frozenset((a, b)):
                stream._incoming.wake()
                stream._outgoing.wake()

    def is_held(self, a: str, b: str) -> bool:
        """True between `hold` and `release`."""
        return frozenset((a, b)) in self._held

    def is_apart(self, a: str, b: str) -> bool:
        """True during a partition."""
        return frozenset((a, b)) in self._apart

    def log(self, what: str) -> None:
        """Add to the trace."""
        self.trace.append((round(anyio.current_time(), 6), what))

    # ------------------------------------------------------------------- transports

    def transport(self, name: str) -> SimTransport:
        """A transport for a device; it is reachable while its context is open."""
        return SimTransport(self, name)

    def factory(self, name: str) -> Any:
        """A `TransportFactory` for a device."""

        @asynccontextmanager
        async def open_transport(host: TransportHost) -> AsyncIterator[SimTransport]:
            transport = self.transport(name)
            async with transport:
                yield transport

        return open_transport

    async def _connect(self, source: str, target: str) -> SimStream:
        link = self.link(source, target)
        await anyio.sleep(2 * link.latency + link.jitter * self.random.random())
        transport = self._transports.get(target)
        if transport is None or self.is_apart(source, target):
            raise TransportError(f"{target} is not there")
        forth, back = _Pipe(self, source, target), _Pipe(self, target, source)
        near, far = SimStream(back, forth, target), SimStream(forth, back, source)
        transport._offer(far)
        lifetime = math.inf
        if link.lifetime != math.inf:
            lifetime = anyio.current_time() + self.random.expovariate(1 / link.lifetime)
        self._streams = [entry for entry in self._streams if not entry[1]._closed]
        self._streams.append((frozenset((source, target)), near, lifetime))
        self.log(f"stream {source} -> {target}")
        return near

    def cut_old_streams(self) -> None:
        """Break the streams whose lifetime is over; `SimTransport` calls it now and then."""
        now = anyio.current_time()
        for _, stream, until in self._streams:
            if until <= now:
                stream.cut()
        self._streams = [entry for entry in self._streams if entry[2] > now]

    def _broadcast(self, source: str, topic: str, payload: bytes) -> None:
        for name, transport in list(self._transports.items()):
            if name == source or self.is_apart(source, name) or self.is_held(source, name):
                continue
            link = self.link(source, name)
            if self.random.random() < link.loss:
                continue
            copies = 2 if self.random.random() < link.duplicate else 1
            for _ in range(copies):
                delay = link.latency + link.jitter * self.random.random()
                transport._arrive(delay, topic, Broadcast(sender=source, payload=payload))


class SimTransport:
    """A `Transport` over a `SimNetwork`. Addresses are `sim:NAME`, or as the network says."""

    def __init__(self, network: SimNetwork, name: str) -> None:
        self._network = network
        self._device = name
        self._heard: Fanout[Broadcast] = Fanout(BACKLOG)
        self._accepting: MemoryObjectSendStream[SimStream] | None = None
        self._tasks: anyio.abc.TaskGroup | None = None

    async def __aenter__(self) -> SimTransport:
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._network._transports[self._device] = self
        self._tasks.start_soon(self._watch)
        return self

    async def __aexit__(self, *error: object) -> None:
        del self._network._transports[self._device]
        for pair, stream, _ in self._network._streams:
            if self._device in pair:
                stream.cut()
        assert self._tasks is not None
        self._tasks.cancel_scope.cancel()
        await self._tasks.__aexit__(None, None, None)

    async def _watch(self) -> None:
        while True:
            await anyio.sleep(1.0)
            self._network.cut_old_streams()

    @property
    def name(self) -> str:
        """The scheme of its addresses."""
        return self._network.name

    @property
    def max_broadcast(self) -> int:
        """The largest broadcast."""
        return MAX_BROADCAST

    @property
    def addresses(self) -> Sequence[str]:
        """One, always the same."""
        return [f"{self.name}:{self._device}"]

    async def broadcast(self, topic: str, payload: bytes) -> None:
        """See `walyoff.abc.Transport`."""
        if len(payload) > MAX_BROADCAST:
            raise PayloadTooLargeError(len(payload), MAX_BROADCAST, "broadcast")
        await anyio.lowlevel.checkpoint()
        self._network._broadcast(self._device, topic, payload)

    def _arrive(self, delay: float, topic: str, broadcast: Broadcast) -> None:
        if self._tasks is not None and self._heard.count(topic):
            self._tasks.start_soon(self._deliver, delay, topic, broadcast)

    async def _deliver(self, delay: float, topic: str, broadcast: Broadcast) -> None:
        await anyio.sleep(delay)
        self._heard.publish(topic, broadcast)

    def subscribe(
        self, topic: str
    ) -> AbstractAsyncContextManager[ObjectReceiveStream[Broadcast]]:
        """See `walyoff.abc.Transport`."""
        return self._heard.subscribe(topic)

    async def connect(self, address: str) -> ByteStream:
        """See `walyoff.abc.Transport`."""
        scheme, _, target = address.partition(":")
        if scheme != self.name or not target:
            raise LocalProtocolError(f"{address!r} is no address of this transport")
        with anyio.move_on_after(CONNECT_TIMEOUT):
            return await self._network._connect(self._device, target)
        raise TransportError(f"{target} did not answer")

    def _offer(self, stream: SimStream) -> None:
        if self._accepting is None:
            raise TransportError(f"{self._device} does not listen")
        try:
            self._accepting.send_nowait(stream)
        except anyio.WouldBlock:
            raise TransportError(f"{self._device} is busy") from None

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[ObjectReceiveStream[ByteStream]]:
        """See `walyoff.abc.Transport`."""
        if self._accepting is not None:
            raise TransportError("this transport listens already")
        send, receive = anyio.create_memory_object_stream[SimStream](BACKLOG)
        self._accepting = send
        with send, receive:
            try:
                yield receive
            finally:
                self._accepting = None
                # Nobody will accept these any more: their openers shall not wait for it.
                for stream in _waiting(receive):
                    stream.cut()


def _waiting(receive: MemoryObjectReceiveStream[SimStream]) -> Iterator[SimStream]:
    """What waits in a stream."""
    while True:
        try:
            yield receive.receive_nowait()
        except (anyio.WouldBlock, anyio.EndOfStream, anyio.ClosedResourceError):
            return
