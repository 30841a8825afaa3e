"""What every `walyoff.abc.Transport` must do: inherit `TransportConformance`, say two things.

    class TestMyTransport(TransportConformance):
        unreachable = "mine:127.0.0.1:9"

        @asynccontextmanager
        async def open_transports(self):
            with temporary_hosts(2) as (one, two):
                async with my_transport(one) as a, my_transport(two) as b:
                    yield a, b

The module that inherits it chooses the event loops with an `anyio_backend` fixture. Every
wait is bounded, so a transport that hangs fails and does not stop the run.
"""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from pathlib import Path

import anyio
import pytest
from anyio.abc import ByteStream, ObjectReceiveStream

from walyoff.abc import Broadcast, IpfsNode, Transport, TransportHost
from walyoff.errors import LocalProtocolError, PayloadTooLargeError, TransportError
from walyoff.tasks import background_tasks

#: How the other side's end shows, depending on who notices first.
ENDED = (anyio.EndOfStream, anyio.BrokenResourceError)
#: As `Transport.addresses` promises.
MAX_ADDRESSES, MAX_ADDRESS_CHARS = 16, 256
MEGABYTE = 1 << 20
_FDS = "/proc/self/fd"


@contextmanager
def temporary_hosts(
    count: int = 2, *, ipfs: Sequence[IpfsNode] = ()
) -> Iterator[list[TransportHost]]:
    """What a device gives its transport, for `count` devices, in folders with short paths."""
    with tempfile.TemporaryDirectory(prefix="wo-") as folder:
        hosts = []
        for number in range(count):
            state, run = Path(folder, f"s{number}"), Path(folder, f"r{number}")
            state.mkdir(mode=0o700)
            run.mkdir(mode=0o700)
            node = ipfs[number] if number < len(ipfs) else None
            hosts.append(TransportHost(state_dir=state, run_dir=run, ipfs=node))
        yield hosts


@pytest.mark.anyio
class TransportConformance:
    """The behavioural checks. Each gets two fresh transports that can reach each other."""

    #: A well-formed address of the transport at which nobody is.
    unreachable: str
    #: Seconds within which anything that happens at all happens.
    patience: float = 15.0
    #: Seconds of silence after which nothing more is expected.
    quiet: float = 0.3
    #: Streams opened without being accepted: more than may wait.
    flood_streams: int = 300
    #: Broadcasts sent without being read: more than may wait.
    flood_broadcasts: int = 1000
    #: Bytes that a sender never gets rid of while nobody reads.
    too_much: int = 64 * MEGABYTE

    def open_transports(self) -> AbstractAsyncContextManager[tuple[Transport, Transport]]:
        """Open two transports, of two devices, that can reach each other."""
        raise NotImplementedError

    # ----------------------------------------------------------------- description

    async def test_it_says_what_a_device_needs(self) -> None:
        async with self.open_transports() as pair, pair[0].listen(), pair[1].listen():
            for transport in pair:
                assert isinstance(transport, Transport)
                assert transport.name
                assert transport.name.isidentifier() or transport.name.isalnum()
                assert transport.max_broadcast >= 0
                addresses = list(transport.addresses)
                assert 0 < len(addresses) <= MAX_ADDRESSES
                for address in addresses:
                    assert address.startswith(f"{transport.name}:")
                    assert len(address) <= MAX_ADDRESS_CHARS
                    assert address.isascii()
                    assert address.isprintable()
            assert not set(pair[0].addresses) & set(pair[1].addresses)

    # --------------------------------------------------------------------- streams

    async def test_either_side_can_open_a_stream(self) -> None:
        async with self.open_transports() as (a, b), a.listen() as at_a, b.listen() as at_b:
            for source, target, accepting in ((a, b, at_b), (b, a, at_a)):
                async with await self._connected(source, target, accepting) as (near, far):
                    await near.send(b"question")
                    assert await receive_exactly(far, 8) == b"question"
                    await far.send(b"answer")
                    assert await receive_exactly(near, 6) == b"answer"

    async def test_bytes_arrive_whole_and_in_order_both_ways_at_once(self) -> None:
        blobs = [os.urandom(MEGABYTE + 17) for _ in range(2)]
        async with self._stream() as (near, far), anyio.create_task_group() as tasks:
            tasks.start_soon(_send_in_pieces, near, blobs[0], 70_001)
            tasks.start_soon(_send_in_pieces, far, blobs[1], 1_009)
            tasks.start_soon(_expect, far, blobs[0])
            await _expect(near, blobs[1])

    async def test_a_receive_gives_from_one_byte_up_to_what_was_asked_for(self) -> None:
        async with self._stream() as (near, far):
            for sender, receiver in ((near, far), (far, near)):
                await sender.send(bytes(range(100)))
                got = b""
                while len(got) < 100:
                    part = await receiver.receive(7)
                    assert 1 <= len(part) <= 7
                    got += part
                assert got == bytes(range(100))

    async def test_streams_do_not_mix(self) -> None:
        count = 20

        async def talk(number: int) -> None:
            async with await b.connect(a.addresses[0]) as stream:
                for turn in range(5):
                    text = b"%04d %04d" % (number, turn)
                    await stream.send(text)
                    assert await receive_exactly(stream, len(text)) == text

        async with self._echoing() as (a, b), anyio.create_task_group() as talkers:
            for number in range(count):
                talkers.start_soon(talk, number)

    async def test_a_reader_that_stops_holds_the_sender(self) -> None:
        """Otherwise a peer that does not read fills this device's memory."""
        piece = os.urandom(256 * 1024)
        handed_over = 0
        async with self._stream() as (near, _):
            while handed_over < self.too_much:
                with anyio.move_on_after(1) as scope:
                    await near.send(piece)
                if scope.cancelled_caught:
                    break
                handed_over += len(piece)
        assert handed_over < self.too_much, "nobody reads, and all of it was taken over"

    # --------------------------------------------------------------- ends of streams

    async def test_closing_ends_both_directions(self) -> None:
        async with self._stream() as (near, far):
            await near.aclose()
            with pytest.raises(ENDED):
                await far.receive()
            # What goes out first may fill buffers before the end is noticed.
            with pytest.raises(ENDED):
                await _send_in_pieces(far, bytes(self.too_much), 65_536)

    async def test_a_waiting_receive_notices_the_other_sides_end(self) -> None:
        async with self._stream() as (near, far), anyio.create_task_group() as tasks:

            async def wait_for_end() -> None:
                with pytest.raises(ENDED):
                    await far.receive()

            tasks.start_soon(wait_for_end)
            await anyio.sleep(0.05)
            await near.aclose()

    async def test_what_arrives_before_an_end_is_a_beginning_of_what_was_sent(self) -> None:
        blob = os.urandom(50_000)
        async with self._stream() as (near, far):
            await near.send(blob)
            await near.aclose()
            got = bytearray()
            with pytest.raises(ENDED):
                await _receive_all(far, got)
            assert blob.startswith(bytes(got))

    async def test_a_stream_that_was_closed_here_says_so(self) -> None:
        async with self._stream() as (near, _):
            await near.aclose()
            await near.aclose()
            with pytest.raises(anyio.ClosedResourceError):
                await near.receive()
            with pytest.raises(anyio.ClosedResourceError):
                await near.send(b"x")

    async def test_a_waiting_receive_ends_when_the_stream_is_closed_here(self) -> None:
        async with self._stream() as (near, _), anyio.create_task_group() as tasks:

            async def wait_for_end() -> None:
                with pytest.raises((*ENDED, anyio.ClosedResourceError)):
                    await near.receive()

            tasks.start_soon(wait_for_end)
            await anyio.sleep(0.05)
            await near.aclose()

    async def test_a_stream_can_be_closed_by_force(self) -> None:
        async with self._stream() as (near, far):
            await anyio.aclose_forcefully(near)
            with pytest.raises(ENDED):
                await far.receive()

    # ------------------------------------------------------------------ cancellation

    async def test_a_cancelled_receive_loses_nothing(self) -> None:
        blob = os.urandom(200_000)
        async with self._stream() as (near, far), anyio.create_task_group() as tasks:
            tasks.start_soon(_send_in_pieces, near, blob, 997)
            got = bytearray()
            turn = 0
            while len(got) < len(blob):
                turn += 1
                with anyio.CancelScope() as scope:
                    if turn % 2:
                        # Cancelled before it begins: the data may be there already.
                        scope.cancel()
                    else:
                        scope.deadline = anyio.current_time() + (turn % 7) * 0.0005
                    got += await far.receive(1_000 + turn % 3_000)
                if turn % 50 == 0 and len(got) < len(blob):
                    got += await far.receive()
            assert bytes(got) == blob

    async def test_a_cancelled_send_leaves_the_stream_usable_or_closed(self) -> None:
        blob, tail = os.urandom(self.too_much), b"after the cancelled one"
        async with self._stream() as (near, far):
            with anyio.move_on_after(0.2) as scope:
                await near.send(blob)
            if not scope.cancelled_caught:
                # It went out whole, which is one of the two things allowed.
                assert await receive_exactly(far, len(blob)) == blob
                return
            got = bytearray()

            async def read() -> None:
                with suppress(*ENDED):
                    while not got.endswith(tail):
                        got.extend(await far.receive(MEGABYTE))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read)
                try:
                    await near.send(tail)
                except (anyio.ClosedResourceError, anyio.BrokenResourceError):
                    await near.aclose()
            if got.endswith(tail):
                del got[-len(tail) :]
            assert blob.startswith(bytes(got))

    async def test_cancelled_connects_leave_the_transport_usable(self) -> None:
        async with self._echoing() as (a, b):
            for turn in range(10):
                with anyio.move_on_after(turn * 0.002):
                    await (await b.connect(a.addresses[0])).aclose()
            async with await b.connect(a.addresses[0]) as stream:
                await stream.send(b"x")
                assert await stream.receive() == b"x"

    # -------------------------------------------------------------------- addresses

    async def test_addresses_of_others_are_refused(self) -> None:
        async with self._bounded(), self.open_transports() as (a, b), b.listen():
            rest = b.addresses[0].partition(":")[2]
            for address in ("", a.name, f"{a.name}:", f"not{a.name}:{rest}", f":{rest}"):
                with pytest.raises(LocalProtocolError):
                    await a.connect(address)

    async def test_hostile_addresses_are_refused(self) -> None:
        """Addresses come from peers: any text at all may be one."""
        async with self._bounded(), self.open_transports() as (a, b), b.listen():
            good = b.addresses[0]
            for address in (
                good + "\0",
                good + "\n",
                f"{a.name}:\0",
                f"{a.name}:../../../etc/passwd",
                f"{a.name}:\N{SNOWMAN}\udc80",
                f"{a.name}:{'9' * 5000}",
                f"{a.name}:-1",
                f"{a.name}:{'/x' * 2000}",
            ):
                with pytest.raises((LocalProtocolError, TransportError)):
                    await a.connect(address)

    async def test_nobody_at_an_address_is_a_transport_error_in_time(self) -> None:
        async with self._bounded(), self.open_transports() as (a, _):
            with pytest.raises(TransportError):
                await a.connect(self.unreachable)

    async def test_somebody_who_does_not_listen_shows_in_time(self) -> None:
        async with self._bounded(), self.open_transports() as (a, b):
            async with b.listen():
                address = b.addresses[0]
            with suppress(TransportError):
                async with await a.connect(address) as stream:
                    with pytest.raises(ENDED):
                        await stream.receive()

    # -------------------------------------------------------------------- listening

    async def test_listening_again_works_after_leaving(self) -> None:
        async with self._bounded(), self.open_transports() as (a, b):
            for _ in range(3):
                async with (
                    a.listen() as streams,
                    await self._connected(b, a, streams) as (near, far),
                ):
                    await near.send(b"x")
                    assert await far.receive() == b"x"

    async def test_listening_twice_works_or_is_a_transport_error(self) -> None:
        async with self._bounded(), self.open_transports() as (a, b), a.listen() as streams:
            with suppress(TransportError):
                async with a.listen():
                    pass
            async with await self._connected(b, a, streams) as (near, far):
                await near.send(b"x")
                assert await far.receive() == b"x"

    async def test_streams_that_wait_unaccepted_are_bounded(self) -> None:
        refused = 0

        async def open_and_wait(transport: Transport, address: str) -> None:
            nonlocal refused
            try:
                async with await transport.connect(address) as stream:
                    opened.append(stream)
                    with suppress(anyio.ClosedResourceError):
                        await stream.receive()
            except (TransportError, *ENDED):
                refused += 1

        opened: list[ByteStream] = []
        async with self._bounded(), self.open_transports() as (a, b), a.listen() as streams:
            async with anyio.create_task_group() as tasks:
                for number in range(self.flood_streams):
                    tasks.start_soon(open_and_wait, b, a.addresses[0])
                    if number % 20 == 19:
                        await anyio.sleep(0.02)
                deadline = anyio.current_time() + self.patience / 3
                while not refused and anyio.current_time() < deadline:  # noqa: ASYNC110
                    await anyio.sleep(0.02)
                tasks.cancel_scope.cancel()
            assert refused, f"{len(opened)} streams wait, and none was refused"
            # Whoever comes when there is room again gets in.
            async with background_tasks() as tasks:
                tasks.start_soon(_echo_all, streams, tasks)
                await self._until_echoed(b, a)

    async def test_streams_that_nobody_accepts_any_more_end(self) -> None:
        async with self._bounded(), self.open_transports() as (a, b), AsyncExitStack() as stack:
            async with a.listen():
                stream = await stack.enter_async_context(await b.connect(a.addresses[0]))
                await stream.send(b"x")
                await anyio.sleep(0.1)
            with pytest.raises(ENDED):
                await stream.receive()

    async def test_the_stream_of_listeners_ends_with_its_context(self) -> None:
        async with self._bounded(), self.open_transports() as (a, _):
            async with a.listen() as streams:
                with anyio.move_on_after(0.01):
                    await streams.receive()
            with pytest.raises((anyio.ClosedResourceError, anyio.EndOfStream)):
                await streams.receive()

    # ------------------------------------------------------------------- broadcasts

    async def test_broadcasts_reach_every_subscriber_of_the_topic(self) -> None:
        async with self._heard("topic") as (a, b, heard), a.subscribe("topic") as second:
            payload = await self._until_heard(b, heard, "topic")
            for _ in range(3):
                await b.broadcast("topic", payload)
            got = await second.receive()
            assert isinstance(got, Broadcast)
            assert isinstance(got.sender, str)
            assert got.sender

    async def test_own_broadcasts_are_filtered_out(self) -> None:
        async with self._heard("topic") as (_, b, heard), b.subscribe("topic") as own:
            await self._until_heard(b, heard, "topic")
            await b.broadcast("topic", b"mine")
            with anyio.move_on_after(self.quiet) as scope:
                got = await own.receive()
            assert scope.cancelled_caught, f"heard itself: {got}"

    async def test_topics_are_apart(self) -> None:
        async with self._heard("topic") as (a, b, heard), a.subscribe("other") as other:
            for topic in ("topi", "topics", "topic/other", "Topic"):
                await b.broadcast(topic, b"elsewhere")
            await self._until_heard(b, heard, "topic")
            with anyio.move_on_after(self.quiet) as scope:
                got = await other.receive()
            assert scope.cancelled_caught, f"heard another topic: {got}"
            assert all(item.payload != b"elsewhere" for item in drain(heard))

    async def test_the_largest_broadcast_passes_and_a_larger_one_is_refused(self) -> None:
        async with self._heard("topic") as (_, b, heard):
            limit = b.max_broadcast
            await self._until_heard(b, heard, "topic", os.urandom(limit))
            with pytest.raises(PayloadTooLargeError) as caught:
                await b.broadcast("topic", bytes(limit + 1))
            assert (caught.value.size, caught.value.limit) == (limit + 1, limit)
            await self._until_heard(b, heard, "topic", b"" if limit == 0 else b"x")

    async def test_a_consumer_that_does_not_keep_up_loses_the_oldest(self) -> None:
        async with self._heard("topic") as (_, b, heard):
            await self._until_heard(b, heard, "topic")
            for number in range(self.flood_broadcasts):
                await b.broadcast("topic", b"%d" % number)
            # Any single one may be lost on the way.
            for _ in range(5):
                await anyio.sleep(0.02)
                await b.broadcast("topic", b"newest")
            await anyio.sleep(self.quiet)
            got = [item.payload for item in drain(heard)]
            assert b"newest" in got
            assert len(got) < self.flood_broadcasts, "what waits is not bounded"

    async def test_a_broadcast_to_nobody_returns(self) -> None:
        async with self._bounded(), self.open_transports() as (a, _):
            for _ in range(20):
                await a.broadcast("topic", bytes(min(a.max_broadcast, 10)))
            with pytest.raises(PayloadTooLargeError):
                await a.broadcast("topic", bytes(a.max_broadcast + 1))
            async with a.subscribe("topic"):
                pass

    async def test_subscribing_again_works_after_leaving(self) -> None:
        async with self._heard("topic") as (a, b, heard):
            await self._until_heard(b, heard, "topic")
            for _ in range(2):
                async with a.subscribe("again") as stream:
                    await self._until_heard(b, stream, "again")
                drain(stream)
                with pytest.raises((anyio.ClosedResourceError, anyio.EndOfStream)):
                    await stream.receive()

    async def test_a_consumer_that_closes_early_harms_nobody(self) -> None:
        async with self._heard("topic") as (a, b, heard), a.subscribe("topic") as closed:
            await closed.aclose()
            await self._until_heard(b, heard, "topic", b"first")
            await self._until_heard(b, heard, "topic", b"second")

    async def test_cancelled_broadcasts_leave_the_transport_usable(self) -> None:
        async with self._heard("topic") as (_, b, heard):
            for turn in range(20):
                with anyio.move_on_after(turn * 0.0002):
                    await b.broadcast("topic", b"cancelled")
            await self._until_heard(b, heard, "topic", b"whole")

    # ----------------------------------------------------------------- end of it all

    async def test_leaving_releases_what_was_opened(self) -> None:
        if not os.path.isdir(_FDS):  # noqa: ASYNC240  (a file of the kernel's)
            pytest.skip("open files cannot be counted on this system")
        before = await self._open_files()
        async with self._stream() as (near, far):
            await near.send(b"x")
            await far.receive()
        deadline = anyio.current_time() + 2
        while (after := await self._open_files()) > before:
            if anyio.current_time() > deadline:
                break
        assert after <= before, f"{after - before} files or sockets are still open"

    # ---------------------------------------------------------------------- helpers

    async def _open_files(self) -> int:
        gc.collect()
        await anyio.sleep(0.01)
        return len(os.listdir(_FDS))

    @asynccontextmanager
    async def _bounded(self) -> AsyncIterator[None]:
        with anyio.fail_after(self.patience * 2):
            yield

    @asynccontextmanager
    async def _stream(self) -> AsyncIterator[tuple[ByteStream, ByteStream]]:
        """Both ends of one stream; the first is the one that was opened."""
        async with (
            self._bounded(),
            self.open_transports() as (a, b),
            a.listen() as streams,
            await self._connected(b, a, streams) as ends,
        ):
            yield ends

    @asynccontextmanager
    async def _echoing(self) -> AsyncIterator[tuple[Transport, Transport]]:
        """Two transports, of which the first sends back whatever it gets."""
        async with (
            self._bounded(),
            self.open_transports() as (a, b),
            a.listen() as streams,
            background_tasks() as tasks,
        ):
            tasks.start_soon(_echo_all, streams, tasks)
            yield a, b

    async def _connected(
        self, source: Transport, target: Transport, streams: ObjectReceiveStream[ByteStream]
    ) -> AbstractAsyncContextManager[tuple[ByteStream, ByteStream]]:
        near = await source.connect(target.addresses[0])
        # Some transports only tell the far side when there is something to read.
        await near.send(b"!")
        far = await streams.receive()
        assert await far.receive(1) == b"!"

        @asynccontextmanager
        async def ends() -> AsyncIterator[tuple[ByteStream, ByteStream]]:
            try:
                yield near, far
            finally:
                await anyio.aclose_forcefully(near)
                await anyio.aclose_forcefully(far)

        return ends()

    async def _until_echoed(self, source: Transport, target: Transport) -> None:
        while True:
            with suppress(TransportError, *ENDED):
                async with await source.connect(target.addresses[0]) as stream:
                    await stream.send(b"x")
                    await stream.receive()
                    return
            await anyio.sleep(0.05)

    @asynccontextmanager
    async def _heard(
        self, topic: str
    ) -> AsyncIterator[tuple[Transport, Transport, ObjectReceiveStream[Broadcast]]]:
        """Two transports, of which the first listens to a topic; they know each other."""
        async with self._bounded(), self.open_transports() as (a, b):
            if not a.max_broadcast:
                pytest.skip("this transport has no broadcasts")
            async with (
                a.listen() as streams,
                await self._connected(b, a, streams),
                a.subscribe(topic) as heard,
            ):
                yield a, b, heard

    async def _until_heard(
        self,
        source: Transport,
        heard: ObjectReceiveStream[Broadcast],
        topic: str,
        payload: bytes = b"hello",
    ) -> bytes:
        """Repeat a broadcast until it arrives: any single one may be lost."""
        for _ in range(int(self.patience / 0.1)):
            await source.broadcast(topic, payload)
            with anyio.move_on_after(0.1):
                while (await heard.receive()).payload != payload:
                    pass
                return payload
        raise AssertionError(
            f"no broadcast of {len(payload)} bytes arrived in {self.patience:g} s"
        )


async def receive_exactly(stream: ByteStream, size: int) -> bytes:
    """So many bytes from a stream."""
    data = bytearray()
    while len(data) < size:
        data += await stream.receive(min(size - len(data), MEGABYTE))
    return bytes(data)


def drain(stream: ObjectReceiveStream[Broadcast]) -> list[Broadcast]:
    """What waits in a stream, if it can tell without waiting."""
    got: list[Broadcast] = []
    with suppress(anyio.WouldBlock, anyio.EndOfStream, anyio.ClosedResourceError):
        while True:
            got.append(stream.receive_nowait())  # type: ignore[attr-defined]
    return got


async def _send_in_pieces(stream: ByteStream, data: bytes, size: int) -> None:
    for start in range(0, len(data), size):
        await stream.send(data[start : start + size])


async def _receive_all(stream: ByteStream, into: bytearray) -> None:
    while True:
        into += await stream.receive()


async def _expect(stream: ByteStream, data: bytes) -> None:
    assert await receive_exactly(stream, len(data)) == data


async def _echo(stream: ByteStream) -> None:
    async with stream:
        with suppress(anyio.BrokenResourceError):
            async for data in stream:
                await stream.send(data)


async def _echo_all(
    streams: ObjectReceiveStream[ByteStream], tasks: anyio.abc.TaskGroup
) -> None:
    async for stream in streams:
        tasks.start_soon(_echo, stream)


__all__ = ["ENDED", "TransportConformance", "drain", "receive_exactly", "temporary_hosts"]
