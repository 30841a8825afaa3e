"""DID documents: that standard software takes them, and that they list what is true."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import base58
import pydid
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256K1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey
from hypothesis import given
from hypothesis import strategies as st

from tests.make_vectors import ALICE, BOB, CHANNEL, control_keys, did_document
from tests.sim.virtual import in_virtual_time
from walyoff.did_document import KEY_TYPES, compress, make_document, split_control_keys
from walyoff.errors import RemoteProtocolError
from walyoff.testing.world import SimWorld

VECTOR = Path(__file__).parent / "vectors" / "did_document.json"
#: DID Core 1.0, section 3.2.
DID_URL = re.compile(r"did:[a-z0-9]+:[A-Za-z0-9._:%-]+#[A-Za-z0-9._~%!$&'()*+,;=:@/?-]+")
#: https://github.com/multiformats/multicodec/blob/master/table.csv
CODES = {"e701": 33, "ed01": 32, "ec01": 32, "8c24": 1184, "9124": 1952}


def check(document: dict[str, Any]) -> None:
    """What a resolver and a verifier do with a document."""
    # It comes as JSON, and a library of others reads and writes it.
    parsed = pydid.deserialize_document(json.loads(json.dumps(document)), strict=True)
    assert isinstance(parsed, pydid.DIDDocument)
    assert json.loads(parsed.to_json()) == document
    assert document["@context"][0] == "https://www.w3.org/ns/did/v1"
    ids = [method["id"] for method in document["verificationMethod"]]
    assert len(set(ids)) == len(ids)
    for method in document["verificationMethod"]:
        assert DID_URL.fullmatch(method["id"])
        found = parsed.dereference(method["id"])
        assert isinstance(found, pydid.VerificationMethod)
        assert found.type == "Multikey"
        load(method["publicKeyMultibase"])
    used: set[str] = set()
    for relation in ("authentication", "assertionMethod", "capabilityInvocation"):
        names = document.get(relation, [])
        assert all("X25519" not in name and "KEM" not in name for name in names)
        used.update(names)
    assert all("X25519" in name or "KEM" in name for name in document["keyAgreement"])
    # Each key is for something, and nothing names a key that is not there.
    assert used | set(document["keyAgreement"]) == set(ids)


def load(multibase: str) -> object:
    """The public key, as a verifier of another make loads it."""
    assert multibase[0] == "z"
    raw = base58.b58decode(multibase[1:])
    code, key = raw[:2].hex(), raw[2:]
    assert len(key) == CODES[code]
    match code:
        case "e701":
            return EllipticCurvePublicKey.from_encoded_point(SECP256K1(), key)
        case "ed01":
            return Ed25519PublicKey.from_public_bytes(key)
        case "8c24":
            return MLKEM768PublicKey.from_public_bytes(key)
        case "9124":
            return MLDSA65PublicKey.from_public_bytes(key)
        case _:
            return key


def test_the_golden_document_is_still_made_and_taken_by_others() -> None:
    document = did_document()
    assert document == json.loads(VECTOR.read_text())
    check(document)
    assert document["controller"] == [ALICE, BOB]
    kinds = [
        m["id"].partition("#")[2].rpartition("-")[0] for m in document["verificationMethod"]
    ]
    control = ["secp256k1", "ML-KEM-768", "ML-DSA-65"]
    assert kinds == [*control, "Ed25519", "ML-DSA-65", "ML-KEM-768", "X25519"]
    # Only control keys change who belongs to it, and only devices open sessions.
    assert len(document["capabilityInvocation"]) == 2
    assert len(document["authentication"]) == 2
    assert not set(document["capabilityInvocation"]) & set(document["authentication"])


def test_codes_are_those_of_the_table() -> None:
    assert {name: kind.code for name, kind in KEY_TYPES.items()} == {
        "secp256k1": 0xE7,
        "Ed25519": 0xED,
        "X25519": 0xEC,
        "ML-KEM-768": 0x120C,
        "ML-KEM-1024": 0x120D,
        "ML-DSA-65": 0x1211,
        "ML-DSA-87": 0x1212,
    }


def test_a_family_or_suite_without_codes_is_left_out() -> None:
    document = make_document(CHANNEL, control_keys="|new-family:t:abcd|", controllers=[ALICE])
    assert document["verificationMethod"] == []
    assert "authentication" not in document
    pydid.deserialize_document(document, strict=True)


@pytest.mark.parametrize("wrong", ["|EC-secp256k1:t:xyz|", "|EC-secp256k1:t:04|", "|" * 20_000])
def test_malformed_control_keys_are_refused(wrong: str) -> None:
    with pytest.raises(RemoteProtocolError):
        split_control_keys(wrong)


@given(st.text(max_size=200) | st.text("|:0123456789abcdefECsp-k1", max_size=200))
def test_any_text_is_control_keys_or_the_one_error(text: str) -> None:
    try:
        split_control_keys(text)
    except RemoteProtocolError:
        return


def test_points_are_compressed_as_others_compress_them() -> None:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    for number in range(1, 9):
        public = ec.derive_private_key(number, SECP256K1()).public_key()
        long = public.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        short = public.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
        assert compress(long) == compress(short) == short
    assert control_keys().startswith("|EC-secp256k1:")


@in_virtual_time
async def test_the_controllers_of_a_group_of_people_are_the_people() -> None:
    world = SimWorld(1)
    async with world.device("a") as a, world.device("b") as b:
        group = await a.create_channel("group")
        person = await b.create_channel("person")
        theirs = await b.join(await group.invite(), identity=person)
        await theirs.wait_peer()
        document = await group.did_document()
        check(document)
        assert document["controller"] == [group.me, person.did]
        owners = {method["controller"] for method in document["verificationMethod"]}
        assert owners == {group.me, theirs.me}


@in_virtual_time
async def test_a_channels_document_lists_the_keys_of_its_members_of_now() -> None:
    world = SimWorld(1)
    async with world.device("a") as a, world.device("b", suite="hybrid-1") as b:
        channel = await a.create_channel("family")
        theirs = await b.join(await channel.invite())
        await theirs.wait_peer()
        ours = await channel.did_document()
        check(ours)
        assert ours == await theirs.did_document()
        assert ours["controller"] == [channel.me, theirs.me]
        owners = [method["controller"] for method in ours["verificationMethod"]]
        # classic-1 has two keys, hybrid-1 four.
        assert owners == [channel.me] * 2 + [theirs.me] * 4
        await channel.remove(theirs.me)
        after = await channel.did_document()
        assert after["controller"] == [channel.me]
        assert {m["controller"] for m in after["verificationMethod"]} == {channel.me}
