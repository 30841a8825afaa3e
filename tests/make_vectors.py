"""Makes the golden vectors of the wire, and puts all vectors into the documentation.

    python -m tests.make_vectors           say what would change
    python -m tests.make_vectors --write   write tests/vectors/wire.json and docs/protocol.md

Vectors change only together with a version number on the wire: two devices that disagree
about one of them do not understand each other.
"""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from typing import Any, Final
from unittest import mock

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from walyoff_transports import gossip

from walyoff import certificates, chunk_frames, frames
from walyoff.addresses import encode_addresses
from walyoff.channel_state import ChannelState
from walyoff.child import rpc
from walyoff.child.acts import Claim
from walyoff.child.births import Birth
from walyoff.child.renewal_keys import SEEDS_SIZE, RenewalKey
from walyoff.child.renewals import renewal_body
from walyoff.did_document import make_document
from walyoff.engine.consent import PROPOSE, Statement
from walyoff.epochs import Epoch, seal_anchor
from walyoff.invitations import Invitation
from walyoff.manifest import Manifest, chunk_id, encode_manifest
from walyoff.moving.archive import EXPORT, SALT_SIZE, ArchiveWriter
from walyoff.records import (
    CHUNK_SIZE,
    KIND_CONSENT,
    KIND_MESSAGE,
    Batch,
    Record,
    Seen,
    chain_start,
    commit,
    device_id,
    make_batch,
    signed_message,
)
from walyoff.session.transcript import blinded_tag
from walyoff.stores import keyfile
from walyoff.stores.vault import Vault
from walyoff.wire import pack
from walyoff.words import session_words

VECTORS: Final = Path(__file__).parent / "vectors"
PROTOCOL: Final = Path(__file__).parent.parent / "docs" / "protocol.md"

CHANNEL: Final = "did:walytis:channel"
ALICE: Final = "did:walytis:alice"
BOB: Final = "did:walytis:bob"
SALT: Final = bytes(range(32))
NOW_MS: Final = 1_800_000_000_000
EPOCH: Final = Epoch(key=b"\x07" * 32, created_ms=NOW_MS)
PEER: Final = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"
INVITATION: Final = Invitation(
    secret=bytes(range(16)),
    expires=1_800_000_000,
    addresses=(
        f"ipfs:/ip4/192.0.2.1/tcp/4001/p2p/{PEER}",
        f"ipfs:/ip6/2001:db8::1/udp/4001/quic-v1/p2p/{PEER}",
        "pigeon:loft-7",
    ),
)
#: A string of version 1, which is read and not made any more: for a device, until
#: 1800000000, at `ipfs:one` and `ipfs:two`.
OLD_STRING: Final = "afvutuqaaaaqeayeaudaocajbifqydiob4egs4dgom5g63tfbbuxaztthj2ho3zbpyn3k"
STATE: Final = ChannelState(did=CHANNEL, name="family", pin=b"\x01" * 32, secret=b"\x05" * 32)
NONCE: Final = bytes(range(12))
REF: Final = "bafyblock"

#: A fenced block whose info string names a vector: ```vector wire.json batch.body
BLOCK: Final = re.compile(r"```vector (\S+) (\S+)\n(.*?)```", re.DOTALL)
_WIDTH: Final = 92


def forgetting_batch() -> Batch:
    """A record for an hour, and a proposal to forget it."""
    start = chain_start(CHANNEL, ALICE)
    said = Statement(PROPOSE, bytes(range(32)), 3, "because")
    return make_batch(
        channel=CHANNEL,
        author=ALICE,
        certificate_id=b"\x0c" * 32,
        first_seq=1,
        prev=start,
        seen=[],
        records=[
            Record(NOW_MS, KIND_MESSAGE, (), 5, commit(SALT, b"hello"), 3_600_000),
            Record(NOW_MS, KIND_CONSENT, said.topics(), 0, commit(SALT, b"")),
        ],
    )


def example_batch() -> Batch:
    """Two records by Alice, who had seen a batch of Bob's."""
    return make_batch(
        channel=CHANNEL,
        author=ALICE,
        certificate_id=b"\x0c" * 32,
        first_seq=1,
        prev=chain_start(CHANNEL, ALICE),
        seen=[Seen(device_id(BOB), 7, b"\x0b" * 32)],
        records=[
            Record(NOW_MS, 0, ("greeting",), 5, commit(SALT, b"hello")),
            Record(NOW_MS + 1, 0, (), 0, commit(SALT, b"")),
        ],
    )


def long_content() -> bytes:
    """A content of three chunks, the last of one byte."""
    return bytes(range(256)) * 8192 + b"!"


def example_frames() -> dict[str, frames.Frame]:
    """One frame of each type, by its name."""
    batch = example_batch()
    have = frames.Have(ALICE, 9, (3, 4))
    all_frames: list[frames.Frame] = [
        frames.Hello(("ipfs:one",), (have,)),
        frames.HaveVector((have,)),
        frames.WantBatches(ALICE, 1, 4_194_304),
        frames.BatchFrame(batch.body, b"\x0e" * 4, ((SALT, b"hello"), None)),
        frames.RangeEnd(ALICE, 9),
        frames.WantContents((batch.record_ids[0],)),
        frames.ContentsFrame(((batch.record_ids[0], SALT, b"hello"),)),
        frames.WantMore(ALICE, 2_097_152),
        frames.Gone((batch.record_ids[1],)),
        frames.CertificateFrame(b"\x0d" * 4),
        frames.WantCertificate(b"\x0c" * 32),
        frames.EpochKeys((EPOCH,)),
        frames.ChainHave(CHANNEL, (REF,), 12),
        frames.ChainWant(CHANNEL, (REF,)),
        frames.ChainFiles(CHANNEL, (b"\x0a" * 4,), True),
        frames.Ping(1),
        frames.Pong(1),
        frames.JoinRequest(BOB, (b"\x0a" * 4,)),
        frames.JoinGrant(
            b"\x09" * 4,
            (EPOCH,),
            (b"\x0d" * 4,),
            "family",
            STATE.secret,
            ((BOB, ("ipfs:two",)),),
        ),
        frames.JoinRefused("expired"),
        frames.Part(b"\x08" * 4),
        frames.GroupsHeld((CHANNEL,)),
        frames.WantGroup(CHANNEL),
        frames.GroupGrant(
            CHANNEL, b"\x09" * 4, (EPOCH,), (b"\x0d" * 4,), "family", STATE.secret
        ),
        chunk_frames.WatchChunks((batch.record_ids[0],)),
        chunk_frames.HaveChunks(batch.record_ids[0], b"\x05"),
        chunk_frames.WantChunk(7, batch.record_ids[0], 2, chunk_frames.PART, 1000),
        chunk_frames.ChunkPart(7, chunk_frames.PART, b"part"),
        chunk_frames.ChunkGone(7),
        frames.WantControlKeys((b"\x21" * 32,)),
        frames.ControlKeys(b"\x22" * 16),
    ]
    return {type(frame).__name__: frame for frame in all_frames}


def example_manifest() -> bytes:
    """The manifest of the long content, with a caption."""
    key, content = STATE.derive("chunks"), long_content()
    chunks = [content[at : at + CHUNK_SIZE] for at in range(0, len(content), CHUNK_SIZE)]
    return encode_manifest(
        Manifest(
            caption=b"look",
            name="photo.jpg",
            media_type="image/jpeg",
            size=len(content),
            ids=b"".join(chunk_id(key, chunk) for chunk in chunks),
        )
    )


def example_claim(kind: str) -> Claim:
    """What a member does to an identity."""
    return Claim(
        group=CHANNEL,
        kind=kind,
        by=ALICE,
        subject=BOB,
        pin=b"\x25" * 32 if kind == "join" else b"",
        nonce=b"\x26" * 16,
        parents=("QmB", "QmA"),
    )


def presence() -> bytes:
    """What a device says of itself before it is sealed."""
    return pack([1, ALICE, NOW_MS, ["ipfs:one"]])


def control_keys() -> str:
    """A key group's id as walytis-identities writes it, of keys from fixed seeds."""
    point = ec.derive_private_key(7, ec.SECP256K1()).public_key()
    pair = (
        MLKEM768PrivateKey.from_seed_bytes(b"\x01" * 64).public_key().public_bytes_raw()
        + MLDSA65PrivateKey.from_seed_bytes(b"\x02" * 32).public_key().public_bytes_raw()
    )
    long = point.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    when = "2026-11-22T08-00-00"
    return f"|EC-secp256k1:{when}:{long.hex()}|PQ-ML-KEM-768-ML-DSA-65:{when}:{pair.hex()}|"


def did_document() -> dict[str, Any]:
    """The document of Alice's and Bob's identity, of which one device is known."""
    signed = certificates.decode(bytes.fromhex(stored("certificates.json")["encoded"]))
    return make_document(
        CHANNEL,
        control_keys=control_keys(),
        controllers=[ALICE, BOB],
        devices=[signed.certificate],
    )


def wire_vectors() -> dict[str, str]:
    """Every vector of wire.json by its name: hex, but for texts of invitations."""
    batch = example_batch()
    anchor = seal_anchor(
        EPOCH, [b"\x0d" * 4], [(batch.body, b"\x0e" * 4)], salt=NONCE + b"abcd"
    )
    block_key = blake3(NONCE + b"abcd", key=EPOCH.derive("anchor")).digest()
    sealed = NONCE + AESGCM(EPOCH.derive("broadcast")).encrypt(NONCE, presence(), None)
    numbers = [0, 127, 128, 255, 256, 65535, 65536, 2**32, 2**63 - 1, -1, -32, -33]
    instance = b"\x11" * 8
    messages: dict[str, rpc.Message] = {
        "hello": rpc.Hello(version=rpc.VERSION, info={}),
        "request": rpc.Request(id=1, method="status", args={"verbose": True}, timeout=5.0),
        "reply": rpc.Reply(id=1, value=[1, 2]),
        "error": rpc.Reply(id=1, error=("transport", "not reached")),
        "event": rpc.Event(name="block", data={"n": 3}),
    }
    vectors: dict[str, bytes] = {
        "msgpack.integers": pack(numbers),
        "msgpack.others": pack([None, True, False, "", "é", b"", b"\x00", [], {"a": 1}]),
        "record.device_id": device_id(ALICE),
        "record.chain_start": chain_start(CHANNEL, ALICE),
        "record.commitment": commit(SALT, b"hello"),
        "record.commitment_of_chunks": commit(SALT, long_content()),
        "record.ids": b"".join(batch.record_ids),
        "batch.body": batch.body,
        "batch.forgetting": forgetting_batch().body,
        "record.forgetting_ids": b"".join(forgetting_batch().record_ids),
        "batch.id": batch.batch_id,
        "batch.signed_message": signed_message(batch.batch_id),
        "epoch.id": EPOCH.epoch_id,
        "epoch.anchor_key": EPOCH.derive("anchor"),
        "epoch.broadcast_key": EPOCH.derive("broadcast"),
        "anchor.block_key": block_key,
        "anchor.block_begins": anchor[:64],
        "anchor.block_blake3": blake3(anchor).digest(),
        "channel.tag_key": STATE.derive("tag"),
        "channel.chunk_key": STATE.derive("chunks"),
        "manifest": example_manifest(),
        "channel.topic": STATE.topic.encode(),
        "channel.blinded_tag": blinded_tag(STATE.tag_key, "member", b"ephemeral"),
        "invitation.addresses": encode_addresses(INVITATION.addresses),
        "invitation.id": bytes.fromhex(INVITATION.invitation_id),
        "invitation.tag_key": INVITATION.tag_key,
        "invitation.psk": INVITATION.psk,
        "presence.plain": presence(),
        "presence.sealed": sealed,
        "gossip.data": gossip.encode_data(gossip.Data(instance=instance, seq=1, payload=b"hi")),
        "gossip.acks": gossip.encode_acks(
            [gossip.Ack(instance=instance, upto=1, further=(3,))]
        ),
        "birth.device": Birth(pin=b"\x25" * 32).encode(),
        "birth.device_2": Birth(pin=b"\x25" * 32, next=b"\x28" * 32).encode(),
        "birth.identity": Birth(
            pin=b"\x25" * 32, founder=ALICE, founder_pin=b"\x27" * 32, rule="admins"
        ).encode(),
        "birth.register": Birth(
            pin=b"\x25" * 32,
            founder=ALICE,
            founder_pin=b"\x27" * 32,
            rule="any",
            register="Qm" + "r" * 44,
        ).encode(),
        "renewal.fingerprint": RenewalKey(bytes(range(SEEDS_SIZE))).fingerprint,
        "renewal.body": renewal_body(ALICE, "|old", "|new", b"\x28" * 32),
        "act.body": example_claim("join").body(),
        "act.block": example_claim("admin").as_block(b"\x23" * 4, b"\x24" * 4),
        **{f"frame.{name}": frames.encode(frame) for name, frame in example_frames().items()},
        "certificate.moved_body": certificates.Certificate(
            channel=CHANNEL,
            member=ALICE,
            suite="classic-1",
            key_types=("Ed25519", "X25519"),
            sign_public=b"\x01" * 32,
            seal_public=b"\x02" * 32,
            not_before_ms=NOW_MS,
            not_after_ms=NOW_MS + 1,
            incarnation=NOW_MS,
        ).body(),
        **{f"rpc.{name}": rpc.encode(message) for name, message in messages.items()},
        "archive": example_archive(),
    }
    return {
        **{name: value.hex() for name, value in vectors.items()},
        "invitation.string": str(INVITATION),
        "invitation.old_string": OLD_STRING,
        "invitation.words": "-".join(session_words(bytes(range(32)))),
    }


#: The key of the home that the archive is of.
ARCHIVE_KEY = bytes(range(64, 96))
ARCHIVE_PARTS = {"cursors": b"all cursors", "keys/name": b"", "store.db": b"database"}


def example_archive() -> bytes:
    """An export without a passphrase, with three parts."""
    file = io.BytesIO()
    with mock.patch("walyoff.moving.archive.os.urandom", return_value=b"\x31" * SALT_SIZE):
        writer = ArchiveWriter(
            file,
            kind=EXPORT,
            key_block=keyfile.encode(ARCHIVE_KEY, None),
            key=Vault(ARCHIVE_KEY).archive_key,
        )
    for path, data in ARCHIVE_PARTS.items():
        writer.add(path, io.BytesIO(data), len(data))
    writer.finish()
    return file.getvalue()


def stored(file: str) -> dict[str, Any]:
    """The vectors of one file."""
    loaded: dict[str, Any] = json.loads((VECTORS / file).read_text())
    return loaded


def lookup(file: str, name: str) -> str:
    """A vector by its file and name; `/` separates levels. Raises KeyError."""
    value: Any = stored(file)
    for part in name.split("/"):
        value = value[part]
    return str(value)


def documented(text: str) -> str:
    """The documentation with every vector block as the files have it."""

    def fill(match: re.Match[str]) -> str:
        value = lookup(match[1], match[2])
        lines = [value[at : at + _WIDTH] for at in range(0, len(value), _WIDTH)]
        return "\n".join([f"```vector {match[1]} {match[2]}", *lines, "```"])

    return BLOCK.sub(fill, text)


def main() -> None:
    """Compare, and with --write write."""
    new = json.dumps(wire_vectors(), indent=1) + "\n"
    path = VECTORS / "wire.json"
    changed = not path.exists() or path.read_text() != new
    if "--write" in sys.argv:
        path.write_text(new)
        document = json.dumps(did_document(), indent=1) + "\n"
        (VECTORS / "did_document.json").write_text(document)
        PROTOCOL.write_text(documented(PROTOCOL.read_text()))
    print(f"wire.json: {'changed' if changed else 'as it was'}")


if __name__ == "__main__":
    main()
