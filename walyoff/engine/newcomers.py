"""Newer ends of the chains that a joiner shows.

A joiner shows its chains as it likes: a device that was removed from a person can show the
person's as it was before. Decided here: that members who are connected are asked before
somebody is let in, which of them, for how long, and how much each may say. What they bring
proves itself by the chains' own rules, so nobody is believed, and who says nothing does no
harm but for the time. Who hears later of a newer end passes it on like all news of chains of
the identity's family, to which the joiner's belong from then on.

The question is a `ChainWant` and the answer `ChainFiles`, as for the identity's own chains; the
chain is named by the joiner's DID, blocks and files as those of "identity" are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING

import anyio

from walyoff import frames
from walyoff.engine.chain_serving import frames_of
from walyoff.engine.link import LinkState

if TYPE_CHECKING:
    from walyoff.engine.driver import Engine

#: Devices that are asked, one of each direct member before a second one of any.
MAX_ASKED = 8
#: Bytes of one answer, some fifty acts: whoever has an invitation can have them sent by each
#: who is asked, as often as it tries to join.
MAX_BYTES = 512 * 1024
#: Seconds that a join waits for the answers; a member that is there takes some hundredths.
ANSWER_S = 3.0


@dataclass(slots=True)
class _Question:
    #: The links that have not answered, and the bytes that each may still bring.
    room: dict[str, int]
    answered: anyio.Event = field(default_factory=anyio.Event)
    over: anyio.Event = field(default_factory=anyio.Event)
    #: Each file once.
    brought: dict[bytes, None] = field(default_factory=dict)


class Newcomers:
    """Those who ask to join one channel, as this device asks others about them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._questions: dict[str, _Question] = {}

    async def ask(
        self, did: str, chain: Sequence[bytes], family: Mapping[str, Sequence[bytes]]
    ) -> list[bytes]:
        """What others hold of a joiner's chains beyond what it shows. Raises WalyoffError."""
        shown = await self._engine.trust.identity.shown(did, chain, family)
        while (other := self._questions.get(did)) is not None:
            await other.over.wait()
        links = self._choose()
        if not links:
            return []
        question = _Question({link.link.name: MAX_BYTES for link in links})
        self._questions[did] = question
        try:
            for link in links:
                link.send(frames.ChainWant(did, tuple(shown)))
            with anyio.move_on_after(ANSWER_S):
                await question.answered.wait()
        finally:
            del self._questions[did]
            question.over.set()
        return list(question.brought)

    def _choose(self) -> list[LinkState]:
        engine = self._engine
        members: dict[str, list[LinkState]] = {}
        for link in engine.admitted_links():
            members.setdefault(engine.trust.path(link.link.did)[-2], []).append(link)
        groups = list(members.values())
        # Of many others are asked each time.
        start = int(engine.runtime.jitter() * len(groups))
        turns = zip_longest(*groups[start:], *groups[:start])
        return [link for turn in turns for link in turn if link is not None][:MAX_ASKED]

    def take(self, link: LinkState, answer: frames.ChainFiles) -> None:
        """An answer, or a part of one; what nobody waits for is dropped."""
        question = self._questions.get(answer.chain)
        name = link.link.name
        if question is None or name not in question.room:
            return
        for file in answer.files:
            question.room[name] -= len(file)
            if question.room[name] >= 0:
                question.brought[file] = None
        if answer.last or question.room[name] < 0:
            del question.room[name]
            if not question.room:
                question.answered.set()

    async def answer(self, link: LinkState, question: frames.ChainWant) -> None:
        """Give what is held here of the chains that somebody shows another member."""
        identity = self._engine.trust.identity
        for files in frames_of(await identity.newer(question.known, MAX_BYTES)):
            link.send(frames.ChainFiles(question.chain, files, False))
        link.send(frames.ChainFiles(question.chain, (), True))


__all__ = ["Newcomers"]
