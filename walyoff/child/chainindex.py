"""The index files of a chain in stock layout: which blocks have files of their own.

Stock Walytis finds blocks by them, and fails at its start when one is torn. So they are
compared with the files when a chain is read, and written again when they disagree.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from walyoff.child.blocks import from_base255, index_record
from walyoff.files import replace_file

_FOLDER = "KnownBlocksIndex"
#: The name that stock code gives the first index file: a time before any block's.
_FIRST_INDEX = "2000.09.22_00.00.00.000000"
#: Digits of the longest id's length in base 255.
_MAX_LENGTH_DIGITS = 4


def append_index(folder: Path, long_ids: Sequence[bytes]) -> None:
    """Add blocks to a chain's index. Durable when it returns."""
    index = folder / _FOLDER
    index.mkdir(mode=0o700, parents=True, exist_ok=True)
    names = sorted(os.listdir(index)) or [_FIRST_INDEX]
    with open(index / names[0], "ab") as file:
        file.write(b"".join(map(index_record, long_ids)))
        file.flush()
        os.fsync(file.fileno())


def repair_index(folder: Path, long_ids: Sequence[bytes]) -> bool:
    """Make the index list these blocks, the chain's first one first; True if it did not."""
    index = folder / _FOLDER
    index.mkdir(mode=0o700, parents=True, exist_ok=True)
    names = sorted(os.listdir(index))
    records = list(dict.fromkeys(map(index_record, long_ids)))
    present = b"".join((index / name).read_bytes() for name in names)
    if len(present) == sum(map(len, records)) and (
        present.startswith(records[0]) and sorted(_split(present)) == sorted(records)
    ):
        return False
    replace_file(index / _FIRST_INDEX, b"".join(records))
    for name in os.listdir(index):
        if name != _FIRST_INDEX:
            (index / name).unlink()
    return bool(names)


def index_differs(folder: Path, long_ids: Sequence[bytes]) -> bool:
    """Whether the index of a chain lists other blocks than these."""
    try:
        names = sorted(os.listdir(folder / _FOLDER))
        present = b"".join((folder / _FOLDER / name).read_bytes() for name in names)
    except OSError:
        # A chain that was never open in Walytis has none.
        return bool(long_ids)
    return sorted(_split(present)) != sorted(map(index_record, long_ids))


def _split(data: bytes) -> list[bytes]:
    """The records of index files; what is torn or no record comes as one that matches none."""
    records: list[bytes] = []
    start = 0
    while start < len(data):
        mark = data.find(b"\0", start, start + _MAX_LENGTH_DIGITS + 1)
        # 6 is the separator after each record; ids themselves may end with zeros.
        end = mark + 1 + from_base255(data[start:mark]) + 6 if mark > start else len(data)
        records.append(data[start:end])
        start = end
    return records
