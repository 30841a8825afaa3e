"""The handshake: who gets a session, and that nothing else gives one."""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from walyoff_codecs.classic1 import Classic1
from walyoff_codecs.hybrid1 import Hybrid1

from walyoff.abc import Cipher, SignKey
from walyoff.certificates import Certificate, encode
from walyoff.errors import LocalProtocolError, RemoteProtocolError, UnknownSuiteError
from walyoff.session import (
    REFUSAL,
    Established,
    Event,
    HandshakeContext,
    Initiator,
    Mode,
    PeerPresented,
    Responder,
    SecureChannel,
    Send,
    blinded_tag,
    handshake,
)
from walyoff.session.flights import (
    MAX_MESSAGE,
    Answer,
    Hello,
    decode_answer,
    decode_hello,
    decode_proof,
    encode_answer,
    encode_hello,
    frame,
)
from walyoff.session.handshake import MAX_EARLY
from walyoff.wire import pack, unpack

CHANNEL = "did:walytis:channel"
TAG_KEY = b"t" * 32
PSK = b"p" * 32
SUITES: dict[str, Cipher] = {"hybrid-1": Hybrid1(), "classic-1": Classic1()}
BOTH = ("hybrid-1", "classic-1")


def cipher_for(name: str) -> Cipher:
    if name not in SUITES:
        raise UnknownSuiteError(name, list(SUITES))
    return SUITES[name]


@dataclass(frozen=True)
class Device:
    sign_key: SignKey
    certificate: bytes

    def context(self, channel: str = CHANNEL, psk: bytes | None = None) -> HandshakeContext:
        return HandshakeContext(
            channel=channel, sign_key=self.sign_key, certificate=self.certificate, psk=psk
        )


def device(member: str, suite: str = "classic-1", channel: str = CHANNEL) -> Device:
    cipher = SUITES[suite]
    sign_key = cipher.new_sign_key()
    certificate = Certificate(
        channel=channel,
        member=member,
        suite=suite,
        key_types=cipher.key_types,
        sign_public=sign_key.public,
        seal_public=cipher.new_seal_key().public,
        not_before_ms=0,
        not_after_ms=1,
    )
    return Device(sign_key, encode(certificate, b"member signature"))


ALICE = device("did:walytis:alice")
BOB = device("did:walytis:bob")
CAROL = device("did:walytis:carol")


def initiator(
    who: Device = ALICE,
    *,
    suites: Sequence[str] = ("classic-1",),
    mode: Mode = "member",
    tag_key: bytes = TAG_KEY,
    psk: bytes | None = None,
    channel: str = CHANNEL,
    ciphers: Callable[[str], Cipher] = cipher_for,
) -> Initiator:
    return Initiator(
        cipher_for=ciphers,
        suites=suites,
        mode=mode,
        tag_key=tag_key,
        context=who.context(channel, psk),
        random=os.urandom,
    )


def responder(
    who: Device = BOB,
    *,
    suites: Sequence[str] = BOTH,
    tag_key: bytes = TAG_KEY,
    psk: bytes | None = None,
    channel: str = CHANNEL,
) -> Responder:
    def find_tag(mode: Mode, ephemeral: bytes, tag: bytes) -> HandshakeContext | None:
        if hmac.compare_digest(tag, blinded_tag(tag_key, mode, ephemeral)):
            return who.context(channel, psk)
        return None

    return Responder(cipher_for=cipher_for, suites=suites, find_tag=find_tag, random=os.urandom)


def sent(events: Sequence[Event]) -> bytes:
    (event,) = [event for event in events if isinstance(event, Send)]
    return event.data


def established(events: Sequence[Event]) -> Established:
    (event,) = [event for event in events if isinstance(event, Established)]
    return event


def presented(events: Sequence[Event]) -> PeerPresented:
    (event,) = [event for event in events if isinstance(event, PeerPresented)]
    return event


def run(left: Initiator, right: Responder) -> tuple[Established, Established]:
    flight_2 = sent(right.receive(left.start()))
    presented(left.receive(flight_2))
    events = left.accept()
    presented(right.receive(sent(events)))
    return established(events), established(right.accept())


def rejected(error: pytest.ExceptionInfo[RemoteProtocolError], *reasons: str) -> None:
    assert error.value.reason in reasons


# ------------------------------------------------------------------------ the good way


@pytest.mark.parametrize("suite", BOTH)
def test_two_members_get_the_same_keys_and_each_others_certificates(suite: str) -> None:
    alice, bob = device("did:a", suite), device("did:b", suite)
    left, right = run(initiator(alice, suites=[suite]), responder(bob))
    assert left.keys.initiator_key == right.keys.initiator_key
    assert left.keys.responder_key == right.keys.responder_key
    assert left.keys.initiator_key != left.keys.responder_key
    assert left.keys.session_id == right.keys.session_id
    assert left.keys.cipher.name == suite
    assert left.peer.certificate.member == "did:b"
    assert right.peer.certificate.member == "did:a"
    one, two = SecureChannel(left.keys, "initiator"), SecureChannel(right.keys, "responder")
    assert two.feed(one.seal([b"hello"])) == [b"hello"]
    assert one.feed(two.seal([b"welcome"])) == [b"welcome"]


def test_a_joining_device_shows_a_certificate_of_its_own() -> None:
    joiner = device("did:walytis:new", channel="")
    left, right = run(initiator(joiner, mode="join", psk=PSK), responder(psk=PSK))
    assert left.keys.initiator_key == right.keys.initiator_key
    assert right.peer.certificate.channel == ""


def test_no_two_sessions_share_keys() -> None:
    first, _ = run(initiator(), responder())
    second, _ = run(initiator(), responder())
    assert first.keys.initiator_key != second.keys.initiator_key
    assert first.keys.session_id != second.keys.session_id


def test_flights_may_come_byte_by_byte_and_records_right_behind() -> None:
    left, right = initiator(), responder()
    flight_2 = b""
    for octet in left.start():
        for event in right.receive(bytes([octet])):
            assert isinstance(event, Send)
            flight_2 += event.data
    for octet in flight_2[:-1]:
        assert left.receive(bytes([octet])) == []
    presented(left.receive(flight_2[-1:]))
    events = left.accept()
    early = SecureChannel(established(events).keys, "initiator").seal([b"early"])
    presented(right.receive(sent(events) + early[:3]))
    assert right.receive(early[3:]) == []
    done = established(right.accept())
    assert SecureChannel(done.keys, "responder").feed(done.leftover) == [b"early"]


def test_the_responder_takes_the_first_suite_that_both_know() -> None:
    left = initiator(suites=["classic-1", "future-9", "hybrid-1"])
    done, _ = run(left, responder())
    assert done.keys.cipher.name == "classic-1"


# ------------------------------------------------------------------------------ privacy


def test_the_wire_shows_no_channel_and_no_identity() -> None:
    left, right = initiator(), responder()
    flight_1 = left.start()
    flight_2 = sent(right.receive(flight_1))
    left.receive(flight_2)
    wire = flight_1 + flight_2 + sent(left.accept())
    for text in (CHANNEL.encode(), b"did:", ALICE.sign_key.public, BOB.sign_key.public):
        assert text not in wire


def test_secrets_never_print() -> None:
    context = ALICE.context(psk=PSK)
    left, right = run(initiator(psk=PSK), responder(psk=PSK))
    machine = initiator(psk=PSK)
    machine.start()
    shown = repr((context, left, right, machine, left.keys)) + repr(machine)
    for secret in (PSK, TAG_KEY, left.keys.initiator_key, left.keys.responder_key):
        assert repr(secret)[2:-1] not in shown
        assert secret.hex() not in shown


def test_a_tag_means_nothing_without_the_key_and_fits_one_ephemeral_key() -> None:
    tag = blinded_tag(TAG_KEY, "member", b"e" * 32)
    assert tag != blinded_tag(b"u" * 32, "member", b"e" * 32)
    assert tag != blinded_tag(TAG_KEY, "member", b"f" * 32)
    assert tag != blinded_tag(TAG_KEY, "join", b"e" * 32)


def test_every_refusal_is_the_same_bytes() -> None:
    left, right = initiator(), responder()
    flight_2 = sent(right.receive(left.start()))
    left.receive(flight_2)
    assert sent(left.refuse()) == REFUSAL == b"\x00\x00\x00\x01\x00"
    assert sent(responder().refuse()) == REFUSAL
    with pytest.raises(RemoteProtocolError) as error:
        right.receive(REFUSAL)
    rejected(error, "refused")


# ----------------------------------------------------------------------- what is refused


def test_a_wrong_tag_key_is_refused_before_anything_is_computed() -> None:
    with pytest.raises(RemoteProtocolError) as error:
        responder().receive(initiator(tag_key=b"x" * 32).start())
    rejected(error, "unknown-tag")


@pytest.mark.parametrize(("ours", "theirs"), [(PSK, b"q" * 32), (PSK, None), (None, PSK)])
def test_a_wrong_pre_shared_secret_reads_nothing(
    ours: bytes | None, theirs: bytes | None
) -> None:
    left, right = initiator(psk=ours), responder(psk=theirs)
    with pytest.raises(RemoteProtocolError) as error:
        left.receive(sent(right.receive(left.start())))
    rejected(error, "forged")


def test_another_channel_under_the_same_tag_key_is_refused() -> None:
    left, right = initiator(), responder(channel="did:walytis:other")
    with pytest.raises(RemoteProtocolError) as error:
        left.receive(sent(right.receive(left.start())))
    rejected(error, "forged")


def test_a_certificate_of_another_channel_is_refused() -> None:
    stranger = device("did:walytis:mallory", channel="did:walytis:other")
    left, right = initiator(), responder(stranger)
    with pytest.raises(RemoteProtocolError) as error:
        left.receive(sent(right.receive(left.start())))
    rejected(error, "channel")


def test_joining_without_the_invitations_secret_is_the_callers_bug() -> None:
    with pytest.raises(LocalProtocolError):
        initiator(mode="join")


def test_a_certificate_for_which_the_key_is_missing_is_the_callers_bug() -> None:
    thief = Device(CAROL.sign_key, BOB.certificate)
    with pytest.raises(LocalProtocolError):
        initiator(thief)


class _Lying:
    """A sign key that claims another's public key."""

    def __init__(self, real: SignKey, public: bytes) -> None:
        self._real = real
        self.public = public

    def sign(self, message: bytes) -> bytes:
        return self._real.sign(message)

    def secret(self) -> bytes:
        return self._real.secret()


def test_a_stolen_certificate_without_its_key_is_refused_on_both_sides() -> None:
    thief = Device(_Lying(CAROL.sign_key, BOB.sign_key.public), BOB.certificate)
    # Refused before anybody is asked about it: nobody is presented.
    left, right = initiator(), responder(thief)
    with pytest.raises(RemoteProtocolError) as error:
        left.receive(sent(right.receive(left.start())))
    rejected(error, "forged")

    left, right = initiator(thief), responder(CAROL)
    left.receive(sent(right.receive(left.start())))
    with pytest.raises(RemoteProtocolError) as error:
        right.receive(sent(left.accept()))
    rejected(error, "forged")


def test_nobody_learns_from_a_refusal_whose_certificate_it_showed() -> None:
    """Who dials does the same work before it refuses its own certificate or another's."""
    work: list[list[str]] = []

    class Counting(Classic1):
        def verify(self, public: bytes, message: bytes, signature: bytes) -> None:
            work[-1].append("verify")
            super().verify(public, message, signature)

    for shown in (ALICE, BOB):
        thief = Device(_Lying(CAROL.sign_key, shown.sign_key.public), shown.certificate)
        left, right = initiator(ALICE, ciphers=lambda _: Counting()), responder(thief)
        second = sent(right.receive(left.start()))
        work.append([])
        with pytest.raises(RemoteProtocolError) as error:
            left.receive(second)
        rejected(error, "forged")
    assert work == [["verify"]] * 2


def test_a_certificate_whose_key_types_are_not_the_suites_is_refused() -> None:
    certificate = Certificate(
        channel=CHANNEL,
        member="did:m",
        suite="classic-1",
        key_types=("Ed25519", "X448"),
        sign_public=CAROL.sign_key.public,
        seal_public=b"s",
        not_before_ms=0,
        not_after_ms=1,
    )
    odd = Device(CAROL.sign_key, encode(certificate, b""))
    left, right = initiator(), responder(odd)
    with pytest.raises(RemoteProtocolError) as error:
        left.receive(sent(right.receive(left.start())))
    rejected(error, "suite")


# ----------------------------------------------------------------------------- suites


def test_a_certificate_of_a_suite_that_was_not_offered_is_refused() -> None:
    strict = responder(device("did:classic", "classic-1"))
    left = initiator(device("did:hybrid", "hybrid-1"), suites=["hybrid-1"])
    with pytest.raises(RemoteProtocolError) as error:
        left.receive(sent(strict.receive(left.start())))
    rejected(error, "suite")


def test_a_responder_refuses_suites_that_it_does_not_want_or_have() -> None:
    with pytest.raises(RemoteProtocolError) as error:
        responder(suites=["hybrid-1"]).receive(initiator().start())
    rejected(error, "suite")
    with pytest.raises(RemoteProtocolError) as error:
        responder(suites=["future-9"]).receive(
            initiator(suites=["future-9"], ciphers=lambda name: SUITES["classic-1"]).start()
        )
    rejected(error, "suite")


def test_an_initiator_needs_its_own_first_suite() -> None:
    with pytest.raises(UnknownSuiteError, match="classic-1, hybrid-1"):
        initiator(suites=["future-9"]).start()


def test_a_downgraded_offer_is_found_out() -> None:
    left, right = initiator(suites=["classic-1", "hybrid-1"]), responder()
    hello = decode_hello(left.start()[4:])
    weaker = frame(encode_hello(replace(hello, suites=("classic-1",))))
    with pytest.raises(RemoteProtocolError) as error:
        left.receive(sent(right.receive(weaker)))
    rejected(error, "forged")


def test_a_choice_that_was_not_offered_or_not_made_is_found_out() -> None:
    for name in ("hybrid-1", "future-9"):
        left, right = initiator(), responder()
        answer = decode_answer(sent(right.receive(left.start()))[4:])
        other = Answer(suite=name, sealed=answer.sealed, proof=answer.proof)
        with pytest.raises(RemoteProtocolError):
            left.receive(frame(encode_answer(other)))
    left, right = initiator(suites=BOTH), responder(device("did:b", "hybrid-1"))
    answer = decode_answer(sent(right.receive(left.start()))[4:])
    assert answer.suite == "hybrid-1"
    other = Answer(suite="classic-1", sealed=answer.sealed, proof=answer.proof)
    with pytest.raises(RemoteProtocolError) as error:
        left.receive(frame(encode_answer(other)))
    rejected(error, "forged")


def test_an_insider_cannot_choose_what_was_not_offered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def generous(message: bytes) -> Hello:
        return replace(decode_hello(message), suites=BOTH)

    monkeypatch.setattr(handshake, "decode_hello", generous)
    left, right = initiator(suites=["classic-1"]), responder()
    answer = sent(right.receive(left.start()))
    assert decode_answer(answer[4:]).suite == "hybrid-1"
    with pytest.raises(RemoteProtocolError, match="not offered"):
        left.receive(answer)


@pytest.mark.parametrize(
    "suites", [[], ["a"] * 2, [str(number) for number in range(9)], ["s" * 33]], ids=str
)
def test_a_senseless_offer_is_refused_on_both_sides(suites: list[str]) -> None:
    with pytest.raises(LocalProtocolError):
        initiator(suites=suites)
    hello = Hello(
        mode="member",
        suites=tuple(suites),
        ephemeral_suite=suites[0] if suites else "",
        ephemeral=b"e",
        tag=bytes(32),
    )
    with pytest.raises(RemoteProtocolError, match="suite"):
        decode_hello(encode_hello(hello))
    with pytest.raises(RemoteProtocolError, match="suite that is not offered"):
        decode_hello(encode_hello(replace(hello, suites=("b",), ephemeral_suite="c")))


def test_a_later_version_is_named_as_such() -> None:
    with pytest.raises(RemoteProtocolError) as error:
        responder().receive(frame(pack([2, "new", "fields"])))
    rejected(error, "version")


# ---------------------------------------------------------------- reflection and replay


def test_our_own_certificate_coming_back_is_refused() -> None:
    left, right = initiator(ALICE), responder(ALICE)
    with pytest.raises(RemoteProtocolError) as error:
        left.receive(sent(right.receive(left.start())))
    rejected(error, "reflected")


def test_flights_reflected_to_their_sender_are_refused() -> None:
    left, right = initiator(), responder()
    flight_1 = left.start()
    flight_2 = sent(right.receive(flight_1))
    with pytest.raises(RemoteProtocolError):
        right.receive(flight_2)
    with pytest.raises(RemoteProtocolError):
        left.receive(flight_1)


def test_a_replayed_first_flight_gives_no_session() -> None:
    left, right = initiator(), responder()
    flight_1 = left.start()
    left.receive(sent(right.receive(flight_1)))
    flight_3 = sent(left.accept())
    again = responder()
    assert sent(again.receive(flight_1)) != REFUSAL
    with pytest.raises(RemoteProtocolError) as error:
        again.receive(flight_3)
    rejected(error, "forged")


def test_flights_of_two_handshakes_do_not_mix() -> None:
    pairs = [(initiator(), responder()) for _ in range(2)]
    seconds = [sent(right.receive(left.start())) for left, right in pairs]
    for (left, _), flight in zip(pairs, reversed(seconds), strict=True):
        with pytest.raises(RemoteProtocolError) as error:
            left.receive(flight)
        rejected(error, "forged")

    pairs = [(initiator(), responder()) for _ in range(2)]
    thirds = []
    for left, right in pairs:
        left.receive(sent(right.receive(left.start())))
        thirds.append(sent(left.accept()))
    for (_, right), flight in zip(pairs, reversed(thirds), strict=True):
        with pytest.raises(RemoteProtocolError) as error:
            right.receive(flight)
        rejected(error, "forged")


def test_a_signature_for_one_role_or_mode_is_none_for_another() -> None:
    taken: list[bytes] = []

    class Recording(_Lying):
        def sign(self, message: bytes) -> bytes:
            taken.append(message)
            return super().sign(message)

    alice = Device(Recording(ALICE.sign_key, ALICE.sign_key.public), ALICE.certificate)
    bob = Device(Recording(BOB.sign_key, BOB.sign_key.public), BOB.certificate)
    run(initiator(alice), responder(bob))
    run(initiator(alice, mode="join", psk=PSK), responder(bob, psk=PSK))
    said = [unpack(message, 200) for message in taken]
    assert [(one[0], one[1], one[2], one[3]) for one in said] == [
        ("walyoff/session/1", "signature", role, mode)
        for mode in ("member", "join")
        for role in ("responder", "initiator")
    ]
    assert len({one[4] for one in said}) == 4


def test_a_members_signature_in_the_other_role_is_refused() -> None:
    # An insider that could make a device sign would still need it to sign in this role.
    class Swapped(_Lying):
        def sign(self, message: bytes) -> bytes:
            return super().sign(message.replace(b"responder", b"initiator"))

    bob = Device(Swapped(BOB.sign_key, BOB.sign_key.public), BOB.certificate)
    left, right = initiator(), responder(bob)
    with pytest.raises(RemoteProtocolError) as error:
        left.receive(sent(right.receive(left.start())))
    rejected(error, "forged")


# ------------------------------------------------------------------------------- states


def test_a_refused_or_failed_machine_is_dead() -> None:
    left, right = initiator(), responder()
    flight_2 = sent(right.receive(left.start()))
    with pytest.raises(RemoteProtocolError):
        left.receive(flight_2[:-1] + bytes([flight_2[-1] ^ 1]))
    for call in (lambda: left.receive(flight_2), left.accept, left.start):
        with pytest.raises(LocalProtocolError):
            call()
    right.refuse()
    with pytest.raises(LocalProtocolError):
        right.receive(b"")
    assert sent(right.refuse()) == REFUSAL


def test_a_machine_whose_driver_fails_is_dead_as_well() -> None:
    def broken(mode: Mode, ephemeral: bytes, tag: bytes) -> HandshakeContext | None:
        raise ZeroDivisionError

    right = Responder(cipher_for=cipher_for, suites=BOTH, find_tag=broken, random=os.urandom)
    flight_1 = initiator().start()
    with pytest.raises(ZeroDivisionError):
        right.receive(flight_1)
    with pytest.raises(LocalProtocolError):
        right.receive(flight_1)


def test_calls_out_of_turn_are_the_callers_bug() -> None:
    left, right = initiator(), responder()
    with pytest.raises(LocalProtocolError):
        left.receive(b"")
    with pytest.raises(LocalProtocolError):
        right.accept()
    flight_1 = left.start()
    with pytest.raises(LocalProtocolError):
        left.start()
    with pytest.raises(LocalProtocolError):
        left.accept()
    left.receive(sent(right.receive(flight_1)))
    left.accept()
    with pytest.raises(LocalProtocolError):
        left.accept()
    with pytest.raises(LocalProtocolError):
        left.refuse()


def test_a_stream_that_ends_early_is_the_peers_fault() -> None:
    left, right = initiator(), responder()
    flight_1 = left.start()
    for machine in (left, right):
        with pytest.raises(RemoteProtocolError) as error:
            machine.eof()
        rejected(error, "truncated")
    left, right = initiator(), responder()
    flight_1 = left.start()
    left.receive(sent(right.receive(flight_1)))
    left.accept()
    left.eof()


def test_speaking_out_of_turn_is_refused_on_both_sides() -> None:
    left = initiator()
    with pytest.raises(RemoteProtocolError):
        responder().receive(left.start() + b"more")
    left, right = initiator(), responder()
    flight_2 = sent(right.receive(left.start()))
    with pytest.raises(RemoteProtocolError):
        left.receive(flight_2 + b"m")
    left, right = initiator(), responder()
    left.receive(sent(right.receive(left.start())))
    with pytest.raises(RemoteProtocolError) as error:
        left.receive(REFUSAL)
    rejected(error, "refused")


def test_what_a_peer_can_make_us_hold_is_bounded() -> None:
    for machine in (initiator(), responder()):
        if isinstance(machine, Initiator):
            machine.start()
        with pytest.raises(RemoteProtocolError) as error:
            machine.receive((MAX_MESSAGE + 1).to_bytes(4, "big"))
        rejected(error, "too-large")
    left, right = initiator(), responder()
    left.receive(sent(right.receive(left.start())))
    right.receive(sent(left.accept()))
    for _ in range(MAX_EARLY // 65536):
        assert right.receive(bytes(65536)) == []
    with pytest.raises(RemoteProtocolError) as error:
        right.receive(b"1")
    rejected(error, "too-large")


# ------------------------------------------------------------------------------- hostile


def _flip(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << (bit % 8)
    return bytes(changed)


def _no_session(left: Initiator, right: Responder, flight: int, bit: int) -> None:
    """Flip a bit of one flight; both sides must end without a session in common."""
    flights = [left.start()]

    def through(number: int, data: bytes) -> bytes:
        return _flip(data, bit % (8 * len(data))) if number == flight else data

    def play() -> None:
        events = right.receive(through(1, flights[0]))
        if not events:
            right.eof()
        events = left.receive(through(2, sent(events)))
        if not events:
            left.eof()
        events = right.receive(through(3, sent(left.accept())))
        if not events:
            right.eof()
        right.accept()

    with pytest.raises(RemoteProtocolError):
        play()


@settings(max_examples=150, deadline=None)
@given(flight=st.integers(1, 3), bit=st.integers(0, 1 << 16))
def test_any_bit_flipped_in_any_flight_is_refused(flight: int, bit: int) -> None:
    _no_session(initiator(suites=["classic-1", "hybrid-1"]), responder(), flight, bit)


@settings(max_examples=15, deadline=None)
@given(flight=st.integers(1, 3), bit=st.integers(0, 1 << 16))
def test_any_bit_flipped_is_refused_in_the_hybrid_suite(flight: int, bit: int) -> None:
    left = initiator(HYBRID_ALICE, suites=["hybrid-1"])
    _no_session(left, responder(HYBRID_BOB), flight, bit)


HYBRID_ALICE, HYBRID_BOB = device("did:ha", "hybrid-1"), device("did:hb", "hybrid-1")

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.text(max_size=40)
    | st.binary(max_size=40)
    | st.sampled_from(["member", "join", "classic-1", "hybrid-1"]),
    lambda inner: st.lists(inner, max_size=7) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=12,
)
GARBAGE = st.binary(max_size=200) | VALUES.map(pack)


@settings(max_examples=200, deadline=None)
@given(data=GARBAGE)
def test_decoders_of_flights_are_total(data: bytes) -> None:
    for decode in (decode_hello, decode_answer, decode_proof):
        try:
            decode(data)
        except RemoteProtocolError:
            continue


@settings(max_examples=150, deadline=None)
@given(data=GARBAGE, state=st.integers(0, 3), framed=st.booleans())
def test_garbage_in_any_state_gives_one_error_and_no_session(
    data: bytes, state: int, framed: bool
) -> None:
    left, right = initiator(), responder()
    machine: Initiator | Responder = right
    flight_1 = left.start()
    if state:
        flight_2 = sent(right.receive(flight_1))
        machine = right if state == 1 else left
        if state == 3:
            left.receive(flight_2)
    try:
        events = machine.receive(frame(data) if framed else data)
    except RemoteProtocolError:
        return
    assert events == []


@settings(max_examples=100, deadline=None)
@given(fields=st.lists(VALUES, min_size=5, max_size=5), ephemeral=st.binary(max_size=64))
def test_a_first_flight_with_a_valid_tag_and_garbage_around_it_is_refused(
    fields: list[object], ephemeral: bytes
) -> None:
    # A member gone bad has the tag key: what it says is decoded in full.
    tag = blinded_tag(TAG_KEY, "member", ephemeral)
    for hello in (
        [1, *fields],
        [1, "member", ["classic-1"], "classic-1", ephemeral, tag],
        [1, "member", fields[0], "classic-1", ephemeral, tag],
    ):
        try:
            events = responder().receive(frame(pack(hello)))
        except RemoteProtocolError:
            continue
        assert len(ephemeral) == 32
        assert isinstance(events[0], Send)
