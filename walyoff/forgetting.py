"""Forgetting, as an application uses it: requests, answers, policies, and what became of it.

Decided here: what a policy answers, and how a status is told. Who has to agree is decided in
`walyoff.engine.consent`, what is destroyed and when in `walyoff.engine.forgetting`.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TypeAlias

from walyoff.engine.consent import (
    APPROVE,
    PROPOSE,
    REFUSE,
    WITHDRAW,
    Agreement,
    State,
    Verdict,
    check_reason,
)
from walyoff.engine.forgotten import Forgotten, Subject
from walyoff.errors import LocalProtocolError, NotAMemberError
from walyoff.records import HASH_SIZE, KIND_CONSENT, KIND_REMOVAL, MAX_LIFETIME_MS, MAX_TIME_MS

if TYPE_CHECKING:
    from walyoff.engine.driver import Engine

log = logging.getLogger("walyoff.channel")

#: Policies by name, which are kept. `ask` is what a channel begins with.
ASK = "ask"
AUTO = "auto"
AUTHOR_ONLY = "author-only"
POLICIES = (ASK, AUTO, AUTHOR_ONLY)


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetRequest:
    """A request to forget a message, which this device's person has not answered."""

    #: The message.
    id: bytes
    #: The device that wrote it, and the member that the device speaks for.
    author: str
    author_voice: str
    #: Whose proposals stand, by member.
    proposed: tuple[Agreement, ...]
    reason: str


#: A callable policy answers True (approve), False (refuse) or None (ask the person).
Decide: TypeAlias = Callable[[ForgetRequest], "bool | Awaitable[bool | None] | None"]
Policy: TypeAlias = "str | Decide"


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetStatus:
    """How far the forgetting of one message is."""

    id: bytes
    state: State
    reason: str
    proposed: tuple[Agreement, ...]
    #: The first agreement of each member, in order of time.
    agreed: tuple[Agreement, ...]
    refused: tuple[Agreement, ...]
    #: Members whose agreement is missing.
    waiting: tuple[str, ...]
    #: True if this device's own copy is destroyed.
    erased_here: bool
    #: Devices that said that their copy is destroyed: it is their word.
    erased: tuple[Agreement, ...]
    #: Devices of members that have not said so yet.
    not_yet: tuple[str, ...]
    #: Devices that are not members any more, and have not said so. They hold the requests that
    #: were made before they left; nobody can force them, or see what they do.
    cannot_be_forced: tuple[str, ...]
    #: When it is forgotten by itself, if it was sent for a time.
    expires: datetime | None


class ForgetRequests(AsyncIterator[ForgetRequest]):
    """Requests that wait for this device's person: those of now, then new ones, for ever.

    Each comes once, and again if somebody else proposes the same message too.
    """

    def __init__(self, api: ForgettingApi) -> None:
        self._api = api
        self._given: dict[bytes, ForgetRequest] = {}

    def __aiter__(self) -> ForgetRequests:
        return self

    async def __anext__(self) -> ForgetRequest:
        while True:
            waiting = await self._api.forget_waiting()
            ids = {request.id for request in waiting}
            self._given = {i: r for i, r in self._given.items() if i in ids}
            for request in waiting:
                if self._given.get(request.id) != request:
                    self._given[request.id] = request
                    return request
            await self._api.forgetting_engine.changed()


@dataclass(slots=True)
class _Chosen:
    name: str = ASK
    decide: Decide | None = None
    #: Requests that a callable left to the person: it is not called for them again.
    left: set[tuple[bytes, tuple[Agreement, ...]]] = field(default_factory=set)


class ForgettingApi:
    """What a channel offers about forgetting. A part of `walyoff.Channel`."""

    _engine: Engine

    def __init__(self) -> None:
        self._chosen = _Chosen()

    @property
    def forgetting_engine(self) -> Engine:
        """For the streams of this module."""
        return self._engine

    async def forget(self, message_id: bytes, *, reason: str = "") -> None:
        """Ask all members to forget a message, and agree to it; durable when it returns.

        When every member agrees, each device destroys its copy for good; the record stays, with
        who agreed and when. The reason stays with it: at most 256 printable characters.

        Raises:
            LocalProtocolError: there is no such message here, it is forgotten already, or the
                reason breaks a rule.
            NotAMemberError: this device was removed from the identity.
            StoreError: it could not be stored; nothing was said.
        """
        await self._say(PROPOSE, message_id, reason)

    async def approve(self, message_id: bytes) -> None:
        """Agree that a message is forgotten. Raises as `forget`, and if nobody asks for it."""
        await self._say(APPROVE, message_id)

    async def refuse(self, message_id: bytes) -> None:
        """Do not agree, until this device withdraws or approves. Raises as `approve`."""
        await self._say(REFUSE, message_id)

    async def withdraw(self, message_id: bytes) -> None:
        """Take back what this device said. It may be too late: see `forget_status`.

        Raises as `forget`, and if this device has said nothing.
        """
        await self._say(WITHDRAW, message_id)

    async def _say(self, act: str, message_id: bytes, reason: str = "") -> None:
        engine = self._engine
        check_reason(reason)
        subject, verdict = await self._look(message_id)
        if act == APPROVE and not engine.trust.is_member(engine.me):
            # It counts for nobody else any more; but it can do for itself what it is asked.
            await engine.forgetting.destroy_here(message_id)
            return
        if not engine.trust.is_member(engine.me):
            raise NotAMemberError("this device is not a member of the channel any more")
        if verdict.state is State.FORGOTTEN and (verdict.erase or act in (REFUSE, WITHDRAW)):
            raise LocalProtocolError(f"{_name(message_id)} is forgotten: all members agreed")
        if subject.entry is not None and subject.entry.forgotten:
            raise LocalProtocolError(f"{_name(message_id)} is forgotten: its time was over")
        if act in (APPROVE, REFUSE) and not (verdict.proposed or verdict.asked):
            raise LocalProtocolError(f"nobody asks to forget {_name(message_id)}: propose it")
        if act == WITHDRAW and not await engine.forgetting.has_answered(message_id):
            raise LocalProtocolError(
                f"this device said nothing about {_name(message_id)}: refuse it instead"
            )
        await engine.forgetting.say(act, message_id, reason)

    async def _look(self, message_id: bytes) -> tuple[Subject, Verdict]:
        if len(message_id) != HASH_SIZE:
            raise LocalProtocolError(f"a message's id has {HASH_SIZE} bytes")
        subject, verdict = await self._engine.forgetting.verdict(message_id)
        if subject.record is None or subject.record.kind in (KIND_REMOVAL, KIND_CONSENT):
            raise LocalProtocolError(f"there is no message {_name(message_id)} here")
        return subject, verdict

    def forget_requests(self) -> ForgetRequests:
        """Requests of others that this device's person has not answered, as they come."""
        return ForgetRequests(self)

    async def forget_waiting(self) -> list[ForgetRequest]:
        """The requests of now that this device's person has not answered."""
        engine = self._engine
        found: list[ForgetRequest] = []
        for message_id, verdict in list(engine.forgetting.verdicts.items()):
            if not verdict.asked:
                continue
            subject = await engine.forgetting.subject(message_id)
            if subject.entry is not None:
                found.append(self._request(message_id, subject, verdict))
        return found

    async def forget_status(self, message_id: bytes) -> ForgetStatus:
        """Who agreed, who did not, and which devices have destroyed their copies.

        Raises:
            LocalProtocolError: there is no such message here.
        """
        subject, verdict = await self._look(message_id)
        engine = self._engine
        members = engine.trust.identity.membership.members
        erased_here = subject.entry is not None and subject.entry.forgotten
        expires, state = None, verdict.state
        if subject.record is not None and subject.record.lifetime_ms:
            expires = _time(subject.record.time_ms + subject.record.lifetime_ms)
            if erased_here and state is not State.FORGOTTEN:
                state = State.EXPIRED
        said = {word.device for word in verdict.erased}
        silent = [m for m in members if m.did not in said]
        asked = state is not State.NONE
        return ForgetStatus(
            id=message_id,
            state=state,
            reason=verdict.reason,
            proposed=verdict.proposed,
            agreed=verdict.agreed,
            refused=verdict.refused,
            waiting=() if state is State.EXPIRED else verdict.waiting,
            erased_here=erased_here,
            erased=verdict.erased,
            not_yet=tuple(m.did for m in silent if m.current)
            if state is State.FORGOTTEN
            else (),
            cannot_be_forced=tuple(m.did for m in silent if not m.current) if asked else (),
            expires=expires,
        )

    # --------------------------------------------------------------------- policies

    async def set_forget_policy(self, policy: Policy) -> None:
        """Who answers requests on this device; kept, unless it is a callable.

        `ask` leaves them to `approve` and `refuse`; `auto` approves; `author-only` approves
        what the author of a message proposes, and asks about the rest. A callable gets each
        request and answers True, False or None (ask), at once or when awaited; it must be set
        again in each run, and until then it is `ask`.

        Raises:
            LocalProtocolError: there is no such policy.
            StoreError: it could not be stored.
        """
        engine = self._engine
        if isinstance(policy, str):
            if policy not in POLICIES:
                raise LocalProtocolError(f"a policy is one of {', '.join(POLICIES)}")
            chosen = _Chosen(policy)
        else:
            chosen = _Chosen(ASK, policy)
        await engine.trust.store.put({self._policy_key: chosen.name.encode()})
        self._chosen = chosen
        engine.forgetting.policy_changed()

    @property
    def forget_policy(self) -> Policy:
        """The policy of this device."""
        return self._chosen.decide or self._chosen.name

    @property
    def _policy_key(self) -> str:
        return f"forget-policy/{self._engine.channel}"

    async def restore_forget_policy(self) -> None:
        """Take up the policy of an earlier run, and answer by it from now on."""
        value = await self._engine.trust.store.get(self._policy_key)
        name = (value or b"").decode("ascii", "replace")
        self._chosen = _Chosen(name if name in POLICIES else ASK)
        self._engine.forgetting.answer = self._answer
        self._engine.forgetting.policy_changed()

    async def _answer(
        self, message_id: bytes, subject: Subject, verdict: Verdict
    ) -> str | None:
        chosen = self._chosen
        request = self._request(message_id, subject, verdict)
        if chosen.decide is not None:
            if (message_id, request.proposed) in chosen.left:
                return None
            try:
                answer = chosen.decide(request)
                if inspect.isawaitable(answer):
                    answer = await answer
            except Exception:
                # It is the application's: what it breaks is its answer, not the channel.
                log.exception("the policy failed on %s: the person is asked", _name(message_id))
                answer = None
            if answer is None:
                chosen.left.add((message_id, request.proposed))
                return None
            return APPROVE if answer else REFUSE
        by_author = any(word.voice == request.author_voice for word in request.proposed)
        if chosen.name == AUTO or (chosen.name == AUTHOR_ONLY and by_author):
            return APPROVE
        return None

    def _request(self, message_id: bytes, subject: Subject, verdict: Verdict) -> ForgetRequest:
        author = subject.author or ""
        return ForgetRequest(
            id=message_id,
            author=author,
            author_voice=self._engine.forgetting.voice(author),
            proposed=verdict.proposed,
            reason=verdict.reason,
        )


def lifetime_ms(forget_after: timedelta | None) -> int:
    """How long a message lives, for its record; 0 for ever. Raises LocalProtocolError."""
    if forget_after is None:
        return 0
    value = forget_after // timedelta(milliseconds=1)
    if not 1 <= value <= MAX_LIFETIME_MS:
        raise LocalProtocolError(
            "a message is forgotten after a millisecond to a hundred years"
        )
    return value


def _time(time_ms: int) -> datetime:
    return datetime.fromtimestamp(min(time_ms, MAX_TIME_MS) / 1000, UTC)


def _name(message_id: bytes) -> str:
    return f"message {message_id[:8].hex()}"


__all__ = [
    "POLICIES",
    "Agreement",
    "ForgetRequest",
    "ForgetRequests",
    "ForgetStatus",
    "ForgettingApi",
    "Forgotten",
    "lifetime_ms",
]
