"""How a libp2p host is made: its key, what it does not do, and where it listens.

Runs on the trio loop. TCP, Noise and yamux, and no discovery of its own.
"""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from multiaddr import Multiaddr

from walyoff.abc import Sealer
from walyoff.errors import StoreError, TransportError
from walyoff.files import replace_file
from walyoff_transports.libp2p_settings import Services
from walyoff_transports.listening import (
    LOOPBACK,
    keep_port,
    old_port,
    reachable,
)

#: Seconds for a connection to be secured.
UPGRADE_TIME = 5.0
#: Connections at a time, and those to one peer: one for each side that may dial.
MAX_CONNECTIONS, MAX_PEER_CONNECTIONS = 300, 3
SEED_SIZE = 32
KEY_PLACE = "transports/libp2p/key"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a node begins."""

    state_dir: Path
    sealer: Sealer | None = None
    #: The numeric addresses to listen on, and the port; 0 for the one of the last time.
    hosts: tuple[str, ...] = (LOOPBACK,)
    port: int = 0
    #: What it uses of others, and offers.
    services: Services = field(default_factory=Services)


def make_host(settings: Settings) -> Any:
    keys = create_new_key_pair(_seed(settings.state_dir / "key", settings.sealer))
    host = new_host(
        key_pair=keys,
        muxer_preference="YAMUX",
        sec_opt={
            NOISE: NoiseTransport(keys, noise_privkey=create_noise_key_pair().private_key)
        },
        negotiate_timeout=int(UPGRADE_TIME),
        connection_config=ConnectionConfig(
            max_connections=MAX_CONNECTIONS,
            max_connections_per_peer=MAX_PEER_CONNECTIONS,
            min_connections=0,
            inbound_upgrade_timeout=UPGRADE_TIME,
            outbound_upgrade_timeout=UPGRADE_TIME,
        ),
        disable_identify_address_discovery=True,
    )
    swarm = host.get_network()
    swarm.retry_config = RetryConfig(max_retries=0)
    # Its limits are for public nodes: connections of one address a second, and such.
    swarm.set_resource_manager(None)
    # It would dial whomever it has heard of.
    swarm._schedule_auto_connect = lambda: None
    swarm.auto_connector.run_background_task = _nothing
    # What others say of themselves is not needed here; and it runs in system tasks, where a
    # failure would end the whole loop.
    host._schedule_identify = lambda *_args, **_options: None
    return host


async def _nothing(*_: Any) -> None:
    """In the place of what is not wanted."""


def _seed(path: Path, sealer: Sealer | None) -> bytes:
    """The key of this device on this transport, made the first time.

    Also made again when it was altered or put there: peers learn the new address.
    """
    seed = b""
    data = b""
    with contextlib.suppress(FileNotFoundError, StoreError):
        data = path.read_bytes()
        seed = data if sealer is None else sealer.unseal(data, KEY_PLACE)
    if len(seed) != SEED_SIZE:
        seed, data = os.urandom(SEED_SIZE), b""
    if not data or (sealer is not None and data == seed):
        # New, or left in clear by an older version.
        replace_file(path, seed if sealer is None else sealer.seal(seed, KEY_PLACE))
    return seed


async def listen(swarm: Any, settings: Settings) -> None:
    if not settings.hosts:
        return
    ports = [settings.port or old_port(settings.state_dir)]
    if not settings.port and ports[0]:
        ports.append(0)
    for port in ports:
        taken = port
        for host in settings.hosts:
            # Upstream listens with SO_REUSEPORT, by which two devices would share a port.
            if taken and not _is_free(host, taken):
                break
            kind = "ip6" if ":" in host else "ip4"
            if not await swarm.listen(Multiaddr(f"/{kind}/{host}/tcp/{taken}")):
                break
            listener = list(swarm.listeners.values())[-1]
            taken = int(listener.get_addrs()[0].value_for_protocol("tcp"))
        else:
            keep_port(settings.state_dir, taken)
            return
        for listener in list(swarm.listeners.values()):
            await listener.close()
        swarm.listeners.clear()
    where = ", ".join(settings.hosts)
    raise TransportError(f"libp2p cannot listen on {where} port {ports[0]}")


def _is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # Without this, a port of connections that ended a moment ago counts as taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def own_addresses(host: Any) -> tuple[str, ...]:
    """Where others reach the host, with its peer id."""
    peer = host.get_id().to_base58()
    found = []
    for address in host.get_addrs():
        _, kind, at, *rest = str(address).split("/")
        for each in reachable(at):
            shown = "/".join(["", kind, each, *rest])
            found.append(shown if "/p2p/" in shown else f"{shown}/p2p/{peer}")
    return tuple(dict.fromkeys(found))
