"""A session over a byte stream: frames, heartbeat, end.

`dialling` makes one. The machine in `records` decides; this module moves bytes and watches the
clock. Flow is controlled by credit: bulk is sent only when it was asked for, and a request
says how many bytes; what is pushed unasked is bounded by `backlog`, which its callers look at.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
from anyio.abc import ByteStream

from walyoff import frames
from walyoff.errors import RemoteProtocolError
from walyoff.runtime import REAL, Runtime
from walyoff.session.handshake import Established
from walyoff.session.records import SecureChannel
from walyoff.session.transcript import Mode, Role
from walyoff.signals import News, Work
from walyoff.tasks import background_tasks

#: After so long without a word the other side is asked; after the second it is given up.
PING_AFTER = 4.0
DEAD_AFTER = 10.0
#: Clean ends wait no longer than this for the last bytes to leave.
CLOSE_TIMEOUT = 1.0
#: Keys older than this are replaced, in seconds.
REKEY_AGE = 3600.0
#: Frames sealed into one write: big enough to be efficient, small enough to stay responsive.
WRITE_BYTES = 512 * 1024
#: Bytes that are read at once.
READ_BYTES = 256 * 1024
#: What a link may hold unsent before it counts as stuck and is closed.
MAX_BACKLOG = 64 * 1024 * 1024
#: Pings whose answers are waited for.
MAX_ASKED = 16
#: Pings, and answers to them, that wait to be sent: of an honest peer there are fewer. Who asks
#: without end and reads nothing gets the newest answers, if it ever reads.
MAX_FIRST = 2 * MAX_ASKED
#: After so many frames that came at once others have a turn.
TURN = 256

_numbers = itertools.count(1)


class Session:
    """An established session. Satisfies the engine's `Link` and `SessionLink`."""

    def __init__(
        self,
        stream: ByteStream,
        established: Established,
        *,
        role: Role,
        mode: Mode,
        runtime: Runtime = REAL,
    ) -> None:
        self._runtime = runtime
        self.role = role
        self.mode: Mode = mode
        self.peer = established.peer
        self.did = established.peer.certificate.member
        #: Names the session at both ends, and stands for its whole transcript.
        self.session_id = established.keys.session_id
        self.name = f"{self.did[-8:]}#{next(_numbers)}"
        #: The transport that carries it; set by whoever opened the stream.
        self.path = ""
        self.backlog = 0
        self.bytes_sent = 0
        self.bytes_received = 0
        self._stream = stream
        self._channel = SecureChannel(established.keys, role)
        self._leftover = established.leftover
        self._queue: deque[bytes] = deque()
        #: Goes out before all that waits.
        self._first: deque[bytes] = deque(maxlen=MAX_FIRST)
        #: Goes out when nothing else does.
        self._bulk: deque[bytes] = deque()
        self._bulk_backlog = 0
        self._work = Work()
        self._drained = News()
        self.opened = self._runtime.now()
        self._heard = self._runtime.now()
        self._keyed = self._runtime.now()
        self._closed = False
        self._ending = False
        self._shutting = anyio.Event()
        self._written = anyio.Event()
        self._writing = anyio.CancelScope()
        self._pings = 0
        #: Pings that are not answered yet, and whether something was sent after the newest.
        self._asked: dict[int, anyio.Event] = {}
        self._sent = anyio.Event()
        #: When the other side was dismissed.
        self._dismissed: float | None = None

    def __repr__(self) -> str:
        return f"<Session {self.name} {self.role} [{self.backlog} bytes to send]>"

    def statistics(self) -> dict[str, float]:
        """Counters since the session was established; times in seconds."""
        sent, received = self._channel.sent, self._channel.received
        now = self._runtime.now()
        return {
            "age_s": now - self.opened,
            "silent_s": now - self._heard,
            "bytes_sent": self.bytes_sent,
            "bytes_received": self.bytes_received,
            "records_sent": sent.records,
            "records_received": received.records,
            "rekeys": sent.rekeys + received.rekeys,
            "backlog": self.backlog,
            "pings": self._pings,
        }

    @property
    def link(self) -> Session:
        """The sending side of itself."""
        return self

    def send(self, data: bytes) -> None:
        """Queue one encoded frame; never waits. Does nothing once closed."""
        if self._closed or self._dismissed is not None:
            return
        if self.backlog + len(data) > MAX_BACKLOG:
            # Nobody reads at the other end: the session is of no use any more.
            self._shut()
            return
        self._queue.append(data)
        self.backlog += len(data)
        self._sent.set()
        self._work.set()

    def send_bulk(self, data: bytes) -> None:
        """Queue one encoded frame that all others overtake; wait in `bulk_drained` before."""
        if self._closed:
            return
        self._bulk.append(data)
        self._bulk_backlog += len(data)
        self._work.set()

    async def bulk_drained(self, limit: int) -> None:
        """Wait until at most `limit` bytes of bulk wait. Returns at once when closed."""
        while self._bulk_backlog > limit and not self._closed:
            await self._drained.wait()

    def send_frame(self, frame: frames.Frame) -> None:
        """Encode and queue a frame."""
        self.send(frames.encode(frame))

    async def until_sent(self) -> None:
        """Wait until something was sent after the last `ping`."""
        await self._sent.wait()

    def ping(self) -> anyio.Event:
        """Ask whether the other side is there, before all that waits. Set when it answers."""
        self._pings += 1
        if self._sent.is_set():
            self._sent = anyio.Event()
        answered = self._asked[self._pings] = anyio.Event()
        if len(self._asked) > MAX_ASKED:
            del self._asked[next(iter(self._asked))]
        self._send_first(frames.Ping(self._pings))
        return answered

    def _send_first(self, frame: frames.Frame) -> None:
        """Queue a frame before all that waits."""
        if not self._closed and self._dismissed is None:
            self._first.append(frames.encode(frame))
            self._work.set()

    def dismiss(self, frame: frames.Frame) -> None:
        """Say one last thing and nothing after it, hear nothing more, and end soon."""
        if self._closed or self._dismissed is not None:
            return
        self._queue.clear()
        self._first.clear()
        self.backlog = 0
        self.send_frame(frame)
        self._dismissed = self._runtime.now()

    async def drained(self, limit: int) -> None:
        """Wait until the backlog is at most `limit` bytes. Returns at once when closed."""
        while self.backlog > limit and not self._closed:
            await self._drained.wait()

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Write what is queued and keep the heartbeat while the context is open.

        The session is closed when it is left: cleanly if nothing was wrong, with what is
        queued sent first.
        """
        try:
            async with background_tasks() as tasks:
                tasks.start_soon(self._write_loop)
                tasks.start_soon(self._heartbeat)
                tasks.start_soon(self._hang_up)
                try:
                    yield
                finally:
                    await self._end()
        finally:
            self._shut()
            with anyio.CancelScope(shield=True):
                await anyio.aclose_forcefully(self._stream)

    async def frames(self) -> AsyncGenerator[frames.Frame, None]:
        """Incoming frames until the other side ends the session. Close it when done with it.

        Raises:
            RemoteProtocolError: a record or a frame breaks the protocol.
            anyio.BrokenResourceError: the connection is gone.
        """
        data, self._leftover = self._leftover, b""
        while True:
            try:
                payloads = self._channel.feed(data)
            except RemoteProtocolError:
                # Its keys are gone with it: there is nothing left to say goodbye with.
                self._shut()
                raise
            for number, payload in enumerate(payloads, 1):
                if number % TURN == 0:
                    await anyio.lowlevel.checkpoint()
                if self._dismissed is not None:
                    break
                frame = frames.decode(payload)
                if isinstance(frame, frames.Ping):
                    self._send_first(frames.Pong(frame.nonce))
                elif isinstance(frame, frames.Pong):
                    if answered := self._asked.pop(frame.nonce, None):
                        answered.set()
                else:
                    yield frame
            if self._channel.ended:
                return
            try:
                data = await self._stream.receive(READ_BYTES)
            except anyio.EndOfStream:
                raise anyio.BrokenResourceError from None
            except anyio.ClosedResourceError:
                raise anyio.BrokenResourceError from None
            self._heard = self._runtime.now()
            self.bytes_received += len(data)

    async def _write_loop(self) -> None:
        # Shielded, so that the end of the session never cuts a record in two; `_end` bounds it.
        with anyio.CancelScope(shield=True) as self._writing:
            while not self._closed:
                if self._queue or self._first:
                    await self._write_some()
                elif self._ending:
                    # What is left of bulk is asked for again in another session.
                    await self._write(self._channel.end())
                    break
                elif self._bulk:
                    await self._write_bulk()
                else:
                    await self._work.wait()
        self._written.set()

    async def _write_some(self) -> None:
        payloads, size = [*self._first], 0
        self._first.clear()
        while self._queue and (not size or size + len(self._queue[0]) <= WRITE_BYTES):
            payloads.append(self._queue.popleft())
            size += len(payloads[-1])
        await self._seal_and_write(payloads)
        self.backlog = max(self.backlog - size, 0)
        self._drained.tell()

    async def _write_bulk(self) -> None:
        """One frame only: a message that comes meanwhile is next."""
        payload = self._bulk.popleft()
        await self._seal_and_write([payload])
        self._bulk_backlog = max(self._bulk_backlog - len(payload), 0)
        self._drained.tell()

    async def _seal_and_write(self, payloads: list[bytes]) -> None:
        sealed = self._channel.seal(payloads)
        if self._runtime.now() - self._keyed > REKEY_AGE:
            sealed += self._channel.rekey()
            self._keyed = self._runtime.now()
        await self._write(sealed)

    async def _write(self, sealed: bytes) -> None:
        try:
            await self._stream.send(sealed)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            self._shut()
        else:
            self.bytes_sent += len(sealed)

    async def _hang_up(self) -> None:
        """When the session is closed from here, close the stream, so that its reader wakes."""
        await self._shutting.wait()
        with anyio.CancelScope(shield=True):
            await anyio.aclose_forcefully(self._stream)

    async def _heartbeat(self) -> None:
        # In steps: time in which this process did not run says nothing about the other side.
        step, silent = PING_AFTER / 2, 0.0
        while True:
            before = self.bytes_received
            await anyio.sleep(step)
            silent = silent + step if self.bytes_received == before else 0.0
            if silent >= DEAD_AFTER or self._dismissed is not None:
                self._shut()
                return
            if silent >= PING_AFTER:
                self.ping()
                self._sent.set()

    def close(self) -> None:
        """End the session at once; whoever reads it sees it end."""
        self._shut()

    def _shut(self) -> None:
        self._closed = True
        self._queue.clear()
        self._first.clear()
        self._bulk.clear()
        self.backlog = self._bulk_backlog = 0
        self._drained.tell()
        self._work.set()
        self._shutting.set()

    async def _end(self) -> None:
        """Let the writer finish what is queued and say goodbye, for a moment at most."""
        self._ending = True
        self._work.set()
        with anyio.CancelScope(shield=True), anyio.move_on_after(CLOSE_TIMEOUT):
            await self._written.wait()
        self._writing.cancel()
