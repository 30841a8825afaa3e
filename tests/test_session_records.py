"""Encrypted records: frames arrive whole and in order, or the channel is dead."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from walyoff_codecs.classic1 import Classic1
from walyoff_codecs.hybrid1 import Hybrid1

from walyoff.abc import Cipher
from walyoff.errors import LocalProtocolError, PayloadTooLargeError, RemoteProtocolError
from walyoff.session import MAX_FRAME, REFUSAL, SecureChannel, SessionKeys, records
from walyoff.session.records import (
    END,
    FRAMES,
    LAST,
    MAX_BODY,
    MAX_RECORD,
    MORE,
    REKEY,
)

KEY_I, KEY_R = bytes(range(32)), bytes(range(32, 64))


def channels(cipher: Cipher | None = None) -> tuple[SecureChannel, SecureChannel]:
    keys = SessionKeys(
        cipher=cipher or Hybrid1(),
        initiator_key=KEY_I,
        responder_key=KEY_R,
        session_id=bytes(32),
    )
    return SecureChannel(keys, "initiator"), SecureChannel(keys, "responder")


class Hostile:
    """An authenticated peer that writes any plaintext into its records."""

    def __init__(self) -> None:
        self._aead = Hybrid1().aead(KEY_I)
        self._count = 0

    def record(self, plaintext: bytes) -> bytes:
        nonce = self._count.to_bytes(12, "big")
        self._count += 1
        ciphertext = self._aead.encrypt(nonce, plaintext, None)
        return len(ciphertext).to_bytes(4, "big") + ciphertext


def dead(channel: SecureChannel) -> None:
    with pytest.raises(LocalProtocolError):
        channel.feed(b"")
    with pytest.raises(LocalProtocolError):
        channel.seal([b"x"])


# ------------------------------------------------------------------------ the good way


@pytest.mark.parametrize("cipher", [Hybrid1(), Classic1()], ids=lambda cipher: cipher.name)
def test_frames_arrive_in_order_in_both_directions(cipher: Cipher) -> None:
    left, right = channels(cipher)
    frames = [b"", b"one", b"two" * 1000, b""]
    for _ in range(3):
        assert right.feed(left.seal(frames)) == frames
        assert left.feed(right.seal(frames[::-1])) == frames[::-1]
    assert left.seal([]) == b""


@settings(max_examples=60, deadline=None)
@given(
    groups=st.lists(st.lists(st.binary(max_size=60), max_size=6), max_size=6),
    cuts=st.lists(st.integers(1, 90), max_size=30),
    rekey_after=st.integers(0, 6),
)
def test_any_cut_of_the_stream_gives_the_same_frames(
    groups: list[list[bytes]], cuts: list[int], rekey_after: int
) -> None:
    left, right = channels()
    wire = b""
    for index, group in enumerate(groups):
        wire += left.seal(group)
        if index == rekey_after:
            wire += left.rekey()
    wire += left.end()
    out: list[bytes] = []
    view = memoryview(wire)
    for cut in cuts:
        out += right.feed(view[:cut])
        view = view[cut:]
    out += right.feed(bytearray(view))
    assert out == [one for group in groups for one in group]
    assert right.ended
    right.eof()


@pytest.mark.parametrize(
    "sizes",
    [
        [MAX_BODY - 8],
        [MAX_BODY - 7],
        [MAX_BODY],
        [MAX_BODY + 1],
        [3 * MAX_BODY],
        [10, 2 * MAX_BODY + 5, 20, MAX_BODY - 100, 100],
        [MAX_BODY // 2] * 5,
        [MAX_FRAME],
    ],
)
def test_frames_of_every_size_up_to_the_limit_pass(sizes: list[int]) -> None:
    left, right = channels()
    frames = [os.urandom(size) for size in sizes]
    wire = left.seal(frames)
    position = 0
    while position < len(wire):
        size = int.from_bytes(wire[position : position + 4], "big")
        assert size <= MAX_RECORD
        position += 4 + size
    out: list[bytes] = []
    for start in range(0, len(wire), 65536):
        out += right.feed(wire[start : start + 65536])
    assert out == frames


def test_small_frames_share_records() -> None:
    left, _ = channels()
    left.seal([bytes(1000)] * 1000)
    assert left.sent.records == 4


def test_a_frame_over_the_limit_is_refused_and_nothing_is_sealed() -> None:
    left, right = channels()
    with pytest.raises(PayloadTooLargeError, match=str(MAX_FRAME)):
        left.seal([b"fine", bytes(MAX_FRAME + 1)])
    assert right.feed(left.seal([b"goes on"])) == [b"goes on"]


def test_keys_change_by_count_by_size_and_by_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "REKEY_RECORDS", 3)
    left, right = channels()
    for number in range(10):
        assert right.feed(left.seal([b"%d" % number])) == [b"%d" % number]
    assert left.sent.rekeys == right.received.rekeys == 3
    monkeypatch.setattr(records, "REKEY_RECORDS", 1 << 16)
    monkeypatch.setattr(records, "REKEY_BYTES", 1000)
    left, right = channels()
    for _ in range(10):
        right.feed(left.seal([bytes(400)]))
    assert left.sent.rekeys == right.received.rekeys == 3
    assert left.seal([b"same"]) != left.seal([b"same"])
    left, right = channels()
    assert right.feed(left.rekey() + left.seal([b"new key"])) == [b"new key"]
    assert (left.sent.rekeys, right.received.rekeys, right.sent.rekeys) == (1, 1, 0)
    # The same record number, the same frame, another key: another record.
    other, _ = channels()
    left, _ = channels()
    left.rekey()
    assert left.seal([b"x"]) != other.seal([b"x"])


def test_secrets_never_print() -> None:
    left, right = channels()
    right.feed(left.seal([b"plain"]))
    for one in (left, right):
        assert repr(one).startswith("<SecureChannel")
        for secret in (KEY_I, KEY_R, b"plain"):
            assert repr(secret)[2:-1] not in repr(one)


def test_a_sealed_record_hides_its_frames_and_directions_differ() -> None:
    left, right = channels()
    wire = left.seal([b"a secret" * 4])
    assert b"a secret" not in wire
    assert wire != right.seal([b"a secret" * 4])


# --------------------------------------------------------------------------------- ends


def test_an_end_is_clean_only_when_it_is_said() -> None:
    left, right = channels()
    right.feed(left.seal([b"last"]))
    with pytest.raises(RemoteProtocolError) as error:
        right.eof()
    assert error.value.reason == "truncated"
    dead(right)


def test_after_an_end_nothing_is_sent_and_nothing_accepted() -> None:
    left, right = channels()
    assert right.feed(left.seal([b"last"]) + left.end()) == [b"last"]
    assert right.ended
    for call in (left.rekey, left.end):
        with pytest.raises(LocalProtocolError):
            call()
    with pytest.raises(LocalProtocolError):
        left.seal([b"x"])
    # The other direction lives on until it ends itself.
    assert left.feed(right.seal([b"answer"])) == [b"answer"]
    with pytest.raises(RemoteProtocolError):
        right.feed(b"\x00")
    dead(right)


def test_a_record_behind_the_end_is_refused_in_the_same_bytes_too() -> None:
    peer, (_, right) = Hostile(), channels()
    wire = peer.record(bytes([END])) + peer.record(b"\x00\x00\x00\x00\x01\x00\x00\x00\x00")
    with pytest.raises(RemoteProtocolError):
        right.feed(wire)


def test_an_initiator_that_was_not_accepted_is_told_so() -> None:
    left, right = channels()
    with pytest.raises(RemoteProtocolError) as error:
        left.feed(REFUSAL)
    assert error.value.reason == "refused"
    with pytest.raises(RemoteProtocolError) as error:
        right.feed(REFUSAL)
    assert error.value.reason == "too-large"


# ------------------------------------------------------------------------------ attacks


def _records(channel: SecureChannel, count: int) -> list[bytes]:
    return [channel.seal([b"frame %d" % number]) for number in range(count)]


@pytest.mark.parametrize(
    "order",
    [[1], [0, 0], [1, 0], [0, 2], [0, 1, 3], [0, 1, 0], [2, 1, 0]],
    ids=str,
)
def test_dropped_repeated_and_reordered_records_are_refused(order: list[int]) -> None:
    left, right = channels()
    wire = _records(left, 4)
    with pytest.raises(RemoteProtocolError) as error:
        right.feed(b"".join(wire[index] for index in order))
    assert error.value.reason == "forged"
    dead(right)


def test_a_record_reflected_to_its_sender_is_refused() -> None:
    left, _ = channels()
    wire = left.seal([b"mine"])
    with pytest.raises(RemoteProtocolError):
        left.feed(wire)


def test_a_cut_record_is_refused_at_the_end_of_the_stream() -> None:
    left, right = channels()
    assert right.feed(left.seal([b"x"])[:-1]) == []
    with pytest.raises(RemoteProtocolError):
        right.eof()


@settings(max_examples=150, deadline=None)
@given(bit=st.integers(0, 1 << 20), payload=st.binary(max_size=64))
def test_any_bit_flipped_is_refused(bit: int, payload: bytes) -> None:
    left, right = channels()
    wire = bytearray(left.seal([payload]))
    place = bit % (8 * len(wire))
    wire[place // 8] ^= 1 << (place % 8)

    def play() -> None:
        assert right.feed(wire) == []
        right.eof()

    with pytest.raises(RemoteProtocolError):
        play()
    dead(right)


def test_lengths_out_of_bounds_are_refused_from_the_header_alone() -> None:
    for length in (0, 1, 16, MAX_RECORD + 1, (1 << 32) - 1):
        _, right = channels()
        with pytest.raises(RemoteProtocolError):
            right.feed(length.to_bytes(4, "big"))
        dead(right)


FRAME_0 = b"\x00\x00\x00\x00\x01\x00\x00\x00\x00"


@pytest.mark.parametrize(
    "plaintexts",
    [
        [b""],
        [bytes([FRAMES])],
        [b"\x00\x00\x00\x00\x00"],
        [b"\x00\xff\xff\xff\xff"],
        [b"\x00\x00\x00\x00\x01\x00\x00\x00\x02a"],
        [b"\x00\x00\x00\x00\x01\x00\x00\x00\x01ab"],
        [bytes([MORE]) + b"short"],
        [bytes([LAST])],
        [bytes([MORE]) + bytes(MAX_BODY), FRAME_0],
        [bytes([MORE]) + bytes(MAX_BODY), bytes([REKEY])],
        [bytes([MORE]) + bytes(MAX_BODY), bytes([END])],
        [bytes([MORE]) + bytes(MAX_BODY), bytes([LAST])],
        [bytes([MORE]) + bytes(MAX_BODY)] * (MAX_FRAME // MAX_BODY + 1),
        [bytes([LAST]) + bytes(MAX_BODY + 1)],
        [bytes([REKEY]) + b"body"],
        [bytes([END]) + b"body"],
        [bytes([END + 1])],
        [b"\xff"],
    ],
    ids=lambda plaintexts: f"{len(plaintexts)}x{plaintexts[0][:6].hex()}",
)
def test_an_authentic_peer_cannot_break_the_rules_either(plaintexts: Sequence[bytes]) -> None:
    peer, (_, right) = Hostile(), channels()
    *before, last = [peer.record(plaintext) for plaintext in plaintexts]
    for wire in before:
        assert right.feed(wire) == []
    with pytest.raises(RemoteProtocolError):
        right.feed(last)
    dead(right)


@settings(max_examples=200, deadline=None)
@given(plaintext=st.binary(min_size=0, max_size=40))
def test_any_plaintext_of_an_authentic_peer_gives_frames_or_one_error(plaintext: bytes) -> None:
    peer, (_, right) = Hostile(), channels()
    try:
        frames = right.feed(peer.record(plaintext))
    except RemoteProtocolError:
        return
    assert sum(map(len, frames)) <= len(plaintext)


@settings(max_examples=100, deadline=None)
@given(data=st.lists(st.binary(max_size=100), max_size=5))
def test_garbage_gives_one_error_and_no_frame(data: list[bytes]) -> None:
    _, right = channels()
    for piece in data:
        try:
            assert right.feed(piece) == []
        except RemoteProtocolError:
            dead(right)
            return


# -------------------------------------------------------------------------------- speed


def test_records_are_not_accidentally_slow() -> None:
    # A tenth of what is measured (see the report of the benchmarks): it catches a loop in
    # Python over bytes or a quadratic buffer, not a busy machine.
    left, right = channels()
    group = [bytes(1024)] * 100
    start = time.process_time()
    for _ in range(50):
        right.feed(left.seal(group))
    assert 5000 / (time.process_time() - start) > 50_000
    large = memoryview(left.seal([bytes(MAX_FRAME)]))
    start = time.process_time()
    for position in range(0, len(large), 4096):
        right.feed(large[position : position + 4096])
    assert MAX_FRAME / (time.process_time() - start) > 20e6
