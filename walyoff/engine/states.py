"""The states of a record, and the only ways from one to another.

`docs/design.md` draws this table, and the model of the reconciler checks that every record
moves along it. Decided here: the table. What moves a record is decided in `reconciler`.
"""

from __future__ import annotations

from enum import Enum
from typing import Final


class RecordState(Enum):
    """What is to be done next for a record."""

    UNKNOWN = "unknown"
    WANTED = "wanted"
    FETCHING = "fetching"
    HELD = "held"
    DELIVERED = "delivered"


TRANSITIONS: Final[tuple[tuple[RecordState, RecordState, str], ...]] = (
    (RecordState.UNKNOWN, RecordState.WANTED, "a batch names it"),
    (RecordState.UNKNOWN, RecordState.HELD, "its content came with the batch"),
    (RecordState.WANTED, RecordState.FETCHING, "a peer that holds it is asked"),
    (RecordState.WANTED, RecordState.HELD, "its content came unasked"),
    (RecordState.FETCHING, RecordState.HELD, "the content matches its commitment"),
    (RecordState.FETCHING, RecordState.WANTED, "timeout, gone, wrong, or the peer left"),
    (
        RecordState.HELD,
        RecordState.DELIVERED,
        "its predecessors are delivered, or it is late",
    ),
)


def reachable(start: RecordState, end: RecordState) -> bool:
    """True if a record can get from one state to another by any number of transitions."""
    found = {start}
    while True:
        more = {after for before, after, _ in TRANSITIONS if before in found} - found
        if not more:
            return end in found
        found |= more


def diagram() -> str:
    """The table as a Mermaid state diagram (https://mermaid.js.org/syntax/stateDiagram.html)."""
    lines = ["stateDiagram-v2", f"    [*] --> {RecordState.UNKNOWN.value}"]
    lines += [f"    {a.value} --> {b.value}: {why}" for a, b, why in TRANSITIONS]
    lines.append(f"    {RecordState.DELIVERED.value} --> [*]")
    return "\n".join(lines)
