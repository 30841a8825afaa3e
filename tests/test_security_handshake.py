"""All ways to mix, drop, repeat and turn round the flights of several handshakes.

Whoever runs the network can give any flight to anybody. Tried here exhaustively, with three
devices that talk in both directions and in both modes: a session comes about only between two
sides that had the very same three flights, and then both mean the same peer, role and channel.
"""

from __future__ import annotations

import itertools
from contextlib import suppress
from dataclasses import dataclass

import pytest

from tests.test_session_handshake import (
    ALICE,
    BOB,
    CAROL,
    PSK,
    Device,
    established,
    initiator,
    presented,
    responder,
    sent,
)
from walyoff.errors import LocalProtocolError, RemoteProtocolError
from walyoff.session import Established, Initiator, Mode, Responder

#: The tag key of an invitation, which is another than the channel's.
INVITED = b"i" * 32


@dataclass(frozen=True)
class Setting:
    """One honest handshake: who dials whom, for what."""

    dials: Device
    answers: Device
    mode: Mode = "member"

    def left(self) -> Initiator:
        if self.mode == "join":
            return initiator(self.dials, mode="join", psk=PSK, tag_key=INVITED)
        return initiator(self.dials)

    def right(self) -> Responder:
        if self.mode == "join":
            return responder(self.answers, psk=PSK, tag_key=INVITED)
        return responder(self.answers)


SETTINGS = (
    Setting(ALICE, BOB),
    Setting(ALICE, BOB),
    Setting(BOB, ALICE),
    Setting(ALICE, CAROL),
    Setting(ALICE, BOB, mode="join"),
)
NUMBERS = range(len(SETTINGS))


def test_flights_of_any_handshakes_do_not_mix() -> None:
    """Flight 1 of handshake `a` to responder `b`, flight 2 to initiator `c`, 3 to `d`."""
    sessions = 0
    for a, b, c, d in itertools.product(NUMBERS, repeat=4):
        lefts = [setting.left() for setting in SETTINGS]
        rights = [setting.right() for setting in SETTINGS]
        firsts = [left.start() for left in lefts]
        try:
            second = sent(rights[b].receive(firsts[a]))
            if d != b:
                rights[d].receive(firsts[d])
            shown = presented(lefts[c].receive(second))
            events = lefts[c].accept()
            mine = established(events)
            rights[d].receive(sent(events))
            theirs = established(rights[d].accept())
        except RemoteProtocolError:
            continue
        sessions += 1
        assert c == a, "an initiator took an answer to another one"
        assert d == b, "a responder took the proof of another handshake"
        # The two may be of different settings only where nothing tells them apart.
        assert SETTINGS[a].mode == SETTINGS[b].mode
        assert shown.encoded == SETTINGS[b].answers.certificate
        agree(mine, theirs)
    # Each handshake with itself; the first two are alike, and Carol and Bob answer as
    # themselves to whoever dials: who answers is what the initiator's judge decides.
    honest = {(a, b) for a in NUMBERS for b in NUMBERS if fits(a, b)}
    assert sessions == len(honest)


def fits(a: int, b: int) -> bool:
    """True if an initiator may end up with a responder: not with itself, in the same mode."""
    one, other = SETTINGS[a], SETTINGS[b]
    return one.mode == other.mode and one.dials is not other.answers


def agree(mine: Established, theirs: Established) -> None:
    """Both have the same keys, and each means the other one."""
    assert mine.keys.session_id == theirs.keys.session_id
    assert mine.peer.certificate.member != theirs.peer.certificate.member


@pytest.mark.parametrize("order", list(itertools.permutations((1, 2, 3))), ids=str)
def test_flights_in_any_other_order_give_no_session(order: tuple[int, ...]) -> None:
    """A network that holds a flight back, sends it twice, or sends a later one first."""
    left, right = SETTINGS[0].left(), SETTINGS[0].right()
    other_left, other_right = SETTINGS[1].left(), SETTINGS[1].right()
    recorded = {1: other_left.start()}
    recorded[2] = sent(other_right.receive(recorded[1]))
    other_left.receive(recorded[2])
    recorded[3] = sent(other_left.accept())
    left.start()
    for number in order:
        for machine in (left, right):
            with suppress(RemoteProtocolError, LocalProtocolError):
                machine.receive(recorded[number])
    for machine in (left, right):
        # Nobody was presented to it, so there is nobody to accept.
        with pytest.raises(LocalProtocolError):
            machine.accept()


def test_every_flight_twice_gives_no_second_session() -> None:
    left, right = SETTINGS[0].left(), SETTINGS[0].right()
    first = left.start()
    second = sent(right.receive(first))
    left.receive(second)
    third = sent(left.accept())
    right.receive(third)
    right.accept()
    for replayed in (first, second, third):
        fresh = SETTINGS[0].right()
        try:
            events = fresh.receive(replayed)
        except RemoteProtocolError:
            continue
        assert replayed is first
        # An answer is not a session: only who holds the ephemeral key can go on.
        with pytest.raises(RemoteProtocolError):
            fresh.receive(third)
        assert events
