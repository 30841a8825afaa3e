"""Sending an attachment: cut, hash, store, and only then say so.

The chunks are stored first, as a draft; then one transaction writes the record with its
manifest. A kill before leaves nothing but chunks that the next attempt takes up, a kill after
leaves a message that was sent. A few chunks are in memory at a time.
"""

from __future__ import annotations

import mimetypes
import os
import stat
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from walyoff.engine.outbox import Outgoing
from walyoff.errors import LocalProtocolError, QuotaExceededError
from walyoff.manifest import (
    DEFAULT_MEDIA_TYPE,
    DEFAULT_NAME,
    Manifest,
    check_caption,
    check_media_type,
    check_name,
    check_size,
    chunk_id,
    encode_manifest,
    safe_name,
)
from walyoff.records import CHUNK_SIZE, KIND_ATTACHMENT

if TYPE_CHECKING:
    from walyoff.engine.driver import Engine

#: Chunks that are hashed and stored at a time: what one waits for the disk, others compute.
AT_ONCE = 3


class Draft:
    """An attachment that is being sent."""

    def __init__(
        self,
        engine: Engine,
        *,
        name: str,
        media_type: str,
        caption: bytes,
        size: int | None,
        progress: Callable[[int], None] | None,
    ) -> None:
        """Raises LocalProtocolError for what cannot be sent, before anything is stored."""
        check_name(name)
        check_media_type(media_type)
        check_caption(caption)
        if size is not None:
            check_size(size)
            _check_quota(engine, size)
        self._engine = engine
        self._name, self._media_type, self._caption = name, media_type, caption
        self._expected = size
        self._size = 0
        self._ids: dict[int, bytes] = {}
        self._draft = engine.attachments.chunks.new_draft()
        self._room = anyio.Semaphore(AT_ONCE)
        self._error: Exception | None = None
        self._seen: set[bytes] = set()
        self._stored = 0
        self._progress = progress

    async def send(
        self, source: AsyncIterable[bytes], topics: tuple[str, ...], lifetime_ms: int
    ) -> Outgoing:
        """Store what a source gives, and then send the message."""
        attachments = self._engine.attachments
        try:
            async with anyio.create_task_group() as tasks:
                place = 0
                async with aclosing(_chunks(source)) as chunks:
                    try:
                        async for chunk in chunks:
                            await self._room.acquire()
                            self._take(len(chunk))
                            tasks.start_soon(self._store, place, chunk)
                            place += 1
                            del chunk
                    except Exception as error:
                        # Whatever the source raises comes out as it is, not in a group.
                        self._error = self._error or error
            if self._error is not None:
                raise self._error
            if self._expected not in (None, self._size):
                raise LocalProtocolError(
                    f"the source gave {self._size} bytes, not the {self._expected} that were"
                    " announced: nothing was sent"
                )
            manifest = Manifest(
                caption=self._caption,
                name=self._name,
                media_type=self._media_type,
                size=self._size,
                ids=b"".join(self._ids[place] for place in range(len(self._ids))),
            )
            item = Outgoing(encode_manifest(manifest), topics, KIND_ATTACHMENT, lifetime_ms)
            await self._engine.outbox.send([item])
            while item.record_id in attachments.open:
                # All of it is here, as is seen in a moment.
                await attachments.changed()
        finally:
            with anyio.CancelScope(shield=True):
                await attachments.chunks.end_draft(self._draft)
        return item

    def _take(self, size: int) -> None:
        if self._error is not None:
            raise self._error
        self._size += size
        check_size(self._size)
        if self._expected is None:
            _check_quota(self._engine, size)

    async def _store(self, place: int, chunk: bytes) -> None:
        engine = self._engine
        attachments = engine.attachments
        try:
            name = await engine.runtime.in_thread(chunk_id, attachments.key, chunk)
            self._ids[place] = name
            # A chunk that the draft has already, as the zeros of a sparse file, costs nothing.
            if name not in self._seen:
                self._seen.add(name)
                if not await attachments.chunks.adopt(self._draft, place, name):
                    await attachments.chunks.put(name, chunk, draft=(self._draft, place))
                    attachments.sent(len(chunk))
            self._stored += len(chunk)
            if self._progress is not None:
                self._progress(self._stored)
        except Exception as error:
            self._error = self._error or error
        finally:
            self._room.release()


def _check_quota(engine: Engine, size: int) -> None:
    quota = engine.attachments.policy.quota
    if quota is not None and engine.attachments.total + size > quota:
        raise QuotaExceededError(engine.attachments.total + size, quota)


async def _chunks(source: AsyncIterable[bytes]) -> AsyncGenerator[bytes, None]:
    """The bytes of a source in chunks: all are full but the last.

    A source that is a generator ends with it, also early.
    """
    parts: list[bytes | memoryview] = []
    size = 0
    async with AsyncExitStack() as stack:
        if isinstance(source, AsyncGenerator):
            await stack.enter_async_context(aclosing(source))
        async for piece in source:
            if not isinstance(piece, bytes | bytearray | memoryview):
                raise LocalProtocolError(f"a stream gives bytes, not {type(piece).__name__}")
            if not parts and isinstance(piece, bytes) and len(piece) == CHUNK_SIZE:
                yield piece
                continue
            view = memoryview(piece).cast("B")
            while size + len(view) >= CHUNK_SIZE:
                parts.append(view[: CHUNK_SIZE - size])
                view = view[CHUNK_SIZE - size :]
                yield b"".join(parts)
                parts, size = [], 0
            if view:
                # A copy: the source may use its buffer again.
                parts.append(bytes(view))
                size += len(view)
        if parts:
            yield b"".join(parts)


def guess_media_type(name: str) -> str:
    """The media type that a name suggests."""
    return mimetypes.guess_type(name, strict=False)[0] or DEFAULT_MEDIA_TYPE


async def send_stream(
    engine: Engine,
    source: AsyncIterable[bytes],
    *,
    name: str,
    media_type: str | None,
    caption: bytes,
    topics: Sequence[str],
    size: int | None,
    progress: Callable[[int], None] | None,
    lifetime_ms: int = 0,
) -> Outgoing:
    """Send what a source gives; see `walyoff.channel.Channel.send_stream`."""
    draft = Draft(
        engine,
        name=name,
        media_type=media_type or guess_media_type(name),
        caption=caption,
        size=size,
        progress=progress,
    )
    return await draft.send(source, tuple(topics), lifetime_ms)


async def send_file(
    engine: Engine,
    path: Path,
    *,
    name: str | None,
    media_type: str | None,
    caption: bytes,
    topics: Sequence[str],
    progress: Callable[[int], None] | None,
    lifetime_ms: int = 0,
) -> Outgoing:
    """Send a file; see `walyoff.channel.Channel.send_file`."""
    file = await anyio.to_thread.run_sync(_File, path)
    try:
        async with aclosing(file.chunks()) as source:
            return await send_stream(
                engine,
                source,
                name=safe_name(path.name or DEFAULT_NAME) if name is None else name,
                media_type=media_type,
                caption=caption,
                topics=topics,
                size=file.size,
                progress=progress,
                lifetime_ms=lifetime_ms,
            )
    finally:
        file.close()


class _File:
    """A regular file that must stay as it is while it is read."""

    def __init__(self, path: Path) -> None:
        """Raises OSError, and LocalProtocolError for what is no file."""
        # Opening a pipe would wait for its other end.
        self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._path = path
        about = os.fstat(self._descriptor)
        self.size = about.st_size
        self._state = (about.st_size, about.st_mtime_ns)
        if not stat.S_ISREG(about.st_mode):
            self.close()
            raise LocalProtocolError(f"{path} is not a file: use send_stream for other sources")

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Its chunks. Raises LocalProtocolError at the end if it was changed meanwhile."""
        at = 0
        while at < self.size:
            chunk = await anyio.to_thread.run_sync(self._read, at)
            if not chunk:
                break
            at += len(chunk)
            yield chunk
        about = os.fstat(self._descriptor)
        if at != self.size or (about.st_size, about.st_mtime_ns) != self._state:
            raise LocalProtocolError(
                f"{self._path} was changed while it was read: nothing was sent, send it again"
            )

    def _read(self, at: int) -> bytes:
        return os.pread(self._descriptor, min(CHUNK_SIZE, self.size - at), at)

    def close(self) -> None:
        os.close(self._descriptor)
