"""Writes Walytis block files, well-formed ones and others, without Walytis."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from walyoff.child.blocks import BlockFile, decode_block, decode_id

_ZEROS = b"\0"


def base(number: int, radix: int, shift: int) -> bytes:
    digits = [number % radix + shift]
    while number := number // radix:
        digits.insert(0, number % radix + shift)
    return bytes(digits)


def hash_field(digest: bytes) -> bytes:
    return base(int.from_bytes(digest, "little"), 255, 1)


def unhash(field: bytes) -> bytes:
    number = 0
    for digit in field:
        number = number * 255 + digit - 1
    return number.to_bytes((number.bit_length() + 7) // 8, "little")


def make_block(
    content: bytes,
    topics: list[str],
    parents: list[bytes],
    *,
    creator: bytes = b"somebody",
    minute: int = 0,
    year: int = 2026,
    length: int | None = None,
    digest: bytes | None = None,
    parents_hash: bytes | None = None,
) -> bytes:
    """One block file; parents are short ids."""
    parents = sorted(parents)
    if parents_hash is None:
        joined = b"".join(unhash(decode_id(parent).parents_hash) for parent in parents)
        joined = joined or content
        parents_hash = hash_field(hashlib.sha512(joined).digest())
    time = b"\x01".join(base(n, 254, 2) for n in (year, 1, 2, 3, minute, 5, 123_456))
    fields = [
        b"".join(base(n, 254, 2) + b"\x01" for n in (2, 4, 23)),
        creator,
        time,
        _ZEROS.join(topic.encode() for topic in topics),
        base(len(content) if length is None else length, 255, 1),
        b"sha512",
        hash_field(digest or hashlib.sha512(content).digest()),
        base(len(parents), 255, 1),
        b"sha512",
        parents_hash,
    ]
    data = (_ZEROS * 2).join(fields)
    if parents:
        data += _ZEROS * 4 + (_ZEROS * 3).join(sorted(parents))
    return data + _ZEROS * 5 + content


@dataclass
class Birth:
    """A chain's first five blocks, as stock code makes them."""

    files: list[bytes]
    blocks: list[BlockFile]

    @property
    def chain(self) -> str:
        return self.blocks[0].cid

    def child(
        self, content: bytes, *parents: BlockFile, topics: list[str] | None = None
    ) -> bytes:
        """A block after these (or after the birth)."""
        ids = [parent.short_id for parent in parents or self.blocks[-1:]]
        if len(ids) == 1:
            ids.append(self.blocks[0].short_id)
        return make_block(content, [*(topics or ["walyoff"]), self.chain], ids)


def birth() -> Birth:
    files: list[bytes] = []
    blocks: list[BlockFile] = []
    for number in range(5):
        parents = [blocks[-1].short_id, blocks[0].short_id] if blocks else []
        files.append(make_block(b"hello %d" % number, ["genesis"], parents, minute=number))
        blocks.append(decode_block(files[-1]))
    return Birth(files, blocks)
