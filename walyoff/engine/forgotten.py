"""What became of a message that is talked about, as it is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from walyoff.engine.consent import Agreement, State, Verdict

if TYPE_CHECKING:
    from walyoff.abc import LogEntry
    from walyoff.records import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgotten:
    """Why a message has no content any more."""

    #: The first agreement of each person, in order of time; empty if its time was over.
    agreed: tuple[Agreement, ...]
    reason: str
    #: True if its author sent it for a time, which is over.
    expired: bool
    #: When the last one agreed or its time was over, in ms; clocks of devices differ.
    time_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A message that is talked about, as far as it is known here."""

    entry: LogEntry | None
    record: Record | None

    @property
    def author(self) -> str | None:
        """The device that wrote it."""
        return None if self.entry is None else self.entry.author

    @property
    def is_here(self) -> bool:
        """True if its record is held, and nothing of it was destroyed."""
        return self.entry is not None and not self.entry.forgotten


def why_forgotten(record: Record | None, verdict: Verdict) -> Forgotten:
    """By agreement, or because its time was over."""
    agreed = tuple(sorted(verdict.agreed, key=lambda word: (word.time_ms, word.voice)))
    if verdict.state is State.FORGOTTEN or record is None or not record.lifetime_ms:
        return Forgotten(
            agreed=agreed,
            reason=verdict.reason,
            expired=False,
            time_ms=max((word.time_ms for word in agreed), default=0),
        )
    due = record.time_ms + record.lifetime_ms
    return Forgotten(agreed=(), reason="", expired=True, time_ms=due)


__all__ = ["Forgotten", "Subject", "why_forgotten"]
