"""What the register holds that does not hold: named once in a while, and counted.

Whoever has an epoch can fill the register with batches that are malformed or badly signed.
Decided here: how often a member is named for them, in the log and to the application. All are
counted, by reason, and by the member that a batch claims to be by.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from walyoff.engine.facts import Report

if TYPE_CHECKING:
    from walyoff.engine.driver import Engine

#: Seconds between two words about one member, for one reason.
AGAIN_S = 60.0


class Refusals:
    """What was refused of one channel's register, in this run."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        #: By the member that it claims to be by; empty where no member is named.
        self.counts: Counter[str] = Counter()
        #: Until when nothing more is said, and what was not said.
        self._quiet: dict[tuple[str, str], float] = {}
        self._unsaid: Counter[tuple[str, str]] = Counter()

    def refuse(self, reason: str, block: str, detail: str, member: str = "") -> None:
        """Count what a block holds, and name it unless that was done just now."""
        engine, key = self._engine, (member, reason)
        self.counts[member] += 1
        now = engine.runtime.now()
        if now < self._quiet.get(key, -math.inf):
            self._unsaid[key] += 1
            engine.count(reason)
            return
        self._quiet[key] = now + AGAIN_S
        if more := self._unsaid.pop(key, 0):
            detail = f"{detail}, and {more} more since it was last said"
        if member:
            detail = f"block {block}: {detail}"
        engine.report(Report(reason, member or block, detail))


__all__ = ["Refusals"]
