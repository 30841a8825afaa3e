"""The Kubo repository of a device, written by hand.

Kubo's own initialisation makes a slow RSA key and a profile that listens on every
interface, asks public bootstrap nodes and announces itself by mDNS. Ours has an Ed25519
key and does none of that: a device talks to the peers that walyoff names, and to nobody
else. The layout (`config`, `version`, `datastore_spec`) is fs-repo version 14,
https://github.com/ipfs/kubo/blob/master/docs/config.md.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import re
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from walyoff.errors import LocalProtocolError, StoreError
from walyoff.files import make_folder, replace_file, sweep_new

#: The fs-repo version of Kubo 0.22.
REPO_VERSION = "14"
#: Loopback alone, and any free port at the first start.
DEFAULT_LISTEN = ("/ip4/127.0.0.1/tcp/0",)
#: A config of ours is about 2 KiB.
MAX_CONFIG = 1 << 20

# The bytes that follow are libp2p's protobuf for keys, as the peer-id specification gives
# it (https://github.com/libp2p/specs/blob/master/peer-ids/peer-ids.md): field 1 = type 1
# (Ed25519), field 2 = the key; a private key is seed || public key.
_PRIVATE_PREFIX = b"\x08\x01\x12\x40"
_PUBLIC_PREFIX = b"\x08\x01\x12\x20"
#: The identity multihash, used for keys of at most 42 bytes.
_IDENTITY_MULTIHASH = b"\x00\x24"
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"

_FLATFS = {
    "path": "blocks",
    "shardFunc": "/repo/flatfs/shard/v1/next-to-last/2",
    "sync": True,
    "type": "flatfs",
}
_LEVELDS = {"compression": "none", "path": "datastore", "type": "levelds"}
_TCP_PORT = re.compile(r"/tcp/(\d{1,5})(?=/|$)")


def ensure_repo(repo: Path, listen: Sequence[str] | None = None) -> None:
    """Make the repository if it is not there, and set what must hold at every start.

    `listen` are the swarm's multiaddrs; None keeps those of the last start. An address that
    asks for any port keeps the port that its host had.

    Raises:
        StoreError: the folder or its config cannot be read or written.
    """
    try:
        make_folder(repo)
        sweep_new(repo)
        if (repo / "config").exists():
            config = read_config(repo)
        else:
            config = {"Identity": new_identity()}
        old = _old_listen(config) or DEFAULT_LISTEN
        swarm = _with_old_ports(listen, old) if listen else list(old)
        config = {**_profile(swarm), "Identity": config.get("Identity")}
        # The config goes last: a repository without one is simply made again.
        replace_file(repo / "version", f"{REPO_VERSION}\n".encode())
        spec = json.dumps(_datastore_spec(), separators=(",", ":"))
        replace_file(repo / "datastore_spec", spec.encode())
        write_config(repo, config)
    except OSError as error:
        raise StoreError(f"the IPFS repository cannot be written: {error.strerror}") from error


def _with_old_ports(listen: Sequence[str], old: Sequence[str]) -> list[str]:
    known = {_TCP_PORT.sub("/tcp/0", address): address for address in old}
    return [known.get(address, address) for address in listen]


def multiaddr(host: str) -> str:
    """The listen address for an IP address, on any port. Raises LocalProtocolError."""
    try:
        parsed = ipaddress.ip_address(host)
    except ValueError:
        raise LocalProtocolError(
            f"{host!r} is no IP address to listen on: try 127.0.0.1, or 0.0.0.0 for all"
        ) from None
    return f"/ip{parsed.version}/{parsed}/tcp/0"


def keep_ports(repo: Path, addresses: Sequence[str]) -> None:
    """Write the ports that the node got into its config, so that it gets them again.

    Only listen addresses that asked for any port (0) are changed, each to the port of the
    node's address with the same host part.
    """
    config = read_config(repo)
    swarm = _old_listen(config) or []
    ports = {
        address[: found.start()]: found.group(1)
        for address in addresses
        if (found := _TCP_PORT.search(address))
    }

    def fix(address: str) -> str:
        found = _TCP_PORT.search(address)
        if found is None or found.group(1) != "0":
            return address
        host = address[: found.start()]
        # An unspecified host (0.0.0.0) is reported as its interfaces, all on one port.
        port = ports.get(host) or next(iter(ports.values()), "0")
        return f"{host}/tcp/{port}{address[found.end() :]}"

    fixed = [fix(address) for address in swarm]
    if fixed != swarm:
        config["Addresses"]["Swarm"] = fixed
        write_config(repo, config)


def forget_ports(repo: Path) -> bool:
    """Ask for any free port again; False if that was so already."""
    config = read_config(repo)
    swarm = _old_listen(config) or []
    freed = [_TCP_PORT.sub("/tcp/0", address) for address in swarm]
    if freed == swarm:
        return False
    config["Addresses"]["Swarm"] = freed
    write_config(repo, config)
    return True


def lost_host(config: dict[str, Any]) -> str | None:
    """The first host to listen at that this machine has not, or not any more."""
    for address in _old_listen(config) or ():
        host = address.split("/")[2]
        try:
            with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
                probe.bind((host, 0))
        except OSError:
            return host
    return None


def read_config(repo: Path) -> dict[str, Any]:
    """The config as it is. Raises StoreError if it is none."""
    path = repo / "config"
    try:
        with path.open("rb") as file:
            value = json.loads(file.read(MAX_CONFIG))
    except OSError as error:
        raise StoreError(f"the IPFS config cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise StoreError("the IPFS config is damaged") from error
    identity = value.get("Identity") if isinstance(value, dict) else None
    if not isinstance(identity, dict) or not isinstance(identity.get("PeerID"), str):
        raise StoreError("the IPFS config is damaged: it has no identity")
    return value  # type: ignore[no-any-return]


def write_config(repo: Path, config: dict[str, Any]) -> None:
    """Replace the config as a whole, mode 0600 from its first byte."""
    replace_file(repo / "config", json.dumps(config, indent=2).encode())


def new_identity() -> dict[str, str]:
    """A fresh Ed25519 identity in the form of Kubo's config."""
    # Needed once in a device's life: the import costs more than everything else here.
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (  # noqa: PLC0415
        Ed25519PrivateKey,
    )

    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes_raw()
    private = _PRIVATE_PREFIX + key.private_bytes_raw() + public
    peer_id = _base58(_IDENTITY_MULTIHASH + _PUBLIC_PREFIX + public)
    return {"PeerID": peer_id, "PrivKey": base64.b64encode(private).decode("ascii")}


def _base58(data: bytes) -> str:
    number = int.from_bytes(data, "big")
    digits = ""
    while number:
        number, digit = divmod(number, 58)
        digits = _BASE58[digit] + digits
    return _BASE58[0] * (len(data) - len(data.lstrip(b"\0"))) + digits


def _old_listen(config: dict[str, Any]) -> list[str] | None:
    addresses = config.get("Addresses")
    swarm = addresses.get("Swarm") if isinstance(addresses, dict) else None
    if isinstance(swarm, list) and swarm and all(isinstance(a, str) for a in swarm):
        return swarm
    return None


def _datastore_spec() -> dict[str, Any]:
    """What `datastore_spec` must say for the datastore in the profile."""
    flatfs = {key: value for key, value in _FLATFS.items() if key != "sync"}
    levelds = {key: value for key, value in _LEVELDS.items() if key != "compression"}
    return {
        "mounts": [{"mountpoint": "/blocks", **flatfs}, {"mountpoint": "/", **levelds}],
        "type": "mount",
    }


def _profile(swarm: list[str]) -> dict[str, Any]:
    off = {"Enabled": False}
    return {
        "Datastore": {
            "StorageMax": "10GB",
            "Spec": {
                "type": "mount",
                "mounts": [
                    {
                        "child": _FLATFS,
                        "mountpoint": "/blocks",
                        "prefix": "flatfs.datastore",
                        "type": "measure",
                    },
                    {
                        "child": _LEVELDS,
                        "mountpoint": "/",
                        "prefix": "leveldb.datastore",
                        "type": "measure",
                    },
                ],
            },
        },
        # The library serves neither; an empty value makes sure of it.
        "Addresses": {"Swarm": swarm, "API": [], "Gateway": []},
        "Bootstrap": [],
        "Discovery": {"MDNS": off},
        "AutoNAT": {"ServiceMode": "disabled"},
        "Swarm": {
            "DisableBandwidthMetrics": True,
            "DisableNatPortMap": True,
            "RelayClient": off,
            "RelayService": off,
            "Transports": {
                "Network": {
                    "QUIC": False,
                    "Relay": False,
                    "Websocket": False,
                    "WebTransport": False,
                }
            },
        },
        "Pubsub": {"Enabled": True, "Router": "gossipsub"},
        "Ipns": {"UsePubsub": False},
        # Nothing is announced to a routing system by itself.
        "Reprovider": {"Interval": "0s"},
        "Experimental": {"Libp2pStreamMounting": True},
    }
