"""The framing between parent and child: what goes in comes out, and nothing else does."""

from __future__ import annotations

import contextlib
import struct
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from walyoff.child.rpc import (
    MAX_FRAME,
    VERSION,
    Event,
    FrameReader,
    Hello,
    Message,
    Reply,
    Request,
    check_hello,
    decode,
    encode,
)
from walyoff.errors import PayloadTooLargeError, RemoteProtocolError

IDS = st.integers(0, (1 << 63) - 1)
NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=64)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | st.binary() | NAMES,
    lambda inner: st.lists(inner) | st.dictionaries(NAMES, inner),
    max_leaves=8,
)
MESSAGES: st.SearchStrategy[Message] = st.one_of(
    st.builds(
        Hello,
        version=st.integers(0, 99),
        info=st.dictionaries(NAMES.filter("v".__ne__), VALUES),
    ),
    st.builds(
        Request,
        id=IDS,
        method=NAMES,
        args=st.dictionaries(NAMES, VALUES),
        timeout=st.floats(0.001, 3600),
    ),
    st.builds(Reply, id=IDS, value=VALUES),
    st.builds(Reply, id=IDS, error=st.tuples(NAMES, NAMES)),
    st.builds(Event, name=NAMES, data=VALUES),
)


@given(st.lists(MESSAGES, max_size=5), st.integers(1, 50))
def test_messages_survive_any_cutting_of_the_stream(messages: list[Message], step: int) -> None:
    stream = b"".join(encode(message) for message in messages)
    reader = FrameReader()
    got: list[Message] = []
    for start in range(0, len(stream), step):
        got += reader.feed(stream[start : start + step])
    assert got == messages


@given(st.binary())
def test_any_bytes_give_a_message_or_one_error(body: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        decode(body)


@given(VALUES)
def test_any_value_gives_a_message_or_one_error(value: Any) -> None:
    with contextlib.suppress(RemoteProtocolError):
        decode(msgpack.packb(value))


@given(st.binary(max_size=200))
def test_any_stream_gives_messages_or_one_error(data: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        list(FrameReader().feed(data))


@pytest.mark.parametrize(
    "value",
    [
        [0, 1, "m", {}, float("nan")],
        [0, 1, "m", {}, -1],
        [0, 1, "m", {}, True],
        [0, -1, "m", {}, 1],
        [0, True, "m", {}, 1],
        [0, 1, "", {}, 1],
        [0, 1, "m" * 65, {}, 1],
        [0, 1, "m", {1: 2}, 1],
        [1, 1, 1, None],
        [1, 1, False, ["kind"]],
        [2, 5, None],
        [3, "x", None],
        [],
        None,
        {"w": 1},
        {"v": True},
    ],
)
def test_near_misses_are_refused(value: Any) -> None:
    with pytest.raises(RemoteProtocolError):
        decode(msgpack.packb(value))


def test_deep_nesting_is_refused_and_does_not_overflow() -> None:
    with pytest.raises(RemoteProtocolError):
        decode(b"\x93\x02\xa1x" + b"\x91" * 100_000 + b"\xc0")


def test_an_announced_giant_frame_is_refused_before_it_arrives() -> None:
    with pytest.raises(RemoteProtocolError, match="exceeds"):
        list(FrameReader().feed(struct.pack(">I", MAX_FRAME + 1)))


def test_a_giant_frame_is_not_sent() -> None:
    with pytest.raises(PayloadTooLargeError):
        encode(Event(name="x", data=bytes(MAX_FRAME)))


def test_another_version_is_named_in_the_error() -> None:
    with pytest.raises(RemoteProtocolError, match=f"version {VERSION + 1}"):
        check_hello(decode(encode(Hello(version=VERSION + 1, info={}))[4:]))
    with pytest.raises(RemoteProtocolError, match="hello"):
        check_hello(Event(name="x", data=None))
