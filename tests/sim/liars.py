"""A member that lies: the real device, but what it says on its links is changed.

It has real keys, so what it signs is really signed: only its own word can be wrong, and the
bytes that it forwards.
"""

from __future__ import annotations

import random
from dataclasses import replace

from walyoff import Channel, frames
from walyoff.chunk_frames import ChunkGone, ChunkPart
from walyoff.engine.driver import Engine
from walyoff.engine.link import Link, LinkState
from walyoff.records import Batch, Record, decode_batch, make_batch, signed_message

LIES = (
    "wrong contents",
    "claims",
    "silence",
    "garbage",
    "forgery",
    "equivocation",
    "skipping",
    "replay",
    "bad signatures",
    "no contents",
    "alternative to one",
)
#: About the chunks of attachments alone.
CHUNK_LIES = (
    "wrong chunks",
    "short chunks",
    "no chunks",
    "silent about chunks",
    "repeated parts",
)
FAR = 1000


class Liar:
    """One kind of lie."""

    def __init__(self, lie: str, seed: int) -> None:
        self.lie = lie
        self.random = random.Random(seed)

    def corrupt(self, channel: Channel) -> None:
        """From now on this device lies."""
        channel.engine.links = _LyingLinks(channel.engine, self)

    def corrupt_now(self, channel: Channel) -> None:
        """The same for a device that has links already."""
        known = dict(channel.engine.links)
        self.corrupt(channel)
        for name, state in known.items():
            channel.engine.links[name] = state

    def told(  # noqa: PLR0911 - one return for each lie
        self, engine: Engine, to: str, data: bytes, old: list[bytes]
    ) -> list[bytes]:
        """What is sent in place of a frame."""
        frame = frames.decode(data)
        match self.lie:
            case "wrong contents":
                return [frames.encode(_with_wrong_contents(frame))]
            case "wrong chunks" if isinstance(frame, ChunkPart):
                wrong = bytes(byte ^ 1 for byte in frame.data[:9]) + bytes(frame.data[9:])
                return [frames.encode(replace(frame, data=wrong))]
            case "short chunks" if isinstance(frame, ChunkPart):
                # What comes is clean, and too little.
                return [frames.encode(replace(frame, data=frame.data[:-1]))]
            case "no chunks" if isinstance(frame, ChunkPart):
                return [frames.encode(ChunkGone(frame.number))]
            case "silent about chunks" if isinstance(frame, ChunkPart):
                return []
            case "repeated parts" if isinstance(frame, ChunkPart):
                return [data, data]
            case "no contents":
                return [frames.encode(_without_contents(frame, engine.me))]
            case "claims":
                return [frames.encode(_with_claims(frame))]
            case "silence" if isinstance(
                frame, frames.ContentsFrame | frames.RangeEnd | frames.Gone | frames.BatchFrame
            ):
                return []
            case "garbage" if self.random.random() < 0.05:
                return [self.random.randbytes(40), data]
            case "forgery" if isinstance(frame, frames.BatchFrame):
                return [data, self._forged(engine, frame)]
            case "bad signatures" if isinstance(frame, frames.BatchFrame):
                signature = bytes(len(frame.signature))
                return [frames.encode(replace(frame, signature=signature))]
            case "equivocation" if _is_own(frame, engine) and ord(to[-1]) % 2:
                return [self._other_branch(engine, frame)]
            case "alternative to one" if _is_own(frame, engine) and to.endswith("a"):
                return [data, self._other_branch(engine, frame)]
            case "skipping" if _is_own(frame, engine) and self.random.random() < 0.5:
                return [data, self._skipped(engine, frame)]
            case "replay":
                old.append(data)
                return [data, *self.random.sample(old[-50:], min(len(old), 2))]
        return [data]

    def _sign(self, engine: Engine, batch: Batch) -> bytes:
        return engine.credentials.sign_key.sign(signed_message(batch.batch_id))

    def _forged(self, engine: Engine, frame: frames.BatchFrame) -> bytes:
        """A batch in the name of somebody else, signed with the liar's key."""
        batch = decode_batch(frame.body)
        others = [a for a in engine.reconciler.heads if a != engine.me]
        if not others:
            return frames.encode(frame)
        author = self.random.choice(others)
        head = engine.reconciler.heads[author]
        forged = make_batch(
            channel=batch.channel,
            author=author,
            certificate_id=batch.certificate_id,
            first_seq=head.seq + 1,
            prev=head.record_id,
            seen=[],
            records=batch.records,
        )
        return frames.encode(
            frames.BatchFrame(forged.body, self._sign(engine, forged), frame.contents)
        )

    def _other_branch(self, engine: Engine, frame: frames.Frame) -> bytes:
        """Another truth about the same sequence numbers."""
        assert isinstance(frame, frames.BatchFrame)
        batch = decode_batch(frame.body)
        other = _changed(batch, first_seq=batch.first_seq)
        return frames.encode(
            frames.BatchFrame(other.body, self._sign(engine, other), frame.contents)
        )

    def _skipped(self, engine: Engine, frame: frames.Frame) -> bytes:
        assert isinstance(frame, frames.BatchFrame)
        batch = decode_batch(frame.body)
        other = _changed(batch, first_seq=batch.first_seq + self.random.randint(2, FAR))
        return frames.encode(
            frames.BatchFrame(other.body, self._sign(engine, other), frame.contents)
        )


def _changed(batch: Batch, *, first_seq: int) -> Batch:
    return make_batch(
        channel=batch.channel,
        author=batch.author,
        certificate_id=batch.certificate_id,
        first_seq=first_seq,
        prev=batch.prev,
        seen=batch.seen,
        records=[
            Record(r.time_ms + 1, r.kind, r.topics, r.size, r.commitment) for r in batch.records
        ],
    )


def _is_own(frame: frames.Frame, engine: Engine) -> bool:
    return isinstance(frame, frames.BatchFrame) and decode_batch(frame.body).author == engine.me


def _with_wrong_contents(frame: frames.Frame) -> frames.Frame:
    if isinstance(frame, frames.ContentsFrame):
        return frames.ContentsFrame(tuple((i, s, data + b"!") for i, s, data in frame.contents))
    if isinstance(frame, frames.BatchFrame):
        wrong = [c and (c[0], bytes(len(c[1]))) for c in frame.contents]
        return replace(frame, contents=tuple(wrong))
    return frame


def _without_contents(frame: frames.Frame, me: str) -> frames.Frame:
    if isinstance(frame, frames.ContentsFrame):
        return frames.Gone(tuple(record_id for record_id, _, _ in frame.contents))
    if isinstance(frame, frames.BatchFrame) and decode_batch(frame.body).author == me:
        return replace(frame, contents=tuple(None for _ in frame.contents))
    return frame


def _with_claims(frame: frames.Frame) -> frames.Frame:
    if isinstance(frame, frames.Hello | frames.HaveVector):
        vector = tuple(frames.Have(have.author, have.seq + FAR) for have in frame.vector)
        return replace(frame, vector=vector)
    return frame


class _LyingLinks(dict[str, LinkState]):
    """Every link that is registered gets a liar's tongue."""

    def __init__(self, engine: Engine, liar: Liar) -> None:
        super().__init__()
        self._engine = engine
        self._liar = liar

    def __setitem__(self, name: str, state: LinkState) -> None:
        state.link = _LyingLink(state.link, self._engine, self._liar)
        super().__setitem__(name, state)


class _LyingLink:
    """A link that says something else than what it is given."""

    def __init__(self, link: Link, engine: Engine, liar: Liar) -> None:
        self._link = link
        self._engine = engine
        self._liar = liar
        self._old: list[bytes] = []

    @property
    def name(self) -> str:
        return self._link.name

    @property
    def did(self) -> str:
        return self._link.did

    @property
    def backlog(self) -> int:
        return self._link.backlog

    def close(self) -> None:
        self._link.close()

    def send_bulk(self, data: bytes) -> None:
        for told in self._liar.told(self._engine, self._link.did, data, self._old):
            self._link.send_bulk(told)

    def send(self, data: bytes) -> None:
        for told in self._liar.told(self._engine, self._link.did, data, self._old):
            self._link.send(told)
