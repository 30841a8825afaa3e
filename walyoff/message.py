"""A message, as an application holds it.

Decided here: what is worked out when it is made and what when it is asked for. There is one for
each message on every device, and a frozen dataclass of its fields took a sixth of an event
loop's time. So it is a few references, set one after the other; it holds what it needs of its
batch and not the batch, which may be large. Nobody can set its attributes.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from walyoff.attachments import Attachment
from walyoff.errors import RemoteProtocolError
from walyoff.manifest import decode_manifest
from walyoff.records import KIND_ATTACHMENT, MAX_TIME_MS

if TYPE_CHECKING:
    from walyoff.engine.driver import Engine
    from walyoff.engine.forgotten import Forgotten
    from walyoff.engine.recent import Delivered


class Message:
    """A verified message: its author is a member, its signature and its content hold."""

    __slots__ = (
        "_attachment", "_author", "_batch_id", "_channel", "_content", "_engine", "_forgotten",
        "_id", "_path", "_position", "_record", "_seq",
    )  # fmt: skip

    def __init__(self, engine: Engine, item: Delivered) -> None:
        """From a decoded entry of the log. Applications get messages, and make none."""
        batch, index = item.batch, item.index
        author = batch.author
        record = self._record = batch.records[index]
        self._id = batch.record_ids[index]
        self._content = item.content
        self._attachment: Attachment | None = None
        if record.kind == KIND_ATTACHMENT and item.content is not None:
            self._content, self._attachment = _unpack(engine, self._id, item.content)
        self._channel = batch.channel
        self._author = author
        self._path = engine.trust.path(author)
        self._seq = batch.first_seq + index
        self._forgotten = item.forgotten
        self._position = item.position
        self._batch_id = batch.batch_id
        self._engine = engine

    @property
    def id(self) -> bytes:
        """The hash of its record, which names it for ever and everywhere."""
        return self._id

    @property
    def channel(self) -> str:
        """The channel's DID."""
        return self._channel

    @property
    def author(self) -> str:
        """The DID of the device that wrote it."""
        return self._author

    @property
    def path(self) -> tuple[str, ...]:
        """Whose device it is: device, person, ..., and the channel's identity at the end.

        Each stands under the next one as its chain says, or did when the message was taken.
        """
        return self._path

    @property
    def seq(self) -> int:
        """Its number among the author's records in this channel, from 1."""
        return self._seq

    @property
    def time(self) -> datetime:
        """When it was written, by the author's clock: a claim."""
        return datetime.fromtimestamp(min(self._record.time_ms, MAX_TIME_MS) / 1000, UTC)

    @property
    def topics(self) -> tuple[str, ...]:
        """Words by which it can be found; nobody outside can read them."""
        return self._record.topics

    @property
    def size(self) -> int:
        """Size of the content in bytes, also when the content is not held."""
        return self._record.size

    @property
    def content(self) -> bytes | None:
        """None if the content is not held here (not arrived yet, or forgotten)."""
        return self._content

    @property
    def forgotten(self) -> Forgotten | None:
        """Why it has no content for good: who agreed to forget it, and when.

        None if it has one, or may get it.
        """
        return self._forgotten

    @property
    def position(self) -> int:
        """Its place in this device's log; grows, and is the value of cursors."""
        return self._position

    @property
    def attachment(self) -> Attachment | None:
        """The file that came with it; its content is the caption then."""
        return self._attachment

    @property
    def anchored(self) -> bool:
        """True once its metadata is known to be on the ledger."""
        return self._engine.is_anchored(self._batch_id)

    def __repr__(self) -> str:
        return (
            f"<Message {self._id[:8].hex()} [{self._seq} of {self._author}"
            f" | {self.time:%Y-%m-%d %H:%M:%S} | {self.size} bytes | at {self._position}]>"
        )

    def __eq__(self, other: object) -> bool:
        """The same message at the same place, with as much of it."""
        if not isinstance(other, Message):
            return NotImplemented
        return self._said() == other._said()

    def __hash__(self) -> int:
        return hash(self._id)

    def _said(self) -> tuple[object, ...]:
        return (self._id, self._position, self._content, self._forgotten, self._path)


def make_message(engine: Engine, item: Delivered) -> Message:
    """A message from a decoded entry, without its content if that was forgotten meanwhile."""
    engine.forgetting.strip(item)
    return Message(engine, item)


def _unpack(
    engine: Engine, record_id: bytes, content: bytes
) -> tuple[bytes, Attachment | None]:
    """Caption and file of a manifest; neither if its author wrote none."""
    try:
        manifest = decode_manifest(content)
    except RemoteProtocolError:
        # It was reported when it came.
        return b"", None
    return manifest.caption, Attachment(
        name=manifest.name,
        media_type=manifest.media_type,
        size=manifest.size,
        _record_id=record_id,
        _manifest=manifest,
        _engine=engine,
    )


__all__ = ["Message", "make_message"]
