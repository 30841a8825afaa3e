"""A link: a session with another device, as the engine sees it, and what was said on it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from walyoff import frames
from walyoff.abc import StoredContent

#: Contents larger than this are not pushed with their batch but asked for.
MAX_INLINE = 64 * 1024
#: Contents that go into one frame, in bytes: a full batch of a kilobyte each. Smaller frames
#: let the first messages be delivered before the last, and cost the other side a commit each.
PIECE_BYTES = 1024 * 1024
#: Answers wait while a link has more than this unsent.
ANSWER_BACKLOG = 4 * 1024 * 1024


class Link(Protocol):
    """A session with another device, as the engine sees it."""

    @property
    def name(self) -> str:
        """Unique among the links of this process."""

    @property
    def did(self) -> str:
        """The authenticated member DID of the other side."""

    @property
    def backlog(self) -> int:
        """Bytes accepted by `send` that the transport has not taken yet."""

    def send(self, data: bytes) -> None:
        """Queue one encoded frame; never waits. Does nothing once the link is closed."""

    def send_bulk(self, data: bytes) -> None:
        """Queue one encoded frame that all others overtake."""

    def close(self) -> None:
        """End the session at once."""


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


@dataclass(slots=True)
class LinkState:
    """A link and what was already said on it."""

    link: Link
    #: The newest own sequence number that the other side holds or was pushed.
    pushed: int = -1
    certified: set[bytes] = field(default_factory=set)

    def send(self, frame: frames.Frame) -> None:
        """Encode and queue a frame."""
        self.link.send(frames.encode(frame))

    def certify(self, encoded: bytes, certificate_id: bytes) -> None:
        """Send a certificate unless it was sent on this link."""
        if certificate_id not in self.certified:
            self.certified.add(certificate_id)
            self.send(frames.CertificateFrame(encoded))


def batch_frames(
    body: bytes,
    signature: bytes,
    record_ids: Sequence[bytes],
    contents: Sequence[StoredContent | None],
) -> Iterator[frames.Frame]:
    """A batch, or its beginning, with those contents that are small enough to go with it.

    The first of them go in its frame, and the others in frames that follow at once.
    """
    first = _end_of_piece(contents, 0, PIECE_BYTES)
    small = [c if c is None or len(c.data) <= MAX_INLINE else None for c in contents]
    yield frames.BatchFrame(body, signature, tuple(small[:first]))
    yield from contents_frames(record_ids[first:], small[first:])


def contents_frames(
    record_ids: Sequence[bytes],
    contents: Sequence[StoredContent | None],
    limit: int = PIECE_BYTES,
) -> Iterator[frames.ContentsFrame]:
    """Those contents that there are, in frames of about so many bytes at most."""
    start = 0
    while start < len(contents):
        end = _end_of_piece(contents, start, limit)
        given = [
            (record_id, content.salt, content.data)
            for record_id, content in zip(
                record_ids[start:end], contents[start:end], strict=True
            )
            if content is not None
        ]
        if given:
            yield frames.ContentsFrame(tuple(given))
        start = end


def _end_of_piece(contents: Sequence[StoredContent | None], start: int, limit: int) -> int:
    """Where a piece ends that begins at `start`: it has one content at least."""
    size = 0
    for at in range(start, len(contents)):
        content = contents[at]
        size += 0 if content is None else len(content.data)
        if size > limit and at > start:
            return at
    return len(contents)
