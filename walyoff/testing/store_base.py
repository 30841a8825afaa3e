"""What the checks of stores share: names, contents and batches to write, the factory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from walyoff.abc import LogEntry, NewBatch, Store, StoredContent

CHANNEL = "did:walytis:channel-under-test"
ALICE = "did:walytis:alice"
BOB = "did:walytis:bob"


def make_content(data: bytes = b"hello") -> StoredContent:
    """A content with a fresh salt."""
    return StoredContent(salt=os.urandom(32), data=data)


def make_batch(
    author: str,
    first_seq: int,
    contents: Sequence[StoredContent | None],
    *,
    signature: bytes | None = b"signature",
    anchor: str | None = None,
) -> NewBatch:
    """A batch with random hashes: a store does not look into bodies."""
    return NewBatch(
        author=author,
        first_seq=first_seq,
        batch_id=os.urandom(32),
        body=os.urandom(100),
        signature=signature,
        record_ids=tuple(os.urandom(32) for _ in contents),
        contents=tuple(contents),
        anchor=anchor,
    )


def record_ids_of(entries: Sequence[LogEntry]) -> list[bytes]:
    """The hashes of the records in a part of the log."""
    return [entry.record_id for entry in entries]


@pytest.mark.anyio
class StoreChecks:
    """Each check needs an empty home."""

    def open_store(self, home: Path) -> AbstractAsyncContextManager[Store]:
        """Open the store under test in a home folder, new or used."""
        raise NotImplementedError
