"""A link: a session with another device, as the engine sees it, and what was said on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from walyoff import frames
from walyoff.abc import StoredContent

#: Contents larger than this are not pushed with their batch but asked for.
MAX_INLINE = 64 * 1024
MAX_INLINE_TOTAL = 4 * 1024 * 1024


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


def batch_frame(
    body: bytes, signature: bytes, contents: Sequence[StoredContent | None]
) -> frames.BatchFrame:
    """A batch with those contents that are small enough to travel with it."""
    room = MAX_INLINE_TOTAL
    inline: list[tuple[bytes, bytes] | None] = []
    for content in contents:
        if content is None or len(content.data) > MAX_INLINE or len(content.data) > room:
            inline.append(None)
            continue
        room -= len(content.data)
        inline.append(content)
    return frames.BatchFrame(body, signature, tuple(inline))
