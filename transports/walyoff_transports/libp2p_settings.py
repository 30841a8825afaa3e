"""Which services of other libp2p hosts a device uses, and which it offers.

They are in `HOME/transports/libp2p/services.toml`, all of it optional:

    relays = ["/ip4/203.0.113.7/tcp/4001/p2p/12D3KooW..."]   # be reachable through these
    dht    = ["/ip4/203.0.113.7/tcp/4001/p2p/12D3KooW..."]   # look peers up, starting here
    mdns   = false     # announce this host on the local network, and find others there
    serve  = false     # relay for others, and answer their look-ups
    listen = true      # false: be reachable through relays only

It belongs to this user alone, like all of the home; what is wrong in it is an error that
says so, since to be unreachable in silence would be worse.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from walyoff.errors import LocalProtocolError

FILE = "services.toml"
#: Hosts of one service.
MAX_HOSTS = 8
_HOST = re.compile(r"/ip[46]/[0-9a-fA-F:.]+/tcp/[0-9]+/p2p/([A-Za-z0-9]{20,100})", re.A)


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Services of others that a host uses, and what it offers.

    Raises:
        LocalProtocolError: a host is no /ip4/HOST/tcp/PORT/p2p/ID (or /ip6).
    """

    #: Circuit relays (v2) at which the host reserves a place.
    relays: tuple[str, ...] = ()
    #: Where a look-up in the DHT begins.
    dht: tuple[str, ...] = ()
    #: Announce the host on the local network, and connect to those that are found.
    mdns: bool = False
    #: Relay for others, and answer their look-ups.
    serve: bool = False
    #: Listen at addresses of its own.
    listen: bool = True

    def __post_init__(self) -> None:
        for address in (*self.relays, *self.dht):
            peer_of(address)
        if max(len(self.relays), len(self.dht)) > MAX_HOSTS:
            raise LocalProtocolError(f"at most {MAX_HOSTS} relays, and {MAX_HOSTS} DHT hosts")
        if not self.listen and (self.mdns or self.serve):
            raise LocalProtocolError("mdns and serve need a host that listens")


def peer_of(address: str) -> str:
    """The peer id of a host's address. Raises LocalProtocolError."""
    found = _HOST.fullmatch(address)
    if found is None:
        raise LocalProtocolError(
            f"{address!r} is no address of a libp2p host: give /ip4/HOST/tcp/PORT/p2p/ID"
        )
    return found[1]


def read_services(state_dir: Path) -> Services:
    """What the transport's folder says. Raises LocalProtocolError."""
    path = state_dir / FILE
    try:
        told = tomllib.loads(path.read_text())
    except FileNotFoundError:
        return Services()
    except (OSError, ValueError) as error:
        raise LocalProtocolError(f"{path} cannot be read: {error}") from error
    return decode_services(told, str(path))


def decode_services(told: dict[str, Any], where: str) -> Services:
    """Check what a file says. Raises LocalProtocolError."""
    kinds = {field.name: type(field.default) for field in fields(Services)}
    checked: dict[str, Any] = {}
    for name, value in told.items():
        kind = kinds.get(name)
        if kind is None:
            known = ", ".join(sorted(kinds))
            raise LocalProtocolError(f"{where}: there is no {name!r} (there is: {known})")
        if kind is tuple and isinstance(value, list) and all(isinstance(v, str) for v in value):
            checked[name] = tuple(value)
        elif kind is bool and isinstance(value, bool):
            checked[name] = value
        else:
            expected = "a list of addresses" if kind is tuple else "true or false"
            raise LocalProtocolError(f"{where}: {name!r} is {expected}")
    return Services(**checked)
