"""`Ledger`: a permanent register that all devices of an identity read in time.

A block is a claim by anybody. What it says, and whether it counts, is decided above.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from anyio.abc import ObjectReceiveStream


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One admitted block of a ledger."""

    #: The ledger's own permanent name for the block (a CID for Walytis).
    ref: str
    #: Grows in the order in which this device admitted blocks; parents before children.
    position: int
    payload: bytes


class Ledger(Protocol):
    """A permanent register to which anyone may write: a block is a claim."""

    @property
    def max_payload(self) -> int:
        """The largest payload of one block, in bytes."""

    async def append(self, payload: bytes) -> Block:
        """Write a block; when this returns it survives a crash of this device.

        Cancelling leaves it written or not written. Appending the same payload twice makes
        two blocks.

        Raises:
            PayloadTooLargeError: larger than `max_payload`.
            LocalProtocolError: the payload is empty.
            ChildError: the ledger is not available now; the block may have been written.
        """

    def blocks(self, after: int = 0) -> AbstractAsyncContextManager[ObjectReceiveStream[Block]]:
        """All blocks after a position, then new ones as they are admitted, without a gap.

        Each block comes at least once, parents before children.
        """


@runtime_checkable
class GuardedLedger(Ledger, Protocol):
    """A ledger that admits only what opens under keys that its members share."""

    async def learn_keys(self, keys: Mapping[bytes, bytes]) -> None:
        """The anchor key (`walyoff.epochs.anchor_key`) of each epoch id, newest last.

        All that are known, each time; blocks that waited for a key are admitted. Until it is
        called first, nothing can be appended. Raises ChildError: tell them again.
        """

    async def is_complete(self) -> bool:
        """Whether all that is known to come before the newest blocks is here.

        It is not while a device that has joined still gets the history. Raises ChildError.
        """


__all__ = [
    "Block",
    "GuardedLedger",
    "Ledger",
]
