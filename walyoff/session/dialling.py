"""A handshake over a byte stream: `dial` and `answer` give a `Session`, or raise.

The machines in `handshake` decide; decided here: how long they may take, and that nobody waits
for their signing and opening.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import anyio
from anyio.abc import ByteStream

from walyoff import plugins
from walyoff.errors import NotAMemberError, RemoteProtocolError, TransportError
from walyoff.runtime import REAL, Runtime
from walyoff.session.handshake import (
    REFUSAL,
    Established,
    Event,
    HandshakeContext,
    Initiator,
    PeerPresented,
    Responder,
    Send,
)
from walyoff.session.peer import CLOSE_TIMEOUT, READ_BYTES, Session
from walyoff.session.transcript import Mode

#: A handshake takes milliseconds; a peer that takes so long is broken or hostile.
HANDSHAKE_TIMEOUT = 10.0

#: Decides about a certificate; raises if the peer is not to be trusted. Gets the presented
#: certificate and its encoded bytes.
Judge = Callable[[PeerPresented], Awaitable[None]]


async def dial(
    stream: ByteStream,
    *,
    mode: Mode,
    tag_key: bytes,
    context: HandshakeContext,
    suites: Sequence[str],
    judge: Judge,
    runtime: Runtime = REAL,
) -> Session:
    """Handshake as the initiator. The stream is closed on failure.

    Raises:
        TransportError: the connection broke, or the peer took too long.
        RemoteProtocolError: the peer proved nothing, or refused.
    """
    machine = Initiator(
        cipher_for=plugins.suite,
        suites=suites,
        mode=mode,
        tag_key=tag_key,
        context=context,
        random=runtime.random_bytes,
    )
    try:
        first = await runtime.in_thread(machine.start)
    except BaseException:
        # Nobody else knows of the stream yet.
        with anyio.CancelScope(shield=True):
            await anyio.aclose_forcefully(stream)
        raise
    return await _shake(stream, machine, judge, mode, first=first, runtime=runtime)


async def answer(
    stream: ByteStream,
    *,
    find_tag: Callable[[Mode, bytes, bytes], HandshakeContext | None],
    suites: Sequence[str],
    judge: Judge,
    runtime: Runtime = REAL,
) -> Session:
    """Handshake as the responder. The stream is closed on failure. Raises as `dial`."""
    found: list[Mode] = []

    def find(mode: Mode, ephemeral: bytes, tag: bytes) -> HandshakeContext | None:
        found[:] = [mode]
        return find_tag(mode, ephemeral, tag)

    machine = Responder(
        cipher_for=plugins.suite, suites=suites, find_tag=find, random=runtime.random_bytes
    )
    return await _shake(stream, machine, judge, found, first=b"", runtime=runtime)


async def _shake(
    stream: ByteStream,
    machine: Initiator | Responder,
    judge: Judge,
    mode: Mode | list[Mode],
    *,
    first: bytes,
    runtime: Runtime,
) -> Session:
    try:
        with anyio.fail_after(HANDSHAKE_TIMEOUT):
            if first:
                await stream.send(first)
            established = await _exchange(stream, machine, judge, runtime)
    except BaseException as error:
        with anyio.CancelScope(shield=True), anyio.move_on_after(CLOSE_TIMEOUT):
            await _give_up(stream)
        if isinstance(error, TimeoutError):
            raise TransportError("the handshake took too long") from None
        if isinstance(
            error,
            anyio.EndOfStream | anyio.BrokenResourceError | anyio.ClosedResourceError,
        ):
            raise TransportError("the connection broke in the handshake") from None
        raise
    chosen: Mode = mode[0] if isinstance(mode, list) else mode
    return Session(stream, established, role=machine.role, mode=chosen, runtime=runtime)


async def _exchange(
    stream: ByteStream, machine: Initiator | Responder, judge: Judge, runtime: Runtime
) -> Established:
    while True:
        data = await stream.receive(READ_BYTES)
        # Signing and opening take milliseconds, which is too long for the event loop.
        events: list[Event] = await runtime.in_thread(machine.receive, data)
        while events:
            event = events.pop(0)
            match event:
                case Send():
                    await stream.send(event.data)
                case PeerPresented():
                    try:
                        await judge(event)
                    except NotAMemberError as error:
                        raise RemoteProtocolError(str(error), reason="not-a-member") from error
                    events += await runtime.in_thread(machine.accept)
                case Established():
                    return event


async def _give_up(stream: ByteStream) -> None:
    try:
        await stream.send(REFUSAL)
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        pass
    finally:
        await anyio.aclose_forcefully(stream)
