"""The IPFS transport and the Walytis ledger, on two real nodes, pass the shipped suites."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio
import pytest
from walyoff_transports.ipfs import open_transport

from walyoff.abc import Ledger, Transport
from walyoff.errors import TransportError
from walyoff.testing import LedgerConformance, TransportConformance, temporary_hosts
from walyoff.walytis.ledger import WalytisLedger, import_chain
from walyoff.walytis.process import Child, open_child

STRANGER = "12D3KooWQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBDWez9kSCVe2Xo"


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """One event loop: the nodes live as long as this module's tests."""
    return "asyncio"


@pytest.fixture(scope="module")
async def nodes(anyio_backend: str) -> AsyncIterator[list[Child]]:
    with tempfile.TemporaryDirectory(prefix="wo-", ignore_cleanup_errors=True) as folder:
        async with AsyncExitStack() as stack:
            opened = [
                await stack.enter_async_context(open_child(Path(folder, name)))
                for name in ("a", "b")
            ]
            await opened[1].connect(opened[0].addresses[0])
            yield opened


class TestIpfsTransport(TransportConformance):
    # The port is one at which nothing ever listens.
    unreachable = f"ipfs:/ip4/127.0.0.1/tcp/1/p2p/{STRANGER}"
    flood_streams = 200
    flood_broadcasts = 600

    @pytest.fixture(autouse=True)
    def _give_nodes(self, nodes: list[Child]) -> None:
        self.nodes = nodes

    @asynccontextmanager
    async def open_transports(self) -> AsyncIterator[tuple[Transport, Transport]]:
        with temporary_hosts(2, ipfs=self.nodes) as (one, two):
            async with open_transport(one) as a, open_transport(two) as b:
                yield a, b


class TestWalytisLedger(LedgerConformance):
    many = 30

    @pytest.fixture(autouse=True)
    def _give_nodes(self, nodes: list[Child]) -> None:
        self.nodes = nodes

    @asynccontextmanager
    async def open_ledgers(self) -> AsyncIterator[tuple[Ledger, Ledger]]:
        one = await WalytisLedger.create(self.nodes[0])
        await import_chain(self.nodes[1], one.chain_id, await one.export())
        two = await WalytisLedger.open(self.nodes[1], one.chain_id)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(keep_equal, one, two)
                tasks.start_soon(keep_equal, two, one)
                yield one, two
                tasks.cancel_scope.cancel()
        finally:
            await one.aclose()
            await two.aclose()


async def keep_equal(source: WalytisLedger, target: WalytisLedger) -> None:
    """What devices do over their sessions; Walytis alone takes up to 30 seconds."""
    while True:
        with contextlib.suppress(TransportError):
            if set(await source.leaves()) != set(leaves := await target.leaves()):
                await target.import_files(await source.export(leaves))
        await anyio.sleep(0.1)
