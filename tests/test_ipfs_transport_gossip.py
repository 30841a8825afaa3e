"""The windows of acknowledged broadcasts, without a network: loss, liars, bounds."""

from __future__ import annotations

import contextlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from walyoff_transports.gossip import (
    MAX_INSTANCES,
    MAX_PAYLOAD,
    MAX_PEERS,
    MAX_REPEATS,
    PROVE_TIME,
    SETTLE_TIME,
    WINDOW,
    WINDOW_BYTES,
    Ack,
    Data,
    Received,
    ReceiveWindow,
    SendWindow,
    decode,
    encode_acks,
    encode_data,
)

from walyoff.errors import RemoteProtocolError
from walyoff.wire import pack

ME = b"instance"


def payload_of(envelope: bytes) -> bytes:
    data = decode(envelope)
    assert isinstance(data, Data)
    return data.payload


def ack(upto: int, *further: int, instance: bytes = ME) -> Ack:
    return Ack(instance=instance, upto=upto, further=further)


@given(st.binary(max_size=300))
def test_any_bytes_give_a_message_or_one_error(envelope: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        decode(envelope)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-5, 1 << 63) | st.binary(max_size=9),
        lambda inner: st.lists(inner, max_size=6),
        max_leaves=12,
    )
)
def test_any_structure_gives_a_message_or_one_error(value: object) -> None:
    for head in ([], [1], [1, 0], [1, 1]):
        with contextlib.suppress(RemoteProtocolError):
            decode(pack(head + (value if isinstance(value, list) else [value])))


def test_envelopes_survive_the_wire_and_have_their_bounds() -> None:
    data = Data(instance=ME, seq=1, payload=bytes(MAX_PAYLOAD))
    assert decode(encode_data(data)) == data
    acks = tuple(ack(n, n + 2, n + 5) for n in range(64))
    assert decode(encode_acks(acks)) == acks
    for wrong in (
        encode_data(Data(instance=ME, seq=1, payload=bytes(MAX_PAYLOAD + 1))),
        encode_data(Data(instance=ME, seq=0, payload=b"")),
        encode_data(Data(instance=b"short", seq=1, payload=b"")),
        encode_acks([*acks, ack(1)]),
        encode_acks([ack(0, *range(WINDOW + 1))]),
        pack([2, 0, ME, 1, b""]),
        pack([1, 2, ME]),
        pack([1, True, []]),
    ):
        with pytest.raises(RemoteProtocolError):
            decode(wrong)


@given(st.lists(st.integers(1, 60), max_size=200))
def test_a_receive_window_never_accepts_twice_and_stays_small(numbers: list[int]) -> None:
    window, seen = ReceiveWindow(), set[int]()
    for number in numbers:
        new = window.accept(number)
        assert not (new and number in seen)
        # What is not older than a window is never lost.
        if number not in seen and number > max(seen, default=0) - WINDOW:
            assert new
        seen.add(number)
        acked = window.ack(ME)
        assert len(acked.further) <= WINDOW
        assert set(acked.further) <= seen
        # It claims nothing that the sender could still repeat.
        claimed = {n for n in range(1, acked.upto + 1) if n > max(seen) - WINDOW}
        assert claimed <= seen


def test_a_receiver_that_comes_late_starts_at_the_senders_window() -> None:
    window = ReceiveWindow()
    assert window.accept(1000)
    assert window.accept(1000 - WINDOW + 1)
    assert not window.accept(1000 - WINDOW)


def test_what_is_remembered_of_senders_is_bounded() -> None:
    received = Received()
    for peer in range(MAX_PEERS + 10):
        received.window(f"peer {peer}", ME)
    assert len(received._peers) == MAX_PEERS
    for number in range(MAX_INSTANCES + 10):
        received.window("one", number.to_bytes(8, "big"))
    assert len(received._peers["one"]) == MAX_INSTANCES


def test_nobody_spoils_the_numbers_of_another_one() -> None:
    received = Received()
    received.window("liar", ME).accept(1 << 62)
    assert received.window("honest", ME).accept(1)


def test_a_message_is_repeated_until_all_peers_have_it() -> None:
    window = SendWindow(ME, 0)
    window.set_peers(["a", "b"], 0)
    window.add(b"x", 0)
    window.on_ack("a", ack(1), 0.05)
    assert not window.idle
    assert [payload_of(e) for e in window.due(0.5)] == [b"x"]
    assert window.due(0.5) == []
    window.on_ack("b", ack(1), 0.55)
    assert window.idle
    assert window.deadline is None


def test_a_message_is_given_up_after_a_few_repeats() -> None:
    window = SendWindow(ME, 0)
    window.set_peers(["a"], 0)
    window.add(b"first", 0)
    window.on_ack("a", ack(1), 0.01)
    window.add(b"x", 1)
    now, sent = 1.0, 0
    while not window.idle:
        deadline = window.deadline
        assert deadline is not None
        now = deadline
        sent += len(window.due(now))
    assert sent == MAX_REPEATS
    assert window.given_up == 1
    assert now < 6


def test_a_peer_that_never_acknowledged_is_not_waited_for_long() -> None:
    window = SendWindow(ME, 0)
    window.set_peers(["mute", "good"], 0)
    for n in range(1, 200):
        now = n * 0.02
        while not window.has_room:
            now += 0.01
            window.due(now)
            assert now < 200 * 0.02 + PROVE_TIME
        window.add(b"x", now)
        window.on_ack("good", ack(n), now)
    window.due(199 * 0.02 + PROVE_TIME)
    assert window.idle


def test_a_lost_message_is_repeated_early_when_later_ones_are_acknowledged() -> None:
    window = SendWindow(ME, 0)
    window.set_peers(["a"], 0)
    for n in range(5):
        window.add(b"%d" % n, 0)
    assert [payload_of(e) for e in window.on_ack("a", ack(0, 2, 3, 4, 5), 0.05)] == [b"0"]
    # Once is enough until there was time for it to arrive.
    assert window.on_ack("a", ack(0, 2, 3, 4, 5), 0.06) == []


def test_acknowledgements_for_others_and_by_strangers_do_no_harm() -> None:
    window = SendWindow(ME, 0)
    window.set_peers(["a"], 0)
    window.add(b"x", 0)
    window.on_ack("a", ack(9, instance=b"another."), 0.01)
    window.on_ack("stranger", ack((1 << 63) - 1), 0.01)
    assert not window.idle
    window.on_ack("a", ack((1 << 63) - 1), 0.01)
    assert window.idle


def test_without_peers_a_message_is_published_once() -> None:
    window = SendWindow(ME, 0)
    window.set_peers([], SETTLE_TIME)
    window.add(b"x", SETTLE_TIME)
    assert window.due(SETTLE_TIME + 0.01) == []
    assert window.idle


def test_peers_that_are_found_a_moment_later_still_get_it() -> None:
    window = SendWindow(ME, 0)
    window.add(b"x", 0)
    window.set_peers([], 0.01)
    window.set_peers(["a"], 0.05)
    assert [payload_of(e) for e in window.due(0.5)] == [b"x"]


def test_the_window_is_bounded_in_number_and_in_bytes() -> None:
    window = SendWindow(ME, 0)
    window.set_peers(["a"], 0)
    for _ in range(WINDOW):
        assert window.has_room
        window.add(b"", 0)
    assert not window.has_room
    # The oldest decides: what the receiver can tell apart is one window.
    window.on_ack("a", ack(0, *range(2, WINDOW + 1)), 0.01)
    assert not window.has_room
    window.on_ack("a", ack(1), 0.01)
    assert window.has_room
    big = SendWindow(ME, 0)
    big.set_peers(["a"], 0)
    for _ in range(WINDOW_BYTES // MAX_PAYLOAD + 1):
        assert big.has_room
        big.add(bytes(MAX_PAYLOAD), 0)
    assert not big.has_room


def simulate(seed: int, loss: int) -> tuple[SendWindow, list[bytes]]:
    """Send 60 messages over a link that loses (percent), reorders and duplicates."""
    dice = random.Random(seed)
    sender, received = SendWindow(ME, 0.0), ReceiveWindow()
    sender.set_peers(["b"], 0)
    link: list[bytes] = []
    got: list[bytes] = []
    todo = [b"%d" % n for n in range(60)]
    now = 0.0
    while (todo or not sender.idle) and now < 100:
        now += 0.01
        while todo and sender.has_room:
            link.append(sender.add(todo.pop(0), now)[1])
        link += sender.due(now)
        dice.shuffle(link)
        for envelope in [e for e in link if dice.randrange(100) >= loss]:
            for _ in range(dice.choice((1, 1, 2))):
                data = decode(envelope)
                assert isinstance(data, Data)
                if received.accept(data.seq):
                    got.append(data.payload)
        link = []
        if dice.randrange(100) >= loss and got:
            link += sender.on_ack("b", received.ack(ME), now)
    return sender, got


@given(st.integers(0, 1 << 32), st.integers(0, 100))
def test_whatever_a_link_does_nothing_comes_twice_and_it_ends(seed: int, loss: int) -> None:
    sender, got = simulate(seed, loss)
    assert sender.idle
    assert len(got) == len(set(got))


@pytest.mark.parametrize("seed", range(20))
def test_everything_arrives_over_a_link_that_loses_a_sixth(seed: int) -> None:
    sender, got = simulate(seed, 16)
    assert sender.given_up == 0
    assert sender.repeated > 0
    assert len(got) == 60


def test_a_large_message_is_not_repeated_before_it_can_have_arrived() -> None:
    window = SendWindow(ME, 0)
    window.set_peers(["a"], 0)
    window.add(bytes(MAX_PAYLOAD), 0)
    assert window.due(0.5) == []
    assert len(window.due(0.9)) == 1
