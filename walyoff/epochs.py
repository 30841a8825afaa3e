"""Epochs and anchor blocks: how metadata goes on a public chain without being public.

An epoch is 32 random bytes that the members of a time share. The keys for anchors and for
broadcasts are derived from it, so what is on the chain or on pubsub opens only for those
who were given the epoch inside a session. A device keeps all epochs it was given, so
history stays readable.

An anchor block is `[version, epoch id, salt, ciphertext]`. Each block has a key of its own,
derived from the epoch's anchor key and a random salt, so devices never have to agree on
nonces. The plaintext is padded to a size class: an outsider learns that something was
written, when, and about how much.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from walyoff.errors import CipherError, LocalProtocolError, RemoteProtocolError
from walyoff.records import MAX_BATCH_BODY
from walyoff.wire import (
    expect_array,
    expect_bytes,
    expect_int,
    expect_version,
    pack,
    unpack,
)

ANCHOR_VERSION = 1
EPOCH_KEY_SIZE = 32
EPOCH_ID_SIZE = 8
SALT_SIZE = 16
#: Certificates and batches of one block, so that a hostile block costs bounded work.
MAX_ANCHOR_PARTS = 512
#: Memberships that an epoch can name as over, and the size of each name.
MAX_ENDED = 512
ENDED_SIZE = 24
#: The ledger takes one megabyte; a block of this size anchors thousands of records.
MAX_ANCHOR = 900_000
#: Of a batch, and a certificate in a block: as in `certificates`.
MAX_SIGNATURE = 32 * 1024
MAX_CERTIFICATE = 64 * 1024
#: The smallest size class. Classes grow by a quarter of a power of two: at most 25 % padding.
MIN_CLASS = 4096

_NONCE = bytes(12)


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """A shared secret of the members of a time. Its key never prints."""

    key: bytes = field(repr=False)
    #: Milliseconds since 1970 by the clock of the member who began it.
    created_ms: int
    #: The memberships that were over when it began, in order: it is given to none of them.
    ended: tuple[bytes, ...] = ()

    @property
    def epoch_id(self) -> bytes:
        """The public name of the epoch, 8 bytes."""
        return self.derive("id", EPOCH_ID_SIZE)

    def derive(self, purpose: str, size: int = 32) -> bytes:
        """A key for one purpose. The derivation is BLAKE3's derive_key mode."""
        return blake3(self.key, derive_key_context=f"walyoff 2026-11 epoch {purpose}").digest(
            size
        )


def new_epoch(*, key: bytes, now_ms: int) -> Epoch:
    """A fresh epoch from 32 random bytes."""
    return Epoch(key=key, created_ms=now_ms)


def encode_epochs(epochs: Iterable[Epoch]) -> list[list[object]]:
    """Epochs as a wire value, for use inside sessions only."""
    return [
        [epoch.key, epoch.created_ms, *([list(epoch.ended)] if epoch.ended else [])]
        for epoch in epochs
    ]


def decode_epochs(value: object, limit: int) -> list[Epoch]:
    """The inverse of `encode_epochs`. Raises RemoteProtocolError."""
    if not isinstance(value, list) or len(value) > limit:
        raise RemoteProtocolError(f"epochs are not a list of at most {limit}")
    epochs = []
    for item in value:
        named = isinstance(item, list) and len(item) == 3
        key, created_ms, *rest = expect_array(item, 3 if named else 2, "epoch")
        epochs.append(
            Epoch(
                key=expect_bytes(key, "epoch key", size=EPOCH_KEY_SIZE),
                created_ms=expect_int(created_ms, "epoch time"),
                ended=_decode_ended(rest[0]) if rest else (),
            )
        )
    return epochs


def _decode_ended(value: object) -> tuple[bytes, ...]:
    if not isinstance(value, list) or not 0 < len(value) <= MAX_ENDED:
        raise RemoteProtocolError("epoch with malformed memberships")
    ended = tuple(expect_bytes(one, "membership", size=ENDED_SIZE) for one in value)
    if list(ended) != sorted(set(ended)):
        raise RemoteProtocolError("memberships of an epoch are not in order")
    return ended


@dataclass(frozen=True, slots=True)
class Anchor:
    """What an anchor block says, opened but not verified."""

    certificates: tuple[bytes, ...]
    #: (body, signature) of each batch.
    batches: tuple[tuple[bytes, bytes], ...]


def size_class(size: int) -> int:
    """The padded size of a plaintext."""
    if size <= MIN_CLASS:
        return MIN_CLASS
    step = 1 << max((size - 1).bit_length() - 3, 0)
    return (size + step - 1) // step * step


def anchor_key(epoch: Epoch) -> bytes:
    """What opens the anchors of an epoch, and nothing else that its key protects."""
    return epoch.derive("anchor")


def _block_key(key: bytes, salt: bytes) -> AESGCM:
    return AESGCM(blake3(salt, key=key).digest())


def seal_anchor(
    epoch: Epoch,
    certificates: Sequence[bytes],
    batches: Sequence[tuple[bytes, bytes]],
    *,
    salt: bytes,
) -> bytes:
    """An anchor block's payload, with a fresh random salt of 16 bytes.

    Raises:
        LocalProtocolError: it would break a limit.
    """
    if len(certificates) > MAX_ANCHOR_PARTS or not 0 < len(batches) <= MAX_ANCHOR_PARTS:
        raise LocalProtocolError("an anchor has too many parts, or no batch")
    plain = pack([list(certificates), [list(batch) for batch in batches]])
    if len(plain) > MAX_ANCHOR - 1024:
        raise LocalProtocolError(f"an anchor of {len(plain)} bytes exceeds {MAX_ANCHOR}")
    framed = len(plain).to_bytes(4, "big") + plain
    padded = framed.ljust(min(size_class(len(framed)), MAX_ANCHOR - 512), b"\0")
    header = pack([ANCHOR_VERSION, epoch.epoch_id, salt])
    return pack(
        [
            ANCHOR_VERSION,
            epoch.epoch_id,
            salt,
            _block_key(anchor_key(epoch), salt).encrypt(_NONCE, padded, header),
        ]
    )


def anchor_epoch(payload: bytes) -> bytes:
    """The epoch id of an anchor block. Raises RemoteProtocolError if it is not one."""
    return _split(payload)[0]


# A guard asks for the epoch of a payload and then opens it.
@functools.lru_cache(1)
def _split(payload: bytes) -> tuple[bytes, bytes, bytes]:
    version, epoch_id, salt, ciphertext = expect_array(unpack(payload, MAX_ANCHOR), 4, "anchor")
    expect_version(version, "anchor", ANCHOR_VERSION)
    return (
        expect_bytes(epoch_id, "epoch id", size=EPOCH_ID_SIZE),
        expect_bytes(salt, "anchor salt", size=SALT_SIZE),
        expect_bytes(ciphertext, "anchor ciphertext", limit=MAX_ANCHOR),
    )


def open_anchor(epoch: Epoch, payload: bytes) -> Anchor:
    """Open an anchor block with its epoch.

    Raises:
        RemoteProtocolError: it is malformed.
        CipherError: it was not sealed under this epoch.
    """
    return open_anchor_with(anchor_key(epoch), payload)


def open_anchor_with(key: bytes, payload: bytes) -> Anchor:
    """The same with the epoch's anchor key alone."""
    padded = unseal_anchor(key, payload)
    size = int.from_bytes(padded[:4], "big")
    padding = len(padded) - 4 - size
    if len(padded) < 4 or padding < 0 or padded.count(0, 4 + size) != padding:
        raise RemoteProtocolError("anchor has malformed padding")
    certificates, batches = expect_array(
        unpack(padded[4 : 4 + size], MAX_ANCHOR), 2, "anchor content"
    )
    if not isinstance(certificates, list) or len(certificates) > MAX_ANCHOR_PARTS:
        raise RemoteProtocolError("anchor has malformed certificates")
    if not isinstance(batches, list) or not 0 < len(batches) <= MAX_ANCHOR_PARTS:
        raise RemoteProtocolError("anchor has malformed batches")
    return Anchor(
        tuple(expect_bytes(c, "certificate", limit=MAX_CERTIFICATE) for c in certificates),
        tuple(_decode_signed(b) for b in batches),
    )


def unseal_anchor(key: bytes, payload: bytes) -> bytes:
    """What was sealed, still padded: all that those need who only guard the ledger.

    Raises:
        RemoteProtocolError: it is malformed.
        CipherError: it was not sealed under this key.
    """
    epoch_id, salt, ciphertext = _split(payload)
    header = pack([ANCHOR_VERSION, epoch_id, salt])
    try:
        return _block_key(key, salt).decrypt(_NONCE, ciphertext, header)
    except InvalidTag:
        raise CipherError("anchor does not open") from None


def _decode_signed(value: object) -> tuple[bytes, bytes]:
    body, signature = expect_array(value, 2, "signed batch")
    return (
        expect_bytes(body, "batch", limit=MAX_BATCH_BODY),
        expect_bytes(signature, "signature", limit=MAX_SIGNATURE),
    )
