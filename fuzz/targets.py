"""What is fuzzed, and what must hold of any bytes: a value, or the one error.

A decoder whose values have one encoding must also give back the very bytes that it took. A
target raises AssertionError, or whatever else, when something does not hold;
RemoteProtocolError and CipherError are how bytes from outside are refused.
"""

from __future__ import annotations

import io
import struct
import tomllib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from walyoff_codecs.classic1 import Classic1
from walyoff_transports import gossip
from walyoff_transports.libp2p_settings import decode_services

from fuzz import machines, transfers
from walyoff import (
    addresses,
    certificates,
    discovery,
    epochs,
    frames,
    granting,
    invitations,
    issued,
    records,
    unused,
    wire,
)
from walyoff.child import (
    acts,
    births,
    blocks,
    copies,
    guard,
    guests,
    packs,
    proofs,
    reader,
    renewals,
    rpc,
    segment_tree,
)
from walyoff.child.renewal_files import decode_kept
from walyoff.child.renewal_keys import verify_renewal
from walyoff.engine.consent import parse_consent
from walyoff.engine.removals import parse_statement
from walyoff.errors import (
    CipherError,
    InvitationError,
    LocalProtocolError,
    RemoteProtocolError,
    StoreError,
)
from walyoff.manifest import decode_manifest, encode_manifest, safe_name
from walyoff.moving import archive
from walyoff.sealing import Sealing
from walyoff.session import flights
from walyoff.stores import keyfile
from walyoff.walytis import newer
from walyoff.walytis.decoding import decode_grant
from walyoff.walytis.identity import DID_PREFIX

Target = Callable[[bytes], None]

LIMIT = 1 << 20
EPOCH = epochs.Epoch(key=bytes(32), created_ms=1)
REFUSALS = (RemoteProtocolError, CipherError)
CLASSIC = Classic1()


def _wire(data: bytes) -> None:
    assert wire.pack(wire.unpack(data, LIMIT)) == data


def _frame(data: bytes) -> None:
    assert frames.encode(frames.decode(data)) == data


def _batch(data: bytes) -> None:
    batch = records.decode_batch(data)
    made = records.make_batch(
        channel=batch.channel,
        author=batch.author,
        certificate_id=batch.certificate_id,
        first_seq=batch.first_seq,
        prev=batch.prev,
        seen=batch.seen,
        records=batch.records,
    )
    assert made == batch
    for record in batch.records:
        statement = parse_statement(record)
        assert statement is None or statement.topics() == record.topics
        consent = parse_consent(record)
        assert consent is None or consent.topics() == record.topics


def _manifest(data: bytes) -> None:
    manifest = decode_manifest(data)
    assert manifest.name == safe_name(manifest.name)
    again = encode_manifest(manifest)
    # Names and media types may have been made harmless; nothing else was changed.
    assert decode_manifest(again) == manifest


def _certificate(data: bytes) -> None:
    signed = certificates.decode(data)
    assert certificates.encode(signed.certificate, signed.signature) == data


def _flights(data: bytes) -> None:
    with suppress(RemoteProtocolError):
        assert flights.encode_hello(flights.decode_hello(data)) == data
    with suppress(RemoteProtocolError):
        assert flights.encode_answer(flights.decode_answer(data)) == data
    with suppress(RemoteProtocolError):
        assert flights.encode_proof(flights.decode_proof(data)) == data


def _anchor(data: bytes) -> None:
    """By a member gone bad, who can seal whatever it wants."""
    salt = bytes(epochs.SALT_SIZE)
    header = wire.pack([epochs.ANCHOR_VERSION, EPOCH.epoch_id, salt])
    key = epochs._block_key(epochs.anchor_key(EPOCH), salt)
    sealed = key.encrypt(bytes(12), data, header)
    payload = wire.pack([epochs.ANCHOR_VERSION, EPOCH.epoch_id, salt, sealed])
    anchor = epochs.open_anchor(EPOCH, payload)
    assert 0 < len(anchor.batches) <= epochs.MAX_ANCHOR_PARTS


def _outer_anchor(data: bytes) -> None:
    epochs.anchor_epoch(data)
    epochs.open_anchor(EPOCH, data)


def _epochs(data: bytes) -> None:
    found = epochs.decode_epochs(wire.unpack(data, LIMIT), 1024)
    assert wire.pack(epochs.encode_epochs(found)) == data


def _presence(data: bytes) -> None:
    discovery.decode_presence(data, 1_800_000_000_000)


def _invitation(data: bytes) -> None:
    """Typed text, and a string of any body with right check bytes."""
    for text in (data.decode("utf-8", "replace"), invitations._text(data[:240] or b"\x20")):
        with suppress(InvitationError):
            invitation = invitations.parse(text, now=0.0)
            assert invitations.parse(str(invitation), now=0.0).addresses == invitation.addresses


def _addresses(data: bytes) -> None:
    assert addresses.encode_addresses(addresses.decode_addresses(data)) == data


def _issued(data: bytes) -> None:
    found = issued.Issued.decode(data)
    assert issued.Issued.decode(found.encode()) == found


def _family(data: bytes) -> None:
    found = granting.decode_family(data)
    assert granting.decode_family(granting.encode_family(found)) == found


def _guests(data: bytes) -> None:
    group, member, chains = guests.decode_guests(data)
    assert wire.pack([group, member, chains]) == data


def _unused(data: bytes) -> None:
    assert wire.pack(unused.decode_unused(data)) == data


def _grant(data: bytes) -> None:
    decode_grant(data)


def _chain_files(data: bytes) -> None:
    """Files of several chains, and the names by which others are asked for newer ones."""
    good = newer.unpack_good((data, b"junk", newer.pack_files({"c": [data]})[0]))
    assert newer.unpack_good(newer.pack_files(good)) == good
    name_blocks = newer.name_blocks({"no DID": [data], DID_PREFIX + "c": [data] * 3})
    assert name_blocks[-1] == "c/c"
    assert set(newer.by_chain(name_blocks)) == {"c"}
    newer.unpack_files((data,))


def _segments(data: bytes) -> None:
    segment_tree.SegmentTree.decode(data)


def _broadcast(data: bytes) -> None:
    gossip.decode(data)


def _rpc(data: bytes) -> None:
    rpc.decode(data)


def _rpc_stream(data: bytes) -> None:
    stream = rpc.FrameReader()
    for at in range(0, len(data), 7):
        for _ in stream.feed(data[at : at + 7]):
            pass


def _block(data: bytes) -> None:
    blocks.decode_block(data)


def _block_id(data: bytes) -> None:
    blocks.decode_id(data)


def _guarded(data: bytes) -> None:
    payload, proof = proofs.unwrap(data)
    assert wire.pack([proofs.ENVELOPE_VERSION, payload, proof]) == data
    proofs.payload_epoch(payload, link=True)


def _pack(data: bytes) -> None:
    end = 0
    for cid, start, size in packs.records(io.BytesIO(data)):
        blocks.check_cid(cid)
        assert end < start
        end = start + size
        assert end <= len(data)


def _announcement(data: bytes) -> None:
    guard.decode_announcement(data)


def _holds(key: str, signature: bytes, signed: bytes) -> bool:
    return True


def _fails(key: str, signature: bytes, signed: bytes) -> bool:
    return False


_FIRST_KEYS = reader.IdentityBlock(
    ref="a",
    topics=(reader.TOPIC_KEY,),
    parents=(),
    content=b'{"old_keys": "k", "new_keys": "k", "signature": "AAAA"}',
)


def _identity(data: bytes) -> None:
    """One block after a good key block, with signatures that hold and that do not.

    Of each kind that it can be; of one kind if it can be none.
    """
    topics = sorted(reader.TOPICS)
    kinds = [topic for topic in topics if _is_act(topic, data)]
    for topic in kinds or [topics[len(data) % len(topics)]]:
        block = reader.IdentityBlock(ref="b", topics=(topic,), parents=("a",), content=data)
        for verify in (_holds, _fails) if kinds else (_holds,):
            reading = reader.read_identity("group", None, [_FIRST_KEYS, block], verify)
            assert sum(reading.refused.values()) <= 2


def _is_act(topic: str, data: bytes) -> bool:
    block = acts.IdentityBlock(ref="b", topics=(topic,), parents=("a",), content=data)
    try:
        return acts.read_act("group", block) is not None
    except RemoteProtocolError:
        return False


def _act(data: bytes) -> None:
    """The content of a block of each kind, and a member's signature."""
    for topic in sorted(acts.TOPICS):
        block = acts.IdentityBlock(ref="a", topics=(topic,), parents=("b",), content=data)
        try:
            act = acts.read_act("group", block)
        except RemoteProtocolError:
            continue
        assert act is not None
        assert len(act.signature) + len(act.signed) <= 4 * acts.MAX_CONTENT
    acts.expand(data)


def _renewal(data: bytes) -> None:
    """What a device's renewal says beside its keys; and the file that the keys to it lie in."""
    block = acts.IdentityBlock(ref="a", topics=(acts.TOPIC_KEY,), parents=("b",), content=data)
    with suppress(RemoteProtocolError):
        act = acts.read_act("group", block)
        assert act is not None
        renewal = renewals.read_renewal("group", act)
        assert (renewal is None) == (act.disclosed is None)
        if renewal is not None:
            assert len(renewal.next) == acts.PIN_SIZE
            assert not verify_renewal(renewal.signer, renewal.signature, renewal.body)
    seeds, control = decode_kept(data)
    assert len(seeds) <= 2
    assert len(control) <= len(data)


def _copies(data: bytes) -> None:
    """Whether what was read has the one spelling; what has it has no other one."""
    for topic in sorted(acts.TOPICS):
        block = acts.IdentityBlock(ref="a", topics=(topic,), parents=("b",), content=data)
        try:
            act = acts.read_act("group", block)
        except RemoteProtocolError:
            continue
        assert act is not None
        name = copies.name_of(act)
        if not acts.is_own((topic,)) and copies.is_spelled(act, (topic,), data):
            for other in (data + b" ", data.replace(b": ", b":"), b" " + data):
                again = acts.read_act("group", replace(block, content=other))
                assert again is not None
                assert copies.name_of(again) == name
                assert not copies.is_spelled(again, (topic,), other)


def _birth(data: bytes) -> None:
    """The content of a chain's first block."""
    marked = (births.GREETING + mark + data for mark in (births.MARK, births.DEVICE_MARK))
    for content in (data, births.GREETING + data, *marked):
        birth = births.read_birth(content)
        if birth is not None:
            told = births.put_birth(content, birth)
            assert births.read_birth(told) == birth


def _suite(data: bytes) -> None:
    """Keys, signatures and sealed texts from outside."""
    half = len(data) // 2
    for attempt in (
        lambda: CLASSIC.verify(data[:32], b"message", data[32:]),
        lambda: CLASSIC.seal(data[:half], b"plain", b"info"),
        lambda: CLASSIC.load_sign_key(data),
        lambda: CLASSIC.load_seal_key(data[:half]).open(data[half:], b"info"),
    ):
        try:
            attempt()
        except CipherError:
            continue


#: By name: what is run with any bytes.
def _archive(data: bytes) -> None:
    for kind in (archive.EXPORT, archive.BACKUP):
        with suppress(RemoteProtocolError):
            _parts(archive.ArchiveReader(io.BytesIO(data), kind))


def _archive_inside(data: bytes) -> None:
    """What somebody who has the passphrase can put into a file."""
    head = struct.pack(">5sBH", archive.MAGIC, archive.EXPORT, 0) + bytes(archive.SALT_SIZE)
    piece = AESGCM(bytes(32)).encrypt(archive.nonce(0, last=True), data, head)
    _parts(archive.ArchiveReader(io.BytesIO(head + piece), archive.EXPORT))


def _parts(reader: archive.ArchiveReader) -> None:
    taken = 0
    for path, size, pieces in reader.parts(bytes(32)):
        assert archive.check_path(path) == path
        assert ".." not in path
        assert sum(map(len, pieces)) == size
        taken += size
        assert taken <= LIMIT


def _key_file(data: bytes) -> None:
    # Without a passphrase, so that nothing is stretched.
    with suppress(StoreError):
        assert len(keyfile.decode(data, None, Path("file"))) == keyfile.KEY_SIZE


def _sealed(data: bytes) -> None:
    with suppress(StoreError):
        raise AssertionError(Sealing(bytes(32)).unseal(data, "keys/x"))


def _services(data: bytes) -> None:
    """What the file of the libp2p transport says, which its user writes."""
    with suppress(ValueError, LocalProtocolError):
        decode_services(tomllib.loads(data.decode()), "here")


def _closer(data: bytes) -> None:
    """An answer of the DHT; only where the extra is installed."""
    from walyoff_transports.libp2p_dht import decode_closer  # noqa: PLC0415 - as it says

    for name, found in decode_closer(data).items():
        assert all(address.endswith(f"/p2p/{name}") for address in found)


TARGETS: dict[str, Target] = {
    "archive": _archive,
    "archive_inside": _archive_inside,
    "key_file": _key_file,
    "sealed": _sealed,
    "wire": _wire,
    "frame": _frame,
    "batch": _batch,
    "manifest": _manifest,
    "certificate": _certificate,
    "flights": _flights,
    "anchor": _anchor,
    "outer-anchor": _outer_anchor,
    "epochs": _epochs,
    "presence": _presence,
    "invitation": _invitation,
    "addresses": _addresses,
    "issued": _issued,
    "family": _family,
    "grant": _grant,
    "chain-files": _chain_files,
    "guests": _guests,
    "unused": _unused,
    "segments": _segments,
    "broadcast": _broadcast,
    "services": _services,
    "rpc": _rpc,
    "rpc-stream": _rpc_stream,
    "block": _block,
    "block-id": _block_id,
    "guarded-block": _guarded,
    "pack": _pack,
    "announcement": _announcement,
    "identity": _identity,
    "act": _act,
    "copies": _copies,
    "birth": _birth,
    "renewal": _renewal,
    "suite": _suite,
    "initiator": machines.initiator,
    "responder": machines.responder,
    "session-records": machines.session_records,
    "reconciler": machines.reconciler,
    "anchoring": machines.anchoring,
    "transfers": transfers.transfers,
}
if find_spec("libp2p") is not None:
    TARGETS["dht-answer"] = _closer


def attempt(name: str, data: bytes) -> None:
    """Run a target; being refused is fine."""
    try:
        TARGETS[name](data)
    except REFUSALS:
        return
