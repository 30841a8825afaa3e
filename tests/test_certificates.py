"""Device certificates: one encoding for each, and bounded, total decoding."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from walyoff.certificates import (
    MAX_ENCODED,
    MAX_SIGNATURE,
    Certificate,
    SignedCertificate,
    decode,
    encode,
)
from walyoff.errors import LocalProtocolError, RemoteProtocolError
from walyoff.wire import pack, unpack

VECTORS = Path(__file__).parent / "vectors" / "certificates.json"

CERTIFICATE = Certificate(
    channel="did:walytis:channel",
    member="did:walytis:member",
    suite="hybrid-1",
    key_types=("Ed25519", "ML-DSA-65", "ML-KEM-768", "X25519"),
    sign_public=b"\x01" * 1984,
    seal_public=b"\x02" * 1216,
    not_before_ms=1_700_000_000_000,
    not_after_ms=1_800_000_000_000,
)
SIGNATURE = b"s" * 100


def test_a_certificate_comes_back_as_it_was() -> None:
    signed = decode(encode(CERTIFICATE, SIGNATURE))
    assert signed == SignedCertificate(certificate=CERTIFICATE, signature=SIGNATURE)
    assert signed.certificate.certificate_id == CERTIFICATE.certificate_id
    own = replace(CERTIFICATE, channel="")
    assert decode(encode(own, b"")).certificate == own


def test_the_id_is_the_hash_of_the_body_and_not_of_the_signature() -> None:
    assert CERTIFICATE.certificate_id == blake3(CERTIFICATE.body()).digest(32)
    one, two = (decode(encode(CERTIFICATE, text)) for text in (b"a", b"b"))
    assert one.certificate.certificate_id == two.certificate.certificate_id


@pytest.mark.parametrize(
    "change",
    [
        {"channel": "did:walytis:other"},
        {"member": "did:walytis:other"},
        {"suite": "classic-1"},
        {"key_types": ("Ed25519",)},
        {"sign_public": b"\x03"},
        {"seal_public": b"\x03"},
        {"not_before_ms": 1},
        {"not_after_ms": 1_800_000_000_001},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_field_is_signed(change: dict[str, Any]) -> None:
    assert replace(CERTIFICATE, **change).body() != CERTIFICATE.body()


@pytest.mark.parametrize(
    "change",
    [
        {"channel": "c" * 257},
        {"member": ""},
        {"member": "m" * 257},
        {"member": "did:wälytis"},
        {"member": "did with space"},
        {"member": "did\x1b[2J"},
        {"suite": ""},
        {"suite": "s" * 33},
        {"key_types": ()},
        {"key_types": ("k",) * 9},
        {"key_types": ("k" * 33,)},
        {"key_types": ("",)},
        {"sign_public": b""},
        {"sign_public": b"k" * 8193},
        {"seal_public": b""},
        {"seal_public": b"k" * 8193},
        {"not_before_ms": -1},
        {"not_before_ms": 1_800_000_000_001},
        {"not_after_ms": 1 << 53},
    ],
    ids=str,
)
def test_fields_out_of_bounds_are_refused_on_both_ways(change: dict[str, Any]) -> None:
    with pytest.raises(LocalProtocolError):
        replace(CERTIFICATE, **change)
    names = [
        "channel",
        "member",
        "suite",
        "key_types",
        "sign_public",
        "seal_public",
        "not_before_ms",
        "not_after_ms",
    ]
    fields = unpack(CERTIFICATE.body(), MAX_ENCODED)
    for name, value in change.items():
        fields[2 + names.index(name)] = list(value) if isinstance(value, tuple) else value
    with pytest.raises(RemoteProtocolError):
        decode(pack([pack(fields), SIGNATURE]))


def test_sizes_are_bounded() -> None:
    assert decode(encode(CERTIFICATE, bytes(MAX_SIGNATURE)))
    with pytest.raises(LocalProtocolError):
        encode(CERTIFICATE, bytes(MAX_SIGNATURE + 1))
    with pytest.raises(RemoteProtocolError):
        decode(pack([CERTIFICATE.body(), bytes(MAX_SIGNATURE + 1)]))
    with pytest.raises(RemoteProtocolError) as error:
        decode(bytes(MAX_ENCODED + 1))
    assert error.value.reason == "too-large"


def test_a_later_version_is_named_as_such() -> None:
    fields = unpack(CERTIFICATE.body(), MAX_ENCODED)
    fields[1] = 2
    with pytest.raises(RemoteProtocolError) as error:
        decode(pack([pack(fields), SIGNATURE]))
    assert error.value.reason == "version"


def test_bytes_with_another_domain_are_no_certificate() -> None:
    fields = unpack(CERTIFICATE.body(), MAX_ENCODED)
    fields[0] = "walyoff/batch/1"
    with pytest.raises(RemoteProtocolError, match="not the body of a certificate"):
        decode(pack([pack(fields), SIGNATURE]))


@pytest.mark.parametrize("value", [True, 1.5, None, "1", b"1", [1], {"a": 1}])
@pytest.mark.parametrize("place", range(10))
def test_a_field_of_another_type_is_refused(place: int, value: object) -> None:
    fields = unpack(CERTIFICATE.body(), MAX_ENCODED)
    if type(value) is type(fields[place]):
        fields[place] = None
    else:
        fields[place] = value
    with pytest.raises(RemoteProtocolError):
        decode(pack([pack(fields), SIGNATURE]))


def test_an_encoding_that_is_not_canonical_is_refused() -> None:
    # The same certificate with a time in a longer form (uint64 0xcf for a small number).
    small = replace(CERTIFICATE, not_before_ms=5)
    body = small.body()
    index = body.rindex(b"\x05\xcf")
    longer = body[:index] + b"\xcf" + (5).to_bytes(8, "big") + body[index + 1 :]
    assert decode(pack([body, SIGNATURE]))
    with pytest.raises(RemoteProtocolError) as error:
        decode(pack([longer, SIGNATURE]))
    assert error.value.reason == "not-canonical"
    with pytest.raises(RemoteProtocolError):
        decode(encode(CERTIFICATE, SIGNATURE) + b"\x00")


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=300))
def test_garbage_gives_the_one_error(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode(data)


@settings(max_examples=200, deadline=None)
@given(place=st.integers(0, 1 << 20), octet=st.integers(0, 255))
def test_a_changed_byte_gives_the_error_or_another_certificate(place: int, octet: int) -> None:
    encoded = bytearray(encode(CERTIFICATE, SIGNATURE))
    place %= len(encoded)
    changed = encoded[place] != octet
    encoded[place] = octet
    try:
        signed = decode(encoded)
    except RemoteProtocolError:
        return
    assert encode(signed.certificate, signed.signature) == encoded
    assert changed == (
        signed != SignedCertificate(certificate=CERTIFICATE, signature=SIGNATURE)
    )


def test_validity_includes_both_ends() -> None:
    first, last = CERTIFICATE.not_before_ms, CERTIFICATE.not_after_ms
    assert [CERTIFICATE.covers(now) for now in (first - 1, first, last, last + 1)] == [
        False,
        True,
        True,
        False,
    ]


def test_the_encoding_stays() -> None:
    stored = json.loads(VECTORS.read_text())
    signed = decode(bytes.fromhex(stored["encoded"]))
    assert signed == SignedCertificate(certificate=CERTIFICATE, signature=SIGNATURE)
    assert encode(CERTIFICATE, SIGNATURE).hex() == stored["encoded"]
    assert CERTIFICATE.certificate_id.hex() == stored["certificate_id"]


if __name__ == "__main__":
    # Only for a new version of the format: what is released never changes.
    answer = {
        "encoded": encode(CERTIFICATE, SIGNATURE).hex(),
        "certificate_id": CERTIFICATE.certificate_id.hex(),
    }
    VECTORS.write_text(json.dumps(answer, indent=1) + "\n")


def test_an_incarnation_is_signed_and_a_device_that_never_moved_has_none() -> None:
    plain = CERTIFICATE
    moved = replace(plain, incarnation=1_800_000_000_000)
    assert moved.body() != plain.body()
    assert len(unpack(moved.body(), 1 << 16)) == len(unpack(plain.body(), 1 << 16)) + 1
    assert decode(encode(moved, b"s")).certificate.incarnation == 1_800_000_000_000
    assert decode(encode(plain, b"s")).certificate.incarnation == 0
    for wrong in (0, -1, True, 2**53, None, "1"):
        fields = [*unpack(plain.body(), 1 << 16), wrong]
        with pytest.raises(RemoteProtocolError):
            decode(pack([pack(fields), b"s"]))
    with pytest.raises(LocalProtocolError, match="incarnation"):
        replace(plain, incarnation=-1)
