"""The libp2p transport passes the shipped suite, on both event loops."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from walyoff_transports import listening, topic
from walyoff_transports.libp2p import open_transport

from tests.libp2p_support import needs_libp2p
from walyoff.abc import StreamAttribute, Transport
from walyoff.testing import TransportConformance
from walyoff.testing.transports import temporary_hosts

pytestmark = needs_libp2p


class TestLibp2pTransport(TransportConformance):
    unreachable = (
        "libp2p:/ip4/127.0.0.1/tcp/9/p2p/12D3KooWQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBDWez9kSCVe2Xo"
    )

    # More than may wait, and not much more: each costs milliseconds here.
    flood_streams = 40
    flood_broadcasts = 60

    @pytest.fixture(autouse=True)
    def _small_limits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(listening, "MAX_WAITING", 24)
        monkeypatch.setattr(topic, "BUFFER", 32)

    @asynccontextmanager
    async def open_transports(self) -> AsyncIterator[tuple[Transport, Transport]]:
        with temporary_hosts(2) as (one, two):
            async with open_transport(one) as a, open_transport(two) as b:
                yield a, b


@pytest.mark.anyio
async def test_a_stream_says_which_peer_it_is_from() -> None:
    with temporary_hosts(2) as (one, two):
        async with (
            open_transport(one) as a,
            open_transport(two) as b,
            a.listen() as incoming,
            await b.connect(a.addresses[0]) as stream,
        ):
            await stream.send(b"x")
            async with await incoming.receive() as accepted:
                source = accepted.extra(StreamAttribute.source)
                assert b.addresses[0].endswith(f"/p2p/{source}")
