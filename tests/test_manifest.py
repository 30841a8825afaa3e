"""Manifests: what is accepted, what names become, and that no bytes break the decoder."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walyoff.errors import LocalProtocolError, RemoteProtocolError
from walyoff.manifest import (
    DEFAULT_MEDIA_TYPE,
    MAX_NAME,
    MAX_SIZE,
    Manifest,
    check_media_type,
    check_name,
    chunk_count,
    chunk_id,
    chunk_length,
    decode_manifest,
    encode_manifest,
    safe_name,
)
from walyoff.records import CHUNK_SIZE, MAX_CONTENT
from walyoff.wire import pack

SIZE = 2 * CHUNK_SIZE + 5


def make(**changes: object) -> Manifest:
    fields: dict[str, object] = {
        "caption": b"look",
        "name": "photo.jpg",
        "media_type": "image/jpeg",
        "size": SIZE,
        "ids": bytes(range(96)),
    }
    return Manifest(**{**fields, **changes})  # type: ignore[arg-type]


def test_a_manifest_comes_back() -> None:
    manifest = make()
    assert decode_manifest(encode_manifest(manifest)) == manifest
    assert manifest.count == 3
    assert manifest.chunk_ids() == tuple(manifest.chunk_id(place) for place in range(3))
    assert [manifest.length(place) for place in range(3)] == [CHUNK_SIZE, CHUNK_SIZE, 5]


def test_the_largest_manifest_is_a_content() -> None:
    ids = bytes(32) * chunk_count(MAX_SIZE)
    largest = make(size=MAX_SIZE, ids=ids, caption=bytes(1024 * 1024), name="n" * MAX_NAME)
    assert len(encode_manifest(largest)) <= MAX_CONTENT
    assert decode_manifest(encode_manifest(largest)) == largest


@pytest.mark.parametrize(
    "fields",
    [
        [2, b"", "n", "a/b", 0, CHUNK_SIZE, b""],
        [True, b"", "n", "a/b", 0, CHUNK_SIZE, b""],
        [1, "text", "n", "a/b", 0, CHUNK_SIZE, b""],
        [1, b"", "n" * 256, "a/b", 0, CHUNK_SIZE, b""],
        [1, b"", "n", "a" * 128, 0, CHUNK_SIZE, b""],
        [1, b"", "n", "a/b", -1, CHUNK_SIZE, b""],
        [1, b"", "n", "a/b", MAX_SIZE + 1, CHUNK_SIZE, b""],
        [1, b"", "n", "a/b", 0, 2 * CHUNK_SIZE, b""],
        [1, b"", "n", "a/b", 1, CHUNK_SIZE, b""],
        [1, b"", "n", "a/b", 0, CHUNK_SIZE, bytes(32)],
        [1, b"", "n", "a/b", 1, CHUNK_SIZE, bytes(31)],
        [1, b"", "n", "a/b", CHUNK_SIZE + 1, CHUNK_SIZE, bytes(32)],
        [1, b"", "n", "a/b", 0, CHUNK_SIZE],
        [1, b"", "n", "a/b", 0, CHUNK_SIZE, b"", b""],
        None,
    ],
)
def test_what_is_wrong_is_refused(fields: object) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_manifest(pack(fields))


@given(st.binary(max_size=300))
def test_any_bytes_give_a_manifest_or_one_error(data: bytes) -> None:
    try:
        manifest = decode_manifest(data)
    except RemoteProtocolError:
        return
    assert manifest.count == chunk_count(manifest.size)


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("photo.jpg", "photo.jpg"),
        ("Grüße an alle 🎉.txt", "Grüße an alle 🎉.txt"),
        ("../../etc/passwd", "_._.._etc_passwd"),
        ("/etc/passwd", "_etc_passwd"),
        ("C:\\Windows\\system.ini", "C__Windows_system.ini"),
        ("..", "attachment"),
        (".", "attachment"),
        ("", "attachment"),
        ("   ", "attachment"),
        (".bashrc", "_bashrc"),
        ("CON", "_CON"),
        ("nul.txt", "_nul.txt"),
        ("lpt1", "_lpt1"),
        ("a\x00b", "a_b"),
        ("a\nb\x1b[31m.txt", "a_b_[31m.txt"),
        # It shows as "annexe.txt" reversed: a picture that is a program.
        ("ann\u202etxt.exe", "ann_txt.exe"),
        ("end. . .", "end"),
        ("\ud800bad", "_bad"),
    ],
)
def test_names_are_made_harmless(name: str, safe: str) -> None:
    assert safe_name(name) == safe


def test_long_names_keep_their_extension() -> None:
    assert safe_name("ü" * 300 + ".jpeg").endswith("ü.jpeg")
    assert len(safe_name("ü" * 300 + ".jpeg").encode()) <= MAX_NAME
    assert len(safe_name("x." + "ü" * 300).encode()) <= MAX_NAME


@given(st.text(max_size=300))
def test_any_text_becomes_one_harmless_name(text: str) -> None:
    name = safe_name(text)
    assert name
    assert safe_name(name) == name
    assert len(name.encode()) <= MAX_NAME
    assert name.isprintable()
    assert not set(name) & set('/\\:*?"<>|')
    assert name not in (".", "..")
    assert not name.startswith(".")


def test_a_hostile_name_is_harmless_when_it_is_decoded() -> None:
    data = encode_manifest(make(name="../x\n", media_type="text/html; charset=x"))
    manifest = decode_manifest(data)
    assert manifest.name == safe_name("../x\n")
    assert manifest.media_type == DEFAULT_MEDIA_TYPE


def test_own_names_are_refused_rather_than_changed() -> None:
    check_name("photo.jpg")
    for name in ("../x", "a/b", "x\n", "", "con", ".hidden"):
        with pytest.raises(LocalProtocolError):
            check_name(name)
    check_media_type("image/svg+xml")
    for kind in ("image", "image/", "/png", "a/b;c", "image/png\n", "ä/b"):
        with pytest.raises(LocalProtocolError):
            check_media_type(kind)


def test_a_chunk_id_is_of_the_channel_and_of_all_bytes() -> None:
    key = bytes(32)
    assert chunk_id(key, b"ab", b"c") == chunk_id(key, b"abc")
    assert chunk_id(key, b"abc") != chunk_id(bytes(31) + b"\x01", b"abc")
    assert chunk_id(key, b"abc") != chunk_id(key, b"abd")
    assert chunk_length(SIZE, 2) == 5
