"""Attachments as an application sees them: read, save, fetch, and how far they are.

A chunk at a time is in memory for each reader, whatever the size of the attachment.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
from anyio.abc import ByteReceiveStream

from walyoff.chunkstore import WISH_FETCH
from walyoff.engine.attachment_states import AttachmentState, state_of
from walyoff.errors import LocalProtocolError, StoreError
from walyoff.files import Workplace, give_name, open_private, sync_folder, write_all
from walyoff.manifest import Manifest

if TYPE_CHECKING:
    from walyoff.engine.driver import Engine

#: Progress is told at most so often, and the rate is an average over about so many seconds.
PROGRESS_EVERY = 0.2
_RATE_SECONDS = 2.0
_MAX_PIECE = 65536


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far an attachment is."""

    state: AttachmentState
    #: Bytes that are here, of how many.
    held: int
    size: int
    #: Bytes a second that came lately.
    rate: float
    #: The DIDs of the devices that it comes from now.
    peers: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """A file that came with a message, here or to be fetched."""

    #: A harmless file name, whatever the author wrote.
    name: str
    media_type: str
    #: Bytes in all.
    size: int
    _record_id: bytes = field(repr=False)
    _manifest: Manifest = field(repr=False)
    _engine: Engine = field(repr=False)

    @property
    def state(self) -> AttachmentState:
        """Where it is now."""
        return state_of(self._engine.attachments, self._record_id)

    @property
    def held(self) -> int:
        """How many of its bytes are here now."""
        return self._engine.attachments.bytes_held(self._record_id, self.size)

    def open(self) -> AttachmentStream:
        """Its bytes from the beginning, also while they arrive. Close the stream.

        What is not here is fetched, whatever the channel's policy says.
        """
        return AttachmentStream(self._engine, self._record_id, self._manifest)

    async def fetch(self) -> None:
        """Wait until all of it is here; it is fetched whatever the channel's policy says.

        Cancelling only ends the waiting: it is fetched on, also in later runs.

        Raises:
            StoreError: the store failed, or the attachment was forgotten.
            anyio.ClosedResourceError: the channel was closed.
        """
        attachments = self._engine.attachments
        await attachments.wish(self._record_id, WISH_FETCH)
        while True:
            changed = attachments.event
            if self._record_id not in attachments.open:
                if await attachments.chunks.held(self._record_id) is None:
                    raise _forgotten()
                return
            await changed.wait()
            self._engine.check_open()

    async def drop(self) -> int:
        """Give up what is here of it, and do not fetch it again until `fetch` is called.

        Returns how many bytes became free: what other attachments use stays. Other devices
        keep what they have, but if none has it, it is lost. Raises StoreError.
        """
        return await self._engine.attachments.drop(self._record_id, self.size)

    async def progress(self) -> AsyncGenerator[Progress, None]:
        """How far it is, now and whenever that changes, until all of it is here.

        Raises:
            anyio.ClosedResourceError: the channel was closed.
        """
        attachments, now = self._engine.attachments, self._engine.runtime.now
        rate, held, at = 0.0, self.held, now()
        told: Progress | None = None
        while True:
            changed = attachments.event
            if (spent := now() - at) > 0:
                weight = min(spent / _RATE_SECONDS, 1.0)
                rate += weight * ((self.held - held) / spent - rate)
                held, at = self.held, now()
            progress = Progress(
                state=self.state,
                held=self.held,
                size=self.size,
                rate=rate,
                peers=tuple(attachments.transfers.sources(self._record_id)),
            )
            if progress != told:
                told = progress
                yield progress
            if progress.state == AttachmentState.HELD:
                return
            await changed.wait()
            self._engine.check_open()
            await anyio.sleep(PROGRESS_EVERY)

    async def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write it to a file, or into a folder under its own name; returns where.

        The name appears when all bytes are on the disk, and never before. What is not here
        is fetched first. Only this user may read the file.

        Raises:
            FileExistsError: there is a file, and `overwrite` is not set; nothing was changed.
            OSError: the file cannot be written: no permission, no space.
            StoreError: as `fetch`.
        """
        target = await anyio.to_thread.run_sync(
            partial(_target, Path(path), self.name, overwrite=overwrite)
        )
        work = Workplace(target.parent)
        try:
            await anyio.to_thread.run_sync(work.make)
            temporary = work.path / "attachment"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            descriptor = await anyio.to_thread.run_sync(open_private, temporary, flags)
            try:
                async with self.open() as stream:
                    while (chunk := await stream.next_chunk()) is not None:
                        await anyio.to_thread.run_sync(write_all, descriptor, chunk)
                await anyio.to_thread.run_sync(os.fsync, descriptor)
            finally:
                os.close(descriptor)
            await anyio.to_thread.run_sync(
                partial(_give_name, temporary, target, overwrite=overwrite)
            )
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(work.close)
        return target


class AttachmentStream(ByteReceiveStream):
    """The bytes of an attachment in order; waits for those that are not here yet."""

    def __init__(self, engine: Engine, record_id: bytes, manifest: Manifest) -> None:
        self._engine = engine
        self._record_id = record_id
        self._manifest = manifest
        self._place = 0
        self._piece = memoryview(b"")
        self._closed = False

    def __repr__(self) -> str:
        return f"<AttachmentStream [{self._place} of {self._manifest.count} chunks]>"

    async def receive(self, max_bytes: int = _MAX_PIECE) -> bytes:
        """The next bytes, at most `max_bytes`.

        Raises:
            anyio.EndOfStream: there are no more.
            StoreError: the store failed, or the attachment was forgotten.
            anyio.ClosedResourceError: the stream, or the channel, was closed.
        """
        if not self._piece:
            chunk = await self.next_chunk()
            if chunk is None:
                raise anyio.EndOfStream
            self._piece = memoryview(chunk)
        piece, self._piece = self._piece[:max_bytes], self._piece[max_bytes:]
        return bytes(piece)

    async def next_chunk(self) -> bytes | None:
        """The next MiB at once, or None at the end. Raises as `receive`."""
        if self._closed:
            raise anyio.ClosedResourceError
        if self._place >= self._manifest.count:
            return None
        chunk = await self._read(self._place)
        # No await between here and the return: a cancelled call has taken nothing.
        self._place += 1
        return chunk

    async def _read(self, place: int) -> bytes:
        attachments = self._engine.attachments
        while True:
            changed = attachments.event
            self._engine.check_open()
            chunk = await attachments.chunks.read(self._record_id, place)
            if chunk is not None:
                return chunk
            if self._record_id not in attachments.open:
                if await attachments.chunks.held(self._record_id) is None:
                    raise _forgotten()
                raise StoreError("a chunk of the attachment is lost")
            await attachments.wish(self._record_id, WISH_FETCH)
            attachments.transfers.prefer(self._record_id, place)
            await changed.wait()

    async def aclose(self) -> None:
        """Stop reading. Idempotent."""
        self._closed = True
        self._piece = memoryview(b"")
        await anyio.lowlevel.checkpoint()


def _forgotten() -> StoreError:
    return StoreError("the attachment is not here any more: it was forgotten")


def _target(path: Path, name: str, *, overwrite: bool) -> Path:
    target = path / name if path.is_dir() else path
    if target.is_dir():
        raise IsADirectoryError(21, os.strerror(21), str(target))
    if not overwrite and os.path.lexists(target):
        raise FileExistsError(17, os.strerror(17), str(target))
    return target


def _give_name(temporary: Path, target: Path, *, overwrite: bool) -> None:
    """Give a complete file its name; without `overwrite` only if nobody has it."""
    if not overwrite:
        give_name(temporary, target)
        return
    temporary.replace(target)
    sync_folder(target.parent)


def check_text(caption: bytes | str) -> bytes:
    """A caption as bytes. Raises LocalProtocolError."""
    if isinstance(caption, str):
        return caption.encode("utf-8", "surrogateescape")
    if not isinstance(caption, bytes | bytearray | memoryview):
        raise LocalProtocolError(f"a caption is text or bytes, not {type(caption).__name__}")
    return bytes(caption)


__all__ = ["Attachment", "AttachmentState", "AttachmentStream", "Progress"]
