"""The frames inside a session: every type, its limits, and whatever else may come."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.make_vectors import ALICE, BOB, EPOCH, SALT, example_frames
from walyoff import chunk_frames, frames
from walyoff.epochs import Epoch
from walyoff.errors import RemoteProtocolError
from walyoff.manifest import MAX_CHUNKS
from walyoff.records import (
    CHUNK_SIZE,
    MAX_BATCH_BODY,
    MAX_CONTENT,
    MAX_RECORDS,
)
from walyoff.wire import MAX_DID, pack, unpack

EXAMPLES = example_frames()
EACH = pytest.mark.parametrize("name", list(EXAMPLES))
HASH = b"h" * 32

NAMES = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=40)
TEXTS = st.text(min_size=1, max_size=40).filter(str.isprintable)
HASHES = st.binary(min_size=32, max_size=32)
NUMBERS = st.integers(0, (1 << 63) - 1)
POSITIVE = st.integers(1, (1 << 63) - 1)
BLOBS = st.binary(max_size=60)


def some(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(strategy, max_size=4).map(tuple)


HAVE = st.builds(frames.Have, NAMES, NUMBERS, some(POSITIVE))
EPOCHS = some(st.builds(Epoch, key=HASHES, created_ms=NUMBERS))
FRAMES: st.SearchStrategy[frames.Frame] = st.one_of(
    st.builds(frames.Hello, some(NAMES), some(HAVE)),
    st.builds(frames.HaveVector, some(HAVE)),
    st.builds(frames.WantBatches, NAMES, POSITIVE, st.integers(0, frames.MAX_FRAME)),
    st.builds(frames.BatchFrame, BLOBS, BLOBS, some(st.none() | st.tuples(HASHES, BLOBS))),
    st.builds(frames.RangeEnd, NAMES, NUMBERS),
    st.builds(frames.WantContents, some(HASHES)),
    st.builds(frames.ContentsFrame, some(st.tuples(HASHES, HASHES, BLOBS))),
    st.builds(frames.WantMore, NAMES, st.integers(0, frames.MAX_FRAME)),
    st.builds(frames.Gone, some(HASHES)),
    st.builds(frames.CertificateFrame, BLOBS),
    st.builds(frames.WantCertificate, HASHES),
    st.builds(frames.EpochKeys, EPOCHS),
    st.builds(frames.ChainHave, NAMES, some(NAMES), NUMBERS),
    st.builds(frames.ChainWant, NAMES, some(NAMES)),
    st.builds(frames.ChainFiles, NAMES, some(BLOBS), st.booleans()),
    st.builds(frames.Ping, NUMBERS),
    st.builds(frames.Pong, NUMBERS),
    st.builds(frames.JoinRequest, NAMES, some(BLOBS)),
    st.builds(
        frames.JoinGrant,
        BLOBS,
        EPOCHS,
        some(BLOBS),
        TEXTS,
        HASHES,
        some(st.tuples(NAMES, some(NAMES))),
    ),
    st.builds(frames.JoinRefused, TEXTS),
    st.builds(frames.Part, BLOBS),
    st.builds(frames.GroupsHeld, some(NAMES)),
    st.builds(frames.WantGroup, NAMES),
    st.builds(frames.GroupGrant, NAMES, BLOBS, EPOCHS, some(BLOBS), TEXTS, HASHES),
    st.builds(chunk_frames.WatchChunks, some(HASHES)),
    st.builds(chunk_frames.HaveChunks, HASHES, BLOBS),
    st.builds(
        chunk_frames.WantChunk,
        st.integers(0, 1 << 53).filter(lambda n: n < 1 << 53),
        HASHES,
        st.integers(0, 1000),
        st.integers(0, 7).map(lambda n: n * chunk_frames.PART),
        st.integers(1, chunk_frames.PART),
    ),
    st.builds(chunk_frames.ChunkPart, st.integers(0, 99), st.integers(0, 1 << 19), BLOBS),
    st.builds(chunk_frames.ChunkGone, st.integers(0, 99)),
)


def refused(value: Any) -> str:
    with pytest.raises(RemoteProtocolError) as caught:
        frames.decode(pack(value))
    return caught.value.reason


def test_there_is_an_example_of_every_type() -> None:
    assert {type(frame) for frame in EXAMPLES.values()} == set(get_args(frames.Frame))


@EACH
def test_a_frame_comes_back_as_it_was(name: str) -> None:
    frame = EXAMPLES[name]
    assert frames.decode(frames.encode(frame)) == frame
    assert frames.decode(memoryview(frames.encode(frame))) == frame


@given(FRAMES)
def test_any_frame_within_the_limits_comes_back_as_it_was(frame: frames.Frame) -> None:
    assert frames.decode(frames.encode(frame)) == frame


@given(st.binary(max_size=200))
def test_any_bytes_give_a_frame_or_the_one_error(data: bytes) -> None:
    try:
        frame = frames.decode(data)
    except RemoteProtocolError:
        return
    assert frames.encode(frame) == data


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 1 << 40) | st.floats() | NAMES | BLOBS | HASHES,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(NAMES, inner, max_size=2),
    max_leaves=12,
)


@given(st.integers(0, 25), st.lists(VALUES, max_size=6))
def test_any_fields_of_any_type_give_a_frame_or_the_one_error(
    number: int, fields: list[Any]
) -> None:
    data = pack([number, *fields])
    try:
        frame = frames.decode(data)
    except RemoteProtocolError:
        return
    assert frames.encode(frame) == data


@given(st.sampled_from(list(EXAMPLES)), st.data())
def test_a_changed_byte_gives_another_frame_or_the_one_error(name: str, data: Any) -> None:
    encoded = bytearray(frames.encode(EXAMPLES[name]))
    encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        frame = frames.decode(bytes(encoded))
    except RemoteProtocolError:
        return
    assert frame != EXAMPLES[name]


@EACH
def test_a_missing_or_a_further_field_is_refused(name: str) -> None:
    fields = unpack(frames.encode(EXAMPLES[name]), frames.MAX_FRAME)
    refused(fields[:-1])
    refused([*fields, None])


@pytest.mark.parametrize("value", [None, 0, "x", {}, [], [None], [True], [-1], [256], [[0]]])
def test_what_is_no_frame_is_refused(value: Any) -> None:
    refused(value)


def test_an_unknown_type_is_named() -> None:
    assert refused([max(frames._TYPES) + 1]) == "unknown-frame"


LONG_DID = "d" * (MAX_DID + 1)
HAVE_ROW = [ALICE, 1, []]
LIMITS: dict[str, list[Any]] = {
    "too many addresses": [0, ["a"] * (frames.MAX_ADDRESSES + 1), []],
    "a long address": [0, ["a" * (frames.MAX_ADDRESS_CHARS + 1)], []],
    "an address with an escape": [0, ["ipfs:\x1b[2J"], []],
    "a long vector": [1, [HAVE_ROW] * (frames.MAX_VECTOR + 1)],
    "too many gaps": [1, [[ALICE, 1, [1] * (frames.MAX_GAPS + 1)]]],
    "gap zero": [1, [[ALICE, 1, [0]]]],
    "a long DID": [1, [[LONG_DID, 1, []]]],
    "an empty DID": [1, [["", 1, []]]],
    "a DID with a line": [1, [["did:\nERROR", 1, []]]],
    "a negative sequence": [1, [[ALICE, -1, []]]],
    "batches from zero": [2, ALICE, 0, 1],
    "more bytes than a frame": [2, ALICE, 1, frames.MAX_FRAME + 1],
    "a large batch": [3, bytes(MAX_BATCH_BODY + 1), b"", []],
    "a large signature": [3, b"", bytes(32 * 1024 + 1), []],
    "too many contents": [3, b"", b"", [None] * (MAX_RECORDS + 1)],
    "a short salt": [3, b"", b"", [[b"s" * 31, b""]]],
    "a large content": [6, HASH, SALT, bytes(MAX_CONTENT + 1)],
    "a large content in a batch": [3, b"", b"", [[SALT, bytes(MAX_CONTENT + 1)]]],
    "too many ids": [5, [HASH] * (frames.MAX_IDS + 1)],
    "a short id": [7, [HASH[:-1]]],
    "a large certificate": [8, bytes(64 * 1024 + 1)],
    "too many epochs": [10, [[EPOCH.key, 1]] * (frames.MAX_EPOCHS + 1)],
    "a short epoch key": [10, [[EPOCH.key[:-1], 1]]],
    "too many blocks": [12, ALICE, ["b"] * (frames.MAX_REFS + 1)],
    "a long block name": [12, ALICE, ["b" * (frames.MAX_REF_CHARS + 1)]],
    "too many files": [13, ALICE, [b""] * (frames.MAX_FILES + 1), True],
    "a number for a flag": [13, ALICE, [], 1],
    "a name with an escape": [17, b"", [], [], "\x1b]0;title\x07", HASH],
    "no name": [17, b"", [], [], "", HASH],
    "a short channel secret": [17, b"", [], [], "family", HASH[:-1]],
    "a reason of two lines": [18, "no\nyes"],
    "a long reason": [18, "r" * 257],
    "too many watched": [19, [HASH] * (chunk_frames.MAX_WATCHED + 1)],
    "too many chunks": [20, HASH, bytes(MAX_CHUNKS // 8 + 2)],
    "a range of nothing": [21, 1, HASH, 0, 0, 0],
    "a range beyond its chunk": [21, 1, HASH, 0, chunk_frames.PART, CHUNK_SIZE],
    "a range between parts": [21, 1, HASH, 0, 1, 1],
    "a place beyond all files": [21, 1, HASH, MAX_CHUNKS, 0, 1],
    "a part that is too long": [22, 1, 0, bytes(chunk_frames.PART + 1)],
    "a part beyond its chunk": [22, 1, CHUNK_SIZE, b"x"],
    "a number that is too large": [23, 1 << 53],
}


@pytest.mark.parametrize("what", list(LIMITS))
def test_a_frame_beyond_a_limit_is_refused(what: str) -> None:
    refused(LIMITS[what])


def test_the_limits_themselves_are_allowed() -> None:
    full = frames.HaveVector(
        tuple(
            frames.Have(f"did:walytis:{n}", 9, (1,) * (frames.MAX_GAPS if n < 9 else 0))
            for n in range(frames.MAX_VECTOR)
        )
    )
    assert frames.decode(frames.encode(full)) == full
    content = frames.ContentsFrame(((HASH, SALT, bytes(MAX_CONTENT)),))
    assert frames.decode(frames.encode(content)) == content
    assert len(frames.encode(content)) < frames.MAX_FRAME


def test_a_frame_beyond_the_largest_size_is_not_even_decoded() -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        frames.decode(bytes(frames.MAX_FRAME + 1))
    assert caught.value.reason == "too-large"


def test_frames_that_carry_secrets_do_not_print_them() -> None:
    key, grant, secret = b"K" * 32, b"G" * 32, b"S" * 32
    epoch = Epoch(key=key, created_ms=1)
    joined = frames.JoinGrant(grant, (epoch,), (b"certificate",), "family", secret)
    printed = f"{frames.EpochKeys((epoch,))!r} {joined!r} {epoch!r} {[joined]}"
    for hidden in ("KKKK", "GGGG", "SSSS", key.hex(), grant.hex(), secret.hex()):
        assert hidden not in printed
    assert "family" in printed


def test_a_frame_is_a_value() -> None:
    ping = frames.Ping(1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        ping.nonce = 2  # type: ignore[misc]
    assert frames.RangeEnd(BOB, 1) == frames.RangeEnd(BOB, 1)


@given(
    number=st.integers(0, 1 << 54),
    offset=st.integers(0, CHUNK_SIZE),
    data=st.binary(max_size=80),
    size=st.sampled_from((0, 1, 255, 256, 65_535, 65_536, chunk_frames.PART)),
)
def test_a_part_is_what_the_general_decoder_says_and_is_not_copied(
    number: int, offset: int, data: bytes, size: int
) -> None:
    data = data.ljust(size, b".")[: chunk_frames.PART]
    encoded = frames.encode(chunk_frames.ChunkPart(number, offset, data))
    try:
        expected = chunk_frames.TYPES[22][2](*unpack(encoded, frames.MAX_FRAME)[1:])
    except RemoteProtocolError:
        assert chunk_frames.decode_part(encoded) is None
        return
    part = chunk_frames.decode_part(encoded)
    assert part == expected
    assert isinstance(part.data, memoryview)
    assert part.data.obj is encoded


@given(changed=st.binary(max_size=24), at=st.integers(0, 24), cut=st.integers(0, 5))
def test_nothing_passes_as_a_part_that_the_general_decoder_refuses(
    changed: bytes, at: int, cut: int
) -> None:
    encoded = frames.encode(chunk_frames.ChunkPart(300, 131_072, b"data of a part"))
    altered = encoded[:at] + changed + encoded[at + len(changed) : len(encoded) - cut]
    part = chunk_frames.decode_part(altered)
    if part is not None:
        fields = unpack(altered, frames.MAX_FRAME)
        assert fields[0] == 22
        assert part == chunk_frames.TYPES[22][2](*fields[1:])


def test_a_number_that_is_longer_than_it_must_be_is_no_part() -> None:
    encoded = frames.encode(chunk_frames.ChunkPart(7, 0, b"data"))
    longer = encoded[:2] + b"\xcc\x07" + encoded[3:]
    assert chunk_frames.decode_part(encoded) is not None
    assert chunk_frames.decode_part(longer) is None
    with pytest.raises(RemoteProtocolError):
        frames.decode(longer)
