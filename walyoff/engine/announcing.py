"""Telling others what this device has come to hold.

Decided here: who is told at once, and who later. Everybody telling everybody everything would
be as many frames for one message as there are pairs of members. So what the author waits for,
and what lets news travel on where the author is not connected, goes at once: to the author,
and to a few others, each time the next ones. The rest hear of it together a moment later.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

import anyio

from walyoff import frames

if TYPE_CHECKING:
    from walyoff.engine.driver import Engine
    from walyoff.engine.link import LinkState

#: Others than the author that are told at once: in a small channel all, in a large one enough
#: for news to reach everybody over a few devices.
AT_ONCE = 4
#: The others are told after so many seconds, of everything since.
LATER_S = 1.0


#: So many missing contents at the end of a device's records are named one by one, so that
#: others hear of these records.
MAX_TAIL = 16


def claim(author: str, seq: int, gaps: Sequence[int]) -> frames.Have:
    """What is said of a device whose records are durable up to a number, but for contents."""
    gaps = [gap for gap in gaps if gap <= seq]
    # A batch whose contents are on their way is held as far as they have come: naming all the
    # others would cost more than bringing them.
    end = len(gaps)
    while end and gaps[end - 1] == seq - (len(gaps) - end):
        end -= 1
    if len(gaps) - end > MAX_TAIL:
        seq, gaps = gaps[end] - 1, gaps[:end]
    # Who waits for a message waits for a new one: what is not named is the oldest.
    return frames.Have(author, seq, tuple(gaps[-frames.MAX_GAPS :]))


def is_held(claimed: int, gaps: Collection[int], seq: int) -> bool:
    """True if a claim, all up to a number but for gaps, says that a record's content is held.

    As many gaps as can be named may be all or only the newest: of the records before these
    nothing is said.
    """
    if seq > claimed or seq in gaps:
        return False
    return len(gaps) < frames.MAX_GAPS or seq > min(gaps)


class Announcer:
    """What the links of one channel have still to be told."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._turn = 0
        #: Names of links to authors of whom they have not heard the latest.
        self._later: dict[str, dict[str, None]] = {}
        self._work = anyio.Event()

    def held(self, authors: Iterable[str]) -> None:
        """More records of these authors are durable."""
        news = dict.fromkeys(author for author in authors if author != self._engine.me)
        links = self._engine.admitted_links()
        if not news or not links:
            return
        self._turn += AT_ONCE
        first = self._turn % len(links)
        for number, link in enumerate(links):
            later = self._later.setdefault(link.link.name, {})
            later |= news
            at_once = (number - first) % len(links) < AT_ONCE
            if at_once or link.link.did in news:
                self._tell(link)
        if self._later:
            self._work.set()

    def _tell(self, link: LinkState) -> None:
        authors = self._later.pop(link.link.name, None)
        if authors:
            link.send(frames.HaveVector(tuple(map(self._engine.have, authors))))

    async def run(self) -> None:
        """Tell the others when it is time."""
        while True:
            await self._work.wait()
            await anyio.sleep(LATER_S)
            self._work = anyio.Event()
            links = {link.link.name: link for link in self._engine.admitted_links()}
            for name in list(self._later):
                if link := links.get(name):
                    self._tell(link)
                else:
                    # A new link begins with all that there is.
                    del self._later[name]


__all__ = ["AT_ONCE", "LATER_S", "Announcer", "claim", "is_held"]
