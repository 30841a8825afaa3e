"""The pure machine of consent: what follows from a set of statements, in whatever order."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from walyoff.abc import Member
from walyoff.engine.consent import (
    ACTS,
    APPROVE,
    ERASED,
    MAX_REASON,
    PROPOSE,
    REFUSE,
    WITHDRAW,
    Case,
    Judge,
    State,
    Statement,
    Verdict,
    check_reason,
    parse_consent,
    roster,
)
from walyoff.errors import LocalProtocolError, RemoteProtocolError
from walyoff.records import KIND_CONSENT, MAX_TIME_MS, Record

MESSAGE = bytes(range(32))
NAMES = ("a", "b", "c", "d")
Said = tuple[str, int, int, Statement]


def member(did: str, joined_at: int, *, current: bool = True, voice: str = "") -> Member:
    path = (voice,) if voice else ()
    return Member(did=did, pin=bytes(32), current=current, joined_at=joined_at, path=path)


def people(count: int = 3) -> list[Member]:
    return [member(did, at) for at, did in enumerate(NAMES[:count])]


def heard(said: list[Said]) -> Case:
    case = Case()
    for device, seq, time_ms, statement in said:
        case.hear(device, seq, time_ms, statement)
    return case


def story(*lines: tuple[str, str, int]) -> list[Said]:
    """(device, act, memberships that it knew), in order."""
    return [
        (device, at + 1, 1000 + at, Statement(act, MESSAGE, known))
        for at, (device, act, known) in enumerate(lines)
    ]


def judge(
    said: list[Said],
    members: list[Member],
    me: str,
    *,
    author: str | None = "a",
    held: bool = True,
) -> Verdict:
    return Judge(members, me).verdict(heard(said), author=author, held=held)


statements = st.builds(
    Statement,
    st.sampled_from(ACTS),
    st.just(MESSAGE),
    st.integers(0, 6),
    st.sampled_from(["", "because", "x" * 100]),
)


@st.composite
def sets_of_words(draw: st.DrawFn) -> list[Said]:
    """What devices said, each in an order of its own, which its sequence numbers tell."""
    said: list[Said] = []
    for device in NAMES:
        for at in range(draw(st.integers(0, 4))):
            said.append((device, at + 1, draw(st.integers(0, 99)), draw(statements)))
    return said


@st.composite
def memberships(draw: st.DrawFn) -> list[Member]:
    """Some of the names, now or before, alone or as devices of one person."""
    found = []
    for at, did in enumerate(draw(st.permutations(NAMES))):
        voice = draw(st.sampled_from(["", "", "person"]))
        if draw(st.booleans()) or at == 0:
            found.append(member(did, at, current=draw(st.booleans()) or at == 0, voice=voice))
    return found


@given(sets_of_words(), memberships(), st.integers(), st.booleans())
def test_the_order_in_which_statements_come_changes_nothing(
    said: list[Said], members: list[Member], seed: int, held: bool
) -> None:
    expected = [judge(said, members, me, held=held) for me in NAMES]
    shuffled = list(said)
    random.Random(seed).shuffle(shuffled)
    assert [judge(shuffled, members, me, held=held) for me in NAMES] == expected
    assert [judge(shuffled + said, members, me, held=held) for me in NAMES] == expected
    case = heard(said)
    assert Case.decode(case.encode()) == case


@given(sets_of_words(), memberships(), st.booleans())
def test_all_devices_see_the_same_state(
    said: list[Said], members: list[Member], held: bool
) -> None:
    verdicts = [judge(said, members, m.did, held=held) for m in members]
    shown = [replace(v, erase=False, asked=False) for v in verdicts]
    assert all(v == shown[0] for v in shown)


@given(sets_of_words(), memberships())
def test_no_member_destroys_what_it_holds_and_its_person_did_not_agree_to(
    said: list[Said], members: list[Member]
) -> None:
    voices = {m.did: m.voice for m in members}
    for m in members:
        verdict = judge(said, members, m.did)
        agreed = any(
            statement.act in (PROPOSE, APPROVE) and voices.get(device, device) == m.voice
            for device, _, _, statement in said
        )
        if m.current and not agreed:
            assert not verdict.erase


@given(sets_of_words(), sets_of_words(), memberships(), st.integers(0, 6))
def test_what_is_forgotten_by_somebodys_word_stays_so_whatever_is_said_later(
    said: list[Said], more: list[Said], members: list[Member], known: int
) -> None:
    said = [*said, ("a", 50, 50, Statement(ERASED, MESSAGE, known))]
    before = [judge(said, members, m.did) for m in members]
    later = [(d, seq + 100, ms, s) for d, seq, ms, s in more]
    silent = [*said, *later]
    silent += [(name, 500, 500, Statement(WITHDRAW, MESSAGE, 9)) for name in NAMES]
    for m, verdict in zip(members, before, strict=True):
        if verdict.state is State.FORGOTTEN and verdict.members == known:
            after = judge(silent, members, m.did)
            assert after.state is State.FORGOTTEN
            assert after.erase or not verdict.erase


@settings(max_examples=200)
@given(memberships(), st.lists(statements, max_size=6), st.integers(0, 1 << 31))
def test_one_liar_alone_destroys_nothing(
    members: list[Member], lies: list[Statement], known: int
) -> None:
    """Whoever it is, whatever it says of whom it knew."""
    liar = members[0]
    lies = [*lies, Statement(ERASED, MESSAGE, known)]
    said = [(liar.did, at + 1, at, lie) for at, lie in enumerate(lies)]
    for m in members:
        if m.voice != liar.voice and m.current:
            assert not judge(said, members, m.did).erase


def test_all_current_members_have_to_agree() -> None:
    said = story(("a", PROPOSE, 3), ("b", APPROVE, 3))
    verdict = judge(said, people(), "b")
    assert (verdict.state, verdict.waiting, verdict.erase) == (State.OPEN, ("c",), False)
    assert judge(said, people(), "c").asked
    assert not judge(said, people(), "b").asked
    done = judge(said + story(*[("-", REFUSE, 0)] * 2, ("c", APPROVE, 3)), people(), "a")
    assert (done.state, done.erase, done.members) == (State.FORGOTTEN, True, 3)
    assert [word.voice for word in done.agreed] == ["a", "b", "c"]


def test_who_left_does_not_count_and_who_joined_does() -> None:
    said = story(("a", PROPOSE, 3), ("b", APPROVE, 3))
    gone = [*people(2), member("c", 2, current=False)]
    assert judge(said, gone, "a").state is State.FORGOTTEN
    assert judge(said, [*gone, member("d", 3)], "a").waiting == ("d",)
    # The one who left was asked, and all who count agree.
    assert judge(said, gone, "c").erase


def test_of_the_devices_of_a_person_one_answers_and_a_refusal_wins() -> None:
    members = [member("a", 0), member("p1", 1, voice="p"), member("p2", 2, voice="p")]
    said = story(("a", PROPOSE, 3), ("p1", APPROVE, 3))
    assert judge(said, members, "p2").state is State.FORGOTTEN
    both = [*said, ("p2", 1, 1, Statement(REFUSE, MESSAGE, 3))]
    verdict = judge(both, members, "a")
    assert (verdict.state, verdict.waiting) == (State.REFUSED, ("p",))
    taken_back = [*both, ("p2", 2, 2, Statement(WITHDRAW, MESSAGE, 3))]
    assert judge(taken_back, members, "p1").erase
    # A device that is none of the person's any more answers for nobody.
    without = [members[0], member("p1", 1, voice="p", current=False), members[2]]
    assert judge(said, without, "a").waiting == ("p",)


def test_without_a_standing_proposal_nothing_is_open() -> None:
    said = story(("a", PROPOSE, 2), ("b", APPROVE, 2), ("a", WITHDRAW, 2), ("a", APPROVE, 2))
    verdict = judge(said, people(2), "a")
    assert (verdict.state, verdict.erase) == (State.NONE, False)
    assert judge(story(("b", APPROVE, 2)), people(2), "a").state is State.NONE


def test_agreement_that_was_used_is_final() -> None:
    """c saw all agree before a's withdrawal and the newcomer d; the others learn it later."""
    said = story(("a", PROPOSE, 3), ("b", APPROVE, 3), ("c", APPROVE, 3), ("a", WITHDRAW, 4))
    members = people(4)
    assert judge(said, members, "b").state is State.NONE
    used = [*said, ("c", 9, 9, Statement(ERASED, MESSAGE, 3))]
    for me in "abc":
        assert judge(used, members, me).erase
    newcomer = judge(used, members, "d")
    assert (newcomer.state, newcomer.erase, newcomer.asked) == (State.FORGOTTEN, False, True)
    assert judge(used, members, "d", held=False).erase, "it never had it, and never gets it"
    # d agrees: it knew all four, and all of them agreed at some time.
    assert judge([*used, ("d", 1, 1, Statement(APPROVE, MESSAGE, 4))], members, "d").erase


def test_a_word_is_worth_what_those_knew_who_agreed() -> None:
    """b knew of c when it agreed, so a's word that it knew of nobody else is worth nothing."""
    said = story(("a", PROPOSE, 1), ("b", APPROVE, 3), ("a", ERASED, 1))
    assert not judge(said, people(), "b").erase
    assert judge([*said, ("c", 1, 1, Statement(APPROVE, MESSAGE, 3))], people(), "b").erase
    # The author of a message has always to agree, however short a list somebody names.
    said = story(("a", PROPOSE, 1), ("a", ERASED, 1))
    assert not judge(said, people(), "b", author="c", held=False).erase
    assert judge(said, people(), "b", author="c", held=False).state is State.OPEN


def test_reasons_and_rosters() -> None:
    assert roster(people()) == 3
    assert roster([]) == 0
    with pytest.raises(LocalProtocolError):
        check_reason("x" * (MAX_REASON + 1))
    with pytest.raises(LocalProtocolError):
        check_reason("two\nlines")
    full = Statement(PROPOSE, MESSAGE, 7, "ä" * MAX_REASON)
    assert len(full.topics()) == 7
    assert parse_consent(Record(0, KIND_CONSENT, full.topics(), 0, bytes(32))) == full


@given(
    st.integers(0, 5),
    st.lists(st.text(max_size=64), max_size=8),
    st.integers(0, 2),
    st.integers(0, MAX_TIME_MS),
)
def test_any_record_is_a_statement_or_none(
    kind: int, topics: list[str], size: int, time_ms: int
) -> None:
    for given_topics in (topics, ["approve", MESSAGE.hex(), *topics], [*ACTS, *topics]):
        said = parse_consent(Record(time_ms, kind, tuple(given_topics), size, bytes(32)))
        assert said is None or said.topics() == tuple(given_topics)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_case_or_refused(data: bytes) -> None:
    try:
        case = Case.decode(data)
    except RemoteProtocolError:
        return
    assert Case.decode(case.encode()) == case


def test_a_person_joined_when_it_did_and_not_its_devices() -> None:
    """Numbers of nested memberships are large, and say when a device joined its person."""
    links = ((b"x" * 16, 1 << 50), (b"p" * 16, 1))
    device = replace(member("p1", 1 << 61, voice="p"), path=("p1", "p"), links=links)
    members = [member("a", 0), device, member("c", 2)]
    assert roster(members) == 3
    said = story(("a", PROPOSE, 3), ("p1", APPROVE, 3), ("c", APPROVE, 3), ("c", ERASED, 3))
    late = [*members, member("d", 3)]
    assert judge(said, late, "p1").erase
    without = [line for line in said if line[0] != "p1"]
    assert not judge(without, late, "a").erase, "the person was covered by c's word"
