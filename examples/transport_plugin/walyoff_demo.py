"""A walyoff transport between the devices of one person on one machine: Unix sockets."""

import hashlib
import os
import re
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from walyoff.errors import LocalProtocolError, PayloadTooLargeError, TransportError
from walyoff.sockets import UnixListener, connect_unix
from walyoff.tasks import background_tasks


class DemoTransport:
    name = "demo"
    max_broadcast = 0  # this transport has no broadcasts, which is allowed

    def __init__(self, folder, state_dir):
        self._folder = folder  # where all devices have their sockets
        self._own = hashlib.blake2b(str(state_dir).encode(), digest_size=8).hexdigest()
        self._listening = False

    @property
    def addresses(self):
        return [f"demo:{self._own}"]

    async def connect(self, address):
        found = re.fullmatch("demo:([0-9a-f]{16})", address)  # addresses come from peers
        if found is None:
            raise LocalProtocolError("the address is not demo:NAME")
        try:
            with anyio.fail_after(5):
                return await connect_unix(str(self._folder / found[1]))
        except OSError as error:  # a TimeoutError is one as well
            raise TransportError(f"nobody at {address}: {error}") from error

    @asynccontextmanager
    async def listen(self):
        if self._listening:
            raise TransportError("this device listens already")
        path = self._folder / self._own
        path.unlink(missing_ok=True)  # left behind by a kill
        try:
            listener = UnixListener(str(path), backlog=64)
        except OSError as error:
            raise TransportError(f"cannot listen: {error}") from error
        send, receive = anyio.create_memory_object_stream(64)  # so many may wait

        async def accept():
            while True:
                try:
                    stream = await listener.accept()
                except OSError:  # too many open files: others may give some back
                    await anyio.sleep(0.1)
                    continue
                try:
                    send.send_nowait(stream)
                except (anyio.WouldBlock, anyio.BrokenResourceError):
                    await anyio.aclose_forcefully(stream)

        self._listening = True
        with send, receive:
            try:
                async with background_tasks() as tasks:
                    tasks.start_soon(accept)
                    yield receive
            finally:
                self._listening = False
                listener.close()
                path.unlink(missing_ok=True)
                with anyio.CancelScope(shield=True):  # nobody accepts these any more
                    while receive.statistics().current_buffer_used:
                        await anyio.aclose_forcefully(receive.receive_nowait())

    async def broadcast(self, topic, payload):
        if payload:
            raise PayloadTooLargeError(len(payload), self.max_broadcast, "broadcast")

    @asynccontextmanager
    async def subscribe(self, topic):
        send, receive = anyio.create_memory_object_stream(1)
        with send, receive:
            yield receive


@asynccontextmanager
async def open_transport(host):
    folder = Path(tempfile.gettempdir(), f"walyoff-demo-{os.getuid()}")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    yield DemoTransport(folder, host.state_dir)
