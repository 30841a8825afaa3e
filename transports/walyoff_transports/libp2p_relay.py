"""Circuit relay v2: being reached through a relay, dialling through one, being one.

A host that cannot be dialled keeps a place at its relays, and they pass on what others send;
they see who talks with whom and how much, and nothing else, since the connection that goes
through them is secured from end to end. The client is ours, on upstream's messages: upstream's
finds relays only when told to, and makes its addresses of the wrong host's id. The service is
upstream's, with what it gets wrong put right. Runs on the trio loop.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio
from google.protobuf.message import DecodeError
from libp2p.abc import INetStream
from libp2p.connection_types import ConnectionType
from libp2p.exceptions import BaseLibp2pError
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, PeerId, Status, StopMessage
from libp2p.relay.circuit_v2.protocol import (
    PROTOCOL_ID,
    STOP_PROTOCOL_ID,
    CircuitV2Protocol,
)
from libp2p.relay.circuit_v2.resources import RelayLimits
from libp2p.relay.circuit_v2.utils import read_delimited_msg, write_delimited_msg
from multiaddr import Multiaddr

from walyoff.errors import TransportError
from walyoff_transports.libp2p_guard import run_service
from walyoff_transports.libp2p_settings import peer_of

HOP, STOP = str(PROTOCOL_ID), str(STOP_PROTOCOL_ID)
#: Seconds for one question and its answer.
ANSWER_TIME = 5.0
#: A place is kept for an hour by most relays; it is asked for again at half of what is left,
#: within these bounds, and at once when the connection to the relay was lost.
RENEW_FIRST, RENEW_LAST = 5.0, 1_200.0
RETRY_FIRST, RETRY_LAST = 0.5, 60.0
#: What this host does for others: circuits are limited so that it is no free highway.
LIMITS = RelayLimits(
    duration=24 * 3600, data=1 << 36, max_circuit_conns=16, max_reservations=128
)
#: Seconds for a relayed write: a peer that does not read ends its circuit.
WRITE_TIME = 20.0
#: Bytes that are relayed at once.
READ_BYTES = 64 * 1024
#: What may come of a stream that others broke, or of bytes that mean nothing.
BROKEN = (BaseLibp2pError, OSError, ValueError, DecodeError, trio.TooSlowError)

_CIRCUIT = re.compile(
    r"(/ip[46]/[0-9a-fA-F:.]+/tcp/[0-9]+/p2p/([A-Za-z0-9]+))/p2p-circuit/p2p/([A-Za-z0-9]+)",
    re.A,
)
#: Connects to an address and a peer id, and opens a stream of a protocol there.
Open = Callable[[str, str, str], Awaitable[Any]]


def relay_of(address: str) -> tuple[str, str] | None:
    """The relay's address and peer id of an address through a relay; None if it is none."""
    found = _CIRCUIT.fullmatch(address)
    if found is None or found[2] == found[3]:
        return None
    return found[1], found[2]


class Relays:
    """The places that this host keeps at relays."""

    def __init__(self, host: Any, open_stream: Open) -> None:
        self._host = host
        self._swarm = host.get_network()
        self._open = open_stream
        self._me = host.get_id().to_base58()
        self._kept: dict[str, str] = {}

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where this host is reached through those relays at which it has a place."""
        return tuple(f"{relay}/p2p-circuit/p2p/{self._me}" for relay in self._kept.values())

    async def keep(self, relays: tuple[str, ...], changed: Callable[[], None]) -> None:
        """Keep a place at each of the relays until cancelled."""
        self._host.set_stream_handler(STOP, self._take)
        async with trio.open_nursery() as nursery:
            for relay in relays:
                nursery.start_soon(self._keep_one, relay, changed)

    async def _keep_one(self, relay: str, changed: Callable[[], None]) -> None:
        peer, pause = peer_of(relay), RETRY_FIRST
        while True:
            try:
                conn, expires = await self._reserve(relay, peer)
            except (TransportError, *BROKEN):
                if self._kept.pop(peer, None):
                    changed()
                await trio.sleep(pause)
                pause = min(2 * pause, RETRY_LAST)
                continue
            pause = RETRY_FIRST
            self._kept[peer] = relay
            changed()
            left = (expires - time.time()) / 2
            with trio.move_on_after(min(max(left, RENEW_FIRST), RENEW_LAST)):
                await conn.event_closed.wait()

    async def _reserve(self, relay: str, peer: str) -> tuple[Any, int]:
        """Ask for a place; the connection, and until when it is kept."""
        stream = await self._open(relay, peer, HOP)
        try:
            reply = await _ask(stream, HopMessage(type=HopMessage.RESERVE))
        finally:
            await _hang_up(stream)
        return stream.muxed_conn, int(reply.reservation.expire)

    async def _take(self, stream: Any) -> None:
        """Somebody comes in through a relay."""
        relay = stream.muxed_conn.peer_id.to_base58()
        if relay not in self._kept:
            await stream.reset()
            return
        with trio.fail_after(ANSWER_TIME):
            call = await read_delimited_msg(stream, StopMessage)
            if call.type != StopMessage.CONNECT or not call.peer.id:
                raise ValueError("not a call")
            reply = StopMessage(type=StopMessage.STATUS, status=Status.OK)
            await write_delimited_msg(stream, reply)
        address = _circuit(relay, ID(call.peer.id))
        # Who it really is, the secured connection finds out.
        await self._swarm.upgrade_inbound_raw_conn(_raw(stream, address, False), address)

    async def dial(self, address: str, peer: str) -> Any:
        """A connection to a peer through a relay. Raises what is in `BROKEN`, too."""
        found = relay_of(address)
        if found is None:
            raise TransportError("it is no address through a relay")
        target = ID.from_base58(peer)
        stream = await self._open(*found, HOP)
        try:
            call = HopMessage(type=HopMessage.CONNECT, peer=PeerId(id=target.to_bytes()))
            await _ask(stream, call)
            raw = _raw(stream, _circuit(found[1], target), True)
            return await self._swarm.upgrade_outbound_raw_conn(raw, target)
        except BaseException:
            await _hang_up(stream)
            raise


async def _ask(stream: INetStream, question: HopMessage) -> HopMessage:
    with trio.fail_after(ANSWER_TIME):
        await write_delimited_msg(stream, question)
        reply: HopMessage = await read_delimited_msg(stream, HopMessage)
    if reply.type != HopMessage.STATUS or reply.status != Status.OK:
        raise TransportError(f"the relay refused: {reply.status}")
    return reply


def _circuit(relay: str, peer: ID) -> Multiaddr:
    return Multiaddr(f"/p2p/{relay}/p2p-circuit/p2p/{peer.to_base58()}")


def _raw(stream: Any, address: Multiaddr, initiator: bool) -> RawConnection:
    return RawConnection(stream, initiator, ConnectionType.RELAYED, [address])


async def _hang_up(stream: Any) -> None:
    deadline = trio.current_time() + 1
    with trio.CancelScope(shield=True, deadline=deadline), contextlib.suppress(Exception):
        await stream.reset()


# ----------------------------------------------------------------------------- the service


@asynccontextmanager
async def relaying(host: Any) -> AsyncIterator[None]:
    """Relay for others while the context is open."""
    protocol = CircuitV2Protocol(host, LIMITS, allow_hop=True)
    guard_relay(protocol)
    async with run_service(protocol):
        await protocol.event_started.wait()
        handle = protocol._handle_hop_stream

        async def handle_and_end(stream: Any) -> None:
            try:
                await handle(stream)
            finally:
                # Upstream leaves it open.
                await _hang_up(stream)

        host.set_stream_handler(HOP, handle_and_end)
        # Upstream lets itself be called through anybody; see `Relays._take`.
        host.remove_stream_handler(STOP)
        yield


def guard_relay(protocol: Any) -> None:
    """Keep circuits apart, and places to those who ask for them.

    Upstream remembers one circuit for each peer, so that the end of one ends another one; and
    reserves a place for whomever the message names.
    """
    reserve = protocol._handle_reserve

    async def reserve_for_who_asks(stream: Any, message: Any) -> None:
        message.ClearField("peer")
        await reserve(stream, message)

    protocol._handle_reserve = reserve_for_who_asks
    protocol._relay_data = _pass_on
    protocol._active_relays = _Forgetful()


class _Forgetful(dict[Any, Any]):
    def __setitem__(self, _key: Any, _value: Any) -> None:
        """Nothing is remembered: a circuit ends by itself."""


async def _pass_on(
    source: Any,
    target: Any,
    _peer: Any,
    deadline: float | None = None,
    left: list[int] | None = None,
) -> None:
    """One direction of a circuit; its end is that of the other one."""
    seconds = float("inf") if deadline is None else max(deadline - time.monotonic(), 0)
    try:
        with trio.move_on_after(seconds), contextlib.suppress(*BROKEN):
            while data := await source.read(READ_BYTES):
                if left is not None:
                    left[0] -= len(data)
                    if left[0] < 0:
                        break
                with trio.fail_after(WRITE_TIME):
                    await target.write(data)
    finally:
        for stream in (source, target):
            await _hang_up(stream)


__all__ = ["HOP", "STOP", "Relays", "guard_relay", "relay_of", "relaying"]
