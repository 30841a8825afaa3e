"""Epochs and anchor blocks: what an outsider sees, and what opens for whom."""

from __future__ import annotations

import os
from typing import Any

import pytest
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from tests.make_vectors import ALICE, CHANNEL, EPOCH, NOW_MS, example_batch
from walyoff.epochs import (
    ANCHOR_VERSION,
    MAX_ANCHOR,
    MAX_ANCHOR_PARTS,
    MAX_CERTIFICATE,
    MIN_CLASS,
    Anchor,
    Epoch,
    anchor_epoch,
    decode_epochs,
    encode_epochs,
    new_epoch,
    open_anchor,
    seal_anchor,
    size_class,
)
from walyoff.errors import CipherError, LocalProtocolError, RemoteProtocolError
from walyoff.records import MAX_BATCH_BODY
from walyoff.wire import pack, unpack

SALT = b"s" * 16
OTHER = Epoch(key=b"\x08" * 32, created_ms=NOW_MS)
SIGNED = (example_batch().body, b"signature")


def sealed(plain: object, *, epoch: Epoch = EPOCH, padding: bytes | None = None) -> bytes:
    """An anchor made by hand, so that it can be wrong inside."""
    data = pack(plain)
    framed = len(data).to_bytes(4, "big") + data if padding is None else padding
    header = pack([ANCHOR_VERSION, epoch.epoch_id, SALT])
    key = blake3(SALT, key=epoch.derive("anchor")).digest()
    ciphertext = AESGCM(key).encrypt(bytes(12), framed, header)
    return pack([ANCHOR_VERSION, epoch.epoch_id, SALT, ciphertext])


# ---------------------------------------------------------------------------- epochs


def test_keys_for_different_purposes_have_nothing_in_common() -> None:
    keys = {EPOCH.derive(purpose) for purpose in ("id", "anchor", "broadcast", "other")}
    assert len(keys) == 4
    assert EPOCH.key not in keys
    assert EPOCH.epoch_id == EPOCH.derive("id")[:8]
    assert EPOCH.epoch_id != OTHER.epoch_id


def test_an_epoch_never_prints_its_key() -> None:
    epoch = new_epoch(key=b"K" * 32, now_ms=NOW_MS)
    for text in (repr(epoch), str(epoch), f"{[epoch]}"):
        assert "KKKK" not in text
        assert epoch.key.hex() not in text


@given(st.lists(st.tuples(st.binary(min_size=32, max_size=32), st.integers(0, 1 << 62))))
def test_epochs_come_back_as_they_were(pairs: list[tuple[bytes, int]]) -> None:
    epochs = [Epoch(key=key, created_ms=created) for key, created in pairs]
    assert decode_epochs(unpack(pack(encode_epochs(epochs)), 1 << 20), 100) == epochs


@pytest.mark.parametrize(
    "value",
    [None, {}, "x", [None], [[]], [[b"k" * 31, 1]], [[b"k" * 32, -1]], [[b"k" * 32, True]],
     [[b"k" * 32, 1, 1]], [["k" * 32, 1]], [[b"k" * 32, 1]] * 3],
    ids=repr,
)  # fmt: skip
def test_what_are_no_epochs_are_refused(value: Any) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_epochs(value, 2)


# --------------------------------------------------------------------------- anchors


@given(
    certificates=st.lists(st.binary(max_size=100), max_size=5),
    batches=st.lists(
        st.tuples(st.binary(max_size=3000), st.binary(max_size=100)), min_size=1, max_size=5
    ),
)
def test_an_anchor_comes_back_as_it_was(
    certificates: list[bytes], batches: list[tuple[bytes, bytes]]
) -> None:
    payload = seal_anchor(EPOCH, certificates, batches, salt=SALT)
    assert anchor_epoch(payload) == EPOCH.epoch_id
    assert open_anchor(EPOCH, payload) == Anchor(tuple(certificates), tuple(batches))


def test_an_anchor_opens_under_its_own_epoch_alone() -> None:
    payload = seal_anchor(EPOCH, [], [SIGNED], salt=SALT)
    with pytest.raises(CipherError) as caught:
        open_anchor(OTHER, payload)
    assert "key" not in str(caught.value)


def test_an_outsider_sees_neither_names_nor_topics_nor_keys() -> None:
    payload = seal_anchor(EPOCH, [b"certificate of alice"], [SIGNED], salt=SALT)
    for secret in (ALICE.encode(), CHANNEL.encode(), b"greeting", b"certificate", EPOCH.key):
        assert secret not in payload


def test_the_same_anchor_under_another_salt_shares_no_bytes_with_it() -> None:
    one, two = (seal_anchor(EPOCH, [], [SIGNED], salt=salt * 16) for salt in (b"a", b"b"))
    same = sum(a == b for a, b in zip(one[100:], two[100:], strict=True))
    assert same < len(one) / 50


@given(st.data())
def test_an_anchor_with_a_changed_byte_does_not_open(data: Any) -> None:
    payload = bytearray(seal_anchor(EPOCH, [], [SIGNED], salt=SALT))
    at = data.draw(st.integers(0, 60) | st.integers(0, len(payload) - 1))
    payload[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises((CipherError, RemoteProtocolError)):
        open_anchor(EPOCH, bytes(payload))


@given(st.binary(max_size=200))
def test_any_bytes_are_no_anchor_and_only_say_so(data: bytes) -> None:
    with pytest.raises((CipherError, RemoteProtocolError)):
        open_anchor(EPOCH, data)


@given(st.binary(max_size=200))
def test_whatever_a_member_sealed_gives_an_anchor_or_the_one_error(data: bytes) -> None:
    """A former member knows the epoch key, so what is inside is hostile too."""
    for padding in (data, len(data).to_bytes(4, "big") + data):
        try:
            anchor = open_anchor(EPOCH, sealed(None, padding=padding))
        except RemoteProtocolError:
            continue
        assert anchor.batches


def anchored(**other: Any) -> list[Any]:
    return [other.get("certificates", []), other.get("batches", [[b"body", b"signature"]])]


@pytest.mark.parametrize(
    "plain",
    [
        None, [], [[]], [[], [], []], anchored(batches=[]), anchored(batches=None),
        anchored(batches=[[b"body"]]), anchored(batches=[["body", b"signature"]]),
        anchored(batches=[[b"b", b"s"]] * (MAX_ANCHOR_PARTS + 1)),
        anchored(certificates=[b"c"] * (MAX_ANCHOR_PARTS + 1)), anchored(certificates=[None]),
        anchored(certificates=[bytes(MAX_CERTIFICATE + 1)]), anchored(certificates={}),
        anchored(batches=[[bytes(MAX_BATCH_BODY + 1), b""]]),
        anchored(batches=[[b"", bytes(32 * 1024 + 1)]]),
    ],
)  # fmt: skip
def test_an_anchor_that_breaks_a_rule_inside_is_refused(plain: Any) -> None:
    with pytest.raises(RemoteProtocolError):
        open_anchor(EPOCH, sealed(plain))


@pytest.mark.parametrize(
    "padding", [b"", b"\0\0\0", b"\0\0\0\x05abc", b"\0\0\0\0\0x", b"\xff" * 8]
)
def test_padding_that_is_none_is_refused(padding: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        open_anchor(EPOCH, sealed(None, padding=padding))


def test_the_padding_is_zeros_and_the_size_is_exact() -> None:
    """Otherwise one anchor would have many plaintexts, and room for a hidden message."""
    plain = pack(anchored())
    size = len(plain).to_bytes(4, "big")
    assert open_anchor(EPOCH, sealed(None, padding=size + plain + bytes(9))).batches
    for wrong in (size + plain + b"\0x", (len(plain) + 5).to_bytes(4, "big") + plain):
        with pytest.raises(RemoteProtocolError, match="padding"):
            open_anchor(EPOCH, sealed(None, padding=wrong))


def outside(**other: Any) -> bytes:
    fields = {"version": 1, "epoch": b"e" * 8, "salt": SALT, "ciphertext": bytes(32)} | other
    return pack(list(fields.values()))


@pytest.mark.parametrize(
    "payload",
    [
        outside(version=2), outside(version=True), outside(version=1.0), outside(epoch=b"e"),
        outside(salt=b"s"), outside(ciphertext="x"), outside(more=1), b"", pack(1),
        b"\xc0" * (MAX_ANCHOR + 1),
    ],
)  # fmt: skip
def test_a_block_that_is_no_anchor_is_refused_without_a_key(payload: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        anchor_epoch(payload)
    with pytest.raises(RemoteProtocolError):
        open_anchor(EPOCH, payload)


def test_an_anchor_without_a_batch_or_with_too_much_is_not_made() -> None:
    body = os.urandom(MAX_BATCH_BODY)
    for certificates, batches in (
        ([], []),
        ([], [SIGNED] * (MAX_ANCHOR_PARTS + 1)),
        ([b"c"] * (MAX_ANCHOR_PARTS + 1), [SIGNED]),
        ([], [(body, b"")] * 4),
    ):
        with pytest.raises(LocalProtocolError):
            seal_anchor(EPOCH, certificates, batches, salt=SALT)


def test_the_largest_anchor_that_is_made_can_be_opened() -> None:
    for size in (MAX_ANCHOR - 1024 - 30, 800_000, 786_432 - 30):
        parts = [(bytes(MAX_BATCH_BODY), b"")] * 2
        parts.append((bytes(size - 2 * (MAX_BATCH_BODY + 20)), b""))
        parts = [(body[:MAX_BATCH_BODY], signature) for body, signature in parts]
        payload = seal_anchor(EPOCH, [], parts, salt=SALT)
        assert len(payload) <= MAX_ANCHOR
        assert open_anchor(EPOCH, payload).batches == tuple(parts)


# ---------------------------------------------------------------------- size classes


@given(st.integers(0, MAX_ANCHOR))
def test_padding_costs_at_most_a_quarter(size: int) -> None:
    padded = size_class(size)
    assert padded >= size
    assert padded == MIN_CLASS or padded <= size * 1.25


@given(st.integers(0, MAX_ANCHOR), st.integers(0, MAX_ANCHOR))
def test_size_classes_are_monotone_and_stay_what_they_are(a: int, b: int) -> None:
    low, high = sorted((a, b))
    assert size_class(low) <= size_class(high)
    assert size_class(size_class(a)) == size_class(a)


def test_there_are_few_size_classes_so_that_many_anchors_look_alike() -> None:
    classes = {size_class(size) for size in range(0, MAX_ANCHOR, 100)}
    assert len(classes) < 40
    small = {
        len(seal_anchor(EPOCH, [], [(bytes(n), b"")], salt=SALT)) for n in range(0, 4000, 37)
    }
    assert len(small) == 1
