"""Device addresses in few bytes, for invitations.

Decided here: how a list of addresses is written when every character counts. One byte names
the transport and the shape of the address (`/ip4/…/tcp/…/p2p/…` is one shape), then come the
values in binary; a peer id that was just named is not repeated. The table of shapes is a
dictionary, as those of HPACK: an address that is not in it goes as text, so any transport's
address can be written. Pure: bytes in, text out, and each list has one encoding.

Multiaddrs: https://github.com/multiformats/multiaddr; peer ids of Ed25519 keys are the
identity multihash of a protobuf, of which all but the 32 bytes of the key are the same.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

import base58

from walyoff.errors import RemoteProtocolError
from walyoff.wire import expect_name

#: More make an invitation too long to hand over; the first are the best.
MAX_ADDRESSES = 3
#: Characters of one address that is written as text.
MAX_TEXT = 200

#: Transports whose addresses are multiaddrs, in the order of their numbers; then the one
#: whose addresses are HOST:PORT.
_MULTIADDR = ("ipfs", "libp2p")
_PLAIN = "tcp"
_PLAIN_NUMBER = 2
_TEXT_NUMBER = 3
#: What comes before the 32 bytes of an Ed25519 key in a peer id.
_PEER_HEAD = bytes.fromhex("002408011220")
_KEY_SIZE = 32
_VALUELESS = ("quic-v1", "ws", "p2p-circuit")
#: The peer of the address before.
_SAME = "p2p="

_HOSTS = ("ip4", "ip6", "dns4", "dns6", "dns")
_PORTS = (("tcp",), ("udp", "quic-v1"), ("tcp", "ws"))
#: Shapes by number. New ones are appended, since their places are on the wire.
_SHAPES: tuple[tuple[str, ...], ...] = tuple(
    (host, *port, *relay, peer)
    for relay in ((), ("p2p", "p2p-circuit"))
    for port in _PORTS
    for host in _HOSTS
    for peer in ("p2p", _SAME)
)
_PLAIN_SHAPES: tuple[tuple[str, ...], ...] = (("ip4", "tcp"), ("ip6", "tcp"), ("dns", "tcp"))
_NUMBERS = {shape: number for number, shape in enumerate(_SHAPES)}
_PLAIN_NUMBERS = {shape: number for number, shape in enumerate(_PLAIN_SHAPES)}


def encode_addresses(addresses: Sequence[str]) -> bytes:
    """The bytes of a list of addresses, each of visible ASCII and at most `MAX_TEXT`."""
    out = b""
    peer = b""
    for address in addresses:
        head = _pack(address, peer)
        # Another spelling of the same address is kept as it is.
        if head is not None and _unpack(head[0], peer)[0] != address:
            head = None
        if head is None:
            text = address.encode("ascii")
            out += bytes([_TEXT_NUMBER << 6, len(text)]) + text
        else:
            out += head[0]
            peer = head[1]
    return out


def decode_addresses(data: bytes) -> tuple[str, ...]:
    """The inverse. Raises RemoteProtocolError for any other bytes."""
    found: list[str] = []
    rest, peer = data, b""
    while rest:
        if len(found) == MAX_ADDRESSES:
            raise RemoteProtocolError("too many addresses")
        address, rest, peer = _unpack(rest, peer)
        found.append(expect_name(address, "address", limit=MAX_TEXT))
    if encode_addresses(found) != data:
        raise RemoteProtocolError("addresses are not in their shortest form")
    return tuple(found)


def _pack(address: str, peer: bytes) -> tuple[bytes, bytes] | None:
    """(bytes, the peer named last) of an address that fits a shape, else None."""
    scheme, _, rest = address.partition(":")
    try:
        if scheme == _PLAIN:
            host, _, port = rest.rpartition(":")
            kind, packed = _pack_host(host)
            number = _PLAIN_NUMBERS[kind, "tcp"]
            body = bytes([_PLAIN_NUMBER << 6 | number]) + packed + _pack_port(port)
            return body, peer
        if scheme in _MULTIADDR:
            shape, values, peer = _pack_multiaddr(rest, peer)
            head = _MULTIADDR.index(scheme) << 6 | _NUMBERS[shape]
            return bytes([head]) + values, peer
    except (KeyError, ValueError, IndexError):
        return None
    return None


def _pack_host(host: str) -> tuple[str, bytes]:
    if host.startswith("["):
        return "ip6", ipaddress.IPv6Address(host[1:-1]).packed
    try:
        return "ip4", ipaddress.IPv4Address(host).packed
    except ValueError:
        return "dns", _pack_value("dns", host)


def _pack_port(port: str) -> bytes:
    if not port.isdecimal():
        raise ValueError(port)
    return _number(int(port))


def _number(port: int) -> bytes:
    if port >= 1 << 16:
        raise ValueError(port)
    return port.to_bytes(2, "big")


def _pack_multiaddr(text: str, peer: bytes) -> tuple[tuple[str, ...], bytes, bytes]:
    shape: list[str] = []
    values = b""
    parts = text.split("/")[1:]
    while parts:
        name = parts.pop(0)
        if name in _VALUELESS:
            shape.append(name)
            continue
        packed = _pack_value(name, parts.pop(0))
        if name == "p2p":
            # The last peer alone: that of a relay is another one.
            if packed == peer and not parts:
                name, packed = _SAME, b""
            else:
                peer = packed
        shape.append(name)
        values += packed
    return tuple(shape), values, peer


def _pack_value(name: str, value: str) -> bytes:
    match name:
        case "ip4":
            return ipaddress.IPv4Address(value).packed
        case "ip6":
            return ipaddress.IPv6Address(value).packed
        case "tcp" | "udp":
            return _pack_port(value)
        case "p2p":
            raw = base58.b58decode(value)
            if not raw.startswith(_PEER_HEAD) or len(raw) != len(_PEER_HEAD) + _KEY_SIZE:
                raise ValueError("not the id of an Ed25519 key")
            return raw[len(_PEER_HEAD) :]
        case "dns" | "dns4" | "dns6":
            name_bytes = value.encode("ascii")
            return bytes([len(name_bytes)]) + name_bytes
        case _:
            raise KeyError(name)


def _unpack(data: bytes, peer: bytes) -> tuple[str, bytes, bytes]:
    """(address, the rest, the peer named last)."""
    reader = _Reader(data)
    head = reader.take(1)[0]
    number, index = head >> 6, head & 0x3F
    if number == _TEXT_NUMBER:
        if index:
            raise RemoteProtocolError("unknown form of an address")
        return reader.text(), reader.rest, peer
    shapes = _PLAIN_SHAPES if number == _PLAIN_NUMBER else _SHAPES
    if index >= len(shapes):
        raise RemoteProtocolError("unknown form of an address")
    if number == _PLAIN_NUMBER:
        host = _unpack_value(reader, shapes[index][0])
        host = f"[{host}]" if shapes[index][0] == "ip6" else host
        return f"{_PLAIN}:{host}:{_unpack_value(reader, 'tcp')}", reader.rest, peer
    text = f"{_MULTIADDR[number]}:"
    for name in shapes[index]:
        if name in _VALUELESS:
            text += f"/{name}"
            continue
        if name == "p2p":
            peer = reader.take(_KEY_SIZE)
        if name in ("p2p", _SAME):
            if not peer:
                raise RemoteProtocolError("an address of a peer that was not named")
            text += "/p2p/" + base58.b58encode(_PEER_HEAD + peer).decode()
        else:
            text += f"/{name}/{_unpack_value(reader, name)}"
    return text, reader.rest, peer


def _unpack_value(reader: _Reader, name: str) -> str:
    match name:
        case "ip4":
            return str(ipaddress.IPv4Address(reader.take(4)))
        case "ip6":
            return str(ipaddress.IPv6Address(reader.take(16)))
        case "tcp" | "udp":
            return str(int.from_bytes(reader.take(2), "big"))
        case _:
            return reader.text()


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.rest = data

    def take(self, size: int) -> bytes:
        taken, self.rest = self.rest[:size], self.rest[size:]
        if len(taken) != size:
            raise RemoteProtocolError("an address is cut off")
        return taken

    def text(self) -> str:
        raw = self.take(self.take(1)[0])
        try:
            return expect_name(raw.decode("ascii"), "address", limit=MAX_TEXT)
        except UnicodeDecodeError:
            raise RemoteProtocolError("an address is not ASCII") from None
