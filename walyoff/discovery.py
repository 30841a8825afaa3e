"""Finding the other devices of a channel: the address book and sealed broadcasts.

A device announces its addresses on the channel's topic, sealed under a key that only members
have, and dials whoever it hears of and is not connected to. Of two devices the one with the
smaller DID dials at once, the other a moment later, so that they rarely dial each other at
the same time; if they do, both keep the same one of the two sessions.

A member's addresses are tried in the order of this device's transports, the next one when the
one before has failed or has not answered for a moment; the first session wins. So a path that
breaks costs no more than that moment.
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
from walyoff.records import MAX_DID_CHARS
from walyoff.runtime import Runtime
from walyoff.wire import expect_array, expect_int, expect_name, expect_version, pack, unpack

if TYPE_CHECKING:
    from walyoff.channel import Channel

log = logging.getLogger("walyoff.discovery")

VERSION = 1
NONCE_SIZE = 12
MAX_PRESENCE = 8192
#: Presence is repeated so often; the first ones come faster, while the network forms.
EVERY_S = 30.0
FIRST_S = (0.05, 0.5, 2.0, 5.0)
#: Presences older than this are not acted upon (clocks of devices may differ).
MAX_AGE_MS = 24 * 3600 * 1000
#: How long the device with the larger DID waits for the other one to dial.
POLITENESS_S = 0.7
#: How long one address of a member is tried before the next one is tried beside it.
STAGGER_S = 0.4
#: Back-off between attempts to reach a member: doubles from the first to the last.
RETRY_FIRST_S = 0.5
RETRY_LAST_S = 30.0
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
        dial: Callable[[str, Callable[[str], bool]], Awaitable[None]],
        runtime: Runtime,
    ) -> None:
        self._runtime = runtime
        self._channel = channel
        self._transports = transports
        self._book = book
        self._dial = dial
        #: What was said of a member's addresses, the newest first. Any member can say it of
        #: any other, and anybody can repeat it, so one word never replaces all others.
        self._said: dict[str, list[list[str]]] = {}
        #: The same of those who are not members as far as we know: we may hear of it later.
        self._strangers: dict[str, list[str]] = {}
        self._seekers: set[str] = set()
        self._news: dict[str, anyio.Event] = {}

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
            return
        said = self._said.setdefault(member, [])
        if addresses in said:
            said.remove(addresses)
        said.insert(0, addresses)
        del said[MAX_SAID:]
        # It is there, whether it was said before or not: no reason to wait any longer.
        self._news.setdefault(member, anyio.Event()).set()
        if member not in self._seekers:
            self._seekers.add(member)
            tasks.start_soon(self._seek, member)

    async def _seek(self, member: str) -> None:
        """Keep trying to have a session with a member; ends when it is not a member."""
        pause = RETRY_FIRST_S
        if member < self._channel.me:
            await anyio.sleep(POLITENESS_S)
        while self._channel.engine.trust.admits(member):
            if member in self._channel.peers():
                pause = RETRY_FIRST_S
                await self._channel.engine.company_changed()
                continue
            self._news[member] = anyio.Event()
            if await self._try(member):
                pause = RETRY_FIRST_S
            wait = pause * (0.5 + self._runtime.jitter())
            # Not at once even if there is news: it costs nothing to say so again and again.
            await anyio.sleep(min(wait, RETRY_FIRST_S))
            with anyio.move_on_after(max(wait - RETRY_FIRST_S, 0.0)):
                await self._news[member].wait()
            pause = min(pause * 2, RETRY_LAST_S)
        self._seekers.discard(member)

    def _candidates(self, member: str) -> list[str]:
        """Where a member may be: the newest word first, and what it said in a session last."""
        words = [
            *self._said.get(member, ()),
            self._channel.connections.heard_addresses.get(member, ()),
        ]
        return list(dict.fromkeys(address for word in words for address in word))

    async def _try(self, member: str) -> bool:
        """Have a session over the first address that gives one, until it ends."""
        race = _Race()
        async with anyio.create_task_group() as tasks:
            for address in self.ranked(self._candidates(member)):
                tasks.start_soon(self._attempt, member, address, race)
                with anyio.move_on_after(STAGGER_S):
                    await race.news.wait()
                if race.winner is not None or member in self._channel.peers():
                    break
                race.news = anyio.Event()
        # A session that lasted means that the address is good; one that was refused does not.
        lasted = race.winner is not None and self._runtime.now() - race.since > RETRY_LAST_S
        return lasted or member in self._channel.peers()

    async def _attempt(self, member: str, address: str, race: _Race) -> None:
        def claim(did: str) -> bool:
            # Somebody else may be there: an address is only what one member said of another.
            return did == member and race.claim(address, self._runtime.now())

        with anyio.CancelScope() as scope:
            race.attempts[address] = scope
            try:
                await self._dial(address, claim)
            except WalyoffError as error:
                log.info("%s was not reached: %s", member, error)
            except Exception:
                # A bug of ours, that one peer met: it must not end the sessions with others.
                log.exception("a session failed by a fault of this program")
        race.news.set()

    def ranked(self, addresses: Sequence[str]) -> list[str]:
        """The addresses that can be tried here, the best first.

        The best are those of this device's first transport; then come those that one of its
        transports reaches although they are another's.
        """
        places: dict[str, int] = {}
        for scheme in (
            *(transport.name for transport in self._transports),
            *(name for transport in self._transports for name in bridges(transport)),
        ):
            places.setdefault(scheme, len(places))
        known = [a for a in addresses if a.partition(":")[0] in places]
        return sorted(known, key=lambda a: places[a.partition(":")[0]])


class _Race:
    """Attempts to reach one member over several addresses; one of them wins."""

    def __init__(self) -> None:
        self.attempts: dict[str, anyio.CancelScope] = {}
        self.winner: str | None = None
        self.since = 0.0
        #: Set when an attempt has failed, or one has won.
        self.news = anyio.Event()

    def claim(self, address: str, now: float) -> bool:
        """Whether a session over this address is the first; the others are given up then."""
        if self.winner is not None:
            return False
        self.winner, self.since = address, now
        for other, scope in self.attempts.items():
            if other != address:
                scope.cancel()
        self.news.set()
        return True


def bridges(transport: Transport) -> Sequence[str]:
    """The transports whose addresses this one reaches as well: its `bridges`, if it has any."""
    found: Sequence[str] = getattr(transport, "bridges", ())
    return found


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
        expect_name(member, "member", limit=MAX_DID_CHARS),
        [expect_name(a, "address", limit=MAX_ADDRESS_CHARS) for a in addresses],
    )
