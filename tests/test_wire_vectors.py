"""Golden vectors: the code makes them, the files keep them, the documentation shows them."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from walyoff_codecs.hybrid1 import Hybrid1

from tests import make_vectors
from tests.make_vectors import BLOCK, EPOCH, NOW_MS, PROTOCOL, VECTORS, lookup, stored
from walyoff import frames
from walyoff.certificates import decode
from walyoff.discovery import decode_presence
from walyoff.epochs import open_anchor, seal_anchor
from walyoff.invitations import parse
from walyoff.moving.archive import EXPORT, ArchiveReader
from walyoff.records import decode_batch
from walyoff.stores import keyfile
from walyoff.stores.vault import Vault
from walyoff.trust import Credentials
from walyoff.wire import unpack

WIRE = stored("wire.json")


@pytest.mark.parametrize("name", list(make_vectors.wire_vectors()))
def test_the_code_still_makes_the_stored_vector(name: str) -> None:
    """A change here is a change of the wire: it needs a new version number, not a new file."""
    assert make_vectors.wire_vectors()[name] == WIRE[name]


def test_the_file_has_no_other_vectors() -> None:
    assert set(WIRE) == set(make_vectors.wire_vectors())


@pytest.mark.parametrize("name", [name for name in WIRE if name.startswith("frame.")])
def test_stored_frames_can_still_be_read(name: str) -> None:
    frame = frames.decode(bytes.fromhex(WIRE[name]))
    assert type(frame).__name__ == name.removeprefix("frame.")
    assert frame == make_vectors.example_frames()[type(frame).__name__]


def test_the_stored_batch_can_still_be_read() -> None:
    batch = decode_batch(bytes.fromhex(WIRE["batch.body"]))
    assert batch == make_vectors.example_batch()
    assert batch.batch_id.hex() == WIRE["batch.id"]
    assert b"".join(batch.record_ids).hex() == WIRE["record.ids"]


def test_the_stored_presence_opens_under_its_key() -> None:
    sealed = bytes.fromhex(WIRE["presence.sealed"])
    key = bytes.fromhex(WIRE["epoch.broadcast_key"])
    plain = AESGCM(key).decrypt(sealed[:12], sealed[12:], None)
    assert plain.hex() == WIRE["presence.plain"]
    assert decode_presence(plain, NOW_MS) == (make_vectors.ALICE, ["ipfs:one"])


def test_the_stored_invitation_can_still_be_read() -> None:
    assert parse(WIRE["invitation.string"], now=0.0) == make_vectors.INVITATION


def test_the_anchor_that_the_vectors_are_of_opens() -> None:
    batch = make_vectors.example_batch()
    salt = make_vectors.NONCE + b"abcd"
    payload = seal_anchor(EPOCH, [b"\x0d" * 4], [(batch.body, b"\x0e" * 4)], salt=salt)
    assert payload.hex().startswith(WIRE["anchor.block_begins"])
    assert open_anchor(EPOCH, payload).batches == ((batch.body, b"\x0e" * 4),)


def test_the_archive_that_the_vector_is_can_be_read_by_its_description() -> None:
    data = bytes.fromhex(WIRE["archive"])
    head = data[: 8 + 38 + 32]
    assert head[:8] == b"WOAR\x01\x01" + (38).to_bytes(2, "big")
    assert head[8:46] == b"WOFK\x01\x00" + make_vectors.ARCHIVE_KEY
    derived = blake3(
        make_vectors.ARCHIVE_KEY, derive_key_context="walyoff store 2025 archives"
    ).digest()
    key = blake3(head[46:], key=derived).digest()
    plain = AESGCM(key).decrypt(bytes(11) + b"\x01", data[len(head) :], head)
    for path, value in make_vectors.ARCHIVE_PARTS.items():
        size = int.from_bytes(plain[:4], "big")
        assert unpack(plain[4 : 4 + size], 512) == [path, len(value)]
        assert plain[4 + size : 4 + size + len(value)] == value
        plain = plain[4 + size + len(value) :]
    assert plain == bytes(4)
    # And by the code, as any export of today.
    reader = ArchiveReader(io.BytesIO(data), EXPORT)
    keys = Vault(keyfile.decode(reader.key_block, None, Path("export")))
    parts = reader.parts(keys.archive_key(reader.salt))
    found = {path: b"".join(pieces) for path, _, pieces in parts}
    assert found == make_vectors.ARCHIVE_PARTS


def test_the_integers_of_the_vector_are_those_of_the_documentation() -> None:
    numbers = unpack(bytes.fromhex(WIRE["msgpack.integers"]), 200)
    assert f"`{json.dumps(numbers)}`" in PROTOCOL.read_text()


# --------------------------------------------------------------------- documentation


def documented() -> list[tuple[str, str, str]]:
    """(file, name, value) of every vector block."""
    return [
        (match[1], match[2], "".join(match[3].split()))
        for match in BLOCK.finditer(PROTOCOL.read_text())
    ]


def test_every_vector_in_the_documentation_is_the_one_in_the_files() -> None:
    shown = documented()
    assert len(shown) > 40
    assert [(f, n) for f, n, value in shown if lookup(f, n) != value] == []


def test_every_vector_of_the_wire_is_in_the_documentation() -> None:
    assert set(WIRE) - {name for file, name, _ in documented() if file == "wire.json"} == set()


def test_every_file_of_vectors_is_named_in_the_documentation() -> None:
    text = PROTOCOL.read_text()
    assert [path.name for path in VECTORS.glob("*.json") if path.name not in text] == []


def test_every_frame_has_a_row_in_the_documentation() -> None:
    rows = dict(re.findall(r"^\| (\d+) \| `(\w+)` \|", PROTOCOL.read_text(), re.MULTILINE))
    encoded = {
        name: str(bytes.fromhex(WIRE[f"frame.{name}"])[1])
        for name in make_vectors.example_frames()
    }
    assert {name: number for number, name in rows.items()} == encoded


# --------------------------------------------------------------------------- secrets


def test_credentials_do_not_print_their_key() -> None:
    encoded = bytes.fromhex(stored("certificates.json")["encoded"])
    secret = b"K" * 64
    key = Hybrid1().load_sign_key(secret)
    printed = repr(Credentials(decode(encoded).certificate, encoded, key))
    for hidden in (secret.hex(), "KKKK", repr(key)):
        assert hidden not in printed
    assert secret.hex() not in repr(key)
    assert "KKKK" not in repr(key)


def test_the_state_of_a_channel_does_not_print_its_secret() -> None:
    state = make_vectors.STATE
    assert state.secret.hex() not in repr(state)
    assert repr(state.secret)[2:-1] not in repr(state)
