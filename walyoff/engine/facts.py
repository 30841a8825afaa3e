"""What goes into the reconciler and what comes out: its orders and small tables.

Orders are commands to the driver; every one of them may be repeated or fail without harm,
because the facts that follow decide what happens next.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias

from walyoff.abc import StoredContent
from walyoff.records import KIND_MESSAGE, Batch, Record


class Verdict(Enum):
    """What became of a batch that was offered."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    #: Earlier records are missing; they are being fetched, and this batch comes again.
    GAP = "gap"
    #: It contradicts records that are held: the author equivocates.
    FORK = "fork"


class Reason:
    """Why something was refused or a peer was scored: in the log, `status()` and metrics."""

    TIMEOUT = "timeout"
    GONE = "gone"
    WRONG_CONTENT = "wrong-content"
    WRONG_SIGNATURE = "wrong-signature"
    WRONG_CHANNEL = "wrong-channel"
    NOT_A_MEMBER = "not-a-member"
    NO_CERTIFICATE = "no-certificate"
    FORK = "fork"
    MALFORMED = "malformed"
    UNKNOWN_EPOCH = "unknown-epoch"
    EXPIRED_KEY = "expired-key"
    OLD_KEY = "old-key"
    TOO_MANY_GROUPS = "too-many-groups"


@dataclass(frozen=True, slots=True)
class Write:
    """Write a batch, or contents of known records, and give these records their places."""

    batch: Batch | None
    #: The batch's signature, or None for an own batch that is being signed.
    signature: bytes | None
    contents: tuple[tuple[bytes, StoredContent], ...]
    deliver: tuple[bytes, ...]
    #: The device whose records these are; None if it is only about delivery.
    author: str | None = None
    #: Of `contents` that come without a batch: their records, in the same order.
    records: tuple[OpenRecord, ...] = ()


@dataclass(frozen=True, slots=True)
class FetchBatches:
    """Ask a peer for a device's batches from a sequence number."""

    peer: str
    author: str
    first_seq: int


@dataclass(frozen=True, slots=True)
class FetchMore:
    """Tell a peer to go on with its answer to a FetchBatches, for so many bytes more."""

    peer: str
    author: str
    size: int


@dataclass(frozen=True, slots=True)
class FetchContents:
    """Ask a peer for contents."""

    peer: str
    record_ids: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """Tell the log and the application of a fault of a peer or an author."""

    reason: str
    #: The peer or the author that is to blame.
    subject: str
    detail: str


Order: TypeAlias = Write | FetchBatches | FetchMore | FetchContents | Report


@dataclass(frozen=True, slots=True)
class HeadInfo:
    """The end of a device's records as they are held."""

    seq: int
    record_id: bytes
    batch_id: bytes


@dataclass(slots=True)
class OpenRecord:
    """A record whose content is wanted."""

    author: str
    seq: int
    record_id: bytes
    size: int
    commitment: bytes
    since: float
    attempts: int = 0
    #: The peer that it is being fetched from, if any, and until when that is believed.
    peer: str | None = None
    #: When to give up on `peer`, or not to try again before.
    until: float = 0.0
    #: Its place in the order was given up: it is delivered as soon as it comes.
    late: bool = False
    kind: int = KIND_MESSAGE
    #: The batch came without any peer: who is asked for batches may still bring the content.
    bare: bool = False
    #: Its batch, if it came in this run.
    batch: Batch | None = field(default=None, repr=False)

    @property
    def metadata(self) -> Record | None:
        """The record itself, if its batch came in this run."""
        batch = self.batch
        return None if batch is None else batch.records[self.seq - batch.first_seq]


@dataclass(slots=True)
class PeerState:
    """What is known about a connected peer."""

    did: str
    heads: dict[str, int]
    gaps: dict[str, frozenset[int]]
    #: Faults, halved with each success: the lower the better.
    score: float = 0.0
    #: Contents that the peer said it does not hold, and when to ask it again.
    gone: dict[bytes, float] = field(default_factory=dict)
    #: Devices whose batches it failed to give: how often, and when to ask it again.
    put_off: dict[str, tuple[int, float]] = field(default_factory=dict)
    #: Content requests in flight, by number and by size, and range requests in flight.
    fetching: int = 0
    bytes: int = 0
    ranges: int = 0
    #: Devices whose batches wait for a free range request, in order.
    queued: dict[str, None] = field(default_factory=dict)

    def has(self, author: str, seq: int) -> bool:
        """True if the peer claims to hold the content of a record."""
        return self.heads.get(author, 0) >= seq and seq not in self.gaps.get(author, ())

    def may_be_asked(self, author: str, now: float) -> bool:
        """False while it is put off for a device's batches."""
        return self.put_off.get(author, (0, now))[1] <= now


Vector: TypeAlias = Mapping[str, tuple[int, frozenset[int]]]
