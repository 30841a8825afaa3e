"""What a block of a guarded segment holds: a payload, and a proof that binds it to its place.

Decided here: the form of such a block, and whether its proof holds. An anchor that opens was
sealed by a member, but anyone can copy it into a block of its own, with other parents or on
another chain. So the member's device adds a MAC, under a key derived from the epoch's anchor
key, over the chain, the block's parents and the payload: a copy anywhere else does not count.

Two payloads exist: an anchor (see `walyoff.epochs`), and a link, which names the next segment
and holds its first blocks. Pure logic; the keys never print.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from walyoff.child.blocks import MAX_FILE, check_cid
from walyoff.epochs import EPOCH_ID_SIZE, SALT_SIZE, anchor_epoch, unseal_anchor
from walyoff.errors import CipherError, RemoteProtocolError
from walyoff.wire import (
    MAX_DID,
    expect_array,
    expect_bytes,
    expect_int,
    expect_str,
    expect_version,
    pack,
    unpack,
)

#: The topics of the two kinds of blocks.
TOPIC_ANCHOR = "walyoff"
TOPIC_LINK = "walyoff_next"
ENVELOPE_VERSION = 1
LINK_VERSION = 1
PROOF_SIZE = 32
KEY_SIZE = 32
#: The envelope: an anchor of at most 900,000 bytes and the proof.
MAX_ENVELOPE = 1 << 20
#: A link: five first blocks of 2 KB each, and a post-quantum signature.
MAX_LINK = 128 * 1024
#: Bytes of a signature.
MAX_SIGNATURE = 64 * 1024
#: As many blocks as a Walytis chain is born with.
BIRTH_BLOCKS = 5
#: More segments than a channel reaches in centuries.
MAX_NUMBER = 1 << 31

_NONCE = bytes(12)
_PROOF_CONTEXT = "walyoff 2026-11 block proof"
_LINK_CONTEXT = "walyoff 2026-11 segment link"
_LINK_DOMAIN = "walyoff/next-segment/1"


class UnknownEpochError(RemoteProtocolError):
    """The block names an epoch whose key is not here (yet)."""

    def __init__(self, epoch_id: bytes) -> None:
        super().__init__("no key of the block's epoch is here", reason="unknown-epoch")
        self.epoch_id = epoch_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What names the next segment."""

    #: The channel's DID, the segment that holds the link, and the place of the next one.
    group: str
    previous: str
    number: int
    chain: str
    #: The next segment's first blocks, so that whoever has the link can follow it at once.
    birth: tuple[bytes, ...]
    #: The control keys' signature over `link_body`.
    signature: bytes

    def body(self) -> bytes:
        """What is signed."""
        return link_body(self.group, self.previous, self.number, self.chain)


def link_body(group: str, previous: str, number: int, chain: str) -> bytes:
    """What the identity's control keys sign of a link."""
    return pack([_LINK_DOMAIN, group, previous, number, chain])


# -------------------------------------------------------------------------- envelope


def wrap(payload: bytes, key: bytes, chain: str, parents: Sequence[bytes]) -> bytes:
    """The content of a block with this payload, on this chain, after these short ids."""
    return pack([ENVELOPE_VERSION, payload, _proof(payload, key, chain, parents)])


def unwrap(content: bytes) -> tuple[bytes, bytes]:
    """(payload, proof). Raises RemoteProtocolError."""
    version, payload, proof = expect_array(
        unpack(content, MAX_ENVELOPE), 3, "guarded block content"
    )
    expect_version(version, "guarded block", ENVELOPE_VERSION)
    return (
        expect_bytes(payload, "payload", limit=MAX_ENVELOPE),
        expect_bytes(proof, "proof", size=PROOF_SIZE),
    )


def check_proof(
    payload: bytes, proof: bytes, key: bytes, chain: str, parents: Sequence[bytes]
) -> None:
    """Raise RemoteProtocolError unless the payload was written for this place."""
    if not hmac.compare_digest(proof, _proof(payload, key, chain, parents)):
        raise RemoteProtocolError("block was not written for this place", reason="bad-proof")


def _proof(payload: bytes, key: bytes, chain: str, parents: Sequence[bytes]) -> bytes:
    own = blake3(key, derive_key_context=_PROOF_CONTEXT).digest()
    place = pack([chain, sorted(parents), blake3(payload).digest()])
    return blake3(place, key=own).digest(PROOF_SIZE)


def payload_epoch(payload: bytes, *, link: bool) -> bytes:
    """The epoch id of an anchor or a link. Raises RemoteProtocolError."""
    return _split_link(payload)[0] if link else anchor_epoch(payload)


def check_anchor(key: bytes, payload: bytes) -> None:
    """Raise RemoteProtocolError unless the payload opens: a member sealed it.

    What it says is judged once, by the engine that reads it.
    """
    try:
        unseal_anchor(key, payload)
    except CipherError:
        raise RemoteProtocolError("anchor does not open", reason="bad-anchor") from None


# ------------------------------------------------------------------------------ link


def seal_link(link: Link, key: bytes, epoch_id: bytes, salt: bytes) -> bytes:
    """A link's payload, under an epoch's anchor key and a fresh random salt of 16 bytes."""
    plain = pack(
        [link.group, link.previous, link.number, link.chain, list(link.birth), link.signature]
    )
    header = pack([LINK_VERSION, epoch_id, salt])
    sealed = _link_cipher(key, salt).encrypt(_NONCE, plain, header)
    return pack([LINK_VERSION, epoch_id, salt, sealed])


def open_link(key: bytes, payload: bytes) -> Link:
    """The inverse; the signature is not checked. Raises RemoteProtocolError."""
    epoch_id, salt, sealed = _split_link(payload)
    header = pack([LINK_VERSION, epoch_id, salt])
    try:
        plain = _link_cipher(key, salt).decrypt(_NONCE, sealed, header)
    except InvalidTag:
        raise RemoteProtocolError("link does not open", reason="bad-link") from None
    group, previous, number, chain, birth, signature = expect_array(
        unpack(plain, MAX_LINK), 6, "link"
    )
    for name in (previous, chain):
        check_cid(expect_str(name, "chain", limit=64))
    if not isinstance(birth, list) or len(birth) != BIRTH_BLOCKS:
        raise RemoteProtocolError("link without the next segment's birth", reason="bad-link")
    return Link(
        group=expect_str(group, "group", limit=MAX_DID),
        previous=previous,
        number=expect_int(number, "number", low=1, high=MAX_NUMBER),
        chain=chain,
        birth=tuple(expect_bytes(file, "block file", limit=MAX_FILE) for file in birth),
        signature=expect_bytes(signature, "signature", limit=MAX_SIGNATURE),
    )


def _split_link(payload: bytes) -> tuple[bytes, bytes, bytes]:
    version, epoch_id, salt, sealed = expect_array(unpack(payload, MAX_LINK), 4, "link")
    expect_version(version, "link", LINK_VERSION)
    return (
        expect_bytes(epoch_id, "epoch id", size=EPOCH_ID_SIZE),
        expect_bytes(salt, "salt", size=SALT_SIZE),
        expect_bytes(sealed, "link", limit=MAX_LINK),
    )


def _link_cipher(key: bytes, salt: bytes) -> AESGCM:
    own = blake3(key, derive_key_context=_LINK_CONTEXT).digest()
    return AESGCM(blake3(salt, key=own).digest())
