"""Joining a channel, both sides, inside a join session.

The session is keyed with the invitation's secret, so both sides know that the other one has
the invitation. The joiner says who it is; the inviter makes it a member on the identity's
chain and hands over what a member needs. The invitation is bound to the joiner's DID before
anything else happens, so a join that breaks can be tried again by the same device only. Where
a person is to confirm a join, that comes first of all: a no leaves nothing behind.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio

from walyoff import frames, plugins
from walyoff.certificates import Certificate, encode
from walyoff.epochs import Epoch
from walyoff.errors import (
    InvitationError,
    LocalProtocolError,
    RemoteProtocolError,
    TransportError,
    WalyoffError,
)
from walyoff.granting import (
    MAX_WHOLE,
    Parts,
    decode_family,
    encode_family,
    grant_frames,
    in_parts,
    make_grant,
)
from walyoff.invitations import EXPIRED, Invitation, Purpose, parse
from walyoff.inviting import Joiner
from walyoff.issued import Issued
from walyoff.records import device_id
from walyoff.session.dialling import dial
from walyoff.session.handshake import HandshakeContext, PeerPresented
from walyoff.session.peer import Session
from walyoff.tasks import background_tasks
from walyoff.trust import CLOCK_SKEW_MS
from walyoff.words import session_words

if TYPE_CHECKING:
    from walyoff.channel import Channel
    from walyoff.node import Device

log = logging.getLogger("walyoff.device")

#: The inviter writes a block or two; a slow machine under load takes some seconds.
JOIN_TIMEOUT = 60.0
#: People compare words and think; a question that nobody answers is a no.
CONFIRM_TIMEOUT = 300.0
#: Questions that wait at a time: a thief of an invitation could ask without end.
MAX_ASKED = 8
#: Seconds for one who is sent away to hear why.
TELL_S = 3.0
#: The joiner's own certificate lives for this session only.
CERTIFICATE_MS = 3600 * 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """What a joiner got. Holds secrets, which never print."""

    #: The identity's DID, as the inviter's certificate says.
    channel: str
    grant: bytes = field(repr=False)
    secret: bytes = field(repr=False)
    epochs: tuple[Epoch, ...] = field(repr=False)
    certificates: tuple[bytes, ...]
    name: str
    inviter: str
    addresses: tuple[str, ...]
    #: Where the inviter last met other members.
    met: tuple[tuple[str, tuple[str, ...]], ...] = ()


#: What a joiner does with the words, as soon as they are known.
OnWords = Callable[[tuple[str, ...]], Awaitable[None]]


async def request_join(
    device: Device,
    text: str,
    on_words: OnWords | None = None,
    identity: str | None = None,
) -> Granted:
    """The joiner's side, for this device or for an identity that it controls.

    Raises InvitationError, TransportError, RemoteProtocolError.
    """
    invitation = parse(text, now=device.runtime.wall_ms() / 1000)
    if not invitation.addresses:
        raise InvitationError("the invitation names no address: ask for a new one")
    did = identity or await device.did()
    context = await _joiner_context(device, invitation, did)
    session = await _reach(device, invitation, context)
    channel = session.peer.certificate.channel
    answer: frames.Frame | None = None
    ahead = Parts()
    # Whether a person is asked there is not known here; heartbeats tell if it is gone.
    with anyio.move_on_after(JOIN_TIMEOUT + CONFIRM_TIMEOUT):
        async with session.run():
            device.check_new(channel)
            files = await device.platform.device_files(did)
            if identity is not None:
                family = await device.platform.family_files(did)
                for part in in_parts(encode_family(family)):
                    session.send_frame(part)
            session.send_frame(frames.JoinRequest(did, tuple(files)))
            if on_words is not None:
                await on_words(await _words(device, session))
            try:
                answer, ahead = await _next(session, Parts())
            except anyio.BrokenResourceError:
                answer = None
    if answer is None:
        raise TransportError("the inviting device did not answer: try again")
    match answer:
        case frames.JoinRefused(reason):
            raise InvitationError(reason)
        case frames.JoinGrant():
            return Granted(
                channel=channel,
                grant=ahead.take(answer.grant),
                secret=answer.secret,
                epochs=answer.epochs,
                certificates=answer.certificates,
                name=answer.name,
                inviter=session.did,
                addresses=invitation.addresses,
                met=answer.addresses,
            )
        case _:
            raise RemoteProtocolError("the inviting device answered something else")


async def _joiner_context(device: Device, invitation: Invitation, did: str) -> HandshakeContext:
    """A certificate for this one session, signed by the DID that joins."""
    cipher = plugins.suite(device.suite)
    sign_key, seal_key = cipher.new_sign_key(), cipher.new_seal_key()
    now_ms = device.runtime.wall_ms()
    certificate = Certificate(
        channel=invitation.invitation_id,
        member=did,
        suite=device.suite,
        key_types=cipher.key_types,
        sign_public=sign_key.public,
        seal_public=seal_key.public,
        not_before_ms=now_ms - CLOCK_SKEW_MS,
        not_after_ms=now_ms + CERTIFICATE_MS,
    )
    signature = await device.platform.certify(did, certificate.body())
    return HandshakeContext(
        channel=invitation.invitation_id,
        sign_key=sign_key,
        certificate=encode(certificate, signature),
        psk=invitation.psk,
    )


async def _reach(device: Device, invitation: Invitation, context: HandshakeContext) -> Session:
    async def trust_the_secret(presented: PeerPresented) -> None:
        """Whoever could encrypt this certificate has the invitation's secret."""

    failure: WalyoffError | None = None
    for address in invitation.addresses:
        try:
            stream = await device.connect_stream(address)
            return await dial(
                stream,
                mode="join",
                tag_key=invitation.tag_key,
                context=context,
                suites=device.suites(),
                judge=trust_the_secret,
                runtime=device.runtime,
            )
        except RemoteProtocolError as error:
            if error.reason == "refused":
                raise InvitationError(
                    "the inviting device does not know this invitation: ask for a new one"
                ) from error
            failure = error
        except (TransportError, LocalProtocolError) as error:
            # The second: an address that the transport here cannot read.
            failure = error
    if invitation.has_expired(device.runtime.wall_ms() / 1000):
        # By our clock, which may be wrong; but nobody is there to say better.
        raise InvitationError(EXPIRED) from failure
    raise TransportError(
        f"the inviting device cannot be reached: is it running? ({failure})"
    ) from failure


async def grant_join(
    device: Device, channel: Channel, issued: Issued, session: Session
) -> None:
    """The inviter's side: serve one join session."""
    with device.invitations.room(issued.invitation_id) as has_room:
        if has_room is not None:
            await _serve_join(device, channel, issued, session, has_room)
            return
    async with session.run():
        session.dismiss(frames.JoinRefused("many join at this moment: try again in a minute"))
        with anyio.move_on_after(TELL_S), suppress(anyio.BrokenResourceError):
            await _next(session)


async def _serve_join(
    device: Device,
    channel: Channel,
    issued: Issued,
    session: Session,
    has_room: Callable[[int], bool],
) -> None:
    limit = JOIN_TIMEOUT + (CONFIRM_TIMEOUT if issued.confirm else 0.0)
    # Of those who are refused in any case nothing is kept.
    hopeless = _problem(device, channel, issued, session.did) is not None
    async with session.run():
        with anyio.move_on_after(limit):
            request, ahead = await _next(session, None if hopeless else Parts(has_room))
            if not isinstance(request, frames.JoinRequest) or request.did != session.did:
                raise RemoteProtocolError("a join session begins with a join request")
            told = ahead.take()
            family = decode_family(told)
            async with background_tasks() as tasks:
                left = anyio.Event()
                tasks.start_soon(_attend, session, left)
                joiner = Joiner(
                    did=request.did,
                    words=await _words(device, session),
                    invitation_id=issued.invitation_id,
                    channel=channel.did,
                    # Who joins as an identity brings its family; the chain has the last word.
                    kind="identity" if told else "device",
                )
                answer = await _decide(
                    device, channel, request, session, joiner=joiner, family=family, left=left
                )
                if isinstance(answer, frames.JoinGrant):
                    for frame in grant_frames(answer):
                        session.send_frame(frame)
                    channel.inviter.joined(joiner)
                else:
                    session.send_frame(answer)
                # The joiner ends the session when it has the answer.
                await left.wait()


async def _words(device: Device, session: Session) -> tuple[str, ...]:
    # Their list is read from a file, once.
    return await device.runtime.in_thread(session_words, session.session_id)


async def _attend(session: Session, left: anyio.Event) -> None:
    """Answer the joiner's heartbeats while it waits; it has nothing else to say."""
    try:
        frame, _ = await _next(session)
        if frame is not None:
            log.warning("a joiner spoke out of turn")
            session.close()
    except (anyio.BrokenResourceError, RemoteProtocolError):
        log.debug("the joiner left without saying goodbye")
    finally:
        left.set()


async def _confirmed(device: Device, issued: Issued, joiner: Joiner, left: anyio.Event) -> str:
    """Ask the person who invited; returns why it is a no, or nothing."""
    book = device.invitations
    ask = book.confirms.get(issued.invitation_id)
    if ask is None:
        return "nobody is at the inviting device to confirm it: ask for a new invitation"
    if book.asked >= MAX_ASKED:
        return "many ask to join at this moment: try again in a minute"
    yes = False
    book.asked += 1
    try:
        with anyio.move_on_after(CONFIRM_TIMEOUT):
            async with background_tasks() as tasks:

                async def give_up() -> None:
                    await left.wait()
                    tasks.cancel_scope.cancel()

                tasks.start_soon(give_up)
                yes = await ask(joiner) is True
    finally:
        book.asked -= 1
    return "" if yes else "the inviting side did not confirm it"


def _problem(
    device: Device, channel: Channel, issued: Issued, did: str, kind: Purpose | None = None
) -> str | None:
    """Why a DID may not use an invitation now; without a kind, whatever it is."""
    membership = channel.foundation.identity.membership
    left = {ended.link for ended in membership.ended}
    return issued.problem(
        did,
        device.invitations.now(),
        kind=issued.purpose if kind is None else kind,
        removed={
            user
            for user in issued.used_by
            if device_id(user) in left and user not in membership.direct
        },
    )


async def _decide(
    device: Device,
    channel: Channel,
    request: frames.JoinRequest,
    session: Session,
    *,
    joiner: Joiner,
    family: dict[str, list[bytes]],
    left: anyio.Event,
) -> frames.JoinGrant | frames.JoinRefused:
    book = device.invitations
    issued = book.get(joiner.invitation_id)
    assert issued is not None, "the handshake found it, and none is forgotten while we run"
    problem = _problem(device, channel, issued, joiner.did, joiner.kind)
    if problem is None and issued.confirm:
        problem = await _confirmed(device, issued, joiner, left)
    if not problem:
        async with book.lock:
            # Bound to this DID before anything else: of two that come at once, one gets it.
            # And somebody may have revoked it meanwhile.
            issued = book.get(joiner.invitation_id) or issued
            problem = _problem(device, channel, issued, joiner.did, joiner.kind)
            if problem is None:
                await book.keep(issued.used(request.did))
    if problem:
        log.info("a join was refused: %s", problem)
        return frames.JoinRefused(problem)
    identity, newcomers = channel.foundation.identity, channel.engine.newcomers
    certificate = session.peer.certificate
    try:
        await identity.add_member(
            request.did,
            request.files,
            family=family,
            purpose=issued.purpose,
            # Anybody can show another one's chain: only its keys make it a member.
            proof=(certificate.body(), session.peer.signature),
            # Or its own as it was.
            newer=await newcomers.ask(request.did, request.files, family),
        )
    except RemoteProtocolError as error:
        log.warning("a join was refused: %s", error)
        return frames.JoinRefused("your device's chain or signature does not hold")
    except LocalProtocolError as error:
        log.warning("a join was refused: %s", error)
        return frames.JoinRefused(str(error)[: frames.MAX_REASON])
    grant = await make_grant(device, channel)
    if len(grant.grant) > MAX_WHOLE:
        log.warning("a join failed: %d bytes to hand over are too many", len(grant.grant))
        return frames.JoinRefused("there is more to hand over than a join can carry")
    return grant


async def _next(
    session: Session, parts: Parts | None = None
) -> tuple[frames.Frame | None, Parts]:
    """The next frame, or None if the other side ended the session; and its parts.

    They are dropped if there is nothing to keep them in.
    """
    ahead = Parts() if parts is None else parts
    async with aclosing(session.frames()) as incoming:
        while isinstance(frame := await anext(incoming, None), frames.Part):
            if parts is not None:
                ahead.add(frame)
    return frame, ahead
