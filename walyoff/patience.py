"""When a peer that has to answer counts as silent.

Decided here: how long an answer may take, and what of that time counts. Two things say nothing
about the peer, and must not cost a session:

- Time in which this process did not run. Silence is counted in short steps, and each counts
  for its own length, however late this process came to its end. So who is suspended, or has too
  much to do, reads what waits before it judges.
- An answer that is as slow as those before it. The time allowed follows the answers of late, as
  the retransmission timer of TCP does (RFC 6298): their mean and four times their deviation.
"""

from __future__ import annotations

import anyio

#: An answer may take so long, at least and at most. The least doubles for sessions that have to
#: be moved soon after they began.
PATIENCE_FIRST_S, PATIENCE_LAST_S = 0.75, 12.0
#: The steps in which silence is counted.
STEP_S = 0.05


async def heed(event: anyio.Event, limit: float) -> float:
    """Wait for an event until `limit` seconds count; returns how many did."""
    counted = 0.0
    while counted < limit and not event.is_set():
        step = min(STEP_S, limit - counted)
        began = anyio.current_time()
        with anyio.move_on_after(step):
            await event.wait()
        counted += min(anyio.current_time() - began, step) if event.is_set() else step
    return counted


class Patience:
    """How long the answers of one peer may take."""

    def __init__(self) -> None:
        self._least = PATIENCE_FIRST_S
        self._mean = self._deviation = 0.0

    @property
    def seconds(self) -> float:
        """How long the next answer may take."""
        learned = self._mean + 4 * self._deviation
        return min(max(self._least, learned), PATIENCE_LAST_S)

    def answered(self, seconds: float) -> None:
        """An answer took so long."""
        if self._mean:
            self._deviation += (abs(seconds - self._mean) - self._deviation) / 4
            self._mean += (seconds - self._mean) / 8
        else:
            self._mean, self._deviation = seconds, seconds / 2

    def lost(self, *, soon: bool) -> None:
        """An answer did not come in time, soon after the session began or later.

        Soon: perhaps the paths are slow, and it was moved for nothing. What stood for long and
        is silent now hangs.
        """
        self._least = min(2 * self.seconds, PATIENCE_LAST_S) if soon else PATIENCE_FIRST_S
