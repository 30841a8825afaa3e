"""A transport that keeps everything that crosses it, in both directions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, BinaryIO

import anyio
from anyio.abc import ByteStream, ObjectReceiveStream

from walyoff import plugins
from walyoff.abc import Broadcast, Transport, TransportFactory, TransportHost


class RecordingStream(ByteStream):
    """A stream that writes down what it carries."""

    def __init__(self, stream: ByteStream, tape: BinaryIO) -> None:
        self._stream = stream
        self._tape = tape

    async def send(self, item: bytes) -> None:
        self._tape.write(item)
        await self._stream.send(item)

    async def receive(self, max_bytes: int = 65536) -> bytes:
        data = await self._stream.receive(max_bytes)
        self._tape.write(data)
        return data

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return self._stream.extra_attributes


class RecordingTransport:
    """A transport around another one."""

    def __init__(self, inner: Transport, tape: BinaryIO) -> None:
        self._inner = inner
        self._tape = tape

    @property
    def name(self) -> str:
        return self._inner.name

    @property
    def max_broadcast(self) -> int:
        return self._inner.max_broadcast

    @property
    def addresses(self) -> Sequence[str]:
        return self._inner.addresses

    async def broadcast(self, topic: str, payload: bytes) -> None:
        self._tape.write(topic.encode() + payload)
        await self._inner.broadcast(topic, payload)

    def subscribe(
        self, topic: str
    ) -> AbstractAsyncContextManager[ObjectReceiveStream[Broadcast]]:
        return self._inner.subscribe(topic)

    async def connect(self, address: str) -> ByteStream:
        return RecordingStream(await self._inner.connect(address), self._tape)

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[ObjectReceiveStream[ByteStream]]:
        send, receive = anyio.create_memory_object_stream[ByteStream](16)
        async with self._inner.listen() as streams, anyio.create_task_group() as tasks:

            async def pass_on() -> None:
                async for stream in streams:
                    await send.send(RecordingStream(stream, self._tape))

            tasks.start_soon(pass_on)
            with send, receive:
                yield receive
                tasks.cancel_scope.cancel()


def transport(path: Path) -> TransportFactory:
    """The IPFS transport, recorded to a file."""

    @asynccontextmanager
    async def open_recording(host: TransportHost) -> AsyncIterator[Transport]:
        factory = plugins.transport_factory("ipfs")
        with path.open("ab", buffering=0) as tape:
            async with factory(host) as inner:
                yield RecordingTransport(inner, tape)

    return open_recording
