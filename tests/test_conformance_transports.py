"""The transports that come with walyoff pass the shipped suite; wrong ones fail it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

import anyio
import pytest
from anyio.abc import ByteStream, ObjectReceiveStream
from trio.testing import MockClock

from walyoff.abc import Broadcast, Transport
from walyoff.errors import LocalProtocolError, TransportError
from walyoff.testing import (
    LINKS,
    SimNetwork,
    SimTransport,
    TransportConformance,
    VirtualTimeLoop,
)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Virtual time: a check that waits in vain costs nothing."""
    if request.param == "trio":
        return "trio", {"clock": MockClock(autojump_threshold=0)}
    return "asyncio", {"loop_factory": VirtualTimeLoop}


class TestSimTransport(TransportConformance):
    unreachable = "sim:nobody"
    too_much = 8 << 20

    @asynccontextmanager
    async def open_transports(self) -> AsyncIterator[tuple[Transport, Transport]]:
        network = SimNetwork(1, LINKS["lan"])
        async with network.transport("a") as a, network.transport("b") as b:
            yield a, b


class Right(SimTransport):
    """What the wrong ones below differ from in one thing."""


class RightStream(ByteStream):
    """Passes on to another stream."""

    def __init__(self, inner: ByteStream) -> None:
        self.inner = inner

    async def send(self, item: bytes) -> None:
        await self.inner.send(item)

    async def receive(self, max_bytes: int = 65536) -> bytes:
        return await self.inner.receive(max_bytes)

    async def send_eof(self) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self.inner.aclose()


class Hearing(Right):
    """Hears itself."""

    async def broadcast(self, topic: str, payload: bytes) -> None:
        await super().broadcast(topic, payload)
        self._arrive(0.0, topic, Broadcast(sender="me", payload=payload))


class Unlimited(Right):
    """Takes broadcasts of any size."""

    async def broadcast(self, topic: str, payload: bytes) -> None:
        await super().broadcast(topic, payload[:1_000_000])


class Blending(Right):
    """Cuts topics short."""

    async def broadcast(self, topic: str, payload: bytes) -> None:
        await super().broadcast(topic[:5], payload)

    def subscribe(self, topic: str) -> Any:
        return super().subscribe(topic[:5])


class Once(Right):
    """Listens only once."""

    _listened = False

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[ObjectReceiveStream[ByteStream]]:
        if self._listened:
            raise TransportError("listening again is not implemented")
        self._listened = True
        async with super().listen() as streams:
            yield streams


class Waiting(Right):
    """Waits for ever for somebody who is not there."""

    async def connect(self, address: str) -> ByteStream:
        try:
            return await super().connect(address)
        except TransportError:
            await anyio.sleep(3600)
            raise


class Tolerant(Right):
    """Takes any other address for one at which nobody is."""

    async def connect(self, address: str) -> ByteStream:
        try:
            return await super().connect(address)
        except LocalProtocolError:
            raise TransportError("not there") from None


class Foreign(Right):
    """Lets the errors of its insides out."""

    async def connect(self, address: str) -> ByteStream:
        try:
            return await super().connect(address)
        except TransportError:
            raise OSError(111, "connection refused") from None


class Wrapping(Right):
    """Opens streams of another kind."""

    kind: type[RightStream] = RightStream

    async def connect(self, address: str) -> ByteStream:
        return self.kind(await super().connect(address))


class Swallowing(Wrapping):
    """Takes everything without waiting for anybody to read it."""

    class kind(RightStream):  # noqa: N801
        def __init__(self, inner: ByteStream) -> None:
            super().__init__(inner)
            self._later: list[bytes] = []

        async def send(self, item: bytes) -> None:
            self._later.append(item)
            while self._later:
                with anyio.move_on_after(0.01) as scope:
                    await super().send(self._later[0])
                if scope.cancelled_caught:
                    return
                self._later.pop(0)


class Endless(Wrapping):
    """Says that a stream has ended when it was closed here."""

    class kind(RightStream):  # noqa: N801
        async def receive(self, max_bytes: int = 65536) -> bytes:
            try:
                return await super().receive(max_bytes)
            except anyio.ClosedResourceError:
                raise anyio.EndOfStream from None


class Greedy(Wrapping):
    """Gives more than it was asked for."""

    class kind(RightStream):  # noqa: N801
        async def receive(self, max_bytes: int = 65536) -> bytes:
            return await super().receive(max(max_bytes, 60))


class Keeping(Wrapping):
    """Does not tell the other side that it closed the stream."""

    class kind(RightStream):  # noqa: N801
        closed = False

        async def aclose(self) -> None:
            self.closed = True

        async def send(self, item: bytes) -> None:
            if self.closed:
                raise anyio.ClosedResourceError
            await super().send(item)

        async def receive(self, max_bytes: int = 65536) -> bytes:
            while not self.closed:
                with anyio.move_on_after(0.01):
                    return await super().receive(max_bytes)
            raise anyio.ClosedResourceError


class Shuffling(Wrapping):
    """Changes the order of large pieces."""

    class kind(RightStream):  # noqa: N801
        async def send(self, item: bytes) -> None:
            if len(item) > 65_536:
                item = item[65_536:] + item[:65_536]
            await super().send(item)


class Full(Right):
    """Waits until there is room, instead of refusing."""

    def _offer(self, stream: Any) -> None:
        try:
            super()._offer(stream)
        except TransportError:
            if self._accepting is None:
                raise


class Naming(Right):
    """Has addresses that are not of its own."""

    @property
    def addresses(self) -> Sequence[str]:
        return [address.replace("sim:", "SIM:") for address in super().addresses]

    async def connect(self, address: str) -> ByteStream:
        return await super().connect(address.replace("SIM:", "sim:"))


CASES: list[tuple[Any, set[str]]] = [
    (Hearing, {"test_own_broadcasts_are_filtered_out"}),
    (Unlimited, {"test_the_largest_broadcast_passes_and_a_larger_one_is_refused"}),
    (Blending, {"test_topics_are_apart"}),
    (Once, {"test_listening_again_works_after_leaving"}),
    (
        Waiting,
        {
            "test_nobody_at_an_address_is_a_transport_error_in_time",
            "test_somebody_who_does_not_listen_shows_in_time",
            "test_hostile_addresses_are_refused",
            "test_streams_that_wait_unaccepted_are_bounded",
        },
    ),
    (Tolerant, {"test_addresses_of_others_are_refused"}),
    (
        Foreign,
        {
            "test_nobody_at_an_address_is_a_transport_error_in_time",
            "test_somebody_who_does_not_listen_shows_in_time",
            "test_hostile_addresses_are_refused",
            "test_streams_that_wait_unaccepted_are_bounded",
        },
    ),
    (Wrapping, set()),
    (Swallowing, {"test_a_reader_that_stops_holds_the_sender"}),
    (Endless, {"test_a_stream_that_was_closed_here_says_so"}),
    (Greedy, {"test_a_receive_gives_from_one_byte_up_to_what_was_asked_for"}),
    (
        Keeping,
        {
            "test_closing_ends_both_directions",
            "test_a_waiting_receive_notices_the_other_sides_end",
            "test_what_arrives_before_an_end_is_a_beginning_of_what_was_sent",
            "test_a_stream_can_be_closed_by_force",
        },
    ),
    (
        Shuffling,
        {
            "test_bytes_arrive_whole_and_in_order_both_ways_at_once",
            "test_a_cancelled_send_leaves_the_stream_usable_or_closed",
        },
    ),
    (Full, {"test_streams_that_wait_unaccepted_are_bounded"}),
    (Naming, {"test_it_says_what_a_device_needs"}),
]


@cache
def failures(kind: Any) -> frozenset[str]:
    """The names of the checks that a transport fails."""

    class Suite(TransportConformance):
        unreachable = "sim:nobody"
        too_much = 8 << 20

        @asynccontextmanager
        async def open_transports(self) -> AsyncIterator[tuple[Transport, Transport]]:
            network = SimNetwork(1, LINKS["lan"])
            async with kind(network, "a") as a, kind(network, "b") as b:
                yield a, b

    failed = set()
    for name in dir(Suite):
        if name.startswith("test_"):
            try:
                anyio.run(
                    getattr(Suite(), name), backend_options={"loop_factory": VirtualTimeLoop}
                )
            except pytest.skip.Exception:
                continue
            except (Exception, pytest.fail.Exception):
                failed.add(name)
    return frozenset(failed)


@pytest.mark.parametrize(("broken", "expected"), CASES)
def test_a_wrong_transport_fails_what_it_should_and_nothing_else(
    broken: Any, expected: set[str]
) -> None:
    assert failures(broken) - failures(Right) == expected
