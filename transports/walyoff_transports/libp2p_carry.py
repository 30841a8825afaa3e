"""Carrying bytes between a libp2p stream and a socket; runs on the trio loop.

The application holds the other end of the socket pair, so waiting, cancelling, holding back
and closing are those of a socket, in the application's own loop, and nothing of it touches
the connection, which many streams share. A sender that gets no more credit from the far
side stops reading its socket, and so the application is held; the connection is always read.
"""

from __future__ import annotations

import contextlib
import select
import socket
from typing import Any

import trio
from libp2p.exceptions import BaseLibp2pError

#: Bytes that are read at once, from either side.
READ_BYTES = 256 * 1024
#: One yamux frame: with its header it fits in one Noise message (65,519 bytes).
FRAME_BYTES = 65_000
#: Seconds between looks for credit, which nothing announces: from the first to the last.
CREDIT_FIRST, CREDIT_LAST = 0.001, 0.05
#: Seconds for what is unsent when the application has closed its end, and for the far side
#: to say goodbye; then the stream is reset.
LINGER = 2.0


class HungUpError(Exception):
    """The application closed its end while what it sent could not go out."""


async def carry(stream: Any, sock: socket.socket) -> None:
    """Carry both ways until either side ends; closes both. The socket is ours from here."""
    local = trio.socket.from_stdlib_socket(sock)
    _give_credit_seldom(stream.muxed_stream)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_outward, stream.muxed_stream, local, nursery.cancel_scope)
            nursery.start_soon(_inward, stream.muxed_stream, local, nursery.cancel_scope)
    finally:
        local.close()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + LINGER):
            await _goodbye(stream)


def _give_credit_seldom(muxed: Any) -> None:
    """Answer half a window at once, as other implementations do.

    Upstream answers each read with a frame of its own, which for small messages is half of
    all the work.
    """
    give = muxed._auto_tune_and_send_window_update

    async def give_half(*, bytes_read: int = 0) -> None:
        await give()

    muxed._auto_tune_and_send_window_update = give_half


async def _outward(muxed: Any, local: Any, scope: trio.CancelScope) -> None:
    with contextlib.suppress(OSError, BaseLibp2pError, HungUpError):
        while data := await local.recv(READ_BYTES):
            view = memoryview(data)
            while view:
                await _credit(muxed, local)
                # Nobody else writes to this stream, so the credit is still there.
                part = view[: min(FRAME_BYTES, muxed.send_window)]
                await muxed.write(bytes(part))
                view = view[len(part) :]
    scope.cancel()


async def _credit(muxed: Any, local: Any) -> None:
    """Wait for credit ourselves: upstream's `write` gives the stream up after 5 seconds."""
    pause = CREDIT_FIRST
    deadline = float("inf")
    while muxed.send_window <= 0:
        if muxed.closed or muxed.send_closed:
            raise BaseLibp2pError("the stream is closed")
        if trio.current_time() > deadline:
            raise HungUpError
        if deadline == float("inf") and _hung_up(local):
            deadline = trio.current_time() + LINGER
        await trio.sleep(pause)
        pause = min(pause * 2, CREDIT_LAST)


def _hung_up(local: Any) -> bool:
    poll = select.poll()
    poll.register(local.fileno(), 0)
    return bool(poll.poll(0))


async def _inward(muxed: Any, local: Any, scope: trio.CancelScope) -> None:
    with contextlib.suppress(OSError, BaseLibp2pError):
        while True:
            view = memoryview(await muxed.read(READ_BYTES))
            while view:
                view = view[await local.send(view) :]
    scope.cancel()


async def _goodbye(stream: Any) -> None:
    muxed = stream.muxed_stream
    try:
        # The far side gets all that was sent before it sees the end.
        await stream.close()
        while True:
            await muxed.read(READ_BYTES)
    except BaseLibp2pError:
        # The end of the other direction: nothing is left of the stream on either side.
        return
    finally:
        if not muxed.closed:
            # Otherwise upstream would keep the stream for as long as the connection.
            with trio.CancelScope(shield=True):
                await stream.reset()
