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
from contextlib import (
    AsyncExitStack,
    suppress,
)

import anyio
import pytest
from anyio.abc import ByteStream

from walyoff.abc import Transport
from walyoff.errors import LocalProtocolError, TransportError
from walyoff.tasks import background_tasks
from walyoff.testing.transport_base import (
    ENDED,
    drain,
    echo_all,
    receive_exactly,
    temporary_hosts,
)
from walyoff.testing.transport_broadcasts import BroadcastChecks
from walyoff.testing.transport_streams import StreamChecks

#: As `Transport.addresses` promises.
MAX_ADDRESSES, MAX_ADDRESS_CHARS = 16, 256
_FDS = "/proc/self/fd"


class TransportConformance(StreamChecks, BroadcastChecks):
    """The behavioural checks. Each gets two fresh transports that can reach each other."""

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

    # ----------------------------------------------------------------------- addresses

    async def test_addresses_of_others_are_refused(self) -> None:
        async with self.bounded(), self.open_transports() as (a, b), b.listen():
            rest = b.addresses[0].partition(":")[2]
            for address in ("", a.name, f"{a.name}:", f"not{a.name}:{rest}", f":{rest}"):
                with pytest.raises(LocalProtocolError):
                    await a.connect(address)

    async def test_hostile_addresses_are_refused(self) -> None:
        """Addresses come from peers: any text at all may be one."""
        async with self.bounded(), self.open_transports() as (a, b), b.listen():
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
        async with self.bounded(), self.open_transports() as (a, _):
            with pytest.raises(TransportError):
                await a.connect(self.unreachable)

    async def test_somebody_who_does_not_listen_shows_in_time(self) -> None:
        async with self.bounded(), self.open_transports() as (a, b):
            async with b.listen():
                address = b.addresses[0]
            with suppress(TransportError):
                async with await a.connect(address) as stream:
                    with pytest.raises(ENDED):
                        await stream.receive()

    # ----------------------------------------------------------------------- listening

    async def test_listening_again_works_after_leaving(self) -> None:
        async with self.bounded(), self.open_transports() as (a, b):
            for _ in range(3):
                async with (
                    a.listen() as streams,
                    await self.connected(b, a, streams) as (near, far),
                ):
                    await near.send(b"x")
                    assert await far.receive() == b"x"

    async def test_listening_twice_works_or_is_a_transport_error(self) -> None:
        async with self.bounded(), self.open_transports() as (a, b), a.listen() as streams:
            with suppress(TransportError):
                async with a.listen():
                    pass
            async with await self.connected(b, a, streams) as (near, far):
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
        async with self.bounded(), self.open_transports() as (a, b), a.listen() as streams:
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
                tasks.start_soon(echo_all, streams, tasks)
                await self.until_echoed(b, a)

    async def test_streams_that_nobody_accepts_any_more_end(self) -> None:
        async with self.bounded(), self.open_transports() as (a, b), AsyncExitStack() as stack:
            async with a.listen():
                stream = await stack.enter_async_context(await b.connect(a.addresses[0]))
                await stream.send(b"x")
                await anyio.sleep(0.1)
            with pytest.raises(ENDED):
                await stream.receive()

    async def test_the_stream_of_listeners_ends_with_its_context(self) -> None:
        async with self.bounded(), self.open_transports() as (a, _):
            async with a.listen() as streams:
                with anyio.move_on_after(0.01):
                    await streams.receive()
            with pytest.raises((anyio.ClosedResourceError, anyio.EndOfStream)):
                await streams.receive()

    # ------------------------------------------------------------------- end of it all

    async def test_leaving_releases_what_was_opened(self) -> None:
        if not os.path.isdir(_FDS):  # noqa: ASYNC240  (a file of the kernel's)
            pytest.skip("open files cannot be counted on this system")
        before = await self._open_files()
        async with self.stream() as (near, far):
            await near.send(b"x")
            await far.receive()
        deadline = anyio.current_time() + 2
        while (after := await self._open_files()) > before:
            if anyio.current_time() > deadline:
                break
        assert after <= before, f"{after - before} files or sockets are still open"

    async def _open_files(self) -> int:
        gc.collect()
        await anyio.sleep(0.01)
        return len(os.listdir(_FDS))


__all__ = ["ENDED", "TransportConformance", "drain", "receive_exactly", "temporary_hosts"]
