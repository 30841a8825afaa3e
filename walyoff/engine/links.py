"""What devices say to each other in a session of a channel, and how it is answered.

One task reads a link's frames and feeds the engine; others answer the other side's questions,
a bounded number at a time, so that a long answer never stops the reading. Batches, contents and
chains are answered side by side: none waits for another. A frame that breaks the protocol ends
the link and is blamed on the other side.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from walyoff import frames
from walyoff.chunk_frames import ChunkFrame
from walyoff.engine.answering import Answers
from walyoff.engine.chain_serving import Chain, ChainServer
from walyoff.engine.chunk_serving import ChunkServer
from walyoff.engine.facts import Reason
from walyoff.engine.link import ANSWER_BACKLOG, LinkState
from walyoff.errors import NotAMemberError, RemoteProtocolError, WalyoffError
from walyoff.records import decode_batch
from walyoff.tasks import background_tasks

if TYPE_CHECKING:
    from walyoff.engine.driver import Engine
    from walyoff.engine.link import SessionLink

log = logging.getLogger("walyoff.engine")

#: Questions of one peer that wait for an answer; an honest one asks a few at a time.
MAX_QUESTIONS = 64
#: Authors who are not members as far as we know, that one peer may speak of: it may know of
#: a new member before us, but not of many.
MAX_STRANGERS = 64
#: Refused certificates of one peer that are tried again when a chain has grown.
MAX_DOUBTED = 8
#: Questions that go to the child.
ABOUT_CHAINS = (
    frames.ChainHave,
    frames.ChainWant,
    frames.ChainFiles,
    frames.WantControlKeys,
    frames.ControlKeys,
)
ABOUT_GROUPS = (frames.Part, frames.GroupsHeld, frames.WantGroup, frames.GroupGrant)


class LinkServer:
    """Serves one session of a channel."""

    def __init__(
        self,
        engine: Engine,
        session: SessionLink,
        *,
        addresses: tuple[str, ...],
        chains: Mapping[str, Chain],
        found_at: Callable[[tuple[str, ...]], Awaitable[None]],
        groups: Callable[[frames.Frame], Awaitable[None]] | None = None,
    ) -> None:
        """`found_at` is told where the other side says that it is, once.

        `groups` is told what the other side says of the groups above the identity."""
        self._engine = engine
        self._groups = groups
        self._session = session
        self._state = LinkState(session.link)
        self._chunks = ChunkServer(engine, session, self._state)
        self._addresses = addresses
        self._answers = Answers(engine, session, self._state)
        self._chains = ChainServer(engine, session, self._state, chains, self._certify_again)
        self._strangers: set[str] = set()
        #: Certificates that were refused; a chain that is on its way may prove them.
        self._doubted: list[bytes] = []
        self._found_at = found_at

    async def run(self) -> None:
        """Serve until the session ends.

        Raises:
            RemoteProtocolError: the other side broke the protocol.
            StoreError: the store fails now.
        """
        engine, link = self._engine, self._state.link
        engine.check()
        engine.links[link.name] = self._state
        # What is asked about chains goes to the child, which may hang: no message waits for it.
        self._questions, questions = _queue()
        self._contents, contents = _queue()
        self._slow, slow = _queue()
        try:
            self._state.send(frames.Hello(self._addresses, engine.vector()))
            engine.rotation.give(self._state, list(engine.epochs.values()))
            engine.control_keys.wake()
            async with (
                self._questions,
                questions,
                self._contents,
                contents,
                self._slow,
                slow,
                background_tasks() as tasks,
            ):
                for asked in (questions, contents, slow):
                    tasks.start_soon(self._answer_all, asked)
                tasks.start_soon(self._chains.announce)
                tasks.start_soon(self._chains.announce_growth)
                tasks.start_soon(self._chains.compare_again)
                tasks.start_soon(self._chunks.run)
                await engine.forks.show_all(self._state)
                async with aclosing(self._session.frames()) as incoming:
                    async for frame in incoming:
                        if isinstance(frame, ChunkFrame):
                            self._chunks.receive(frame)
                        else:
                            await self._receive(frame)
        finally:
            engine.links.pop(link.name, None)
            engine.attachments.peer_left(link.name)
            engine.reconciler.peer_left(link.name, engine.runtime.now())
            engine.dispatch()
            engine.notify()

    async def announce_chains(self) -> None:
        """Say what this device holds of the channel's chains, unless the other side has it."""
        await self._chains.announce()

    # --------------------------------------------------------------------- reading

    async def _receive(self, frame: frames.Frame) -> None:
        engine = self._engine
        name = self._state.link.name
        now = engine.runtime.now()
        match frame:
            case frames.BatchFrame(body, signature, contents):
                await self._batch(body, signature, contents)
            case frames.HaveVector(vector):
                vector = self._admit(vector)
                self._vector(vector)
                engine.reconciler.peer_has(name, _as_vector(vector), now)
                engine.dispatch()
            case frames.ContentsFrame(contents):
                await engine.commits.room()
                engine.inbox.contents(contents, name)
            case frames.Hello(addresses, vector):
                self._greeted(vector)
                await self._found_at(addresses)
            case frames.CertificateFrame(data):
                await self._certificate(data)
            case frames.EpochKeys(epochs):
                engine.rotation.take(epochs, self._state)
            case frames.RangeEnd(author, _):
                engine.reconciler.range_end(name, author, now)
                engine.dispatch()
            case frames.Gone(record_ids):
                engine.reconciler.content_failed(record_ids, name, Reason.GONE, now)
                engine.dispatch()
            case _:
                await self._queue(frame)

    async def _queue(self, frame: frames.Frame) -> None:
        """Leave a question to the task that answers its kind."""
        match frame:
            case frames.WantBatches() | frames.WantCertificate():
                await self._questions.send(frame)
            case frames.WantMore(author, size):
                # Others have their turn first: then this answer ends, and is asked for again.
                if not self._questions.statistics().current_buffer_used:
                    self._answers.grant(author, size)
            case frames.WantContents():
                await self._contents.send(frame)
            case _ if isinstance(frame, ABOUT_CHAINS) or (
                self._groups is not None and isinstance(frame, ABOUT_GROUPS)
            ):
                await self._slow.send(frame)
            case _:
                raise RemoteProtocolError(f"{type(frame).__name__} has no place here")

    def _greeted(self, vector: tuple[frames.Have, ...]) -> None:
        engine, link = self._engine, self._state.link
        if link.name in engine.reconciler.peers:
            raise RemoteProtocolError("a second greeting")
        vector = self._admit(vector)
        self._vector(vector)
        self._answers.greeted(vector)
        now = engine.runtime.now()
        engine.reconciler.peer_joined(link.name, link.did, _as_vector(vector), now)
        engine.dispatch()
        engine.attachments.peer_joined(link.name, link.did)

    async def _batch(
        self,
        body: bytes,
        signature: bytes,
        contents: tuple[tuple[bytes, bytes] | None, ...],
    ) -> None:
        engine = self._engine
        await engine.commits.room()
        try:
            batch = await engine.inbox.offer(body, signature, contents, self._state)
        except RemoteProtocolError as error:
            batch = decode_batch(body)
            author = batch.author
            name = self._state.link.name
            claim = 0
            if error.reason == Reason.NO_CERTIFICATE:
                # It was refused when it came, perhaps before we knew of a new member or of new
                # keys. What is pushed is said nowhere else, so it is asked for from now on.
                self._state.send(frames.WantCertificate(batch.certificate_id))
                if self._admit((frames.Have(author, batch.last_seq, ()),)):
                    claim = batch.last_seq
            # Who holds more of a former member's records may not know yet that it left.
            blame = error.reason != Reason.NOT_A_MEMBER or not engine.trust.knows(author)
            engine.reconciler.range_failed(
                name, author, error.reason, engine.runtime.now(), blame=blame, claim=claim
            )
            engine.dispatch()
            return
        if batch is not None and batch.author == self._state.link.did:
            # The author itself holds what it sent.
            self._note(batch.author, batch.last_seq)

    def _note(self, author: str, seq: int) -> None:
        confirmed = self._engine.confirmed.setdefault(self._state.link.did, {})
        if confirmed.get(author, (0, frozenset()))[0] < seq:
            confirmed[author] = (seq, confirmed.get(author, (0, frozenset()))[1])

    def _admit(self, vector: tuple[frames.Have, ...]) -> tuple[frames.Have, ...]:
        """Without the authors that nobody heard of: they would cost memory and requests."""
        engine = self._engine
        unknown = {have.author for have in vector if have.author not in engine.durable}
        if not unknown:
            return vector
        unknown -= {member.did for member in engine.trust.identity.membership.members}
        for have in vector:
            if have.author in unknown and len(self._strangers) < MAX_STRANGERS:
                self._strangers.add(have.author)
        return tuple(
            have
            for have in vector
            if have.author not in unknown or have.author in self._strangers
        )

    def _vector(self, vector: tuple[frames.Have, ...]) -> None:
        engine = self._engine
        confirmed = engine.confirmed.setdefault(self._state.link.did, {})
        for have in vector:
            confirmed[have.author] = (have.seq, frozenset(have.gaps))
            if have.author == engine.me and have.seq > self._state.pushed:
                self._state.pushed = have.seq
        # What was never heard of begins with its first record.
        self._state.pushed = max(self._state.pushed, 0)
        engine.notify(company=False)

    async def _certificate(self, data: bytes) -> None:
        grown = self._chains.grown
        try:
            await self._trust(data)
        except (NotAMemberError, RemoteProtocolError, WalyoffError) as error:
            # Its batches will be refused by name; the rest of the link goes on.
            reason = getattr(error, "reason", Reason.NOT_A_MEMBER)
            self._engine.reconciler.fault(self._state.link.name, reason, str(error))
            self._engine.dispatch()
            if data not in self._doubted and len(self._doubted) < MAX_DOUBTED:
                self._doubted.append(data)
            if grown != self._chains.grown:
                await self._certify_again()

    async def _trust(self, data: bytes) -> None:
        engine = self._engine
        trusted = await engine.trust.add(data)
        if data in self._doubted:
            self._doubted.remove(data)
            # What was refused for want of it counts now.
            engine.reconciler.author_counts(trusted.certificate.member, engine.runtime.now())
            engine.dispatch()

    async def _certify_again(self) -> None:
        """A chain has grown: its news may be the keys, or the member, of what was refused."""
        for data in list(self._doubted):
            with contextlib.suppress(WalyoffError):
                await self._trust(data)

    # ------------------------------------------------------------------- answering

    async def _answer_all(self, questions: MemoryObjectReceiveStream[frames.Frame]) -> None:
        async for question in questions:
            await self._session.drained(ANSWER_BACKLOG)
            if not self._engine.trust.admits(self._state.link.did):
                # It left while it waited: the session is about to end.
                continue
            try:
                await self._answer(question)
            except RemoteProtocolError:
                raise
            except WalyoffError as error:
                log.warning("a question of a peer was not answered: %s", error)
                self._chains.unanswered()

    async def _answer(self, question: frames.Frame) -> None:
        match question:
            case frames.WantBatches(author, first_seq, max_bytes):
                await self._answers.batches(author, first_seq, max_bytes)
            case frames.WantContents(record_ids):
                await self._answers.contents(record_ids)
            case frames.WantCertificate(certificate_id):
                if trusted := await self._engine.trust.load(certificate_id):
                    self._state.send(frames.CertificateFrame(trusted.encoded))
            case frames.ChainHave() | frames.ChainWant() | frames.ChainFiles():
                await self._chains.answer(question)
            case frames.WantControlKeys(fingerprints):
                await self._engine.control_keys.give(self._state, fingerprints)
            case frames.ControlKeys(secrets):
                await self._engine.control_keys.take(secrets)
            case _ if self._groups is not None:
                await self._groups(question)
            case _:
                raise AssertionError(question)


def _queue() -> tuple[
    MemoryObjectSendStream[frames.Frame], MemoryObjectReceiveStream[frames.Frame]
]:
    return anyio.create_memory_object_stream[frames.Frame](MAX_QUESTIONS)


def _as_vector(vector: tuple[frames.Have, ...]) -> dict[str, tuple[int, frozenset[int]]]:
    return {have.author: (have.seq, frozenset(have.gaps)) for have in vector}
