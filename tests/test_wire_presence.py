"""What a device announces of itself: only form, age and limits are decided here."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.make_vectors import ALICE, NOW_MS, presence
from walyoff.discovery import MAX_AGE_MS, MAX_PRESENCE, decode_presence
from walyoff.errors import RemoteProtocolError
from walyoff.wire import pack


def test_a_presence_gives_the_member_and_its_addresses() -> None:
    assert decode_presence(presence(), NOW_MS) == (ALICE, ["ipfs:one"])


@given(st.binary(max_size=120))
def test_any_bytes_give_the_one_error(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_presence(data, NOW_MS)


@given(st.data())
def test_a_changed_byte_gives_a_presence_or_the_one_error(data: Any) -> None:
    encoded = bytearray(presence())
    encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        member, addresses = decode_presence(bytes(encoded), NOW_MS)
    except RemoteProtocolError:
        return
    assert len(member) < 256
    assert len(addresses) == 1


@pytest.mark.parametrize(
    "value",
    [
        [2, ALICE, NOW_MS, []], [1, ALICE, NOW_MS], [1, "d" * 257, NOW_MS, []],
        [1, ALICE, -1, []], [1, ALICE, NOW_MS, "ipfs"], [1, ALICE, NOW_MS, ["a"] * 17],
        [1, ALICE, NOW_MS, ["a" * 257]], [1, ALICE, NOW_MS, [b"a"]],
        [1, ALICE, NOW_MS - MAX_AGE_MS - 1, []], [1, ALICE, NOW_MS + MAX_AGE_MS + 1, []],
        [True, ALICE, NOW_MS, []], [1, "a\x1b", NOW_MS, []],
        [1, b"x" * MAX_PRESENCE, NOW_MS, []],
    ],
)  # fmt: skip
def test_a_presence_that_breaks_a_rule_is_refused(value: Any) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_presence(pack(value), NOW_MS)
