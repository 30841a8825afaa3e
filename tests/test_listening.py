"""Where a transport listens: what the device says, for all of them alike, and kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import anyio
import pytest
from walyoff_transports import libp2p, tcp

from tests.libp2p_support import needs_libp2p
from tests.waiting import HANGS_AFTER
from walyoff.abc import TransportFactory, TransportHost
from walyoff.errors import LocalProtocolError
from walyoff.testing.transports import temporary_hosts

pytestmark = pytest.mark.anyio

FACTORIES = {
    "tcp": tcp.open_transport,
    "libp2p": libp2p.open_transport,
}
every = pytest.mark.parametrize(
    "factory",
    [FACTORIES["tcp"], pytest.param(FACTORIES["libp2p"], marks=needs_libp2p)],
    ids=["tcp", "libp2p"],
)


@pytest.fixture(scope="module", params=["asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def hosts() -> Iterator[list[TransportHost]]:
    with temporary_hosts(2) as found:
        yield list(found)


@every
async def test_the_device_says_where_and_it_is_kept(
    factory: TransportFactory, hosts: list[TransportHost]
) -> None:
    told = dataclasses.replace(hosts[0], listen=("127.0.0.2", "127.0.0.3"))
    with anyio.fail_after(HANGS_AFTER):
        async with factory(told) as transport:
            before = list(transport.addresses)
        assert len(before) == 2
        assert "127.0.0.2" in before[0]
        assert "127.0.0.3" in before[1]
        async with (
            factory(hosts[0]) as again,
            factory(hosts[1]) as other,
            again.listen() as streams,
        ):
            # The same addresses, ports included, and they are where it is reached.
            assert list(again.addresses) == before
            assert all("127.0.0.1" in address for address in other.addresses)
            for address in before:
                async with await other.connect(address) as near:
                    await near.send(b"x")
                    async with await streams.receive() as far:
                        assert await far.receive() == b"x"


@every
async def test_all_addresses_are_told_as_some_that_others_can_reach(
    factory: TransportFactory, hosts: list[TransportHost]
) -> None:
    told = dataclasses.replace(hosts[0], listen=("0.0.0.0",))
    with anyio.fail_after(HANGS_AFTER):
        async with factory(told) as transport:
            assert transport.addresses
            assert not any("0.0.0.0" in address for address in transport.addresses)


@every
async def test_a_name_is_no_address_to_listen_at(
    factory: TransportFactory, hosts: list[TransportHost]
) -> None:
    told = dataclasses.replace(hosts[0], listen=("localhost",))
    with pytest.raises(LocalProtocolError, match="IP address"):
        async with factory(told):
            pytest.fail("it opened")


@every
async def test_another_machines_address_is_not_kept_and_a_lost_one_is_told(
    factory: TransportFactory, hosts: list[TransportHost]
) -> None:
    told = dataclasses.replace(hosts[0], listen=("203.0.113.1",))
    with pytest.raises(LocalProtocolError, match="cannot listen at 203"):
        async with factory(told):
            pytest.fail("it opened")
    kept = hosts[0].state_dir / "listen"
    assert not kept.exists()
    kept.write_text("203.0.113.1")
    with pytest.raises(LocalProtocolError, match="cannot listen at 203"):
        async with factory(hosts[0]):
            pytest.fail("it opened")
