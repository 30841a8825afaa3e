"""The frames that devices exchange inside a session.

Each frame is a canonical msgpack array whose first element is its type. Decoding is total
and bounded; a frame that is not understood ends the session, because the version was agreed
in the handshake. Membership is not checked here.
"""

# The frames of `batch_frames` are named here again.
# ruff: noqa: PLC0414

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from walyoff import batch_frames, chunk_frames
from walyoff.batch_frames import MAX_IDS as MAX_IDS
from walyoff.batch_frames import BatchFrame as BatchFrame
from walyoff.batch_frames import ContentsFrame as ContentsFrame
from walyoff.batch_frames import Gone as Gone
from walyoff.batch_frames import RangeEnd as RangeEnd
from walyoff.batch_frames import WantBatches as WantBatches
from walyoff.batch_frames import WantContents as WantContents
from walyoff.batch_frames import WantMore as WantMore
from walyoff.epochs import (
    MAX_CERTIFICATE,
    Epoch,
    decode_epochs,
    encode_epochs,
)
from walyoff.errors import RemoteProtocolError
from walyoff.records import (
    HASH_SIZE,
)
from walyoff.wire import (
    MAX_DID,
    expect_array,
    expect_bytes,
    expect_int,
    expect_name,
    expect_str,
    pack,
    unpack,
)

#: A frame is held whole in memory, so this bounds what one peer can make a device hold.
MAX_FRAME = 16 * 1024 * 1024
#: As `walyoff.abc.Transport.addresses` promises.
MAX_ADDRESSES = 16
MAX_ADDRESS_CHARS = 256
#: Members whose addresses a joiner is told; the others it hears of from these.
MAX_MET = 64
#: Devices of one channel that a vector can speak of.
MAX_VECTOR = 4096
#: Content gaps of one device that a vector names; the rest shows when these are closed.
MAX_GAPS = 256
#: Epochs of one frame: all that a device keeps.
MAX_EPOCHS = 1024
#: Chain files of one frame; a longer chain takes several.
MAX_FILES = 4096
#: Leaves of a chain that are named; a chain has few, and names are short.
MAX_REFS = 4096
MAX_REF_CHARS = 128
#: Characters of a refusal.
MAX_REASON = 256
#: Groups that one identity stands under, as far as its devices tell each other.
MAX_GROUPS = 1024
#: Control keys that are asked for at once: the newest, and those of rival renewals. Each has
#: some 25 KiB.
MAX_FINGERPRINTS = 8
#: Bytes of all of them.
MAX_CONTROL_KEYS = 256 * 1024


@dataclass(frozen=True, slots=True)
class Have:
    """How far one device's records are held: all up to `seq`, but for content gaps."""

    author: str
    seq: int
    gaps: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Hello:
    """The first frame of each side of a session."""

    addresses: tuple[str, ...]
    vector: tuple[Have, ...]


@dataclass(frozen=True, slots=True)
class HaveVector:
    """What the sender holds durably; only the devices that changed."""

    vector: tuple[Have, ...]


@dataclass(frozen=True, slots=True)
class CertificateFrame:
    """A signed certificate, sent before the first batch that needs it."""

    data: bytes


@dataclass(frozen=True, slots=True)
class WantCertificate:
    """Please send a certificate."""

    certificate_id: bytes


@dataclass(frozen=True, slots=True)
class EpochKeys:
    """Epochs of the channel, for its members only."""

    epochs: tuple[Epoch, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class ChainHave:
    """The blocks at the tips of a chain that the sender holds, and how many it holds."""

    chain: str
    leaves: tuple[str, ...]
    count: int


@dataclass(frozen=True, slots=True)
class ChainWant:
    """Please send the blocks of a chain that are not among the ancestors of these."""

    chain: str
    known: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ChainFiles:
    """Block files of a chain, parents before children."""

    chain: str
    files: tuple[bytes, ...]
    last: bool


@dataclass(frozen=True, slots=True)
class Ping:
    """Are you there?"""

    nonce: int


@dataclass(frozen=True, slots=True)
class Pong:
    """Yes."""

    nonce: int


@dataclass(frozen=True, slots=True)
class JoinRequest:
    """In a join session: the joiner's DID and its chain."""

    did: str
    files: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class JoinGrant:
    """In a join session: everything a new member needs. Holds secrets."""

    grant: bytes = field(repr=False)
    epochs: tuple[Epoch, ...] = field(repr=False)
    certificates: tuple[bytes, ...]
    name: str
    secret: bytes = field(repr=False)
    #: Where the inviter last met other members: (device DID, addresses). What one member says.
    addresses: tuple[tuple[str, tuple[str, ...]], ...] = ()


@dataclass(frozen=True, slots=True)
class JoinRefused:
    """In a join session: why not."""

    reason: str


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a long value; the frame that it belongs to follows, with the rest."""

    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class GroupsHeld:
    """The groups above this identity that the sender is in, through it."""

    groups: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WantGroup:
    """Please hand over a group that you are in through this identity."""

    group: str


@dataclass(frozen=True, slots=True)
class GroupGrant:
    """Everything a device needs of a group that it is in through this identity. Secret."""

    group: str
    grant: bytes = field(repr=False)
    epochs: tuple[Epoch, ...] = field(repr=False)
    certificates: tuple[bytes, ...]
    name: str
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class WantControlKeys:
    """Please send the identity's control keys of these fingerprints."""

    fingerprints: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class ControlKeys:
    """Control keys of the identity, secrets included, for its members only."""

    secrets: bytes = field(repr=False)


Frame: TypeAlias = (
    Hello
    | HaveVector
    | batch_frames.BatchFrames
    | CertificateFrame
    | WantCertificate
    | EpochKeys
    | ChainHave
    | ChainWant
    | ChainFiles
    | Ping
    | Pong
    | JoinRequest
    | JoinGrant
    | JoinRefused
    | Part
    | GroupsHeld
    | WantGroup
    | GroupGrant
    | chunk_frames.ChunkFrame
    | WantControlKeys
    | ControlKeys
)


# ------------------------------------------------------------------------- parts


def _list(value: Any, what: str, limit: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > limit:
        raise RemoteProtocolError(f"{what} is not a list of at most {limit}")
    return value


def _did(value: Any) -> str:
    return expect_name(value, "DID", limit=MAX_DID)


def _text(value: Any, what: str, limit: int) -> str:
    """Words of a stranger that people get to read."""
    text = expect_str(value, what, limit=limit)
    if not text or not text.isprintable():
        raise RemoteProtocolError(f"{what} is not 1 to {limit} printable characters")
    return text


def _refs(value: Any) -> tuple[str, ...]:
    return tuple(
        expect_name(r, "block name", limit=MAX_REF_CHARS)
        for r in _list(value, "blocks", MAX_REFS)
    )


def _fingerprints(value: Any) -> tuple[bytes, ...]:
    items = _list(value, "fingerprints", MAX_FINGERPRINTS)
    return tuple(expect_bytes(item, "fingerprint", size=HASH_SIZE) for item in items)


def _files(value: Any) -> tuple[bytes, ...]:
    return tuple(
        expect_bytes(f, "block file", limit=MAX_FRAME) for f in _list(value, "files", MAX_FILES)
    )


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise RemoteProtocolError("flag is not a boolean")
    return value


def _vector(value: Any) -> tuple[Have, ...]:
    entries = []
    for item in _list(value, "vector", MAX_VECTOR):
        author, seq, gaps = expect_array(item, 3, "vector entry")
        entries.append(
            Have(
                _did(author),
                expect_int(seq, "sequence"),
                tuple(expect_int(g, "gap", low=1) for g in _list(gaps, "gaps", MAX_GAPS)),
            )
        )
    return tuple(entries)


def _vector_value(vector: Sequence[Have]) -> list[Any]:
    return [[have.author, have.seq, list(have.gaps)] for have in vector[:MAX_VECTOR]]


# ------------------------------------------------------------------------ decoders


def _hello(addresses: Any, vector: Any) -> Hello:
    return Hello(_addresses(addresses), _vector(vector))


def _addresses(value: Any) -> tuple[str, ...]:
    names = _list(value, "addresses", MAX_ADDRESSES)
    return tuple(expect_name(a, "address", limit=MAX_ADDRESS_CHARS) for a in names)


def _chain_have(chain: Any, leaves: Any, count: Any) -> ChainHave:
    return ChainHave(_did(chain), _refs(leaves), expect_int(count, "count"))


def _grant(grant: Any, epochs: Any, certificates: Any, name: Any, secret: Any) -> JoinGrant:
    return JoinGrant(
        expect_bytes(grant, "grant", limit=MAX_FRAME),
        tuple(decode_epochs(epochs, MAX_EPOCHS)),
        tuple(
            expect_bytes(c, "certificate", limit=MAX_CERTIFICATE)
            for c in _list(certificates, "certificates", MAX_VECTOR)
        ),
        _text(name, "channel name", 128),
        expect_bytes(secret, "channel secret", size=32),
    )


def _join_grant(*fields: Any) -> JoinGrant:
    *given, addresses = expect_array(list(fields), 6, "grant")
    pairs = (
        expect_array(pair, 2, "address") for pair in _list(addresses, "addresses", MAX_MET)
    )
    met = tuple((_did(did), _addresses(found)) for did, found in pairs)
    return replace(_grant(*given), addresses=met)


def _group_grant(group: Any, *fields: Any) -> GroupGrant:
    given = _grant(*fields)
    return GroupGrant(
        _did(group), given.grant, given.epochs, given.certificates, given.name, given.secret
    )


def _grant_value(frame: JoinGrant | GroupGrant) -> list[Any]:
    epochs = encode_epochs(frame.epochs)
    return [frame.grant, epochs, list(frame.certificates), frame.name, frame.secret]


#: Type number: class, fields to wire values, wire values to fields.
_TYPES: dict[int, tuple[type[Any], Callable[[Any], list[Any]], Callable[..., Frame]]] = {
    0: (Hello, lambda f: [list(f.addresses), _vector_value(f.vector)], _hello),
    1: (HaveVector, lambda f: [_vector_value(f.vector)], lambda v: HaveVector(_vector(v))),
    8: (
        CertificateFrame,
        lambda f: [f.data],
        lambda d: CertificateFrame(expect_bytes(d, "certificate", limit=MAX_CERTIFICATE)),
    ),
    9: (
        WantCertificate,
        lambda f: [f.certificate_id],
        lambda i: WantCertificate(expect_bytes(i, "certificate id", size=HASH_SIZE)),
    ),
    10: (
        EpochKeys,
        lambda f: [encode_epochs(f.epochs)],
        lambda e: EpochKeys(tuple(decode_epochs(e, MAX_EPOCHS))),
    ),
    11: (ChainHave, lambda f: [f.chain, list(f.leaves), f.count], _chain_have),
    12: (
        ChainWant,
        lambda f: [f.chain, list(f.known)],
        lambda c, k: ChainWant(_did(c), _refs(k)),
    ),
    13: (
        ChainFiles,
        lambda f: [f.chain, list(f.files), f.last],
        lambda c, f, last: ChainFiles(_did(c), _files(f), _flag(last)),
    ),
    14: (Ping, lambda f: [f.nonce], lambda n: Ping(expect_int(n, "nonce"))),
    15: (Pong, lambda f: [f.nonce], lambda n: Pong(expect_int(n, "nonce"))),
    16: (
        JoinRequest,
        lambda f: [f.did, list(f.files)],
        lambda d, f: JoinRequest(_did(d), _files(f)),
    ),
    17: (
        JoinGrant,
        lambda f: [*_grant_value(f), [[did, list(a)] for did, a in f.addresses]],
        _join_grant,
    ),
    18: (
        JoinRefused,
        lambda f: [f.reason],
        lambda r: JoinRefused(_text(r, "reason", MAX_REASON)),
    ),
    32: (
        Part,
        lambda f: [f.data],
        lambda d: Part(expect_bytes(d, "part", limit=MAX_FRAME)),
    ),
    33: (
        GroupsHeld,
        lambda f: [list(f.groups)],
        lambda g: GroupsHeld(tuple(_did(did) for did in _list(g, "groups", MAX_GROUPS))),
    ),
    34: (WantGroup, lambda f: [f.group], lambda g: WantGroup(_did(g))),
    35: (GroupGrant, lambda f: [f.group, *_grant_value(f)], _group_grant),
    **batch_frames.TYPES,
    **chunk_frames.TYPES,
    40: (
        WantControlKeys,
        lambda f: [list(f.fingerprints)],
        lambda i: WantControlKeys(_fingerprints(i)),
    ),
    41: (
        ControlKeys,
        lambda f: [f.secrets],
        lambda s: ControlKeys(expect_bytes(s, "control keys", limit=MAX_CONTROL_KEYS)),
    ),
}
_NUMBERS = {kind: number for number, (kind, _, _) in _TYPES.items()}


def encode(frame: Frame) -> bytes:
    """The bytes of a frame."""
    number = _NUMBERS[type(frame)]
    return pack([number, *_TYPES[number][1](frame)])


def decode(data: bytes | memoryview) -> Frame:
    """The frame of these bytes. Raises RemoteProtocolError."""
    part = chunk_frames.decode_part(data)
    if part is not None:
        return part
    fields = unpack(data, MAX_FRAME)
    if not isinstance(fields, list) or not fields:
        raise RemoteProtocolError("frame is not an array")
    number = expect_int(fields[0], "frame type", high=255)
    entry = _TYPES.get(number)
    if entry is None:
        raise RemoteProtocolError(f"frame type {number} is unknown", reason="unknown-frame")
    try:
        return entry[2](*fields[1:])
    except TypeError:
        raise RemoteProtocolError(
            f"frame of type {number} has the wrong number of fields"
        ) from None
