"""Canonical msgpack: total, bounded, and with one encoding for each value."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from walyoff import wire
from walyoff.errors import RemoteProtocolError
from walyoff.wire import (
    expect_array,
    expect_bytes,
    expect_int,
    expect_name,
    expect_str,
    pack,
    unpack,
)

LIMIT = 1 << 16
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.text(max_size=40)
    | st.binary(max_size=40)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=20,
)


def refusal(data: bytes, limit: int = LIMIT) -> str:
    with pytest.raises(RemoteProtocolError) as caught:
        unpack(data, limit)
    return caught.value.reason


@given(VALUES)
def test_every_value_comes_back_as_it_was(value: Any) -> None:
    data = pack(value)
    assert unpack(data, LIMIT) == value
    assert unpack(memoryview(data), LIMIT) == value
    assert unpack(bytearray(data), LIMIT) == value


@given(st.binary(max_size=200))
@example(b"")
@example(b"\xc1")
@example(b"\x91" * 3000)
@example(b"\xdd\xff\xff\xff\xff")
@example(b"\xc7\x00\x05")
@example(b"\x81\x90\xc0")
@example(b"\xa1\xff")
def test_any_bytes_give_a_value_with_that_encoding_or_the_one_error(data: bytes) -> None:
    try:
        value = unpack(data, LIMIT)
    except RemoteProtocolError:
        return
    assert pack(value) == data


@given(VALUES, st.data())
def test_a_changed_byte_gives_another_value_or_the_one_error(value: Any, data: Any) -> None:
    encoded = bytearray(pack(value))
    at = data.draw(st.integers(0, len(encoded) - 1))
    encoded[at] ^= data.draw(st.integers(1, 255))
    try:
        other = unpack(bytes(encoded), LIMIT)
    except RemoteProtocolError:
        return
    assert pack(other) == bytes(encoded)


@given(VALUES)
def test_what_is_cut_short_or_followed_by_more_is_refused(value: Any) -> None:
    data = pack(value)
    for at in range(len(data)):
        refusal(data[:at])
    refusal(data + b"\xc0")


@pytest.mark.parametrize(
    ("long_form", "value"),
    [
        ("cc01", 1), ("cd0001", 1), ("ce00000001", 1), ("cf0000000000000001", 1),
        ("d0ff", -1), ("d1ffff", -1), ("d2ffffffff", -1), ("d3ffffffffffffffff", -1),
        ("d001", 1), ("d90161", "a"), ("da000161", "a"), ("db0000000161", "a"),
        ("c5000161", b"a"), ("c60000000161", b"a"), ("dc0000", []), ("dd00000000", []),
        ("de0000", {}), ("df00000000", {}), ("ca3f800000", 1.0),
    ],
)  # fmt: skip
def test_a_longer_form_of_a_value_is_not_canonical(long_form: str, value: Any) -> None:
    assert refusal(bytes.fromhex(long_form)) == "not-canonical"
    assert unpack(pack(value), LIMIT) == value


def test_a_map_with_a_key_twice_or_a_key_that_is_no_string_is_refused() -> None:
    assert refusal(bytes.fromhex("82a16101a16101")) == "not-canonical"
    refusal(bytes.fromhex("810101"))
    refusal(bytes.fromhex("819001"))


@pytest.mark.parametrize("data", ["c70005", "d4ff00", "d6ff00000000", "c70cff" + "00" * 12])
def test_extensions_and_timestamps_are_refused(data: str) -> None:
    refusal(bytes.fromhex(data))


def test_strings_must_be_utf8_without_surrogates() -> None:
    refusal(b"\xa1\x80")
    refusal(b"\xa3\xed\xa0\x80")


def test_the_limit_is_exact() -> None:
    data = pack(b"x" * 100)
    assert unpack(data, len(data)) == b"x" * 100
    assert refusal(data, len(data) - 1) == "too-large"


@pytest.mark.parametrize(
    "fill", [b"\x90", b"\x80", b"\xc0", b"\x91\x90", b"\xa1a", b"\xc4\x01a"]
)
def test_a_large_structure_of_small_parts_is_refused_before_it_fills_the_memory(
    fill: bytes,
) -> None:
    """A frame of 16 MiB of empty arrays took 1.1 GB and stopped the event loop for 6 s."""
    count = (4 << 20) // len(fill)
    flat = b"\xdd" + struct.pack(">I", count) + fill * count
    nested = b"\xdc\x04\x00" + (b"\xdc\x10\x00" + fill * 4096) * 1024
    refusal(flat, 16 << 20)
    assert refusal(nested, 64 << 20) == "too-large"


@pytest.mark.parametrize("empty", [[], {}], ids=repr)
def test_the_number_of_arrays_and_maps_is_bounded_however_little_is_in_them(empty: Any) -> None:
    filler = bytes(wire.COUNTED_SIZE)
    # The outer array is one of them, and so is the one inside it.
    most = pack([filler, [empty] * (wire.MAX_CONTAINERS - 2)])
    assert len(unpack(most, 1 << 24)[1]) == wire.MAX_CONTAINERS - 2
    assert refusal(pack([filler, [empty] * (wire.MAX_CONTAINERS - 1)]), 1 << 24) == "too-large"


def test_the_largest_honest_vector_stays_within_the_count() -> None:
    vector = [[f"did:walytis:{n:040d}", 1 << 40, [7] * 256] for n in range(4096)]
    data = pack([1, vector])
    assert len(data) > wire.COUNTED_SIZE
    assert unpack(data, 16 << 20) == [1, vector]


def test_a_large_structure_of_large_parts_costs_no_counting() -> None:
    value = [b"x" * (1 << 20)] * 8
    assert unpack(pack(value), 16 << 20) == value


WRONG: list[Any] = [None, True, 1, 1.5, "a", b"a", [], [1], {}, {"a": 1}]


@pytest.mark.parametrize("value", WRONG, ids=repr)
def test_expectations_accept_their_kind_alone(value: Any) -> None:
    checks: list[tuple[type, Any]] = [
        (list, lambda: expect_array(value, 1, "it")),
        (bytes, lambda: expect_bytes(value, "it", limit=8)),
        (str, lambda: expect_str(value, "it", limit=8)),
        (str, lambda: expect_name(value, "it", limit=8)),
        (int, lambda: expect_int(value, "it")),
    ]
    for kind, check in checks:
        # A flag is an int in Python and never one here; an empty array is not one of 1.
        if type(value) is kind and value != []:
            assert check() == value
        else:
            with pytest.raises(RemoteProtocolError, match="it"):
                check()


def test_expectations_keep_their_bounds() -> None:
    assert expect_int(5, "it", low=5, high=5) == 5
    for number in (4, 6):
        with pytest.raises(RemoteProtocolError):
            expect_int(number, "it", low=5, high=5)
    assert expect_int((1 << 63) - 1, "it")
    with pytest.raises(RemoteProtocolError):
        expect_int(1 << 63, "it")
    assert expect_bytes(b"abc", "it", size=3) == b"abc"
    assert expect_bytes(b"", "it", limit=0) == b""
    for wrong in ({"size": 2}, {"size": 4}, {"limit": 2}):
        with pytest.raises(RemoteProtocolError):
            expect_bytes(b"abc", "it", **wrong)
    assert expect_str("éé", "it", limit=2) == "éé"
    with pytest.raises(RemoteProtocolError):
        expect_str("abc", "it", limit=2)


@pytest.mark.parametrize("name", ["", "a b", "a\n", "\x1b[2J", "\x7f", "é", "a" * 9, "\u202e"])
def test_a_name_has_nothing_that_a_terminal_would_obey(name: str) -> None:
    with pytest.raises(RemoteProtocolError):
        expect_name(name, "it", limit=8)
