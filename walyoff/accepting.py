"""Answering those who connect: which channel or invitation it is about, and who gets in.

Decided here: whose certificate is accepted in a handshake, and how many handshakes there are
at a time.
"""

from __future__ import annotations

import hmac
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio
from anyio.abc import ByteStream, TaskStatus

from walyoff import introducing
from walyoff.abc import StreamAttribute, Transport
from walyoff.channel import Channel
from walyoff.errors import (
    NotAMemberError,
    RemoteProtocolError,
    TransportError,
    WalyoffError,
)
from walyoff.handshakes import Handshake, Handshakes
from walyoff.issued import Issued
from walyoff.joining import grant_join
from walyoff.session.dialling import Judge, answer
from walyoff.session.handshake import HandshakeContext, PeerPresented
from walyoff.session.peer import Session
from walyoff.session.transcript import Mode, blinded_tag
from walyoff.tasks import background_tasks

if TYPE_CHECKING:
    from walyoff.node import Device

log = logging.getLogger("walyoff.device")


@dataclass(frozen=True, slots=True)
class Introduced:
    """Somebody who introduces itself to a channel."""

    channel: Channel


#: What a handshake is about.
Subject = Channel | Issued | Introduced


def judge(channel: Channel) -> Judge:
    """Decides about certificates in handshakes of a channel.

    Membership is asked first, and again after the slow check, in which somebody may leave.
    """

    async def decide(presented: PeerPresented) -> None:
        claimed = presented.certificate.certificate.member
        if not channel.engine.trust.admits(claimed):
            raise NotAMemberError(f"{claimed} is not a member now")
        trusted = await channel.engine.trust.add(presented.encoded)
        certificate = trusted.certificate
        if not channel.engine.trust.admits(certificate.member):
            raise NotAMemberError(f"{certificate.member} is not a member now")
        if channel.engine.trust.superseded(certificate):
            # It is told so, and nothing else: see `Connections.serve`.
            return
        if channel.engine.trust.is_retired(certificate.certificate_id):
            raise NotAMemberError(f"{certificate.member} has replaced this key")
        if not certificate.covers(channel.engine.runtime.wall_ms()):
            raise NotAMemberError(
                f"the certificate of {certificate.member} is not valid now: "
                "it has expired, or a clock is wrong"
            )

    return decide


class Acceptor:
    """Accepts the streams that others open to a device."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._handshakes = Handshakes()
        self._introductions = introducing.Introductions()

    @property
    def handshakes(self) -> int:
        """Handshakes in progress."""
        return len(self._handshakes)

    async def listen(self, transport: Transport, *, task_status: TaskStatus[None]) -> None:
        """Accept streams of a transport and answer their handshakes."""
        async with transport.listen() as streams, background_tasks() as tasks:
            task_status.started()
            async for stream in streams:
                named = stream.extra(StreamAttribute.source, None)  # noqa: S610 - no SQL
                source = f"{transport.name}:{named}" if named else ""
                scope = anyio.CancelScope()
                now = self._device.runtime.now()
                handshake = self._handshakes.begin(source, scope.cancel, now=now)
                if handshake is None:
                    await anyio.aclose_forcefully(stream)
                    continue
                tasks.start_soon(self._accept, stream, transport.name, scope, handshake)

    async def _accept(
        self, stream: ByteStream, path: str, scope: anyio.CancelScope, handshake: Handshake
    ) -> None:
        chosen: list[Subject] = []

        def find(mode: Mode, ephemeral: bytes, tag: bytes) -> HandshakeContext | None:
            return self._find(mode, ephemeral, tag, chosen)

        async def decide(presented: PeerPresented) -> None:
            if isinstance(chosen[0], Channel):
                await judge(chosen[0])(presented)

        try:
            session: Session | None = None
            try:
                with scope:
                    session = await answer(
                        stream,
                        find_tag=find,
                        suites=self._device.suites(),
                        judge=decide,
                        runtime=self._device.runtime,
                    )
            finally:
                now = self._device.runtime.now()
                self._handshakes.end(handshake, failed=session is None, now=now)
            if session is None:
                log.info("a handshake that took long made room for another one")
                return
            session.path = path
            await self._serve(session, chosen[0], handshake.source)
        except RemoteProtocolError as error:
            log.warning("a peer was refused: %s (%s)", error, error.reason)
        except (TransportError, anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            log.info("a connection ended: %r", error)
        except WalyoffError as error:
            log.warning("a session failed: %s", error)
        except Exception:
            # A bug of ours, that one peer met: it must not end the sessions with others.
            log.exception("a session failed by a fault of this program")

    def _find(
        self, mode: Mode, ephemeral: bytes, tag: bytes, chosen: list[Subject]
    ) -> HandshakeContext | None:
        if mode == "member":
            for channel in self._device.channels():
                expected = blinded_tag(channel.state.tag_key, mode, ephemeral)
                if hmac.compare_digest(expected, tag):
                    chosen[:] = [channel]
                    return channel.handshake_context()
            return None
        if mode == "introduce":
            for channel in self._device.channels():
                for epoch in introducing.acceptable(channel):
                    expected = blinded_tag(introducing.tag_key(epoch), mode, ephemeral)
                    if hmac.compare_digest(expected, tag):
                        chosen[:] = [Introduced(channel)]
                        return introducing.context(channel, epoch)
            return None
        issued = self._device.invitations.find(ephemeral, tag)
        inviting = None if issued is None else self._device.find_channel(issued.channel)
        if issued is None or inviting is None:
            return None
        chosen[:] = [issued]
        own = inviting.handshake_context()
        return HandshakeContext(
            channel=issued.invitation_id,
            sign_key=own.sign_key,
            certificate=own.certificate,
            psk=issued.invitation().psk,
        )

    async def _serve(self, session: Session, subject: Subject, source: str) -> None:
        if isinstance(subject, Introduced):
            # Not believed to be a member: it may hand over blocks, which prove themselves.
            await self._introductions.receive(subject.channel, session, source)
            return
        if isinstance(subject, Channel):
            await subject.connections.serve(session)
            return
        channel = self._device.find_channel(subject.channel)
        if channel is not None:
            await grant_join(self._device, channel, subject, session)


__all__ = ["Acceptor", "judge"]
