"""What devices say to each other in a session of a channel, and how it is answered.

One task reads a link's frames and feeds the engine; another answers the other side's
questions, a bounded number at a time, so that a long answer never stops the reading. A frame
that breaks the protocol ends the link and is blamed on the other side.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Protocol

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream

from walyoff import frames
from walyoff.abc import StoredContent
from walyoff.chunk_frames import ChunkFrame
from walyoff.engine.chunk_serving import ChunkServer
from walyoff.engine.facts import Reason
from walyoff.engine.link import LinkState, batch_frame
from walyoff.errors import NotAMemberError, RemoteProtocolError, WalyoffError
from walyoff.records import decode_batch
from walyoff.tasks import background_tasks

if TYPE_CHECKING:
    from walyoff.engine.driver import Engine
    from walyoff.engine.link import Link

log = logging.getLogger("walyoff.engine")

#: Questions of one peer that wait for an answer; an honest one asks a few at a time.
MAX_QUESTIONS = 64
#: Answers wait while a link has more than this unsent.
ANSWER_BACKLOG = 4 * 1024 * 1024
#: New blocks are named to the other side after this: by then most know them already.
ANNOUNCE_AFTER = 2.0
#: A device that comes back hears what was said meanwhile before it gives contents away, but
#: does not wait longer: a liar names any number.
BEHIND_S = 3.0
#: Authors who are not members as far as we know, that one peer may speak of: it may know of
#: a new member before us, but not of many.
MAX_STRANGERS = 64
#: Refused certificates of one peer that are tried again when a chain has grown.
MAX_DOUBTED = 8
#: Block files of one frame, by size.
FILES_BYTES = 4 * 1024 * 1024


#: Questions that go to the child.
ABOUT_CHAINS = (
    frames.ChainHave,
    frames.ChainWant,
    frames.ChainFiles,
    frames.WantControlKeys,
    frames.ControlKeys,
)
ABOUT_GROUPS = (frames.Part, frames.GroupsHeld, frames.WantGroup, frames.GroupGrant)


class Chain(Protocol):
    """A Walytis chain that members keep equal over their sessions."""

    async def leaves(self) -> tuple[list[str], int]:
        """The blocks at the tips, and the number of blocks."""

    async def wanted(self, theirs: list[str]) -> list[str] | None:
        """The blocks at the tips here, if a device with those has more; else None."""

    def export(self, known: list[str]) -> AsyncGenerator[list[bytes], None]:
        """The files of blocks that are not ancestors of the known ones, parents first.

        In pieces of a few megabytes at most, so that one is sent while the next is read.
        """

    async def take(self, files: list[bytes]) -> int:
        """Check and admit block files; how many were new. Raises RemoteProtocolError."""


class SessionLink(Protocol):
    """A link with its incoming frames."""

    @property
    def link(self) -> Link:
        """The sending side."""

    def frames(self) -> AsyncGenerator[frames.Frame, None]:
        """Incoming frames until the other side ends the session cleanly.

        Raises:
            RemoteProtocolError: a frame is malformed.
            anyio.BrokenResourceError: the connection is gone.
        """

    async def drained(self, limit: int) -> None:
        """Wait until the backlog is at most `limit` bytes."""

    async def bulk_drained(self, limit: int) -> None:
        """Wait until at most `limit` bytes of bulk wait to be sent."""


class LinkServer:
    """Serves one session of a channel."""

    def __init__(
        self,
        engine: Engine,
        session: SessionLink,
        *,
        addresses: tuple[str, ...],
        chains: Mapping[str, Chain],
        groups: Callable[[frames.Frame], Awaitable[None]] | None = None,
    ) -> None:
        """`groups` is told what the other side says of the groups above the identity."""
        self._engine = engine
        self._groups = groups
        self._session = session
        self._state = LinkState(session.link)
        self._chunks = ChunkServer(engine, session, self._state)
        self._addresses = addresses
        self._chains = chains
        #: The tips of the other side's chains, as it named them last.
        self._leaves: dict[str, tuple[str, ...]] = {}
        #: New blocks of the answer that is coming in, by chain.
        self._brought: Counter[str] = Counter()
        #: Set when a question could not be answered.
        self._unanswered = anyio.Event()
        self._strangers: set[str] = set()
        #: Certificates that were refused; a chain that is on its way may prove them.
        self._doubted: list[bytes] = []
        #: How often this link has brought blocks.
        self._grown = 0
        #: What the other side held when it greeted, as far as it is not held here yet.
        self._behind: dict[str, int] = {}
        self._behind_until = 0.0
        #: What the other side said of itself.
        self.peer_addresses: tuple[str, ...] = ()

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
        send, receive = anyio.create_memory_object_stream[frames.Frame](MAX_QUESTIONS)
        slow, slow_receive = anyio.create_memory_object_stream[frames.Frame](MAX_QUESTIONS)
        try:
            self._state.send(frames.Hello(self._addresses, engine.vector()))
            engine.rotation.give(self._state, list(engine.epochs.values()))
            engine.control_keys.wake()
            async with send, receive, slow, slow_receive, background_tasks() as tasks:
                tasks.start_soon(self._answer_all, receive)
                tasks.start_soon(self._answer_all, slow_receive)
                tasks.start_soon(self.announce_chains)
                tasks.start_soon(self._announce_growth)
                tasks.start_soon(self._compare_again)
                tasks.start_soon(self._chunks.run)
                await engine.forks.show_all(self._state)
                async with aclosing(self._session.frames()) as incoming:
                    async for frame in incoming:
                        if isinstance(frame, ChunkFrame):
                            self._chunks.receive(frame)
                        else:
                            await self._receive(frame, send, slow)
        finally:
            engine.links.pop(link.name, None)
            engine.attachments.peer_left(link.name)
            engine.reconciler.peer_left(link.name, engine.runtime.now())
            engine.dispatch()
            engine.notify()

    async def announce_chains(self) -> None:
        """Say what this device holds of the channel's chains, unless the other side has it."""
        for name, chain in self._chains.items():
            try:
                leaves, count = await chain.leaves()
            except WalyoffError as error:
                log.warning("leaves of %s are not available: %s", name, error)
                continue
            named = tuple(leaves[: frames.MAX_REFS])
            if self._leaves.get(name) != named:
                self._state.send(frames.ChainHave(name, named, count))

    async def _announce_growth(self) -> None:
        """Say so when this device wrote blocks: the ledger's own announcements may be lost."""
        anchors = self._engine.anchors
        named = anchors.blocks_written
        while True:
            while named == anchors.blocks_written:
                await anchors.written.wait()
            await anyio.sleep(ANNOUNCE_AFTER)
            named = anchors.blocks_written
            await self.announce_chains()

    async def _compare_again(self) -> None:
        """After a failure (the ledger's process was replaced) compare the chains again."""
        while True:
            await self._unanswered.wait()
            await anyio.sleep(ANNOUNCE_AFTER)
            self._unanswered = anyio.Event()
            await self.announce_chains()
            for name in list(self._leaves):
                try:
                    await self._compare(name)
                except WalyoffError as error:
                    log.warning("%s could not be compared: %s", name, error)
                    self._unanswered.set()

    # --------------------------------------------------------------------- reading

    async def _receive(
        self,
        frame: frames.Frame,
        questions: anyio.abc.ObjectSendStream[frames.Frame],
        slow: anyio.abc.ObjectSendStream[frames.Frame],
    ) -> None:
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
            case frames.ContentFrame(record_id, salt, data):
                await engine.room()
                engine.inbox.content(record_id, salt, data, name)
            case frames.RangeEnd(author, _):
                engine.reconciler.range_end(name, author, now)
                engine.dispatch()
            case frames.Gone(record_ids):
                engine.reconciler.content_failed(record_ids, name, Reason.GONE, now)
                engine.dispatch()
            case frames.CertificateFrame(data):
                await self._certificate(data)
            case frames.Hello(addresses, vector):
                if name in engine.reconciler.peers:
                    raise RemoteProtocolError("a second greeting")
                self.peer_addresses = addresses
                vector = self._admit(vector)
                self._vector(vector)
                forked = engine.reconciler.forked
                self._behind = {h.author: h.seq for h in vector if h.author not in forked}
                self._behind_until = now + BEHIND_S
                engine.reconciler.peer_joined(
                    name, self._state.link.did, _as_vector(vector), now
                )
                engine.dispatch()
                engine.attachments.peer_joined(name, self._state.link.did)
            case frames.EpochKeys(epochs):
                engine.rotation.take(epochs, self._state)
            case frames.WantBatches() | frames.WantContents() | frames.WantCertificate():
                await questions.send(frame)
            case _ if isinstance(frame, ABOUT_CHAINS) or (
                self._groups is not None and isinstance(frame, ABOUT_GROUPS)
            ):
                await slow.send(frame)
            case _:
                raise RemoteProtocolError(f"{type(frame).__name__} has no place here")

    async def _batch(
        self,
        body: bytes,
        signature: bytes,
        contents: tuple[tuple[bytes, bytes] | None, ...],
    ) -> None:
        engine = self._engine
        await engine.room()
        try:
            batch = await engine.inbox.offer(body, signature, contents, self._state)
        except RemoteProtocolError as error:
            batch = decode_batch(body)
            author = batch.author
            name = self._state.link.name
            if error.reason == Reason.NO_CERTIFICATE:
                # It was refused when it came, perhaps before we knew of a new member.
                self._state.send(frames.WantCertificate(batch.certificate_id))
            # Who holds more of a former member's records may not know yet that it left.
            blame = error.reason != Reason.NOT_A_MEMBER or not engine.trust.knows(author)
            engine.reconciler.range_failed(
                name, author, error.reason, engine.runtime.now(), blame=blame
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
        grown = self._grown
        try:
            await self._trust(data)
        except (NotAMemberError, RemoteProtocolError, WalyoffError) as error:
            # Its batches will be refused by name; the rest of the link goes on.
            reason = getattr(error, "reason", Reason.NOT_A_MEMBER)
            self._engine.reconciler.fault(self._state.link.name, reason, str(error))
            self._engine.dispatch()
            if data not in self._doubted and len(self._doubted) < MAX_DOUBTED:
                self._doubted.append(data)
            if grown != self._grown:
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

    def _is_behind(self) -> bool:
        """True while the other side has said things before that this device has not heard.

        It may be that a content was forgotten while this device was away.
        """
        if self._behind and self._engine.runtime.now() < self._behind_until:
            heads = self._engine.reconciler.heads
            self._behind = {
                author: seq
                for author, seq in self._behind.items()
                if author not in heads or heads[author].seq < seq
            }
            return bool(self._behind)
        return False

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
                self._unanswered.set()

    async def _answer(self, question: frames.Frame) -> None:
        match question:
            case frames.WantBatches(author, first_seq, max_bytes):
                await self._send_batches(author, first_seq, max_bytes)
            case frames.WantContents(record_ids):
                await self._send_contents(record_ids)
            case frames.WantCertificate(certificate_id):
                if trusted := await self._engine.trust.load(certificate_id):
                    self._state.send(frames.CertificateFrame(trusted.encoded))
            case frames.ChainHave(name, leaves, _):
                self._leaves[name] = leaves
                await self._compare(name)
            case frames.ChainWant(name, known):
                await self._send_chain(name, list(known))
            case frames.ChainFiles(name, files, last):
                await self._take_chain(name, list(files), last)
            case frames.WantControlKeys(fingerprints):
                await self._engine.control_keys.give(self._state, fingerprints)
            case frames.ControlKeys(secrets):
                await self._engine.control_keys.take(secrets)
            case _ if self._groups is not None:
                await self._groups(question)
            case _:
                raise AssertionError(question)

    async def _send_batches(self, author: str, first_seq: int, max_bytes: int) -> None:
        engine = self._engine
        seq = first_seq
        budget = max_bytes
        while budget > 0:
            stored = await engine.store.batches(author, seq, (1 << 62))
            if not stored:
                break
            for batch in stored:
                if batch.signature is None:
                    # Its signature is on its way; a push or a vector follows.
                    self._state.send(frames.RangeEnd(author, seq - 1))
                    return
                decoded = decode_batch(batch.body)
                contents: list[StoredContent | None] = [None] * len(decoded.record_ids)
                if not self._is_behind():
                    contents = await engine.contents(decoded.record_ids)
                if trusted := await engine.trust.load(decoded.certificate_id):
                    self._state.certify(trusted.encoded, decoded.certificate_id)
                frame = frames.encode(batch_frame(batch.body, batch.signature, contents))
                self._state.link.send(frame)
                if author == engine.me and decoded.last_seq > self._state.pushed:
                    self._state.pushed = decoded.last_seq
                seq = decoded.last_seq + 1
                budget -= len(frame)
                if budget <= 0:
                    break
            await self._session.drained(ANSWER_BACKLOG)
        self._state.send(frames.RangeEnd(author, seq - 1))

    async def _send_contents(self, record_ids: tuple[bytes, ...]) -> None:
        gone: list[bytes] = []
        with anyio.move_on_after(BEHIND_S):
            while self._is_behind():
                await self._engine.changed()
        for record_id in record_ids:
            (content,) = await self._engine.contents([record_id])
            if content is None:
                gone.append(record_id)
                continue
            self._state.send(frames.ContentFrame(record_id, content.salt, content.data))
            await self._session.drained(ANSWER_BACKLOG)
        if gone:
            self._state.send(frames.Gone(tuple(gone)))

    # ---------------------------------------------------------------------- chains

    async def _compare(self, name: str) -> None:
        """Ask for what the other side has and this one lacks."""
        chain = self._chains.get(name)
        if chain is None:
            return
        own = await chain.wanted(list(self._leaves.get(name, ())))
        if own is not None:
            self._state.send(frames.ChainWant(name, tuple(own[: frames.MAX_REFS])))

    async def _take_chain(self, name: str, files: list[bytes], last: bool) -> None:
        chain = self._chains.get(name)
        if chain is None:
            return
        if files:
            self._brought[name] += await chain.take(files)
        # What came may name more, or have grown meanwhile: ask on as long as it brings any.
        if last and self._brought.pop(name, 0):
            self._grown += 1
            await self._certify_again()
            await self._compare(name)

    async def _send_chain(self, name: str, known: list[str]) -> None:
        chain = self._chains.get(name)
        if chain is None:
            return
        async with aclosing(chain.export(known)) as pieces:
            async for files in pieces:
                for part in _frames_of(files):
                    self._state.send(frames.ChainFiles(name, part, False))
                    await self._session.drained(ANSWER_BACKLOG)
        self._state.send(frames.ChainFiles(name, (), True))


def _frames_of(files: list[bytes]) -> Iterator[tuple[bytes, ...]]:
    part: list[bytes] = []
    size = 0
    for file in files:
        if part and (size + len(file) > FILES_BYTES or len(part) == frames.MAX_FILES):
            yield tuple(part)
            part, size = [], 0
        part.append(file)
        size += len(file)
    if part:
        yield tuple(part)


def _as_vector(vector: tuple[frames.Have, ...]) -> dict[str, tuple[int, frozenset[int]]]:
    return {have.author: (have.seq, frozenset(have.gaps)) for have in vector}
