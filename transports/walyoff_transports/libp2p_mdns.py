"""Finding other hosts on the local network by mDNS, as an option; runs on the trio loop.

It tells everybody on the network that this host is there, and its addresses, which is why it
is an option. Whoever is found is connected to, so that the topics of both find each other;
who it is, and whether it is a member, is decided above.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Any

import trio
from libp2p.discovery.events.peerDiscovery import peerDiscovery
from libp2p.discovery.mdns.mdns import create_mdns_discovery

from walyoff.errors import TransportError

#: Connections that are being made to hosts that were found; more are not tried.
MAX_DIALS = 32


async def discover(node: Any, host: Any) -> None:
    """Announce the host, and connect to those that are found, until cancelled."""
    token = trio.lowlevel.current_trio_token()
    dialled: set[str] = set()

    async with trio.open_nursery() as nursery:

        async def connect(peer: str, addresses: list[str]) -> None:
            try:
                for address in addresses:
                    with suppress(TransportError):
                        await node.connect(f"{address}/p2p/{peer}", peer)
                        return
            finally:
                dialled.discard(peer)

        def take(peer: str, addresses: list[str]) -> None:
            if peer != node.peer_id and peer not in dialled and len(dialled) < MAX_DIALS:
                dialled.add(peer)
                nursery.start_soon(connect, peer, addresses)

        def found(info: Any) -> None:
            # In a thread of zeroconf's, and for every host of this process.
            addresses = [str(address) for address in info.addrs][:MAX_DIALS]
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(take, info.peer_id.to_base58(), addresses)

        peerDiscovery.register_peer_discovered_handler(found)
        try:
            await _announced(node, host)
        finally:
            peerDiscovery.unregister_peer_discovered_handler(found)


async def _announced(node: Any, host: Any) -> None:
    port = int(node.addresses[0].split("/")[4])
    # Upstream does this on the loop, which stands still for 1.7 seconds then.
    mdns = await trio.to_thread.run_sync(
        partial(create_mdns_discovery, host.get_network(), port, host=host)
    )
    try:
        await trio.to_thread.run_sync(mdns.broadcaster.register)
        await trio.sleep_forever()
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(mdns.stop)
