"""Files in a channel, as an application uses them: sending, policy, and what they take up.

Decided here: nothing but arguments. What is fetched is decided in `walyoff.engine.transfers`,
how a file is stored in `walyoff.attaching`.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from walyoff.attaching import send_file, send_stream
from walyoff.attachments import check_text
from walyoff.channel_state import save_policy
from walyoff.engine.policy import AttachmentPolicy
from walyoff.errors import LocalProtocolError
from walyoff.forgetting import lifetime_ms
from walyoff.message import Message, make_message
from walyoff.messages import LogReader, Receipt
from walyoff.records import CHUNK_SIZE, check_topics

if TYPE_CHECKING:
    from walyoff.engine.driver import Engine
    from walyoff.node import Device


class FilesApi:
    """What a channel offers about files. A part of `walyoff.Channel`."""

    _device: Device
    _engine: Engine

    def _check_member(self) -> None:
        raise NotImplementedError

    async def send_file(
        self,
        path: str | os.PathLike[str],
        *,
        caption: bytes | str = b"",
        name: str | None = None,
        media_type: str | None = None,
        topics: Sequence[str] = (),
        progress: Callable[[int], None] | None = None,
        forget_after: timedelta | None = None,
    ) -> Receipt:
        """Send a file, with a caption, which is the message's content.

        Name, media type and size are seen by members alone. All of it is durable here when
        this returns; others fetch it as they wish, up to 216 GiB. What was sent in this
        channel before is neither stored nor transferred again. Cancelling leaves it sent or
        not sent, and sending it again goes on where this one stopped. `progress` is called
        with the bytes that are stored so far. `forget_after` is as in `send`: the file goes
        with its caption.

        Raises:
            OSError: the file cannot be read.
            LocalProtocolError: it is no regular file, it was changed meanwhile (as far as
                its size and time tell), or name, type or topics break a rule.
            QuotaExceededError: the channel's quota does not allow it.
            NotAMemberError, StoreError: as `send`.
        """
        checked, lifetime = check_topics(topics), lifetime_ms(forget_after)
        self._check_member()
        item = await send_file(
            self._engine,
            Path(path),
            name=name,
            media_type=media_type,
            caption=check_text(caption),
            topics=checked,
            progress=progress,
            lifetime_ms=lifetime,
        )
        return Receipt(self._engine, item)

    async def send_stream(
        self,
        source: AsyncIterable[bytes],
        *,
        name: str,
        media_type: str | None = None,
        caption: bytes | str = b"",
        size: int | None = None,
        topics: Sequence[str] = (),
        progress: Callable[[int], None] | None = None,
        forget_after: timedelta | None = None,
    ) -> Receipt:
        """Send what an async iterable gives as a file; see `send_file`.

        With a `size` nothing is sent unless it gives exactly so many bytes. What the source
        raises comes out, and nothing is sent.
        """
        checked, lifetime = check_topics(topics), lifetime_ms(forget_after)
        self._check_member()
        item = await send_stream(
            self._engine,
            source,
            name=name,
            media_type=media_type,
            caption=check_text(caption),
            topics=checked,
            size=size,
            progress=progress,
            lifetime_ms=lifetime,
        )
        return Receipt(self._engine, item)

    async def sharing(self, message_id: bytes) -> AsyncGenerator[dict[str, int], None]:
        """Which connected devices hold how many bytes of an attachment, as it changes.

        Told by themselves, from the moment of asking. Close the generator when done with it.

        Raises:
            LocalProtocolError: there is no such attachment here.
            anyio.ClosedResourceError: the channel was closed.
        """
        attachments = self._engine.attachments
        manifest = await attachments.manifest(message_id)
        if manifest is None:
            raise LocalProtocolError("no message with an attachment has this id")
        table = attachments.follow(message_id)
        told: dict[str, int] | None = None
        try:
            while True:
                changed = attachments.event
                # All chunks are of one size, but for the last.
                now = {
                    did: min(count * CHUNK_SIZE, manifest.size) for did, count in table.items()
                }
                if now != told:
                    told = now
                    yield dict(now)
                await changed.wait()
                self._engine.check_open()
        finally:
            attachments.unfollow(message_id)

    @property
    def attachment_policy(self) -> AttachmentPolicy:
        """Which attachments this device fetches by itself, and how much it keeps."""
        return self._engine.attachments.policy

    async def set_attachment_policy(self, policy: AttachmentPolicy) -> None:
        """Change it, for later runs too. What is here stays here. Raises StoreError."""
        await save_policy(self._device.store, self._engine.channel, policy)
        self._engine.attachments.set_policy(policy)

    async def attachments(self, *, last: int = 1000) -> list[Message]:
        """The newest messages with attachments, oldest of them first. Raises StoreError."""
        found = []
        reader = LogReader(self._engine)
        for position in reversed(await self._engine.store.chunks.positions(last)):
            for item in await reader.page(after=position - 1, limit=1):
                message = make_message(self._engine, item)
                if message.attachment is not None:
                    found.append(message)
        return found

    async def free_space(self, keep: int | None = None) -> int:
        """Remove chunks that no attachment uses; returns how many bytes became free.

        With `keep` the oldest attachments of others are dropped as well, until so many bytes
        are left; they can be fetched again from whoever has them. Raises StoreError.
        """
        engine = self._engine
        _, freed = await engine.attachments.collect()
        if keep is None:
            return freed
        for message in await self.attachments():
            if engine.attachments.total <= keep:
                break
            if message.author != self._engine.me and message.attachment is not None:
                freed += await message.attachment.drop()
        return freed


__all__ = ["FilesApi"]
