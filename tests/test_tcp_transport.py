"""The TCP transport: the shipped suite, and what is its own."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import anyio
import pytest
from walyoff_transports import multicast, tcp

from tests.waiting import HANGS_AFTER
from walyoff.abc import Transport
from walyoff.errors import LocalProtocolError, TransportError
from walyoff.testing import TransportConformance
from walyoff.testing.transports import ENDED, drain, temporary_hosts


@pytest.fixture(scope="module", autouse=True)
def _a_group_of_its_own() -> Iterator[None]:
    """All who use a group hear each other; other test runs of this machine are among them."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multicast, "GROUP", (multicast.GROUP[0], port))
        yield


class TestTcpTransport(TransportConformance):
    unreachable = "tcp:127.0.0.1:9"

    @asynccontextmanager
    async def open_transports(self) -> AsyncIterator[tuple[Transport, Transport]]:
        async with two() as pair:
            yield pair


@asynccontextmanager
async def two() -> AsyncIterator[tuple[Transport, Transport]]:
    with temporary_hosts(2) as (one, other):
        async with tcp.open_transport(one) as a, tcp.open_transport(other) as b:
            yield a, b


@pytest.mark.parametrize(
    "address",
    [
        "tcp:localhost:80",
        "tcp:127.0.0.1:0",
        "tcp:127.0.0.1:65536",
        "tcp:127.1:1",
        "tcp:[::g]:1",
    ],
)
def test_only_numeric_addresses_are_understood(address: str) -> None:
    with pytest.raises(LocalProtocolError):
        tcp.parse_address(address)


@pytest.mark.parametrize("address", ["tcp:127.0.0.1:80", "tcp:[::1]:65535"])
def test_addresses_read_back_as_they_were_written(address: str) -> None:
    assert tcp.format_address(*tcp.parse_address(address)) == address


@pytest.mark.anyio
async def test_it_listens_on_this_machine_only_unless_told_otherwise() -> None:
    async with two() as (a, _):
        assert a.addresses[0].startswith("tcp:127.0.0.1:")


@pytest.mark.anyio
async def test_a_taken_port_is_a_transport_error() -> None:
    async with two() as (a, _):
        _, port = tcp.parse_address(a.addresses[0])
        with temporary_hosts(1) as (host,), pytest.raises(TransportError):
            async with tcp.tcp_transport(port=port)(host):
                pass


@pytest.mark.anyio
async def test_a_connection_that_nobody_listens_for_ends_at_once() -> None:
    async with two() as (a, b), await b.connect(a.addresses[0]) as stream:
        with anyio.fail_after(HANGS_AFTER), pytest.raises(ENDED):
            await stream.receive()


@pytest.mark.anyio
@pytest.mark.parametrize(
    "datagram", [b"", b"\1", b"\1" * 32, b"\2" * 64, b"\1" + bytes(multicast.MAX_DATAGRAM)]
)
async def test_foreign_datagrams_harm_nobody(datagram: bytes) -> None:
    async with two() as (a, b), a.subscribe("topic") as heard:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.setsockopt(
                socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1")
            )
            stranger.sendto(datagram, multicast.GROUP)
        with anyio.fail_after(HANGS_AFTER):
            for _ in range(100):
                await b.broadcast("topic", b"after")
                with anyio.move_on_after(0.1):
                    assert (await heard.receive()).payload == b"after"
                    break
        assert all(item.payload == b"after" for item in drain(heard))
