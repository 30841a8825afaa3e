"""Looking up where a peer is, in a kad-DHT; runs on the trio loop.

A host tells the DHT where it is by asking for itself with its signed record, and asks there
for peers that are not where they were. What comes back is hostile: it is decoded within
bounds, a record counts only with its own signature, and an address only if the peer that
answers there proves its id. Upstream's table and handler serve others; the client is ours,
because upstream's prefers what it knows already, which is where the peer is no more, and
dials by itself.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from google.protobuf.message import DecodeError
from libp2p.exceptions import BaseLibp2pError
from libp2p.kad_dht.common import PROTOCOL_ID
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.kad_dht.utils import sort_peer_ids_by_distance
from libp2p.peer.envelope import consume_envelope
from libp2p.peer.id import ID
from libp2p.peer.peerstore import create_signed_peer_record
from libp2p.utils.varint import encode_varint_prefixed, read_varint_prefixed_bytes_limited
from multiaddr import Multiaddr

from walyoff.errors import RemoteProtocolError, TransportError
from walyoff_transports.libp2p_settings import peer_of

_log = logging.getLogger("walyoff_transports.libp2p")

KAD = str(PROTOCOL_ID)
DOMAIN = "libp2p-peer-record"
#: Bytes of one answer, peers in it, and addresses of each.
MAX_ANSWER, MAX_CLOSER, MAX_FOUND = 256 * 1024, 32, 8
#: Questions of one look-up in all, at a time, and seconds for one and for all.
MAX_QUESTIONS, AT_ONCE = 24, 3
ANSWER_TIME, LOOKUP_TIME = 3.0, 6.0
#: Seconds between tellings of where this host is; sooner when nobody could be told.
TELL_EVERY, TELL_AGAIN = 600.0, 5.0

_ADDRESS = re.compile(r"/ip[46]/[0-9a-fA-F:.]+/tcp/[0-9]+(/p2p/\w+(/p2p-circuit)?)?", re.A)
#: Peers by id, and where they are said to be.
Closer = dict[str, list[str]]
#: Connects to an address and a peer id, and opens a stream of a protocol there.
Open = Callable[[str, str, str], Awaitable[Any]]


class Dht:
    """A client of the DHT."""

    def __init__(
        self,
        host: Any,
        open_stream: Open,
        starts: tuple[str, ...],
        addresses: Callable[[], tuple[str, ...]],
    ) -> None:
        self._host = host
        self._open = open_stream
        self._starts = {peer_of(address): [address] for address in starts}
        self._addresses = addresses
        self._me = host.get_id().to_base58()
        self._moved = trio.Event()

    def tell_again(self) -> None:
        """This host is reached elsewhere now."""
        self._moved.set()

    async def keep_telling(self) -> None:
        """Tell where this host is, from time to time, until cancelled."""
        while True:
            self._moved = trio.Event()
            told = await self._walk(self._me)
            with trio.move_on_after(TELL_EVERY if told else TELL_AGAIN):
                await self._moved.wait()

    async def find(self, peer: str) -> list[str]:
        """Where a peer is said to be, at most 8 addresses; empty if nobody knows."""
        closer = await self._walk(peer)
        return closer.get(peer, [])[:MAX_FOUND]

    async def _walk(self, target: str) -> Closer:
        """Ask those who are closer and closer to a peer; whom that gave."""
        known: Closer = dict(self._starts)
        asked: set[str] = {self._me, target}
        found: Closer = {}

        async def ask(peer: str) -> None:
            for address in known[peer]:
                try:
                    with trio.fail_after(ANSWER_TIME):
                        closer = await self._ask(address, peer, target)
                except (TransportError, RemoteProtocolError):
                    continue
                except (BaseLibp2pError, OSError, ValueError, trio.TooSlowError):
                    continue
                for name, addresses in closer.items():
                    found.setdefault(name, addresses)
                    known.setdefault(name, addresses)
                found.setdefault(peer, [address])
                return

        with trio.move_on_after(LOOKUP_TIME):
            while len(asked) < MAX_QUESTIONS and not found.get(target):
                left = [ID.from_base58(name) for name in known if name not in asked]
                nearest = sort_peer_ids_by_distance(ID.from_base58(target).to_bytes(), left)
                if not nearest:
                    break
                async with trio.open_nursery() as nursery:
                    for peer in nearest[:AT_ONCE]:
                        asked.add(peer.to_base58())
                        nursery.start_soon(ask, peer.to_base58())
        return found

    async def _ask(self, address: str, peer: str, target: str) -> Closer:
        question = Message(
            type=Message.MessageType.FIND_NODE,
            key=ID.from_base58(target).to_bytes(),
            senderRecord=self._record(),
        )
        stream = await self._open(address, peer, KAD)
        try:
            await stream.write(encode_varint_prefixed(question.SerializeToString()))
            answer = await read_varint_prefixed_bytes_limited(stream, MAX_ANSWER)
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                await stream.reset()
        return decode_closer(answer)

    def _record(self) -> bytes:
        """Where this host is, signed by it."""
        addresses = [Multiaddr(address) for address in self._addresses()]
        envelope = create_signed_peer_record(
            self._host.get_id(), addresses, self._host.get_private_key()
        )
        record: bytes = envelope.marshal_envelope()
        return record


def decode_closer(answer: bytes) -> Closer:
    """The peers of an answer with their addresses: the signed ones, or else those it says.

    Raises:
        RemoteProtocolError: it is no answer.
    """
    message = Message()
    try:
        message.ParseFromString(answer)
    except DecodeError as error:
        raise RemoteProtocolError("an answer of the DHT makes no sense") from error
    found: Closer = {}
    for said in message.closerPeers[:MAX_CLOSER]:
        try:
            peer = ID(said.id)
            name = peer.to_base58()
            raw = list(said.addrs[:MAX_FOUND])
            if said.HasField("signedRecord"):
                _, record = consume_envelope(said.signedRecord, DOMAIN)
                if record.peer_id == peer:
                    raw = [address.to_bytes() for address in record.addrs[:MAX_FOUND]]
            addresses = [_with_peer(raw_address, name) for raw_address in raw]
            found[name] = [address for address in addresses if address]
        except Exception as error:  # for bytes that make no sense upstream raises anything
            _log.debug("a peer of the DHT makes no sense: %r", error)
    return found


def _with_peer(raw: bytes, peer: str) -> str:
    """An address of a kind that is dialled, with the peer's id; else nothing."""
    address = str(Multiaddr(raw))
    if not address.endswith(f"/p2p/{peer}"):
        address = f"{address}/p2p/{peer}"
    head = address[: -len(f"/p2p/{peer}")]
    return address if _ADDRESS.fullmatch(head) else ""


def serve_dht(host: Any) -> None:
    """Answer the look-ups of others, and nothing else of the DHT."""
    KadDHT(host, DHTMode.SERVER, enable_providers=False, enable_values=False)


__all__ = ["Dht", "decode_closer", "serve_dht"]
