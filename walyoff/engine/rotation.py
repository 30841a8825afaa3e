"""Epochs of a channel: which one is written under, when a new one begins, who is given which.

An epoch names the memberships that were over when it began. It is written under only while
those are exactly the ones that are over now, so what is sealed after a leaving opens for
nobody who left; and it is given to nobody whom it names, also by a device that has not heard
of the leaving yet. Of several that may be used the newest is, by (time, id), so all devices
that know the same epochs choose the same one; several that begin at once are harmless.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import anyio

from walyoff import frames
from walyoff.engine.epoch_room import EpochRoom
from walyoff.engine.facts import Reason, Report
from walyoff.engine.link import LinkState
from walyoff.engine.removals import ended_names
from walyoff.epochs import EPOCH_KEY_SIZE, MAX_ENDED, Epoch

if TYPE_CHECKING:
    from walyoff.engine.driver import Engine

log = logging.getLogger("walyoff.engine")

#: The remover begins an epoch at once; another member does after this and as much at random.
GRACE_S = 2.0
#: An epoch is replaced at this age, in milliseconds: bounds what one stolen key opens.
MAX_AGE_MS = 30 * 24 * 3600 * 1000
#: How often the age is looked at, in seconds.
AGE_EVERY_S = 3600.0
#: An epoch from so far ahead, in milliseconds, would never be the older one.
MAX_AHEAD_MS = 48 * 3600 * 1000
#: Epochs in one frame: each may name many memberships.
_IN_FRAME = 64


class Rotation:
    """The epochs of one channel on one device."""

    def __init__(
        self, engine: Engine, epochs: Sequence[Epoch], on_new: Callable[[], None]
    ) -> None:
        self._engine = engine
        self._on_new = on_new
        self.epochs: dict[bytes, Epoch] = {e.epoch_id: e for e in epochs}
        self._room = EpochRoom(self.epochs)
        self._work = anyio.Event()

    def usable(self) -> Epoch | None:
        """The epoch to write under; None while the one that is needed is not known yet."""
        ended = self._ended()
        found = [epoch for epoch in self.epochs.values() if epoch.ended == ended]
        return max(found, key=lambda e: (e.created_ms, e.epoch_id), default=None)

    def _ended(self) -> tuple[bytes, ...]:
        # Of too many the latest joined are named; every device cuts alike.
        ended = self._engine.removals.ended()
        if len(ended) <= MAX_ENDED:
            return ended
        return tuple(sorted(sorted(ended, key=lambda e: (e[16:], e[:16]))[-MAX_ENDED:]))

    def begin(self) -> Epoch:
        """Begin an epoch, and give it to those who are connected."""
        engine = self._engine
        usable = self.usable()
        epoch = Epoch(
            key=engine.runtime.random_bytes(EPOCH_KEY_SIZE),
            # Later than the one before it, also if a clock is wrong. Of others the time is no
            # matter: who left may have given them one that others refuse as to come.
            created_ms=max(engine.runtime.wall_ms(), usable.created_ms + 1 if usable else 0),
            ended=self._ended(),
        )
        self._make_room([epoch])
        self._add([epoch], None)
        log.info("an epoch begins without %d who left", len(epoch.ended))
        return epoch

    def take(self, epochs: Iterable[Epoch], source: LinkState) -> None:
        """Epochs from another member: keep and pass on those that are new."""
        engine = self._engine
        latest = engine.runtime.wall_ms() + MAX_AHEAD_MS
        new: list[Epoch] = []
        for epoch in epochs:
            if epoch.epoch_id in self.epochs:
                continue
            fits = epoch.created_ms <= latest and (
                self._room.has([*new, epoch]) or self._is_needed_now(epoch)
            )
            if not fits:
                detail = "an epoch from the future, or one too many"
                engine.report(Report(Reason.UNKNOWN_EPOCH, source.link.did, detail))
                continue
            new.append(epoch)
            self._make_room(new)
        if new:
            self._add(new, source)

    def _is_needed_now(self, epoch: Epoch) -> bool:
        """True if it would be the one to write under, and room may be made for it."""
        usable, ended = self.usable(), self._ended()
        if epoch.ended != ended:
            return False
        rank = (epoch.created_ms, epoch.epoch_id)
        newer = usable is None or rank > (usable.created_ms, usable.epoch_id)
        return newer and self._room.may_make(ended)

    def _make_room(self, new: Sequence[Epoch]) -> None:
        while self.epochs and not self._room.has(new):
            dice = int.from_bytes(self._engine.runtime.random_bytes(4))
            over = frozenset(self._engine.removals.ended())
            del self.epochs[self._room.least(over, dice).epoch_id]

    def _add(self, new: Sequence[Epoch], source: LinkState | None) -> None:
        engine = self._engine
        for epoch in new:
            self.epochs[epoch.epoch_id] = epoch
        engine.anchors.epochs_came()
        self._on_new()
        for link in engine.links.values():
            if link is not source:
                self.give(link, new)
        self.wake()
        engine.notify()

    def give(self, link: LinkState, epochs: Iterable[Epoch]) -> None:
        """Give a connected member the epochs that it may have."""
        trust = self._engine.trust
        did = link.link.did
        if not trust.admits(did):
            return
        members = trust.identity.membership.members
        member = next(m for m in members if m.did == did)
        # Who came back is named by its earlier memberships only, and may read what was.
        names = ended_names(member)
        allowed = [
            epoch
            for epoch in epochs
            if not any(n[:16] == own[:16] and n >= own for n in epoch.ended for own in names)
        ]
        for at in range(0, len(allowed), _IN_FRAME):
            link.send(frames.EpochKeys(tuple(allowed[at : at + _IN_FRAME])))

    def wake(self) -> None:
        """Look again whether an epoch is needed."""
        self._work.set()

    async def run(self) -> None:
        """Begin an epoch when one is needed and nobody else does."""
        engine = self._engine
        while True:
            if self._is_needed():
                await anyio.sleep(GRACE_S * (1 + engine.runtime.jitter()))
                if self._is_needed():
                    self.begin()
            self._work = anyio.Event()
            with anyio.move_on_after(AGE_EVERY_S):
                await self._work.wait()

    def _is_needed(self) -> bool:
        if not self._engine.trust.is_member(self._engine.me):
            return False
        usable = self.usable()
        return usable is None or (
            usable.created_ms + MAX_AGE_MS < self._engine.runtime.wall_ms()
        )


__all__ = ["Rotation"]
