"""Identities that stand under one another, on one device.

Decided here: which groups a person's devices tell each other of and hand to one another, and
what a leaving in one channel means, at once, for the channels above it.

A person's chain says nothing about the groups that the person is in. The devices of a person
tell each other, inside the person's own sessions; a device that hears of a group that it is not
in asks for it, and takes it up only if the group's chain names the person, and the person's
chain this device, each with the keys that are known here.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio

from walyoff import frames
from walyoff.engine.facts import Reason, Report
from walyoff.errors import RemoteProtocolError, WalyoffError
from walyoff.granting import Parts, grant_frames, make_grant
from walyoff.joining import Granted

if TYPE_CHECKING:
    from walyoff.channel import Channel
    from walyoff.node import Device
    from walyoff.session.peer import Session

log = logging.getLogger("walyoff.device")

#: What was asked for and did not come is asked for again, in seconds.
ASK_AGAIN_S = 10.0
#: Groups that one device is asked for at a time: it can name any number, and give none.
MAX_ASKED = 16
#: Groups that one other device of the person handed over to this one: whoever is in a person's
#: identity can found any number, and put all its devices there.
MAX_GIVEN = 256
#: A grant waits while a session has more than this unsent.
BACKLOG = 8 << 20


class Kinship:
    """The channels of one device, as they stand under one another."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._news = anyio.Event()
        #: Groups that are being asked for, and until when nobody else is asked.
        self._asked: dict[str, float] = {}

    def wake(self) -> None:
        """A channel was opened, or who is a member of one has changed."""
        news, self._news = self._news, anyio.Event()
        news.set()

    async def news(self, within: float) -> None:
        """Wait for that, so many seconds at most."""
        with anyio.move_on_after(within):
            await self._news.wait()

    def above(self, channel: Channel) -> list[Channel]:
        """The channels of this device whose identities a channel's identity stands under."""
        return [c for c in self._device.channels() if channel.did in c.kin]

    # ------------------------------------------------------------------ groups

    def groups_of(self, channel: Channel, peer: str) -> tuple[str, ...]:
        """The groups above a channel that another device of it is in, as this one is."""
        trusted = (
            c
            for c in self.above(channel)
            if c.engine.trust.is_member(c.me) and c.engine.trust.admits(peer)
        )
        return tuple(sorted(c.did for c in trusted))[: frames.MAX_GROUPS]

    def has_room(self, giver: str) -> bool:
        """Whether one more group is taken from another device of the person."""
        return sum(c.state.given_by == giver for c in self._device.channels()) < MAX_GIVEN

    def wanted(self, groups: Iterable[str]) -> list[str]:
        """Those that this device is not in, and that nobody was asked for just now."""
        now = self._device.runtime.now()
        found = []
        for did in groups:
            if self._device.find_channel(did) is None and self._asked.get(did, now) <= now:
                found.append(did)
        return found

    def asks(self, did: str) -> None:
        """Somebody is asked for a group."""
        self._asked[did] = self._device.runtime.now() + ASK_AGAIN_S

    def give_up(self, groups: Iterable[str]) -> None:
        """Who was asked for these groups will not give them."""
        for did in groups:
            self._asked.pop(did, None)

    async def take_up(self, channel: Channel, granted: Granted) -> None:
        """Open a group that another device of a channel has handed over."""
        if self._device.find_channel(granted.channel) is not None:
            return
        if not self.has_room(granted.inviter):
            # It was asked for before the last ones were here.
            self.give_up([granted.channel])
            return
        try:
            await self._device.take_group(granted, through=channel.did)
        except WalyoffError as error:
            log.warning("a group of %s was not taken up: %s", channel.name, error)
        else:
            self.give_up([granted.channel])

    # ------------------------------------------------------------------ leaving

    @asynccontextmanager
    async def shut_out(self, channel: Channel, devices: set[str]) -> AsyncIterator[None]:
        """Let devices that leave a channel hear nothing in it, nor in the channels above it.

        When the context ends its chain says that they left; then every one of these channels
        has stated it, and writes under an epoch that they do not get.
        """
        channels = [channel, *self.above(channel)]
        barred = [(c, devices - c.engine.trust.barred - {c.me}) for c in channels]
        for c, dids in barred:
            c.engine.trust.barred |= dids
            c.connections.end_strangers()
        try:
            yield
            for c in channels:
                await _settle(c)
        finally:
            for c, dids in barred:
                c.engine.trust.barred -= dids
        for c in channels:
            _renew_epoch(c)
        for c in channels[1:]:
            # The identity's own keys are new. This shows it in the groups, where the old ones
            # count no more from here on, and takes the group's keys from who was removed. If
            # this device dies before, another one does it (`engine.control_keys`).
            try:
                await c.renew_control_keys()
            except WalyoffError as error:
                log.warning("the control keys of %s were not renewed: %s", c.name, error)
        for c in channels:
            await c.connections.announce_chains()


async def _settle(channel: Channel) -> None:
    """Read the chains, and state who has left; then whoever hears from here knows it."""
    await channel.foundation.identity.refresh()
    channel.connections.end_strangers()
    channel.engine.membership_changed()
    await channel.engine.removals.wait_stated()


def _renew_epoch(channel: Channel) -> None:
    """Begin an epoch at once if there is none for those who are members now."""
    rotation = channel.engine.rotation
    if channel.engine.trust.is_member(channel.me) and rotation.usable() is None:
        rotation.begin()


class GroupDesk:
    """What one session of a channel says of the groups above it."""

    def __init__(self, device: Device, channel: Channel, session: Session) -> None:
        self._device = device
        self._channel = channel
        self._session = session
        self._parts = Parts()
        #: What the other side was asked for and has not given, and how often: a slow one is
        #: asked again, and answers each time.
        self._wanted: dict[str, int] = {}
        #: What the other side said it is in, and what was told to it.
        self._theirs: tuple[str, ...] = ()
        self._told: tuple[str, ...] = ()
        #: How many groups were not taken when this was told last.
        self._left_out = 0

    async def run(self) -> None:
        """Tell the other side what this device is in, and ask for what it is not in."""
        try:
            await self._run()
        finally:
            self._device.kinship.give_up(self._wanted)

    async def _run(self) -> None:
        kinship = self._device.kinship
        while True:
            if self._channel.engine.trust.admits(self._session.did):
                groups = kinship.groups_of(self._channel, self._session.did)
                if groups != self._told:
                    self._told = groups
                    self._session.send_frame(frames.GroupsHeld(groups))
                wanted = kinship.wanted(self._theirs)
                if wanted and not kinship.has_room(self._session.did):
                    self._tell(len(wanted))
                    wanted = []
                for did in wanted:
                    if did not in self._wanted and len(self._wanted) >= MAX_ASKED:
                        continue
                    self._wanted[did] = self._wanted.get(did, 0) + 1
                    kinship.asks(did)
                    self._session.send_frame(frames.WantGroup(did))
            await kinship.news(ASK_AGAIN_S)

    def _tell(self, left_out: int) -> None:
        """A person decides about more."""
        if left_out == self._left_out:
            return
        self._left_out = left_out
        report = Report(
            Reason.TOO_MANY_GROUPS,
            self._session.did,
            f"it handed over {MAX_GIVEN} groups; {left_out} more are taken only from another "
            "device, by an invitation (`walyoff join`), or when some of these are left",
        )
        log.warning("%s of %s: %s", report.subject, self._channel.name, report.detail)
        self._channel.note(report)

    async def answer(self, frame: frames.Frame) -> None:
        """What the other side said. Raises RemoteProtocolError."""
        match frame:
            case frames.GroupsHeld(groups):
                self._theirs = groups
                gone = self._wanted.keys() - set(groups)
                for did in gone:
                    del self._wanted[did]
                self._device.kinship.give_up(gone)
                self._device.kinship.wake()
            case frames.WantGroup(did):
                await self._give(did)
            case frames.Part():
                if not self._wanted:
                    raise RemoteProtocolError("parts of what nobody asked for")
                self._parts.add(frame)
            case frames.GroupGrant(did, grant):
                if did not in self._wanted:
                    raise RemoteProtocolError("a group that nobody asked for")
                self._wanted[did] -= 1
                if not self._wanted[did]:
                    del self._wanted[did]
                granted = Granted(
                    channel=did,
                    grant=self._parts.take(grant),
                    secret=frame.secret,
                    epochs=frame.epochs,
                    certificates=frame.certificates,
                    name=frame.name,
                    inviter=self._session.did,
                    addresses=self._channel.connections.heard_addresses.get(
                        self._session.did, ()
                    ),
                )
                await self._device.kinship.take_up(self._channel, granted)
            case _:
                raise AssertionError(frame)

    async def _give(self, did: str) -> None:
        channel = self._device.find_channel(did)
        groups = self._device.kinship.groups_of(self._channel, self._session.did)
        if channel is None or did not in groups:
            # It left while it asked, or asks for what it was never told of.
            return
        made = await make_grant(self._device, channel)
        if did not in self._device.kinship.groups_of(self._channel, self._session.did):
            return
        grant = frames.GroupGrant(
            did, made.grant, made.epochs, made.certificates, made.name, made.secret
        )
        for frame in grant_frames(grant):
            await self._session.drained(BACKLOG)
            if did not in self._device.kinship.groups_of(self._channel, self._session.did):
                # It left while it read: the end, which has the secrets, is not sent.
                self._session.close()
                return
            self._session.send_frame(frame)


__all__ = ["GroupDesk", "Kinship"]
