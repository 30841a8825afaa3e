"""Room for epochs: how many a device keeps, and which one goes for one that it needs.

Decided here, because nobody signs an epoch: a member can hand out any number of its own making,
and everybody passes them on. When there is no room, others are refused; but the one to write
under always gets room, or whoever filled it would go on to do harm after it was removed. What
goes for it is what such a member makes: first epochs that name memberships of which the chain
does not say that they are over, then one of the most that name the same. An honest channel has
few of either; there the oldest goes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

from walyoff import frames
from walyoff.epochs import Epoch

#: Epochs of one channel that are kept: one a month, and one for each leaving.
MAX_KEPT = frames.MAX_EPOCHS
#: And the memberships that they name, in all: bounds what a liar makes us keep, and what is
#: written at each new epoch, to half a megabyte.
MAX_KEPT_NAMES = 16 * 1024
#: So often room is made for epochs of others that name the same leavings: several may begin one
#: at once; who is still a member could go on for ever.
MAX_MADE = 16


class EpochRoom:
    """What is left to be taken, of the epochs that one channel keeps."""

    def __init__(self, kept: dict[bytes, Epoch]) -> None:
        self._kept = kept
        self._made_for: tuple[bytes, ...] | None = None
        self._made = 0

    def has(self, new: Iterable[Epoch]) -> bool:
        """True if these can be kept as well."""
        epochs = [*self._kept.values(), *new]
        return len(epochs) <= MAX_KEPT and sum(len(e.ended) for e in epochs) <= MAX_KEPT_NAMES

    def may_make(self, ended: tuple[bytes, ...]) -> bool:
        """True if room can be made for one more epoch of others that names these."""
        if ended != self._made_for:
            self._made_for, self._made = ended, 0
        self._made += 1
        return self._made <= MAX_MADE

    def least(self, over: Collection[bytes], dice: int) -> Epoch:
        """The one that goes first. `over` are the memberships that are; the dice are random."""
        kept = sorted(self._kept.values(), key=lambda e: (e.created_ms, e.epoch_id))
        if invented := [e for e in kept if any(name not in over for name in e.ended)]:
            return invented[dice % len(invented)]
        count = Counter(e.ended for e in kept)
        most = max(count.values())
        alike = [e for e in kept if count[e.ended] == most]
        # Who made them chose their times: which of them is another's, nobody can say.
        return alike[dice % len(alike)] if most > MAX_MADE else kept[0]


__all__ = ["MAX_KEPT", "MAX_KEPT_NAMES", "EpochRoom"]
