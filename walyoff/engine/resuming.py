"""A device that came back from a file: it asks what it has said before it says anything.

An export or a backup does not have what the device wrote afterwards. Writing on from there
would contradict records that others hold, and they would freeze the device for good. So until
a member has said that this device holds all that it ever wrote, nothing is written; what the
members have of it is fetched like any other device's records. One member's word is enough,
after a moment in which others can say more.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import anyio

from walyoff.errors import StoreError
from walyoff.incarnations import load_resume, resume_key

if TYPE_CHECKING:
    from walyoff.engine.driver import Engine

log = logging.getLogger("walyoff.engine")

#: For so long nobody may know of more, before the device writes.
SETTLE_S = 1.0
#: Who claims more and does not give it after so many requests is not waited for.
MAX_FAILURES = 4


class Resuming:
    """Whether one channel of a device may be written to."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._needed: int | None = None
        self._over = anyio.Event()

    @property
    def waiting(self) -> bool:
        """True while nothing may be written."""
        return self._needed is not None

    async def restore(self) -> None:
        """Take up what the home says."""
        engine = self._engine
        self._needed = await load_resume(engine.trust.store, engine.channel)
        engine.reconciler.resuming = self.waiting
        if not self.waiting:
            self._over.set()

    async def over(self) -> None:
        """Wait until the device may write."""
        await self._over.wait()

    async def run(self) -> None:
        """Look for the members' word until it is there."""
        engine = self._engine
        if self.waiting:
            log.warning("this device was moved or restored: it asks what it wrote before")
        while self.waiting:
            if self._complete():
                await anyio.sleep(SETTLE_S)
                if self._complete():
                    try:
                        await self.end()
                    except StoreError as error:
                        log.warning("that all is there was not noted yet: %s", error)
            elif not engine.reconciler.peers:
                await engine.changed()
            else:
                # What is fetched comes without a word to those who wait.
                with anyio.move_on_after(SETTLE_S):
                    await engine.changed()

    async def end(self) -> None:
        """Write from here on, whatever others may hold."""
        engine = self._engine
        await engine.trust.store.put({resume_key(engine.channel): None})
        self._needed = None
        engine.reconciler.resuming = False
        self._over.set()
        engine.notify()

    def _complete(self) -> bool:
        engine = self._engine
        held = engine.durable.get(engine.me, 0)
        if self._needed is None or held < self._needed:
            return False
        others = {m.did for m in engine.trust.identity.membership.current()} - {engine.me}
        if not others:
            # Nobody else can have anything.
            return True
        asked = False
        for peer in engine.reconciler.peers.values():
            if peer.did == engine.me or not engine.trust.admits(peer.did):
                continue
            claimed = peer.heads.get(engine.me, 0)
            failures = peer.put_off.get(engine.me, (0, 0.0))[0]
            if claimed > held and failures < MAX_FAILURES:
                return False
            asked = asked or claimed <= held
        return asked
