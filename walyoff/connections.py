"""The sessions of one channel.

Decided here: when a session has to end. Which of two with one device is kept is decided in
`walyoff.paths`, and what is said in a session in `engine.links`.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from walyoff import frames
from walyoff.engine.announcing import AT_ONCE, LATER_S
from walyoff.engine.chain_serving import Chain
from walyoff.engine.driver import Engine
from walyoff.engine.links import LinkServer
from walyoff.errors import RemoteProtocolError, StoreError
from walyoff.kinship import GroupDesk
from walyoff.paths import given_up
from walyoff.tasks import background_tasks

if TYPE_CHECKING:
    from walyoff.node import Device
    from walyoff.session.peer import Session

#: Seconds for a copy that was taken over from to take its last frame.
TELL_S = 3.0

log = logging.getLogger("walyoff.channel")


class Connections:
    """Who this device is connected with in a channel."""

    def __init__(
        self, *, device: Device, engine: Engine, channel: str, chains: Mapping[str, Chain]
    ) -> None:
        self._device = device
        self._engine = engine
        self._channel = channel
        self._chains = chains
        self._sessions: dict[str, Session] = {}
        self._servers: dict[str, LinkServer] = {}
        #: Where devices said in a session that they are: nobody else can have said it.
        self.heard_addresses: dict[str, tuple[str, ...]] = {}
        #: Where a device may be, as far as anybody said; `discovery` knows that.
        self.said_addresses: Callable[[str], list[str]] = lambda _: []
        #: Totals of sessions that have ended, so that counters never fall.
        self._ended: Counter[str] = Counter()
        self._turn = 0
        self._later = anyio.Event()

    def sessions(self) -> list[Session]:
        """The sessions of now."""
        return list(self._sessions.values())

    def session(self, did: str) -> Session | None:
        """The session with a device; the newest, while an older one is about to end."""
        found = [session for session in self._sessions.values() if session.did == did]
        return found[-1] if found else None

    def servers(self) -> list[LinkServer]:
        """Those who serve the sessions of now."""
        return list(self._servers.values())

    async def announce_chains(self) -> None:
        """Tell everybody what this device holds of the channel's chains."""
        for server in self.servers():
            await server.announce_chains()

    async def pass_on_chains(self) -> None:
        """Tell of what came from others: a few at once, the rest a moment later.

        As `engine.announcing` does, and for the same reason; meanwhile most have heard of it.
        """
        servers = self.servers()
        self._turn += AT_ONCE
        for number, server in enumerate(servers):
            if (number - self._turn) % len(servers) < AT_ONCE:
                await server.announce_chains()
            else:
                self._later.set()

    async def run(self) -> None:
        """Tell the others when it is time."""
        while True:
            await self._later.wait()
            await anyio.sleep(LATER_S)
            self._later = anyio.Event()
            await self.announce_chains()

    def status(self) -> list[dict[str, Any]]:
        """A row for each session."""
        peers = self._engine.reconciler.peers
        return [
            {
                "did": session.did,
                "role": session.role,
                "transport": session.path,
                "backlog": session.backlog,
                "score": round(peers[name].score, 2) if name in peers else 0.0,
            }
            for name, session in self._sessions.items()
        ]

    def statistics(self) -> dict[str, float]:
        """Counters since the channel was opened, and the sizes of now."""
        sessions = self.sessions()
        ended = self._ended
        return {
            "peers": len({session.did for session in sessions}),
            "sessions": len(sessions),
            "sessions_total": ended["sessions"] + len(sessions),
            "backlog": sum(s.backlog for s in sessions),
            "bytes_sent": ended["sent"] + sum(s.bytes_sent for s in sessions),
            "bytes_received": ended["received"] + sum(s.bytes_received for s in sessions),
        }

    async def serve(self, session: Session) -> None:
        """Serve an established session of this channel until it ends."""
        if self._engine.trust.superseded(session.peer.certificate):
            await self._tell(session)
            return
        if not self._engine.trust.admits(session.did):
            # It left in the middle of the handshake: nobody would look again.
            async with session.run():
                return
        if session.did == self._engine.me:
            # Another copy of this device; whoever of them counts has told the other one.
            async with session.run():
                return
        older = self.session(session.did)
        if older is not None:
            if given_up(self._engine.me, older, session) is session:
                async with session.run():
                    return
            older.close()
        self._sessions[session.name] = session
        channel = self._device.find_channel(self._channel)
        desk = None if channel is None else GroupDesk(self._device, channel, session)
        server = LinkServer(
            self._engine,
            session,
            addresses=tuple(self._device.addresses),
            chains=self._chains,
            found_at=partial(self._found_at, session.did),
            groups=None if desk is None else desk.answer,
        )
        self._servers[session.name] = server
        try:
            async with session.run(), background_tasks() as tasks:
                self._engine.notify()
                if desk is not None:
                    tasks.start_soon(desk.run)
                await server.run()
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            log.info("session with %s ended", session.did)
        finally:
            self._sessions.pop(session.name, None)
            self._servers.pop(session.name, None)
            self._ended.update(
                sessions=1, sent=session.bytes_sent, received=session.bytes_received
            )
            self._engine.notify()

    async def _found_at(self, did: str, addresses: tuple[str, ...]) -> None:
        """Keep what a device says of where it is, as soon as it says so.

        Not when the session ends: if this device is killed in its first session it would know
        nobody when it comes back. And also if the session ends just now.
        """
        self.heard_addresses[did] = addresses
        if addresses:
            with anyio.CancelScope(shield=True):
                try:
                    await self._device.address_book.remember(self._channel, did, addresses)
                except StoreError as error:
                    # A full disk takes nothing from others: what is here is still given.
                    log.warning("where %s is was not kept: %s", did, error)

    async def _tell(self, session: Session) -> None:
        """Show a copy that another one took over, which proves itself, and say no more."""
        proof = await self._engine.trust.proof(session.did)
        async with session.run():
            session.dismiss(frames.CertificateFrame(proof))
            with (
                anyio.move_on_after(TELL_S),
                contextlib.suppress(RemoteProtocolError, anyio.BrokenResourceError),
            ):
                async with aclosing(session.frames()) as incoming:
                    async for _ in incoming:
                        pass

    async def end_superseded(self) -> None:
        """End the sessions with copies that another one took over from."""
        for session in list(self._sessions.values()):
            if self._engine.trust.taken_over(session.peer.certificate):
                proof = await self._engine.trust.proof(session.did)
                session.dismiss(frames.CertificateFrame(proof))

    def end_expired(self, now_ms: int) -> None:
        """End the sessions whose other side showed a certificate that has ended."""
        for session in list(self._sessions.values()):
            if not session.peer.certificate.covers(now_ms):
                session.close()

    def end_strangers(self) -> None:
        """End the sessions with devices that are no longer members."""
        for session in list(self._sessions.values()):
            if not self._engine.trust.admits(session.did):
                session.close()
