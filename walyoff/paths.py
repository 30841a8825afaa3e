"""Which way a session with a member goes: dialling it, moving it, and moving it back.

A *path* is one of this device's transports. Decided here: which addresses of a member are
tried, in which order and when; when a session counts as hanging; which of two sessions with
a member is given up. A session is moved by having another one over another path: the new one
takes its place on both sides at once, and what was on its way in the old one is asked for
again, because a session begins with what each side holds.

- Addresses are tried in the order of this device's transports, the next one when the one
  before has failed or has not answered for a moment. The first session wins.
- What was sent must be answered within about a second (`walyoff.patience`). If it is not, the
  member is dialled over the other paths; the old session goes on meanwhile, and stays if no
  other path gives one before it answers after all. So a member that is merely suspended does
  not lose its only session, and a busy one not its best.
- Whoever dialled a session over a path that is not its best tries the better ones now and
  then. Only that side does, or two that prefer different paths would move it for ever.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

import anyio
from anyio.abc import TaskGroup

from walyoff.abc import Transport
from walyoff.errors import WalyoffError
from walyoff.patience import Patience, heed
from walyoff.runtime import Runtime

if TYPE_CHECKING:
    from walyoff.channel import Channel
    from walyoff.session.peer import Session

log = logging.getLogger("walyoff.paths")

#: How long the device with the larger DID waits for the other one to dial.
POLITENESS_S = 0.7
#: How long one address of a member is tried before the next one is tried beside it.
STAGGER_S = 0.4
#: Back-off between attempts to reach a member: doubles from the first to the last.
RETRY_FIRST_S = 0.5
RETRY_LAST_S = 30.0
#: A session that lasted so long shows that its path is good: a lost one is dialled at once.
LASTED_S = 5.0
#: Two sessions that began within this time were dialled by both sides at once.
AT_ONCE_S = 1.0
#: What was sent is followed by a question so much later.
PROBE_AFTER_S = 0.25
#: Pauses between attempts to return to a better path: doubles from the first to the last;
#: begins anew when a session on the best one has stood for the last.
RETURN_FIRST_S, RETURN_LAST_S = 4.0, 300.0

#: Dials an address, asks whether the session with that DID is wanted, and serves it.
Dial = Callable[[str, Callable[[str], bool]], Awaitable[None]]


class Paths:
    """Keeps one channel connected to its members, over the best path that works."""

    def __init__(
        self,
        *,
        channel: Channel,
        transports: Sequence[Transport],
        candidates: Callable[[str], list[str]],
        dial: Dial,
        runtime: Runtime,
    ) -> None:
        self._channel = channel
        self._candidates = candidates
        self._dial = dial
        self._runtime = runtime
        self._carriers = carriers(transports)
        #: The place of each path: 0 is the best.
        self._places = {transport.name: at for at, transport in enumerate(transports)}
        self._seekers: set[str] = set()
        self._news: dict[str, anyio.Event] = {}
        self._patience: dict[str, Patience] = {}
        self._returns: dict[str, float] = {}

    def seek(self, tasks: TaskGroup, member: str) -> None:
        """There is news of where a member is: dial it, and from now on keep a session."""
        self._news.setdefault(member, anyio.Event()).set()
        if member not in self._seekers:
            self._seekers.add(member)
            tasks.start_soon(self._seek, tasks, member)

    async def _seek(self, tasks: TaskGroup, member: str) -> None:
        """Keep trying to have a session with a member; ends when it is not a member."""
        pause = RETRY_FIRST_S
        politeness = POLITENESS_S if member < self._channel.me else 0.0
        await anyio.sleep(politeness)
        while self._channel.engine.trust.admits(member):
            session = self._channel.connections.session(member)
            if session is None:
                self._news[member] = anyio.Event()
                await self._try(tasks, member, None, self.ranked(self._candidates(member)))
            else:
                await self._look_after(tasks, session)
            if self._channel.connections.session(member) is not None:
                continue
            if session is not None and self._runtime.now() - session.opened > LASTED_S:
                pause = RETRY_FIRST_S
                await anyio.sleep(politeness)
                continue
            wait = pause * (0.5 + self._runtime.jitter())
            # Not at once even if there is news: it costs nothing to say so again and again.
            await anyio.sleep(min(wait, RETRY_FIRST_S))
            with anyio.move_on_after(max(wait - RETRY_FIRST_S, 0.0)):
                await self._news[member].wait()
            pause = min(pause * 2, RETRY_LAST_S)
        self._seekers.discard(member)

    # ------------------------------------------------------------------- a session

    async def _look_after(self, tasks: TaskGroup, session: Session) -> None:
        """Until a session is over, or another one has taken its place."""
        async with anyio.create_task_group() as watching:
            if len(self._places) > 1:
                watching.start_soon(self._leave_when_hanging, tasks, session)
                watching.start_soon(self._return, tasks, session)
            while self._channel.connections.session(session.did) is session:
                await self._channel.engine.company_changed()
            watching.cancel_scope.cancel()

    async def _leave_when_hanging(self, tasks: TaskGroup, session: Session) -> None:
        member = session.did
        patience = self._patience.setdefault(member, Patience())
        while True:
            await session.until_sent()
            await anyio.sleep(PROBE_AFTER_S)
            answered = session.ping()
            limit = patience.seconds
            counted = await heed(answered, limit)
            if not answered.is_set():
                stood = self._runtime.now() - session.opened
                patience.lost(soon=stood < LASTED_S + 2 * limit)
                log.info("%s does not answer on %s", member, session.path)
                counted += await self._move_unless(answered, tasks, session)
            if answered.is_set():
                patience.answered(counted)

    async def _move_unless(
        self, answered: anyio.Event, tasks: TaskGroup, session: Session
    ) -> float:
        """Try to move a session, unless it answers after all; the seconds until it did."""
        others = [
            address
            for address in self.ranked(self._candidates(session.did))
            if self._carriers[scheme(address)] != session.path
        ]
        counted = 0.0
        async with anyio.create_task_group() as trying:

            async def wait() -> None:
                nonlocal counted
                counted = await heed(answered, math.inf)
                trying.cancel_scope.cancel()

            trying.start_soon(wait)
            await self._try(tasks, session.did, session, others)
            trying.cancel_scope.cancel()
        return counted

    async def _return(self, tasks: TaskGroup, session: Session) -> None:
        """Move a session that this side dialled to a better path when there is one."""
        member, place = session.did, self._places.get(session.path, 0)
        if session.role == "responder":
            return
        if place == 0:
            await anyio.sleep(RETURN_LAST_S)
            self._returns.pop(member, None)
            return
        while True:
            pause = self._returns.get(member, RETURN_FIRST_S)
            self._returns[member] = min(2 * pause, RETURN_LAST_S)
            await anyio.sleep(pause * (0.75 + self._runtime.jitter() / 2))
            better = [
                address
                for address in self.ranked(self._candidates(member))
                if self._places[self._carriers[scheme(address)]] < place
            ]
            await self._try(tasks, member, session, better)

    # -------------------------------------------------------------------- dialling

    async def _try(
        self, tasks: TaskGroup, member: str, session: Session | None, addresses: list[str]
    ) -> None:
        """Have a new session over the first address that gives one.

        Returns when there is another session than before, or all addresses have failed.
        """
        race = _Race()
        current = self._channel.connections.session

        async def wait_a_moment() -> bool:
            """False when there is no need for more."""
            with anyio.move_on_after(STAGGER_S):
                await race.news.wait()
            race.news = anyio.Event()
            return race.winner is None and current(member) is session

        try:
            for address in addresses:
                race.running += 1
                tasks.start_soon(self._attempt, member, address, race)
                if not await wait_a_moment():
                    return
            while race.running and await wait_a_moment():
                pass
        except anyio.get_cancelled_exc_class():
            # The session that was to be moved is over: all begins anew.
            race.give_up()
            raise

    async def _attempt(self, member: str, address: str, race: _Race) -> None:
        def claim(did: str) -> bool:
            # Somebody else may be there: an address is only what one member said of another.
            return did == member and race.claim(address)

        with anyio.CancelScope() as scope:
            race.attempts[address] = scope
            try:
                await self._dial(address, claim)
            except WalyoffError as error:
                log.info("%s was not reached: %s", member, error)
            except Exception:
                # A bug of ours, that one peer met: it must not end the sessions with others.
                log.exception("a session failed by a fault of this program")
        race.running -= 1
        race.news.set()

    def ranked(self, addresses: Sequence[str]) -> list[str]:
        """The addresses that can be tried here, the best first.

        The best are those of this device's first transport; then come those that one of its
        transports reaches although they are another's.
        """
        order = list(self._carriers)
        known = [address for address in addresses if scheme(address) in self._carriers]
        return sorted(known, key=lambda address: order.index(scheme(address)))


class _Race:
    """Attempts to reach one member over several addresses; one of them wins."""

    def __init__(self) -> None:
        self.attempts: dict[str, anyio.CancelScope] = {}
        self.running = 0
        self.winner: str | None = None
        #: Set when an attempt has failed, or one has won.
        self.news = anyio.Event()

    def claim(self, address: str) -> bool:
        """Whether a session over this address is the first; the others are given up then."""
        if self.winner is not None:
            return False
        self.winner = address
        self.give_up()
        self.news.set()
        return True

    def give_up(self) -> None:
        """End the attempts that did not win."""
        for address, scope in self.attempts.items():
            if address != self.winner:
                scope.cancel()


def given_up(me: str, older: Session, newer: Session) -> Session:
    """Of two sessions with one device, the one to give up; both sides choose alike.

    Who dials although there is a session has a reason, so the newer one is kept, unless both
    sides dialled at once.
    """
    if older.role == newer.role or newer.opened - older.opened > AT_ONCE_S:
        return older
    first = "initiator" if me < newer.did else "responder"
    return older if newer.role == first else newer


def scheme(address: str) -> str:
    """The transport that an address names."""
    return address.partition(":")[0]


def carriers(transports: Sequence[Transport]) -> dict[str, str]:
    """By scheme, the transport here that reaches such addresses; the best come first."""
    found = {transport.name: transport.name for transport in transports}
    for transport in transports:
        for name in bridges(transport):
            found.setdefault(name, transport.name)
    return found


def bridges(transport: Transport) -> Sequence[str]:
    """The transports whose addresses this one reaches as well: its `bridges`, if it has any."""
    found: Sequence[str] = getattr(transport, "bridges", ())
    return found
