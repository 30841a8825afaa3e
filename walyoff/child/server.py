"""Answers the parent's requests, each by its deadline, on a bounded number of threads.

What the child calls (Go, Walytis) blocks, cannot be cancelled, and sometimes hangs. So a
deadline answers the parent while the thread goes on; a thread that never returns is lost,
and when too many are lost `ping` fails, upon which the parent replaces the process.

Gated calls share the locks of stock code, so a single one that hangs stops all that follow.
When one is past its deadline and has run for `HUNG_AFTER_S`, the process ends itself.
"""

from __future__ import annotations

import faulthandler
import heapq
import inspect
import logging
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from walyoff.child.rpc import (
    VERSION,
    Event,
    FrameReader,
    Hello,
    Message,
    Reply,
    Request,
    RpcError,
    check_hello,
    encode,
)
from walyoff.errors import (
    LedgerError,
    LocalProtocolError,
    NotAMemberError,
    RemoteProtocolError,
    StoreError,
    TransportError,
)

_log = logging.getLogger(__name__)

#: Requests that run at the same time; more wait, within their deadlines.
MAX_THREADS = 32
#: Requests that were not answered yet; more are refused at once.
MAX_PENDING = 4_096
#: Threads that are past their deadline before the child calls itself sick.
MAX_STUCK = MAX_THREADS // 2
#: A gated call hangs when it is past its deadline and has run so long, in seconds: a caller
#: may give little time, as what waited for a new child has little left.
HUNG_AFTER_S = 20.0
#: The exit status of a child in which a call hangs.
EXIT_HUNG = 72
_RECEIVE_SIZE = 1 << 16

#: Which kind an exception is to the parent; the first match counts.
ERROR_KINDS: Sequence[tuple[type[Exception], str]] = (
    (LocalProtocolError, "local"),
    (RemoteProtocolError, "remote"),
    (NotAMemberError, "not_member"),
    (TransportError, "transport"),
    (LedgerError, "ledger"),
    (StoreError, "store"),
)


class Gate:
    """Holds requests of some prefixes back until what answers them is installed."""

    def __init__(self, prefixes: tuple[str, ...]) -> None:
        self.prefixes = prefixes
        self.failure: str | None = None
        self.open = False
        self.waiting: list[_Call] = []


class _Call:
    __slots__ = ("began", "deadline", "done", "request", "running")

    def __init__(self, request: Request) -> None:
        self.request = request
        self.deadline = time.monotonic() + request.timeout
        self.done = False
        self.running = False
        self.began = 0.0

    def __lt__(self, other: _Call) -> bool:
        return self.deadline < other.deadline


class Server:
    """One connection to the parent. `register` and `emit` are for any thread."""

    def __init__(self, connection: socket.socket, gate: Gate | None = None) -> None:
        self._connection = connection
        self._gate = gate or Gate(())
        self._functions: dict[str, Callable[..., Any]] = {}
        self._work: queue.SimpleQueue[_Call] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._send_lock = threading.Lock()
        self._reader = FrameReader()
        self._greeted = False
        self._pending: set[_Call] = set()
        self._deadlines: list[_Call] = []
        self._deadline_added = threading.Event()
        self._threads = 0
        self._idle = 0
        self._stuck = 0
        #: Gated calls that are past their deadlines and still run.
        self._late: list[_Call] = []
        #: Set when the parent is gone, said goodbye, or sent nonsense.
        self.ended = threading.Event()

    def register(self, name: str, func: Callable[..., Any]) -> None:
        """Answer a method by a function of keyword arguments; the last one counts.

        It runs on a pool thread and returns something that msgpack can carry. What it
        raises reaches the parent as (kind, text): an `RpcError` chooses the kind itself,
        walyoff's errors have theirs, anything else is "failed".
        """
        self._functions[name] = func

    def emit(self, name: str, data: Any) -> None:
        """Send an event; a parent that is gone is no error here."""
        self._send(Event(name=name, data=data))

    def greet(self) -> dict[str, Any] | None:
        """Wait for the parent's hello, and return what it says. At most once, first of all.

        None if the parent is gone, or does not need this process after all.

        Raises:
            RemoteProtocolError: something else came.
        """
        while data := self._connection.recv(_RECEIVE_SIZE):
            for message in self._reader.feed(data):
                self._greeted = True
                return check_hello(message).info
        return None

    def start(self, info: dict[str, Any]) -> None:
        """Say hello, and serve from threads of its own until `ended`."""
        self._send(Hello(version=VERSION, info=info))
        for target in (self._read, self._watch_deadlines):
            threading.Thread(target=target, name=target.__name__, daemon=True).start()

    def refuse(self, reason: str) -> None:
        """Say hello, and with it why nothing can be served. The caller ends the process."""
        if self._greeted or self.greet() is not None:
            self._send(Hello(version=VERSION, info={"failure": reason}))

    def open_gate(self, failure: str | None = None) -> None:
        """Let the held requests pass, or refuse them all for a reason."""
        with self._lock:
            self._gate.open = True
            self._gate.failure = failure
            waiting, self._gate.waiting = self._gate.waiting, []
        for call in waiting:
            self._submit(call)

    # --------------------------------------------------------------------- reading

    def _read(self) -> None:
        try:
            while data := self._connection.recv(_RECEIVE_SIZE):
                for message in self._reader.feed(data):
                    if not self._greeted:
                        check_hello(message)
                        self._greeted = True
                    elif isinstance(message, Request):
                        self._accept(message)
                    else:
                        raise RemoteProtocolError("the parent sends requests only")
        except OSError:
            pass
        except RemoteProtocolError:
            _log.exception("the parent's bytes make no sense")
        finally:
            self.ended.set()
            self._deadline_added.set()

    def _accept(self, request: Request) -> None:
        # Answered here, because the pool may be full of calls that rightly take long.
        if request.method == "ping":
            if self._stuck >= MAX_STUCK:
                self._send(Reply(id=request.id, error=("failed", "too many hung calls")))
            else:
                self._send(Reply(id=request.id, value={"stuck": self._stuck}))
            return
        if request.method == "exit":
            self.ended.set()
            return
        call = _Call(request)
        with self._lock:
            full = len(self._pending) >= MAX_PENDING
            if not full:
                self._pending.add(call)
                heapq.heappush(self._deadlines, call)
                first = self._deadlines[0] is call
            held = self._is_gated(request) and not self._gate.open
            if held and not full:
                self._gate.waiting.append(call)
        if full:
            self._send(Reply(id=request.id, error=("busy", "too many requests at once")))
            return
        if first:
            self._deadline_added.set()
        if not held:
            self._submit(call)

    # ----------------------------------------------------------------------- calls

    def _submit(self, call: _Call) -> None:
        self._work.put(call)
        with self._lock:
            grow = self._idle < self._work.qsize() and self._threads < MAX_THREADS
            if grow:
                self._threads += 1
                name = f"call-{self._threads}"
        if grow:
            threading.Thread(target=self._serve, name=name, daemon=True).start()

    def _serve(self) -> None:
        while True:
            with self._lock:
                self._idle += 1
            call = self._work.get()
            with self._lock:
                self._idle -= 1
                if call.done:
                    continue
                call.running = True
                call.began = time.monotonic()
            reply = self._run(call.request)
            with self._lock:
                late, call.done, call.running = call.done, True, False
                self._pending.discard(call)
                if late:
                    self._stuck -= 1
            if not late:
                self._answer(reply)

    def _run(self, request: Request) -> Reply:
        try:
            return Reply(id=request.id, value=self._call(request))
        except RpcError as error:
            return Reply(id=request.id, error=(error.kind, str(error)))
        except Exception as error:
            for kind, name in ERROR_KINDS:
                if isinstance(error, kind):
                    return Reply(id=request.id, error=(name, str(error)))
            _log.exception("%s failed", request.method)
            text = f"{type(error).__name__}: {error}"
            return Reply(id=request.id, error=("failed", text))

    def _call(self, request: Request) -> Any:
        if self._gate.failure and self._is_gated(request):
            raise RpcError("failed", self._gate.failure)
        function = self._functions.get(request.method)
        if function is None:
            raise LocalProtocolError(f"there is no method {request.method!r}")
        try:
            inspect.signature(function).bind(**request.args)
        except TypeError as error:
            raise LocalProtocolError(f"{request.method}: {error}") from error
        return function(**request.args)

    def _is_gated(self, request: Request) -> bool:
        return request.method.startswith(self._gate.prefixes)

    def _answer(self, reply: Reply) -> None:
        try:
            self._send(reply)
        except Exception as error:
            # The function returned something that cannot be sent: its bug, our answer.
            _log.exception("an answer could not be encoded")
            self._send(Reply(id=reply.id, error=("failed", f"unsendable answer: {error}")))

    def _watch_deadlines(self) -> None:
        while not self.ended.is_set():
            expired: list[_Call] = []
            with self._lock:
                now = time.monotonic()
                while self._deadlines and (
                    self._deadlines[0].done or self._deadlines[0].deadline <= now
                ):
                    call = heapq.heappop(self._deadlines)
                    if not call.done:
                        call.done = True
                        self._stuck += call.running
                        self._pending.discard(call)
                        expired.append(call)
                        if call.running and self._is_gated(call.request):
                            self._late.append(call)
                self._late = [call for call in self._late if call.running]
                ends = [call.began + HUNG_AFTER_S for call in self._late]
                ends += [call.deadline for call in self._deadlines[:1]]
                wait = max(min(ends) - now, 0.0) if ends else None
                # Under the lock: a call that comes from here on sets it again.
                self._deadline_added.clear()
            for call in self._late:
                if call.began + HUNG_AFTER_S <= now:
                    end_hung(f"{call.request.method} hangs")
            for call in expired:
                text = f"{call.request.method} took longer than {call.request.timeout:g} s"
                self._answer(Reply(id=call.request.id, error=("deadline", text)))
            self._deadline_added.wait(wait)

    def _send(self, message: Message) -> None:
        frame = encode(message)
        try:
            with self._send_lock:
                self._connection.sendall(frame)
        except OSError:
            self.ended.set()


def end_hung(what: str) -> None:
    """End the process, since nothing else ends what hangs; the parent begins a new one."""
    _log.critical("%s, and nothing else ends it: the child ends", what)
    faulthandler.dump_traceback(sys.stderr)
    logging.shutdown()
    os._exit(EXIT_HUNG)
