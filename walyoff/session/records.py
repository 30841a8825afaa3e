"""Encrypted records: frames in, bytes for the stream out, and back; without I/O.

A record on the wire is a u32 length (big endian) and that many bytes of ciphertext. Its
plaintext is one type byte and a body:

    0 FRAMES   u32 count, count x u32 length, then the frames: all of them complete
    1 MORE     a full piece (MAX_BODY bytes) of one long frame; only MORE or LAST may follow
    2 LAST     the last piece of it, at least one byte; the only one if the frame just fits
    3 REKEY    empty; the sender uses a new key from the next record on
    4 END      empty; the sender says nothing more

Each direction has its own key, and the nonce is the number of the record under that key, so
a record that is altered, dropped, repeated, reordered or reflected does not decrypt. After
REKEY_RECORDS records or REKEY_BYTES bytes under one key both sides replace it by HKDF of
itself and cannot go back. A stream that ends without END was cut off.

The first error ends the channel for good.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from walyoff.abc import Aead, Cipher
from walyoff.errors import (
    CipherError,
    LocalProtocolError,
    PayloadTooLargeError,
    RemoteProtocolError,
)
from walyoff.session.transcript import DOMAIN, Role, SessionKeys
from walyoff.wire import pack

#: Bytes of body in one record. Larger ones were not faster (the machine's memory decides),
#: and smaller ones let the far side decrypt a long frame while its end is still on the way.
MAX_BODY: Final = 256 * 1024
#: Bytes of one frame; longer ones than a record holds are cut into pieces.
MAX_FRAME: Final = 16 * 1024 * 1024
#: Bytes that an AEAD may add: 16 for the known ones, and room for others.
MAX_OVERHEAD: Final = 64
#: Bytes of ciphertext in one record.
MAX_RECORD: Final = 1 + MAX_BODY + MAX_OVERHEAD
#: No AEAD adds less than 16 bytes, so a shorter record is none: a refusal has length 1.
MIN_RECORD: Final = 17

#: The life of a key. Far below AES-GCM's limits (RFC 8446 section 5.5: 2^24.5 records);
#: low, because a new key also makes old traffic safe from a later theft, and costs 20 us.
REKEY_RECORDS = 1 << 16
REKEY_BYTES = 1 << 30

HEADER: Final = 4
_U32: Final = 4

FRAMES: Final = 0
MORE: Final = 1
LAST: Final = 2
REKEY: Final = 3
END: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectionStatistics:
    """What one direction has carried."""

    records: int
    #: Bytes on the wire.
    size: int
    #: How many times the key was replaced.
    rekeys: int


class _Direction:
    """One key, its counter, and the rule by which it is replaced."""

    __slots__ = (
        "_aead", "_cipher", "_key", "_nonce_size", "_used", "records", "rekeys", "size"
    )  # fmt: skip

    def __init__(self, cipher: Cipher, key: bytes) -> None:
        self._cipher = cipher
        self._key = key
        self._nonce_size = cipher.aead_nonce_size
        self._aead: Aead = cipher.aead(key)
        #: Records and bytes under the present key, and in all.
        self._used = [0, 0]
        self.records = 0
        self.size = 0
        self.rekeys = 0

    def encrypt(self, plaintext: bytes) -> bytes:
        nonce = self._used[0].to_bytes(self._nonce_size, "big")
        return self._aead.encrypt(nonce, plaintext, None)

    def decrypt(self, ciphertext: memoryview) -> bytes:
        nonce = self._used[0].to_bytes(self._nonce_size, "big")
        return self._aead.decrypt(nonce, ciphertext, None)

    def count(self, size: int, *, rekey: bool) -> None:
        """Account for one record; replace the key if it is due, or asked for."""
        used = self._used
        used[0] += 1
        used[1] += size
        self.records += 1
        self.size += HEADER + size
        if rekey or used[0] >= REKEY_RECORDS or used[1] >= REKEY_BYTES:
            self._key = HKDFExpand(
                algorithm=SHA256(), length=len(self._key), info=pack([DOMAIN, "rekey"])
            ).derive(self._key)
            self._aead = self._cipher.aead(self._key)
            self._used = [0, 0]
            self.rekeys += 1

    def statistics(self) -> DirectionStatistics:
        return DirectionStatistics(records=self.records, size=self.size, rekeys=self.rekeys)


class SecureChannel:
    """Both directions of an established session, seen by one side.

    Not for use from two tasks at once: what `seal` returns must go to the stream in the
    order of the calls.
    """

    def __init__(self, keys: SessionKeys, role: Role) -> None:
        own, theirs = keys.initiator_key, keys.responder_key
        if role == "responder":
            own, theirs = theirs, own
        elif role != "initiator":
            raise LocalProtocolError(f"unknown role {role!r}")
        self._role = role
        self._out = _Direction(keys.cipher, own)
        self._in = _Direction(keys.cipher, theirs)
        self._pending = bytearray()
        self._pieces: list[bytes] = []
        self._pieces_size = 0
        self._dead = False
        self._ending = False
        self._ended = False

    def __repr__(self) -> str:
        state = "dead" if self._dead else "ended" if self._ended else "open"
        return (
            f"<SecureChannel {self._role} {state} "
            f"[{self._out.records} sent, {self._in.records} received]>"
        )

    @property
    def ended(self) -> bool:
        """Whether the peer said that nothing more comes."""
        return self._ended

    @property
    def sent(self) -> DirectionStatistics:
        """What this side has sent."""
        return self._out.statistics()

    @property
    def received(self) -> DirectionStatistics:
        """What this side has received."""
        return self._in.statistics()

    def seal(self, payloads: Sequence[bytes]) -> bytes:
        """The bytes for the stream that carry the payloads, in order; none give none.

        As many as fit share one record. A payload has at most 16 MiB, and may be empty.

        Raises:
            PayloadTooLargeError: a payload is too long; nothing was sealed.
            LocalProtocolError: the channel is dead, or `end` was called.
        """
        self._check_sending()
        sizes = list(map(len, payloads))
        if sizes and max(sizes) > MAX_FRAME:
            raise PayloadTooLargeError(max(sizes), MAX_FRAME, "frame")
        out: list[bytes] = []
        first, body = 0, _U32
        for index, size in enumerate(sizes):
            body += _U32 + size
            if body > MAX_BODY:
                self._seal_group(sizes[first:index], payloads[first:index], out)
                first, body = index, _U32 + _U32 + size
                if body > MAX_BODY:
                    self._seal_pieces(payloads[index], out)
                    first, body = index + 1, _U32
        self._seal_group(sizes[first:], payloads[first:], out)
        return b"".join(out)

    def rekey(self) -> bytes:
        """The bytes for the stream that announce a new key for what follows.

        For keys that are old rather than much used: the driver's clock decides.
        Raises LocalProtocolError as `seal` does.
        """
        self._check_sending()
        return self._control(REKEY)

    def end(self) -> bytes:
        """The bytes for the stream that end this side cleanly; nothing can be sealed after.

        Raises LocalProtocolError as `seal` does.
        """
        self._check_sending()
        record = self._control(END)
        self._ending = True
        return record

    def feed(self, data: bytes | bytearray | memoryview) -> list[bytes]:
        """Take bytes from the stream, in pieces of any size; return the complete frames.

        At most one record and one long frame (16 MiB) are held between calls.

        Raises:
            RemoteProtocolError: a record does not hold; frames of the same call are lost and
                the channel is dead. Reason "refused" if an initiator was not accepted.
            LocalProtocolError: the channel is dead.
        """
        if self._dead:
            raise LocalProtocolError("the session is over")
        frames: list[bytes] = []
        try:
            with memoryview(data) as view, view.cast("B") as octets:
                self._consume(octets, frames)
        except BaseException:
            self._die()
            raise
        return frames

    def eof(self) -> None:
        """The stream ended.

        Raises:
            RemoteProtocolError: the peer did not end it cleanly; what it sent last may be
                missing. The channel is dead.
        """
        if not self._ended:
            self._die()
            raise RemoteProtocolError("the stream was cut off", reason="truncated")

    # -- sending

    def _check_sending(self) -> None:
        if self._dead:
            raise LocalProtocolError("the session is over")
        if self._ending:
            raise LocalProtocolError("the session was ended here")

    def _control(self, kind: int) -> bytes:
        out: list[bytes] = []
        self._record(bytes([kind]), out, rekey=kind == REKEY)
        return b"".join(out)

    def _record(self, plaintext: bytes, out: list[bytes], *, rekey: bool = False) -> None:
        ciphertext = self._out.encrypt(plaintext)
        self._out.count(len(ciphertext), rekey=rekey)
        out.append(len(ciphertext).to_bytes(HEADER, "big"))
        out.append(ciphertext)

    def _seal_group(
        self, sizes: Sequence[int], payloads: Sequence[bytes], out: list[bytes]
    ) -> None:
        if sizes:
            # One struct call and one join instead of a loop: the hot path of sending.
            head = struct.pack(f">BI{len(sizes)}I", FRAMES, len(sizes), *sizes)
            self._record(b"".join((head, *payloads)), out)

    def _seal_pieces(self, payload: bytes, out: list[bytes]) -> None:
        with memoryview(payload) as view:
            last = (len(view) - 1) // MAX_BODY * MAX_BODY
            for start in range(0, last, MAX_BODY):
                self._record(b"".join((_MORE, view[start : start + MAX_BODY])), out)
            self._record(b"".join((_LAST, view[last:])), out)

    # -- receiving

    def _consume(self, view: memoryview, frames: list[bytes]) -> None:
        position, size = 0, len(view)
        if self._pending:
            position = self._complete(view, frames)
        while size - position >= HEADER:
            start = position + HEADER
            stop = start + self._check_length(int.from_bytes(view[position:start], "big"))
            if stop > size:
                break
            with view[start:stop] as ciphertext:
                self._open(ciphertext, frames)
            position = stop
        if position < size:
            if self._ended:
                raise RemoteProtocolError("bytes after the end of the session")
            self._pending += view[position:]

    def _complete(self, view: memoryview, frames: list[bytes]) -> int:
        """Finish the record that is held in part; how many bytes that took."""
        pending, taken = self._pending, 0
        if len(pending) < HEADER:
            taken = min(HEADER - len(pending), len(view))
            pending += view[:taken]
            if len(pending) < HEADER:
                return taken
        length = self._check_length(int.from_bytes(pending[:HEADER], "big"))
        more = min(HEADER + length - len(pending), len(view) - taken)
        pending += view[taken : taken + more]
        if len(pending) == HEADER + length:
            # A new buffer, not a cleared one: a long record must not keep its memory.
            self._pending = bytearray()
            with memoryview(pending) as held, held[HEADER:] as ciphertext:
                self._open(ciphertext, frames)
        return taken + more

    def _check_length(self, length: int) -> int:
        if self._ended:
            raise RemoteProtocolError("a record after the end of the session")
        if MIN_RECORD <= length <= MAX_RECORD:
            return length
        if length == 1 and self._role == "initiator" and self._in.records == 0:
            # The responder did not accept us, and could say so only after the third flight.
            raise RemoteProtocolError("refused by the peer", reason="refused")
        raise RemoteProtocolError(f"record of {length} bytes", reason="too-large")

    def _open(self, ciphertext: memoryview, frames: list[bytes]) -> None:
        try:
            plaintext = self._in.decrypt(ciphertext)
        except CipherError:
            raise RemoteProtocolError("a record does not hold", reason="forged") from None
        if not 1 <= len(plaintext) <= 1 + MAX_BODY:
            raise RemoteProtocolError("record without a type, or too long", reason="too-large")
        kind = plaintext[0]
        if self._pieces and kind not in (MORE, LAST):
            raise RemoteProtocolError("a long frame was interrupted")
        if kind == FRAMES:
            _split(plaintext, frames)
        elif kind in (MORE, LAST):
            self._piece(plaintext, kind, frames)
        elif kind in (REKEY, END):
            if len(plaintext) != 1:
                raise RemoteProtocolError("control record with a body")
            self._ended = kind == END
        else:
            raise RemoteProtocolError(f"record of unknown type {kind}")
        self._in.count(len(ciphertext), rekey=kind == REKEY)

    def _piece(self, plaintext: bytes, kind: int, frames: list[bytes]) -> None:
        size = len(plaintext) - 1
        # Pieces are as long as they can be, so that their number is bounded as well.
        if (kind == MORE and size != MAX_BODY) or size == 0:
            raise RemoteProtocolError("piece of a frame of the wrong size")
        self._pieces_size += size
        if self._pieces_size > MAX_FRAME:
            raise RemoteProtocolError(f"frame exceeds {MAX_FRAME} bytes", reason="too-large")
        self._pieces.append(plaintext)
        if kind == LAST:
            frames.append(b"".join([memoryview(piece)[1:] for piece in self._pieces]))
            self._pieces = []
            self._pieces_size = 0

    def _die(self) -> None:
        self._dead = True
        self._pending = bytearray()
        self._pieces = []


_MORE: Final = bytes([MORE])
_LAST: Final = bytes([LAST])


def _split(plaintext: bytes, frames: list[bytes]) -> None:
    """Append the frames of a FRAMES record."""
    if len(plaintext) < 1 + _U32:
        raise RemoteProtocolError("record of frames without a count")
    count = int.from_bytes(plaintext[1 : 1 + _U32], "big")
    start = 1 + _U32 + _U32 * count
    if count == 0 or start > len(plaintext):
        raise RemoteProtocolError("record of frames with a wrong count")
    sizes = struct.unpack_from(f">{count}I", plaintext, 1 + _U32)
    if start + sum(sizes) != len(plaintext):
        raise RemoteProtocolError("record of frames with wrong lengths")
    for size in sizes:
        stop = start + size
        frames.append(plaintext[start:stop])
        start = stop


__all__ = [
    "MAX_BODY",
    "MAX_FRAME",
    "MAX_RECORD",
    "REKEY_BYTES",
    "REKEY_RECORDS",
    "DirectionStatistics",
    "SecureChannel",
]
