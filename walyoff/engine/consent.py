"""Who agrees to forget a message, and when all have: from what was said to what is to be done.

Decided here, and nowhere else: whether a message is forgotten, whom it waits for, and whether
this device has to destroy it. Never done here: I/O, waiting, reading a clock. A verdict follows
from the *set* of statements and from the membership, never from the order in which they came.

Devices speak by statements: records without content, signed and anchored like all others.

    propose   the author asks all members to forget a message, and agrees itself
    approve   the author agrees
    refuse    the author does not agree
    withdraw  the author takes back what it said before
    erased    the author has destroyed its copy, because all whom it knew as members had agreed

**Persons.** A member counts once, by its voice (`walyoff.abc.Member.voice`), whichever of its
devices speaks. Of one device its newest statement counts. Of several devices of a person any
refusal wins, until that device withdraws it; else any agreement is the person's.

**All agree** when somebody's proposal stands and every voice of now agrees. A member who left
does not count, one who joined does.

**Agreement that was used is final.** Devices see things in different orders: one may have seen
all agree, and destroyed its copy, before it heard of a newcomer or of a withdrawal. It says so
(`erased`), with how many memberships it knew. Another device takes its word only if this holds:
the author of the message, if it is a member, has agreed at some time; so has every member whom
the word covers; and so has every member whom any of those knew when it agreed. So a liar can
shorten the list only by those who came after everybody else's agreement.

**No device destroys a content that it holds unless its own person agreed** at some time, as
long as that person is a member. A newcomer whom the others did not know is asked like anybody.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from walyoff.abc import Member
from walyoff.errors import LocalProtocolError
from walyoff.records import (
    HASH_SIZE,
    KIND_CONSENT,
    MAX_TIME_MS,
    MAX_TOPIC_CHARS,
    MAX_TOPICS,
    Record,
)
from walyoff.wire import MAX_DID, expect_array, expect_int, expect_str, pack, unpack

PROPOSE: Final = "propose"
APPROVE: Final = "approve"
REFUSE: Final = "refuse"
WITHDRAW: Final = "withdraw"
ERASED: Final = "erased"
ACTS: Final = (PROPOSE, APPROVE, REFUSE, WITHDRAW, ERASED)
_AGREES = (PROPOSE, APPROVE)

#: A reason is in topics of the record, so it is metadata, and stays for ever.
MAX_REASON = 256
#: A count that a store takes.
_MAX_MEMBERS = 1 << 62
#: What is kept of one case: what one value of the store holds.
_MAX_CASE = 8 * 2**20
#: Devices that spoke of one message: as many as a vector of a channel names.
_MAX_DEVICES = 4096


@dataclass(frozen=True, slots=True)
class Statement:
    """What a device says about one message."""

    act: str
    message: bytes
    #: How many memberships its author knew of: one more than the newest `Member.joined_at`.
    members: int
    reason: str = ""

    def topics(self) -> tuple[str, ...]:
        """As the topics of a record."""
        parts = [
            self.reason[at : at + MAX_TOPIC_CHARS]
            for at in range(0, len(self.reason), MAX_TOPIC_CHARS)
        ]
        return (self.act, self.message.hex(), str(self.members), *parts)


def check_reason(reason: str) -> str:
    """Raise LocalProtocolError unless it can be the reason of a statement."""
    if len(reason) > MAX_REASON or (reason and not reason.isprintable()):
        raise LocalProtocolError(f"a reason has at most {MAX_REASON} printable characters")
    return reason


def parse(kind: int, topics: Sequence[str], size: int) -> Statement | None:
    """The statement of these topics; None if there is none, or a malformed one."""
    if kind != KIND_CONSENT or not 3 <= len(topics) <= MAX_TOPICS or size:
        return None
    act, message, members = topics[:3]
    if act not in ACTS or not (members.isascii() and members.isdigit()):
        return None
    try:
        found = Statement(act, bytes.fromhex(message), int(members), "".join(topics[3:]))
    except ValueError:
        return None
    if found.topics() != tuple(topics) or len(found.message) != HASH_SIZE:
        return None
    if found.members > _MAX_MEMBERS or len(found.reason) > MAX_REASON:
        return None
    return found


def parse_consent(record: Record) -> Statement | None:
    """The statement that a record makes; None if it makes none, or a malformed one."""
    return parse(record.kind, record.topics, record.size)


def roster(members: Iterable[Member]) -> int:
    """How many memberships there were, as far as a device knows: what its statements name."""
    return max((_joined(member) + 1 for member in members), default=0)


def _joined(member: Member) -> int:
    """When the direct member joined that a device speaks for: which membership it was."""
    return member.links[-1][1] if member.links else member.joined_at


@dataclass(slots=True, kw_only=True)
class Word:
    """What one device has said about one message. Sequence numbers are 0 for never."""

    #: Its newest proposal, approval, refusal or withdrawal.
    seq: int = 0
    act: str = WITHDRAW
    time_ms: int = 0
    reason: str = ""
    #: Its first agreement, and the fewest memberships that it knew when it agreed.
    agreed_seq: int = 0
    agreed_ms: int = 0
    agreed_members: int = 0
    #: Its first word that it has erased, and the fewest memberships of such words.
    erased_seq: int = 0
    erased_ms: int = 0
    erased_members: int = 0

    def hear(self, seq: int, time_ms: int, said: Statement) -> None:
        """Take one statement; in any order, and any number of times."""
        if said.act == ERASED:
            before = self.erased_members if self.erased_seq else said.members
            self.erased_members = min(before, said.members)
            if not self.erased_seq or seq < self.erased_seq:
                self.erased_seq, self.erased_ms = seq, time_ms
            return
        if seq > self.seq:
            self.seq, self.act, self.time_ms, self.reason = seq, said.act, time_ms, said.reason
        if said.act in _AGREES:
            before = self.agreed_members if self.agreed_seq else said.members
            self.agreed_members = min(before, said.members)
            if not self.agreed_seq or seq < self.agreed_seq:
                self.agreed_seq, self.agreed_ms = seq, time_ms

    def row(self) -> list[Any]:
        """For the store."""
        return [
            *(self.seq, self.act, self.time_ms, self.reason),
            *(self.agreed_seq, self.agreed_ms, self.agreed_members),
            *(self.erased_seq, self.erased_ms, self.erased_members),
        ]


class State(Enum):
    """How far a request is."""

    #: Nobody asks for it, or not any more.
    NONE = "none"
    #: It waits for somebody's answer.
    OPEN = "open"
    #: Somebody said no.
    REFUSED = "refused"
    #: All agreed: it is forgotten for good.
    FORGOTTEN = "forgotten"
    #: Its author sent it for a time, which is over.
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """One device's word, by its person."""

    voice: str
    device: str
    #: By that device's clock.
    time_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What follows from what was said about one message."""

    state: State
    #: This device has to destroy its copy.
    erase: bool
    #: This device's person has not answered a request that stands.
    asked: bool
    #: How many memberships the decision covers: what an `erased` of this device names.
    members: int
    reason: str
    #: Whose proposals stand; who agreed at some time; who refuses; whom it waits for; whose
    #: devices said that they have erased.
    proposed: tuple[Agreement, ...]
    agreed: tuple[Agreement, ...]
    refused: tuple[Agreement, ...]
    waiting: tuple[str, ...]
    erased: tuple[Agreement, ...]


@dataclass(slots=True)
class Case:
    """All that was said about one message, by device."""

    words: dict[str, Word] = field(default_factory=dict)

    def hear(self, device: str, seq: int, time_ms: int, said: Statement) -> None:
        """A member's statement, from an accepted record."""
        if device in self.words or len(self.words) < _MAX_DEVICES:
            self.words.setdefault(device, Word()).hear(seq, time_ms, said)

    def encode(self) -> bytes:
        """For the store."""
        return pack([[device, word.row()] for device, word in self.words.items()])

    @classmethod
    def decode(cls, data: bytes) -> Case:
        """From the store. Raises RemoteProtocolError if it is damaged."""
        case = cls()
        rows = unpack(data, _MAX_CASE)
        for row in expect_array(rows, len(rows) if isinstance(rows, list) else 0, "case"):
            device, values = expect_array(row, 2, "word")
            case.words[expect_str(device, "device", limit=MAX_DID)] = _word(values)
        return case

    def erased_by(self, device: str) -> bool:
        """True if a device said that it has destroyed its copy."""
        word = self.words.get(device)
        return word is not None and word.erased_seq > 0


def _word(values: object) -> Word:
    row = expect_array(values, 10, "word")
    seq, act, time_ms, reason, *numbers = row
    checked = [expect_int(number, "word", high=MAX_TIME_MS << 16) for number in numbers]
    return Word(
        seq=expect_int(seq, "sequence"),
        act=expect_str(act, "act", limit=16),
        time_ms=expect_int(time_ms, "time", high=MAX_TIME_MS),
        reason=expect_str(reason, "reason", limit=MAX_REASON),
        agreed_seq=checked[0],
        agreed_ms=checked[1],
        agreed_members=checked[2],
        erased_seq=checked[3],
        erased_ms=checked[4],
        erased_members=checked[5],
    )


class Judge:
    """The membership of one moment, and verdicts under it."""

    def __init__(self, members: Sequence[Member], me: str) -> None:
        self._me = me
        self._voices = {member.did: member.voice for member in members}
        #: The voices of now, each with when it joined and its devices.
        self._joined: dict[str, int] = {}
        self._devices: dict[str, list[str]] = {}
        for member in members:
            if member.current:
                first = self._joined.get(member.voice, _joined(member))
                self._joined[member.voice] = min(first, _joined(member))
                self._devices.setdefault(member.voice, []).append(member.did)
        self._roster = roster(members)
        self._current = any(member.did == me and member.current for member in members)

    def voice(self, device: str) -> str:
        """The person that a device speaks for."""
        return self._voices.get(device, device)

    def verdict(self, case: Case, *, author: str | None, held: bool) -> Verdict:
        """What follows for this device.

        `author` is the device that wrote the message, None while its record is unknown;
        `held` says whether this device holds the content.
        """
        stances = {voice: self._stance(case, voice) for voice in self._joined}
        proposed = [d for d, word in case.words.items() if word.act == PROPOSE and word.seq]
        agree = bool(stances) and all(stance in _AGREES for stance in stances.values())
        standing = bool(proposed) and agree
        covered = self._covered(case, author)
        forgotten = standing or covered is not None
        me = self.voice(self._me)
        mine = self._first_agreement(case, me)
        agreed = mine is not None
        if self._current:
            # By another's word only as far as this person's own agreement went.
            own = not held if mine is None else True
            word = covered is not None and own
            if covered is not None and mine is not None:
                word = self._holds(case, author, max(covered, mine))
            erase = standing or word
        else:
            # Nobody counts this device any more, and nobody can tell it of the end.
            erase = forgotten or agreed
        refused = [d for voice in stances for d in self._saying(case, voice, REFUSE)]
        if forgotten:
            state = State.FORGOTTEN
        elif not proposed:
            state = State.NONE
        else:
            state = State.REFUSED if refused else State.OPEN
        stance = stances.get(me) if self._current else None
        return Verdict(
            state=state,
            erase=erase,
            asked=bool(proposed or covered is not None)
            and not erase
            and stance is None
            and not any(word.act == WITHDRAW and word.seq for word in self._mine(case, me)),
            members=self._roster if standing or covered is None else covered,
            reason=self._reason(case, proposed),
            proposed=self._words(case, proposed),
            agreed=self._agreements(case),
            refused=self._words(case, refused),
            waiting=tuple(v for v, s in stances.items() if s not in _AGREES)
            if not forgotten
            else (),
            erased=tuple(
                Agreement(voice=self.voice(d), device=d, time_ms=word.erased_ms)
                for d, word in sorted(case.words.items())
                if word.erased_seq
            ),
        )

    def _mine(self, case: Case, voice: str) -> list[Word]:
        return [word for device, word in case.words.items() if self.voice(device) == voice]

    def _saying(self, case: Case, voice: str, act: str) -> list[str]:
        return [d for d in self._devices[voice] if d in case.words and case.words[d].act == act]

    def _stance(self, case: Case, voice: str) -> str | None:
        """What a person of now says: REFUSE, an agreement, or None."""
        if self._saying(case, voice, REFUSE):
            return REFUSE
        for act in _AGREES:
            if self._saying(case, voice, act):
                return act
        return None

    def _first_agreement(self, case: Case, voice: str) -> int | None:
        """The fewest memberships that a person knew when it agreed; None if it never did."""
        known = [word.agreed_members for word in self._mine(case, voice) if word.agreed_seq]
        return min(known, default=None)

    def _covered(self, case: Case, author: str | None) -> int | None:
        """The memberships of the best word that somebody has erased, if one holds."""
        words = {w.erased_members for w in case.words.values() if w.erased_seq}
        return next((n for n in sorted(words) if self._holds(case, author, n)), None)

    def _holds(self, case: Case, author: str | None, members: int) -> bool:
        """True if everybody agreed whom a word covers, and whom any of those knew."""
        if author is None:
            return False
        while True:
            required = {voice for voice, joined in self._joined.items() if joined < members}
            writer = self.voice(author)
            if writer in self._joined:
                required.add(writer)
            known = members
            for voice in required:
                first = self._first_agreement(case, voice)
                if first is None:
                    return False
                known = max(known, first)
            if known == members:
                return True
            members = known

    def _agreements(self, case: Case) -> tuple[Agreement, ...]:
        """The first agreement of each person that ever agreed."""
        first: dict[str, Agreement] = {}
        order = sorted(case.words.items(), key=lambda item: (item[1].agreed_ms, item[0]))
        for device, word in order:
            if word.agreed_seq:
                voice = self.voice(device)
                first.setdefault(
                    voice, Agreement(voice=voice, device=device, time_ms=word.agreed_ms)
                )
        return tuple(first.values())

    def _words(self, case: Case, devices: Iterable[str]) -> tuple[Agreement, ...]:
        return tuple(
            Agreement(voice=self.voice(d), device=d, time_ms=case.words[d].time_ms)
            for d in sorted(devices)
        )

    def _reason(self, case: Case, proposed: Iterable[str]) -> str:
        given = [case.words[d] for d in proposed if case.words[d].reason]
        if not given:
            given = [w for w in case.words.values() if w.act in _AGREES and w.reason]
        return min(given, key=lambda word: (word.time_ms, word.reason)).reason if given else ""


__all__ = [
    "ACTS",
    "APPROVE",
    "ERASED",
    "MAX_REASON",
    "PROPOSE",
    "REFUSE",
    "WITHDRAW",
    "Agreement",
    "Case",
    "Judge",
    "State",
    "Statement",
    "Verdict",
    "check_reason",
    "parse",
    "parse_consent",
    "roster",
]
