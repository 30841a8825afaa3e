"""Finding the other devices of a channel: the address book and sealed broadcasts.

A device announces its addresses on the channel's topic, sealed under a key that only members
have, and tells `walyoff.paths` of whoever it hears, which dials those.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

import anyio
from anyio.abc import TaskGroup
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from walyoff.abc import Transport
from walyoff.errors import RemoteProtocolError, WalyoffError
from walyoff.frames import MAX_ADDRESS_CHARS, MAX_ADDRESSES
from walyoff.paths import RETRY_FIRST_S, RETRY_LAST_S, Dial, Paths
from walyoff.runtime import Runtime
from walyoff.wire import (
    MAX_DID,
    expect_array,
    expect_int,
    expect_name,
    expect_version,
    pack,
    unpack,
)

if TYPE_CHECKING:
    from walyoff.channel import Channel

log = logging.getLogger("walyoff.discovery")

VERSION = 1
NONCE_SIZE = 12
#: Bytes of a presence: a DID and its addresses, sealed.
MAX_PRESENCE = 8192
#: Presence is repeated so often; the first ones come faster, while the network forms.
EVERY_S = 30.0
FIRST_S = (0.05, 0.5, 2.0, 5.0)
#: Presences older than this are not acted upon (clocks of devices may differ).
MAX_AGE_MS = 24 * 3600 * 1000
#: Different words about one member's addresses that are kept, and strangers, at most.
MAX_SAID = 4
MAX_STRANGERS = 64


class Discovery:
    """Keeps one channel connected to its members, as far as they are there."""

    def __init__(
        self,
        *,
        channel: Channel,
        transports: Sequence[Transport],
        book: Callable[[], Awaitable[dict[str, list[str]]]],
        dial: Dial,
        runtime: Runtime,
    ) -> None:
        self._runtime = runtime
        self._channel = channel
        self._transports = transports
        self._book = book
        self._paths = Paths(
            channel=channel,
            transports=transports,
            candidates=self._candidates,
            dial=dial,
            runtime=runtime,
        )
        #: What was said of a member's addresses, the newest first. Any member can say it of
        #: any other, and anybody can repeat it, so one word never replaces all others.
        self._said: dict[str, list[list[str]]] = {}
        #: The same of those who are not members as far as we know: we may hear of it later.
        self._strangers: dict[str, list[str]] = {}
        channel.connections.said_addresses = self._candidates
        self._dial = dial
        #: When it is looked again who else says to be this device.
        self._next_meeting = 0.0

    async def run(self) -> None:
        """Announce, listen and dial until cancelled."""
        async with anyio.create_task_group() as tasks:
            for member, addresses in (await self._book()).items():
                self._learn(tasks, member, addresses)
            tasks.start_soon(self._watch_strangers, tasks)
            for transport in self._transports:
                tasks.start_soon(self._listen, transport, tasks)
                tasks.start_soon(self._announce, transport)

    # ------------------------------------------------------------------- broadcasts

    def _keys(self) -> list[bytes]:
        return [e.derive("broadcast") for e in self._channel.engine.epochs.values()]

    async def _announce(self, transport: Transport) -> None:
        pauses = iter(FIRST_S)
        while True:
            await anyio.sleep(next(pauses, EVERY_S * (0.75 + self._runtime.jitter() / 2)))
            presence = pack(
                [
                    VERSION,
                    self._channel.me,
                    self._runtime.wall_ms(),
                    self._own_addresses(),
                ]
            )
            engine = self._channel.engine
            while (epoch := engine.rotation.usable()) is None:
                await engine.company_changed()
            key = epoch.derive("broadcast")
            nonce = self._runtime.random_bytes(NONCE_SIZE)
            sealed = nonce + AESGCM(key).encrypt(nonce, presence, None)
            try:
                await transport.broadcast(self._channel.state.topic, sealed)
            except WalyoffError as error:
                log.info("presence was not announced on %s: %s", transport.name, error)

    def _own_addresses(self) -> list[str]:
        # All of them on each transport: whoever hears it on one may reach us on another.
        found = [a for transport in self._transports for a in transport.addresses]
        return found[:MAX_ADDRESSES]

    async def _listen(self, transport: Transport, tasks: TaskGroup) -> None:
        pause = RETRY_FIRST_S
        while True:
            try:
                async with transport.subscribe(self._channel.state.topic) as heard:
                    async for broadcast in heard:
                        pause = RETRY_FIRST_S
                        self._hear(broadcast.payload, tasks)
            except WalyoffError as error:
                log.info("no broadcasts on %s now: %s", transport.name, error)
            await anyio.sleep(pause)
            pause = min(pause * 2, RETRY_LAST_S)

    def _hear(self, payload: bytes, tasks: TaskGroup) -> None:
        if len(payload) > MAX_PRESENCE:
            return
        nonce, sealed = payload[:NONCE_SIZE], payload[NONCE_SIZE:]
        for key in self._keys():
            try:
                presence = AESGCM(key).decrypt(nonce, sealed, None)
                member, addresses = decode_presence(presence, self._runtime.wall_ms())
            except (InvalidTag, ValueError):
                continue
            except RemoteProtocolError as error:
                log.warning("a malformed presence was ignored: %s", error)
                return
            if self._channel.engine.trust.is_member(member):
                self._learn(tasks, member, addresses)
            else:
                self._strangers.pop(member, None)
                self._strangers[member] = addresses
                if len(self._strangers) > MAX_STRANGERS:
                    del self._strangers[next(iter(self._strangers))]
            return

    # ---------------------------------------------------------------------- dialling

    async def _watch_strangers(self, tasks: TaskGroup) -> None:
        """Take up those who were heard of before the chain said that they are members."""
        trust = self._channel.engine.trust
        while True:
            await self._channel.engine.company_changed()
            for member in [name for name in self._strangers if trust.is_member(name)]:
                self._learn(tasks, member, self._strangers.pop(member))

    def _learn(self, tasks: TaskGroup, member: str, addresses: list[str]) -> None:
        if member == self._channel.me:
            if not set(addresses) & set(self._own_addresses()):
                tasks.start_soon(self._meet_copy, addresses)
            return
        said = self._said.setdefault(member, [])
        if addresses in said:
            said.remove(addresses)
        said.insert(0, addresses)
        del said[MAX_SAID:]
        # It is there, whether it was said before or not: no reason to wait any longer.
        self._paths.seek(tasks, member)

    async def _meet_copy(self, addresses: list[str]) -> None:
        """Somebody else says to be this device: one of two copies is told in a session.

        It may also be what this device said itself when it was elsewhere, so it costs little.
        """
        now = self._runtime.now()
        if now < self._next_meeting:
            return
        self._next_meeting = now + EVERY_S
        for address in addresses:
            try:
                await self._dial(address, lambda did: did == self._channel.me)
            except (WalyoffError, anyio.BrokenResourceError, anyio.ClosedResourceError):
                log.info("nobody is at an address at which this device is said to be")
            else:
                return

    def _candidates(self, member: str) -> list[str]:
        """Where a member may be: the newest word first, and what it said in a session last."""
        words = [
            *self._said.get(member, ()),
            self._channel.connections.heard_addresses.get(member, ()),
        ]
        return list(dict.fromkeys(address for word in words for address in word))


def decode_presence(presence: bytes, now_ms: int) -> tuple[str, list[str]]:
    version, member, time_ms, addresses = expect_array(
        unpack(presence, MAX_PRESENCE), 4, "presence"
    )
    expect_version(version, "presence", VERSION)
    # One from the future would never grow old.
    if abs(now_ms - expect_int(time_ms, "time")) > MAX_AGE_MS:
        raise RemoteProtocolError("presence of another time", reason="stale")
    if not isinstance(addresses, list) or len(addresses) > MAX_ADDRESSES:
        raise RemoteProtocolError("presence with malformed addresses")
    return (
        expect_name(member, "member", limit=MAX_DID),
        [expect_name(a, "address", limit=MAX_ADDRESS_CHARS) for a in addresses],
    )
