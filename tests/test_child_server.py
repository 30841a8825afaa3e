"""The server in the child, over a socketpair: deadlines, errors, the gate, sickness."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.waiting import HANGS_AFTER
from walyoff.child.rpc import (
    VERSION,
    Event,
    FrameReader,
    Hello,
    Message,
    Reply,
    Request,
    RpcError,
    encode,
)
from walyoff.child.server import MAX_STUCK, Gate, Server
from walyoff.errors import LocalProtocolError, NotAMemberError, TransportError


class Peer:
    """The parent's side, synchronous."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sock.settimeout(5)
        self._reader = FrameReader()
        self._messages: list[Message] = []
        self._id = 0

    def send(self, message: Message) -> None:
        self.sock.sendall(encode(message))

    def next(self) -> Message:
        while not self._messages:
            data = self.sock.recv(65536)
            if not data:
                raise EOFError
            self._messages += self._reader.feed(data)
        return self._messages.pop(0)

    def request(self, method: str, timeout: float = 5, **args: Any) -> int:
        self._id += 1
        self.send(Request(id=self._id, method=method, args=args, timeout=timeout))
        return self._id

    def call(self, method: str, timeout: float = 5, **args: Any) -> Reply:
        number = self.request(method, timeout, **args)
        reply = self.next()
        assert isinstance(reply, Reply)
        assert reply.id == number
        return reply


Start = Callable[[Gate | None], tuple[Server, Peer]]


@pytest.fixture
def start() -> Iterator[Start]:
    opened: list[socket.socket] = []

    def open_pair(gate: Gate | None = None) -> tuple[Server, Peer]:
        ours, theirs = socket.socketpair()
        opened.extend((ours, theirs))
        server, peer = Server(theirs, gate), Peer(ours)
        server.start({"peer_id": "x"})
        peer.send(Hello(version=VERSION, info={}))
        assert peer.next() == Hello(version=VERSION, info={"peer_id": "x"})
        return server, peer

    yield open_pair
    for sock in opened:
        # Wakes the server's reader, which would keep the descriptor in use otherwise.
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        sock.close()


def test_a_function_is_called_with_its_arguments(start: Start) -> None:
    server, peer = start(None)
    server.register("add", lambda a, b: a + b)
    assert peer.call("add", a=1, b=2).value == 3


def raise_it(error: Exception) -> Callable[[], None]:
    def function() -> None:
        raise error

    return function


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (LocalProtocolError("x"), "local"),
        (TransportError("x"), "transport"),
        (NotAMemberError("x"), "not_member"),
        (RpcError("bad_signature", "x"), "bad_signature"),
        (ZeroDivisionError("x"), "failed"),
    ],
)
def test_an_exception_becomes_an_error_of_its_kind(
    start: Start, error: Exception, kind: str
) -> None:
    server, peer = start(None)
    server.register("bad", raise_it(error))
    answer = peer.call("bad").error
    assert answer is not None
    assert answer[0] == kind
    assert "x" in answer[1]


def test_wrong_arguments_and_unknown_methods_are_the_callers_fault(start: Start) -> None:
    server, peer = start(None)
    server.register("add", lambda a, b: a + b)
    for reply in (peer.call("add", a=1), peer.call("add", a=1, b=2, c=3), peer.call("nope")):
        assert reply.error is not None
        assert reply.error[0] == "local"


def test_an_answer_that_cannot_be_sent_is_an_error(start: Start) -> None:
    server, peer = start(None)
    server.register("odd", object)
    reply = peer.call("odd")
    assert reply.error is not None
    assert reply.error[0] == "failed"


def test_a_hung_call_is_answered_by_its_deadline_and_others_go_on(start: Start) -> None:
    server, peer = start(None)
    release = threading.Event()
    server.register("hang", lambda: release.wait(HANGS_AFTER))
    server.register("quick", lambda: 1)
    hung = peer.request("hang", 0.1)
    assert peer.call("quick").value == 1
    reply = peer.next()
    assert isinstance(reply, Reply)
    assert reply.id == hung
    assert reply.error is not None
    assert reply.error[0] == "deadline"
    # The late return is not answered a second time.
    release.set()
    assert peer.call("quick").value == 1


def test_too_many_hung_calls_make_the_ping_fail(start: Start) -> None:
    server, peer = start(None)
    release = threading.Event()
    server.register("hang", lambda: release.wait(HANGS_AFTER))
    assert peer.call("ping").value == {"stuck": 0}
    for _ in range(MAX_STUCK):
        peer.request("hang", 0.05)
    for _ in range(MAX_STUCK):
        peer.next()
    assert peer.call("ping").error is not None
    release.set()


def test_gated_calls_wait_until_what_answers_them_is_there(start: Start) -> None:
    server, peer = start(Gate(("chain.",)))
    server.register("quick", lambda: 1)
    gated = peer.request("chain.x")
    assert peer.call("quick").value == 1
    server.register("chain.x", lambda: 2)
    server.open_gate()
    assert peer.next() == Reply(id=gated, value=2)
    assert peer.call("chain.x").value == 2


def test_gated_calls_fail_with_the_reason_when_it_cannot_be_there(start: Start) -> None:
    server, peer = start(Gate(("chain.",)))
    gated = peer.request("chain.x")
    server.open_gate("no such thing")
    assert peer.next() == Reply(id=gated, error=("failed", "no such thing"))
    assert peer.call("chain.y").error == ("failed", "no such thing")


def test_gated_calls_keep_their_deadline(start: Start) -> None:
    _, peer = start(Gate(("chain.",)))
    reply = peer.call("chain.x", 0.1)
    assert reply.error is not None
    assert reply.error[0] == "deadline"


def test_events_come_from_any_thread(start: Start) -> None:
    server, peer = start(None)
    threads = [
        threading.Thread(target=server.emit, args=("tick", bytes([n]) * 50_000))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    got = [peer.next() for _ in range(8)]
    for thread in threads:
        thread.join()
    assert {event.data[0] for event in got if isinstance(event, Event)} == set(range(8))


@pytest.mark.parametrize(
    "data", [b"\xff\xff\xff\xff", b"\0\0\0\1\xc1", encode(Event(name="x", data=1))]
)
def test_nonsense_from_the_parent_ends_the_service(start: Start, data: bytes) -> None:
    server, peer = start(None)
    peer.sock.sendall(data)
    assert server.ended.wait(HANGS_AFTER)


def test_the_end_of_the_connection_ends_the_service(start: Start) -> None:
    server, peer = start(None)
    assert not server.ended.is_set()
    peer.sock.shutdown(socket.SHUT_RDWR)
    assert server.ended.wait(HANGS_AFTER)
