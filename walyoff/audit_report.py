"""What an audit finds, and how far it is: values, and nothing that checks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from walyoff.audit_chains import Finding, RawSegment

BATCH_MISSING = "batch-missing"
BATCH_DAMAGED = "batch-damaged"
BATCH_FORGED = "batch-forged"
CHAIN_BROKEN = "hash-chain-broken"
FORK = "fork"
ANCHOR_FALSE = "anchor-false"
CONTENT_DAMAGED = "content-damaged"
CONTENT_WRONG = "content-wrong"
NO_CERTIFICATE = "certificate-missing"
NO_SEGMENT = "register-missing"
STORE_DAMAGED = "store-damaged"
#: Findings of one audit; more say nothing more.
MAX_FINDINGS = 10_000

#: progress(done, of about)
Progress = Callable[[int, int], None]


@dataclass(slots=True)
class Report:
    """What an audit found."""

    channel: str
    name: str
    #: How much was checked, by kind.
    counts: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    segments: list[RawSegment] = field(default_factory=list)
    #: Blocks of the identity's chain that are well-formed and do not count, by reason.
    refused: dict[str, int] = field(default_factory=dict)

    @property
    def sound(self) -> bool:
        """True if nothing is wrong."""
        return not self.findings

    def add(self, kind: str, where: str, detail: str) -> None:
        """One more finding."""
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(Finding(kind=kind, where=where, detail=detail))

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "channel": self.channel,
            "name": self.name,
            "sound": self.sound,
            "checked": dict(self.counts),
            "refused": self.refused,
            "findings": [asdict(finding) for finding in self.findings],
        }


class Meter:
    """Counts what is done, from any thread."""

    def __init__(self, total: int, tell: Progress) -> None:
        self._done = 0
        self._total = total
        self._tell = tell

    def tick(self) -> None:
        self._done += 1
        self._tell(self._done, max(self._total, self._done))
