"""One life of the child process, seen from the parent: start, calls, events, end.

`walyoff.walytis.process` replaces a link that broke by a new one; nothing here restarts
anything.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import anyio
from anyio.abc import ByteStream
from anyio.streams.memory import MemoryObjectSendStream

from walyoff.child.rpc import (
    VERSION,
    Event,
    FrameReader,
    Hello,
    Reply,
    Request,
    check_hello,
    encode,
)
from walyoff.errors import (
    ChildError,
    LedgerError,
    LocalProtocolError,
    NotAMemberError,
    RemoteProtocolError,
    StoreError,
    TransportError,
)
from walyoff.sockets import SocketStream
from walyoff.walytis.spawning import ChildProcess

#: Seconds from exec to the child's hello; normally a fifth of a second.
HELLO_TIME = 30.0
#: Seconds that the child gets to end by itself.
GOODBYE_TIME = 3.0
#: Seconds that the parent waits for an answer beyond the deadline that the child keeps.
DEADLINE_SLACK = 1.0
#: Requests that wait to be written; callers wait when there are more.
OUTGOING = 64
_RECEIVE_SIZE = 1 << 18


class CallFailedError(ChildError):
    """The child answered a call with an error; `kind` says which."""

    def __init__(self, method: str, kind: str, text: str) -> None:
        super().__init__(f"{method}: {text}")
        self.kind = kind


#: Kinds of errors that have a class of their own here; the rest is `CallFailedError`.
_ERRORS: dict[str, type[Exception]] = {
    "local": LocalProtocolError,
    "remote": RemoteProtocolError,
    "not_member": NotAMemberError,
    "transport": TransportError,
    "ledger": LedgerError,
    "store": StoreError,
}


def to_error(method: str, kind: str, text: str) -> Exception:
    """The exception for an error that the child answered."""
    if known := _ERRORS.get(kind):
        return known(f"{method}: {text}")
    return CallFailedError(method, kind, text)


class _Waiter:
    __slots__ = ("done", "reply")

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.reply: Reply | None = None


class Link:
    """A connected child: `run` must be running for anything else to work."""

    def __init__(self, stream: ByteStream, on_event: Callable[[str, Any], None]) -> None:
        self._stream = stream
        self._on_event = on_event
        self._frames = FrameReader()
        self._waiters: dict[int, _Waiter] = {}
        self._last_id = 0
        self._outgoing: MemoryObjectSendStream[bytes] | None = None
        self.closed = False

    async def greet(self, info: dict[str, Any]) -> Hello:
        """Exchange the hellos; `info` is what ours says. Raises ChildError."""
        try:
            await self._stream.send(encode(Hello(version=VERSION, info=info)))
            with anyio.fail_after(HELLO_TIME):
                while True:
                    data = await self._stream.receive(_RECEIVE_SIZE)
                    # Nothing can follow the hello before we asked for anything, except
                    # events, which nobody waits for yet.
                    for message in self._frames.feed(data):
                        hello = check_hello(message)
                        if failure := hello.info.get("failure"):
                            raise ChildError(str(failure))
                        return hello
        except TimeoutError as error:
            raise ChildError(f"the child was not ready after {HELLO_TIME:g} s") from error
        except (anyio.EndOfStream, anyio.BrokenResourceError) as error:
            raise ChildError(
                "the child ended while it started; see child/child.log in the home"
            ) from error
        except RemoteProtocolError as error:
            raise ChildError(str(error)) from error

    async def run(self) -> str:
        """Read and write until the connection ends; returns why."""
        send, receive = anyio.create_memory_object_stream[bytes](OUTGOING)
        self._outgoing = send
        reason = "the child process ended"
        try:
            async with anyio.create_task_group() as tasks, send, receive:

                async def write() -> None:
                    with contextlib.suppress(
                        anyio.BrokenResourceError, anyio.ClosedResourceError
                    ):
                        async for frame in receive:
                            await self._stream.send(frame)

                tasks.start_soon(write)
                try:
                    while True:
                        self._feed(await self._stream.receive(_RECEIVE_SIZE))
                except (anyio.EndOfStream, anyio.BrokenResourceError):
                    pass
                except RemoteProtocolError as error:
                    reason = f"the child sent nonsense: {error}"
                tasks.cancel_scope.cancel()
        finally:
            self.closed = True
            self._outgoing = None
            for waiter in self._waiters.values():
                waiter.done.set()
        return reason

    async def call(self, method: str, args: dict[str, Any], timeout: float) -> Any:
        """Call a method of the child.

        Raises:
            ChildError: the child failed, ended, or kept no deadline (`CallFailedError`
                for what it answered itself).
            Exception: the class in `walyoff.errors` that the child answered with.
        """
        outgoing = self._outgoing
        if outgoing is None:
            raise ChildError(f"{method}: the child process is not there")
        self._last_id += 1
        number = self._last_id
        try:
            frame = encode(Request(id=number, method=method, args=args, timeout=timeout))
        except (TypeError, ValueError, OverflowError) as error:
            raise LocalProtocolError(f"{method}: {error}") from error
        waiter = self._waiters[number] = _Waiter()
        try:
            with anyio.fail_after(timeout + DEADLINE_SLACK):
                await outgoing.send(frame)
                await waiter.done.wait()
        except TimeoutError as error:
            text = f"no answer within {timeout:g} s"
            raise CallFailedError(method, "deadline", text) from error
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise ChildError(f"{method}: the child process ended") from error
        finally:
            del self._waiters[number]
        if waiter.reply is None:
            raise ChildError(f"{method}: the child process ended")
        if waiter.reply.error is not None:
            raise to_error(method, *waiter.reply.error)
        return waiter.reply.value

    def _feed(self, data: bytes) -> None:
        for message in self._frames.feed(data):
            match message:
                case Reply(id=number):
                    # Nobody waits any more for a call that was cancelled.
                    if waiter := self._waiters.get(number):
                        waiter.reply = message
                        waiter.done.set()
                case Event(name=name, data=value):
                    self._on_event(name, value)
                case _:
                    raise RemoteProtocolError("the child sends replies and events only")


def connect(process: ChildProcess) -> SocketStream:
    """The connection to a process that was spawned, as a stream."""
    return SocketStream(process.take_socket())
