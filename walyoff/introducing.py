"""Introducing oneself: how a member that another member has not heard of gets in.

Who joined while a member was away is refused by it until it has the joining block, and whoever
wrote that may be away by then. So the one that was refused connects again in a mode in which it
is not believed to be a member: it proves only that it holds a key of an epoch that the other
side would write under now, and hands over blocks. Whether they count is decided by the rules of
the chain, as for any block; then it connects as a member.

Decided here: which epochs prove it, what may be said, and how much. Only blocks go to the one
who does not know us, and nothing but the tips of its chains comes back; who was removed, as far
as the other side knows, has no such epoch; an introduction is bounded in bytes and time, and a
channel takes one of a source at a time, so that who introduces itself again and again is in
the way of itself alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

import anyio

from walyoff import frames
from walyoff.epochs import Epoch
from walyoff.errors import RemoteProtocolError
from walyoff.handshakes import Handshakes
from walyoff.session.dialling import Judge, dial
from walyoff.session.handshake import HandshakeContext
from walyoff.session.peer import Session

if TYPE_CHECKING:
    from walyoff.channel import Channel
    from walyoff.node import Device

log = logging.getLogger("walyoff.device")

#: The chains that say who is a member.
CHAIN = "identity"
#: A chain of a hundred blocks with its members' chains takes half of it; the rest goes with
#: the next introduction, which begins where this one ended.
MAX_BYTES = 8 << 20
#: What may wait unsent before more is read.
PART_BYTES = 1 << 20
#: Seconds for one introduction: it is given up, and tried again later.
TIMEOUT = 20.0
#: Introductions to a channel at a time: each may keep 8 MiB waiting for the child.
MAX_AT_ONCE = 4
#: The other side may not know the newest epochs; these many are tried, the newest first.
MAX_TRIES = 4


def tag_key(epoch: Epoch) -> bytes:
    """For finding the epoch that an introduction proves."""
    return epoch.derive("introduction tag")


def context(channel: Channel, epoch: Epoch) -> HandshakeContext:
    """What either side brings to the handshake."""
    own = channel.handshake_context()
    return HandshakeContext(
        channel=channel.did,
        sign_key=own.sign_key,
        certificate=own.certificate,
        psk=epoch.derive("introduction"),
    )


def acceptable(channel: Channel) -> Iterator[Epoch]:
    """The epochs that prove membership to us: they name all who left, as far as we know."""
    usable = channel.engine.rotation.usable()
    # A copy: this runs in a thread, and epochs come meanwhile.
    for epoch in list(channel.engine.epochs.values()):
        if usable is not None and epoch.ended == usable.ended:
            yield epoch


def to_try(channel: Channel) -> list[Epoch]:
    """The epochs by which to introduce oneself, in order: only a few are tried.

    First the one that this device writes under, then the newest by which others may write who
    missed a leaving, then the newest of all. A member hands out what it likes, of any time, so
    times alone say little.
    """
    usable = channel.engine.rotation.usable()
    over = frozenset(channel.engine.removals.ended())
    newest = sorted(channel.engine.epochs.values(), key=lambda epoch: -epoch.created_ms)
    first = [] if usable is None else [usable]
    first += [
        epoch
        for epoch in newest
        if over.issuperset(epoch.ended) and (usable is None or epoch.ended != usable.ended)
    ][:1]
    return list(dict.fromkeys([*first, *newest]))[:MAX_TRIES]


async def introduce(device: Device, channel: Channel, address: str, judge: Judge) -> bool:
    """Hand the chain to a member that refused us; True if it took something.

    Raises:
        TransportError: nobody was reached, or the connection broke.
        RemoteProtocolError: it broke the protocol.
    """
    if not channel.engine.trust.is_member(channel.me):
        return False
    for epoch in to_try(channel):
        stream = await device.connect_stream(address)
        try:
            session = await dial(
                stream,
                mode="introduce",
                tag_key=tag_key(epoch),
                context=context(channel, epoch),
                suites=device.suites(),
                judge=judge,
                runtime=device.runtime,
            )
        except RemoteProtocolError as error:
            if error.reason == "refused":
                continue
            raise
        return await _hand_over(channel, session)
    return False


async def _hand_over(channel: Channel, session: Session) -> bool:
    chain = channel.foundation.chains[CHAIN]
    async with session.run():
        with anyio.move_on_after(TIMEOUT):
            try:
                async with aclosing(session.frames()) as incoming:
                    have = await anext(incoming, None)
                    if not isinstance(have, frames.ChainHave) or have.chain != CHAIN:
                        return False
                    given = 0
                    async with aclosing(chain.export(list(have.leaves))) as parts:
                        async for files in parts:
                            # What does not fit goes with the next introduction.
                            fit = _fitting(files, MAX_BYTES - given)
                            given += sum(len(file) for file in fit)
                            session.send_frame(frames.ChainFiles(CHAIN, fit, False))
                            await session.drained(PART_BYTES)
                            if len(fit) < len(files):
                                break
                    session.send_frame(frames.ChainFiles(CHAIN, (), True))
                    # It ends the session when it has read them.
                    await anext(incoming, None)
            except anyio.BrokenResourceError:
                return False
            return given > 0
    return False


def _fitting(files: Sequence[bytes], room: int) -> tuple[bytes, ...]:
    """The first of the files, parents first, as far as there is room."""
    fit = []
    for file in files[: frames.MAX_FILES]:
        room -= len(file)
        if room < 0:
            break
        fit.append(file)
    return tuple(fit)


class Introductions:
    """The other side: those who introduce themselves to this device."""

    def __init__(self) -> None:
        #: By channel.
        self._running: dict[str, Handshakes] = {}

    async def receive(self, channel: Channel, session: Session, source: str = "") -> None:
        """Take the blocks of one introduction; `source` is what the transport says of it.

        Raises:
            RemoteProtocolError: it says something else, or too much.
        """
        now = channel.engine.runtime.now
        running = self._running.setdefault(channel.did, Handshakes(MAX_AT_ONCE, 1))
        scope = anyio.CancelScope()
        # Where nothing is known of it there is only what it says of itself.
        turn = running.begin(source or session.did, scope.cancel, now=now())
        try:
            async with session.run():
                if turn is not None:
                    scope.deadline = anyio.current_time() + TIMEOUT
                    with scope:
                        await _take(channel, session)
        finally:
            if turn is not None:
                running.end(turn, failed=bool(source) and scope.cancelled_caught, now=now())
            if not running:
                self._running.pop(channel.did, None)


async def _take(channel: Channel, session: Session) -> None:
    chain = channel.foundation.chains[CHAIN]
    leaves, count = await chain.leaves()
    session.send_frame(frames.ChainHave(CHAIN, tuple(leaves[: frames.MAX_REFS]), count))
    left = MAX_BYTES
    async with aclosing(session.frames()) as incoming:
        async for frame in incoming:
            if not isinstance(frame, frames.ChainFiles) or frame.chain != CHAIN:
                raise RemoteProtocolError("an introduction is of blocks alone")
            left -= sum(len(file) for file in frame.files)
            if left < 0:
                raise RemoteProtocolError("an introduction is too long", reason="too-large")
            await chain.take(list(frame.files))
            if frame.last:
                log.info("%s introduced itself to %s", session.did, channel.name)
                return
