"""The identity's control keys: when they are renewed, and how new ones reach the members.

Decided here: that a remaining member renews them when one has left, any member when they are
old, and any device of a person when the person's own were replaced (that shows the new ones in
the group, whatever became of the device that removed another); that a device which lacks keys
that the chain names asks everybody it is connected with; and that they are given to members
alone. Whether keys are the ones that the chain names
is checked by the identity before it keeps them; a session encrypts them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import anyio

from walyoff import frames
from walyoff.engine.link import LinkState
from walyoff.errors import StoreError, WalyoffError
from walyoff.wire import expect_array, expect_bytes, expect_int, pack, unpack

if TYPE_CHECKING:
    from walyoff.engine.driver import Engine

log = logging.getLogger("walyoff.engine")

#: Control keys are replaced at this age, in milliseconds: 3,000 hours, as stock code does.
RENEW_AFTER_MS = 3_000 * 3600 * 1000
#: The remover renews at once; another member does after this and as much at random. Doubled
#: each time that it did not help, to an hour.
GRACE_S = 5.0
#: A renewal that failed is tried again after this.
RETRY_S = 30.0
#: How often the age is looked at, in seconds.
AGE_EVERY_S = 3600.0


class ControlKeys:
    """The control keys of one channel's identity, on one device."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._work = anyio.Event()
        #: What was asked for on each link, by the link's name.
        self._asked: dict[str, set[bytes]] = {}
        #: What others asked for and was not here.
        self._owed: dict[str, tuple[bytes, ...]] = {}
        #: The newest keys that this device gave to others, by their DIDs.
        self.given: dict[str, bytes] = {}
        #: The newest keys, and since when they are known here, in ms since 1970.
        self._seen = (b"", 0)
        #: False while the store does not have it.
        self._noted = True
        #: How often keys were renewed in a row, and it was still due.
        self._in_vain = 0

    def wake(self) -> None:
        """Look again: members, keys or links have changed."""
        self._work.set()

    async def run(self) -> None:
        """Ask for keys that are lacking, and renew those that must be, for ever."""
        await self._load()
        due: float | None = None
        while True:
            # Before anything is looked at: what changes meanwhile is looked at again.
            self._work = anyio.Event()
            self._ask()
            await self._note_newest()
            pause = AGE_EVERY_S
            if not self._is_due():
                due = None
                self._in_vain = 0
            else:
                now = self._engine.runtime.now()
                if due is None:
                    grace = min(GRACE_S * 2**self._in_vain, AGE_EVERY_S)
                    due = now + grace * (1 + self._engine.runtime.jitter())
                if due <= now:
                    due = None
                    await self._renew()
                else:
                    # Somebody else's may come meanwhile, and are asked for at once.
                    pause = due - now
            with anyio.move_on_after(pause):
                await self._work.wait()

    # -------------------------------------------------------------------- renewing

    def _is_due(self) -> bool:
        engine = self._engine
        governance = engine.trust.identity.membership.governance
        if not engine.trust.is_member(engine.me) or governance.lacking:
            return False
        newest, since = self._seen
        is_old = since + RENEW_AFTER_MS < engine.runtime.wall_ms()
        return (
            governance.renewal_due
            or governance.keys_unshown
            or (newest == governance.newest_key != b"" and is_old)
        )

    async def _renew(self) -> None:
        try:
            await self._engine.trust.identity.renew_keys()
        except WalyoffError as error:
            log.warning("the control keys were not renewed, it is tried again: %s", error)
            await anyio.sleep(RETRY_S)
            self.wake()
        else:
            self._in_vain += 1
            log.info("the identity's control keys were renewed")
            self._engine.membership_changed()

    async def _load(self) -> None:
        if value := await self._engine.trust.store.get(self._key()):
            newest, since = expect_array(unpack(value, 256), 2, "control keys")
            self._seen = (expect_bytes(newest, "key", limit=64), expect_int(since, "time"))

    async def _note_newest(self) -> None:
        newest = self._engine.trust.identity.membership.governance.newest_key
        if newest != self._seen[0]:
            self._seen = (newest, self._engine.runtime.wall_ms())
            self._noted = False
        if not self._noted:
            try:
                await self._engine.trust.store.put({self._key(): pack(list(self._seen))})
                self._noted = True
            except StoreError as error:
                log.warning("since when keys are known was not noted: %s", error)

    def _key(self) -> str:
        return f"control-keys/{self._engine.channel}"

    # ---------------------------------------------------------------------- asking

    def _ask(self) -> None:
        engine = self._engine
        lacking = engine.trust.identity.membership.governance.lacking
        for known in (self._asked, self._owed):
            for name in [name for name in known if name not in engine.links]:
                del known[name]
        if not engine.trust.is_member(engine.me):
            return
        for link in engine.admitted_links():
            asked = self._asked.setdefault(link.link.name, set())
            new = [key for key in lacking if key not in asked][: frames.MAX_FINGERPRINTS]
            if new:
                asked.update(new)
                link.send(frames.WantControlKeys(tuple(new)))

    async def take(self, secrets: bytes) -> None:
        """Control keys from another member. Raises RemoteProtocolError."""
        identity = self._engine.trust.identity
        if not identity.membership.governance.lacking:
            # Nobody was asked, or another one was first.
            return
        if await identity.take_keys(secrets):
            log.info("new control keys of the identity came from a member")
            await self._pay()
            self._engine.membership_changed()

    async def give(self, link: LinkState, fingerprints: Sequence[bytes]) -> None:
        """Answer a question; what is not here yet follows when it comes."""
        if not self._engine.trust.admits(link.link.did):
            return
        secrets = await self._engine.trust.identity.give_keys(fingerprints)
        # Asked again, because the child took its time.
        if not self._engine.trust.admits(link.link.did):
            return
        if secrets:
            link.send(frames.ControlKeys(secrets))
            self.given[link.link.did] = fingerprints[-1]
            self._engine.notify()
        else:
            self._owed[link.link.name] = tuple(fingerprints)

    async def _pay(self) -> None:
        owed, self._owed = self._owed, {}
        for name, fingerprints in owed.items():
            if link := self._engine.links.get(name):
                await self.give(link, fingerprints)


__all__ = ["ControlKeys"]
