"""The limit: the same bytes through plain TCP, with nothing of walyoff but its algorithms.

    python -m walyoff.bench.raw --home DIR [--suite NAME]

What a message must cost in this design and this language, and no more: all that waits goes
into one batch; one signature of the suite for each batch, made while SQLite commits (WAL,
synchronous FULL, what waits shares a commit); one AEAD and one write to the socket for each
batch; on the other side the AEAD, the signature, and one commit before anything counts as
delivered. No records, commitments, encryption at rest, vectors, ledger or event loop.

It has threads and blocks, which is the fastest that Python can do for one connection, and
answers the same requests as `agent`.
"""

from __future__ import annotations

import argparse
import os
import queue
import socket
import sqlite3
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
from anyio import to_thread
from blake3 import blake3

from walyoff import plugins
from walyoff.abc import SignKey
from walyoff.agents.serving import Action, serve, tell, until_signal
from walyoff.bench.load import Tallies, payload, shares
from walyoff.bench.machine import usage

#: As in walyoff: records of one batch.
MAX_BATCH = 1024
#: The pair's key. Two processes of one measurement on one machine have nothing to hide.
_KEY = b"walyoff/bench/raw/aead-key/0032b"
_LENGTH = struct.Struct(">I")
_FIRST_SEQ = struct.Struct(">Q")

_TABLES = """
CREATE TABLE IF NOT EXISTS batches(
    first INTEGER PRIMARY KEY, own INTEGER, count INTEGER, signature BLOB);
CREATE TABLE IF NOT EXISTS messages(
    seq INTEGER PRIMARY KEY, own INTEGER, batch INTEGER, content BLOB);
"""


class Store:
    """Messages in SQLite, with the durability of walyoff's store. For one thread at a time."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.executescript(_TABLES)
        (top,) = self._connection.execute("SELECT max(seq) FROM messages").fetchone()
        self.top: int = top or 0

    def write(
        self,
        batches: list[tuple[list[bytes], bytes | None]],
        *,
        own: bool,
        signatures: list[tuple[bytes, int]],
    ) -> int:
        """Commit batches, and signatures of earlier ones; returns the first number."""
        first = self.top + 1
        self._connection.execute("BEGIN IMMEDIATE")
        self.sign(signatures)
        for contents, signature in batches:
            at = self.top + 1
            self._connection.execute(
                "INSERT INTO batches VALUES (?,?,?,?)", (at, own, len(contents), signature)
            )
            self._connection.executemany(
                "INSERT INTO messages VALUES (?,?,?,?)",
                [(at + n, own, at, content) for n, content in enumerate(contents)],
            )
            self.top += len(contents)
        self._connection.execute("COMMIT")
        return first

    def sign(self, signatures: list[tuple[bytes, int]]) -> None:
        """Add signatures to batches, by their first messages."""
        self._connection.executemany(
            "UPDATE batches SET signature = ? WHERE first = ?", signatures
        )

    def after(self, seq: int) -> list[tuple[list[bytes], bytes]]:
        """What was written after a message."""
        found = []
        rows = self._connection.execute(
            "SELECT first, signature FROM batches WHERE own AND first > ? ORDER BY first",
            (seq,),
        ).fetchall()
        for first, signature in rows:
            contents = [
                content
                for (content,) in self._connection.execute(
                    "SELECT content FROM messages WHERE batch = ? ORDER BY seq", (first,)
                )
            ]
            found.append((contents, signature))
        return found


class Peer:
    """One side of the connection."""

    def __init__(self, home: Path, suite: str) -> None:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._store = Store(home / "raw.db")
        # Two connections, as walyoff's two sides never write in one transaction either.
        self._inbox = Store(home / "received.db")
        self._cipher = plugins.suite(suite)
        self._key = _load_key(home / "key", suite)
        self._aead = self._cipher.aead(_KEY[: self._cipher.aead_key_size])
        self._nonce = 0
        #: The signature that goes into the next commit, with its batch.
        self._unsigned: list[tuple[bytes, int]] = []
        self._their_public = b""
        self._socket: socket.socket | None = None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._signer = ThreadPoolExecutor(1)
        self._waiting: deque[tuple[list[bytes], Callable[[], None]]] = deque()
        self._work = threading.Condition()
        self._sending = threading.Lock()
        self._received: queue.SimpleQueue[tuple[list[bytes], bytes]] = queue.SimpleQueue()
        self.tallies = Tallies()
        self.met = 0
        self.ready = threading.Event()
        for loop in (self._send_loop, self._commit_loop):
            threading.Thread(target=loop, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    # ---------------------------------------------------------------- connecting

    def accept(self) -> None:
        """Wait for the other side, again and again: it may come back."""
        while True:
            sock, _ = self._listener.accept()
            self.ready.clear()
            threading.Thread(target=self._begin, args=(sock,), daemon=True).start()

    def connect(self, port: int) -> None:
        threading.Thread(
            target=self._begin,
            args=(socket.create_connection(("127.0.0.1", port)),),
            daemon=True,
        ).start()

    def _begin(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream = sock.makefile("rb", buffering=1 << 20)
        own = self._key.public + _FIRST_SEQ.pack(self._inbox.top)
        sock.sendall(_LENGTH.pack(len(own)) + own)
        theirs = self._read(stream)
        self._their_public = theirs[: -_FIRST_SEQ.size]
        (held,) = _FIRST_SEQ.unpack(theirs[-_FIRST_SEQ.size :])
        with self._sending:
            self._socket = sock
            self.met = time.monotonic_ns()
            self._store.sign(self._unsigned)
            self._unsigned = []
            for contents, signature in self._store.after(held):
                self._transmit(contents, signature)
        self.ready.set()
        try:
            while True:
                self._take(self._read(stream))
        except (OSError, EOFError):
            self._socket = None

    @staticmethod
    def _read(stream: Any) -> bytes:
        head = stream.read(_LENGTH.size)
        if len(head) < _LENGTH.size:
            raise EOFError
        data: bytes = stream.read(_LENGTH.unpack(head)[0])
        return data

    # ------------------------------------------------------------------- sending

    def send(self, contents: list[bytes], done: Callable[[], None]) -> None:
        """Queue messages; `done` is called when they are durable."""
        with self._work:
            self._waiting.append((contents, done))
            self._work.notify()

    def _send_loop(self) -> None:
        while True:
            with self._work:
                while not self._waiting:
                    self._work.wait()
                contents: list[bytes] = []
                finished = []
                while self._waiting and len(contents) < MAX_BATCH:
                    more, done = self._waiting.popleft()
                    contents += more
                    finished.append(done)
            signature: Future[bytes] = self._signer.submit(self._key.sign, _digest(contents))
            with self._sending:
                first = self._store.write(
                    [(contents, None)], own=True, signatures=self._unsigned
                )
                for done in finished:
                    done()
                self._unsigned = [(signature.result(), first)]
                if self._socket is not None:
                    self._transmit(contents, signature.result())

    def _transmit(self, contents: list[bytes], signature: bytes) -> None:
        sizes = struct.pack(
            f">{len(contents) + 2}I", len(signature), len(contents), *map(len, contents)
        )
        nonce = self._nonce.to_bytes(self._cipher.aead_nonce_size, "big")
        self._nonce += 1
        sealed = self._aead.encrypt(nonce, b"".join((sizes, signature, *contents)), None)
        assert self._socket is not None
        try:
            self._socket.sendall(_LENGTH.pack(len(nonce + sealed)) + nonce + sealed)
        except OSError:
            self._socket = None

    # ----------------------------------------------------------------- receiving

    def _take(self, frame: bytes) -> None:
        size = self._cipher.aead_nonce_size
        plain = memoryview(self._aead.decrypt(frame[:size], memoryview(frame)[size:], None))
        length, count = struct.unpack_from(">II", plain)
        sizes = struct.unpack_from(f">{count}I", plain, 8)
        at = 8 + 4 * count
        signature = bytes(plain[at : at + length])
        at += length
        contents = []
        for content in sizes:
            contents.append(bytes(plain[at : at + content]))
            at += content
        self._cipher.verify(self._their_public, _digest(contents), signature)
        self._received.put((contents, signature))

    def _commit_loop(self) -> None:
        while True:
            group = [self._received.get()]
            while not self._received.empty():
                group.append(self._received.get())
            self._inbox.write([(c, s) for c, s in group], own=False, signatures=[])
            take, clock = self.tallies.take, time.monotonic_ns
            for contents, _ in group:
                for content in contents:
                    take(content, clock())


def _digest(contents: list[bytes]) -> bytes:
    return blake3(b"".join(contents)).digest()


def _load_key(path: Path, suite: str) -> SignKey:
    cipher = plugins.suite(suite)
    if path.exists():
        return cipher.load_sign_key(path.read_bytes())
    key = cipher.new_sign_key()
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(key.secret())
    return key


class RawAgent:
    """Does what is asked, in threads; the event loop only talks."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self.actions: dict[str, Action] = {
            "listen": self._listen,
            "connect": self._connect,
            "peer": self._wait_peer,
            "burst": self._burst,
            "latency": self._latency,
            "expect": self._expect,
            "usage": self._usage,
        }

    async def _listen(self, _: dict[str, Any]) -> dict[str, Any]:
        threading.Thread(target=self._peer.accept, daemon=True).start()
        return {"port": self._peer.port}

    async def _connect(self, request: dict[str, Any]) -> dict[str, Any]:
        self._peer.connect(request["port"])
        return {}

    async def _wait_peer(self, _: dict[str, Any]) -> dict[str, Any]:
        await to_thread.run_sync(self._peer.ready.wait)
        return {"at": time.monotonic_ns()}

    async def _burst(self, request: dict[str, Any]) -> dict[str, Any]:
        return await to_thread.run_sync(self._write, request)

    def _write(self, request: dict[str, Any]) -> dict[str, Any]:
        """As `writers` applications would that wait for each call before the next."""
        run, size, batch, count = (request[k] for k in ("run", "size", "batch", "count"))
        calls = -(-count // batch)
        writers = [iter(numbers) for numbers in shares(calls, request["writers"])]
        left = calls
        ended = threading.Event()

        def proceed(writer: Any) -> None:
            number = next(writer, None)
            if number is not None:
                first, last = number * batch, min((number + 1) * batch, count)
                contents = [payload(run, size, n) for n in range(first, last)]
                self._peer.send(contents, lambda: finish(writer))

        def finish(writer: Any) -> None:
            nonlocal left
            left -= 1
            if left:
                proceed(writer)
            else:
                ended.set()

        before, began = usage(), time.monotonic_ns()
        for writer in writers:
            proceed(writer)
        ended.wait()
        at, after = time.monotonic_ns(), usage()
        return {
            "began": began,
            "ended": at,
            "cpu_s": after["cpu_s"] - before["cpu_s"],
            "child_cpu_s": 0.0,
        }

    async def _latency(self, request: dict[str, Any]) -> dict[str, Any]:
        return await to_thread.run_sync(self._pace, request)

    def _pace(self, request: dict[str, Any]) -> dict[str, Any]:
        waits = []
        next_at = time.monotonic()
        for number in range(request["count"]):
            time.sleep(max(next_at - time.monotonic(), 0))
            next_at += request["every"]
            stored = threading.Event()
            began = time.monotonic_ns()
            self._peer.send([payload(request["run"], request["size"], number)], stored.set)
            stored.wait()
            waits.append((time.monotonic_ns() - began) / 1e6)
        waits.sort()
        return {"send_p50_ms": waits[len(waits) // 2]}

    async def _expect(self, request: dict[str, Any]) -> dict[str, Any]:
        tally = self._peer.tallies[request["run"]]
        complete = threading.Event()
        tally.when(request["count"], complete.set)
        await to_thread.run_sync(complete.wait)
        return {**tally.summary(), "met": self._peer.met}

    async def _usage(self, _: dict[str, Any]) -> dict[str, Any]:
        return usage()


async def main(options: argparse.Namespace) -> None:
    """Run until stdin ends."""
    began = time.monotonic_ns()
    agent = RawAgent(Peer(options.home, options.suite))
    opened = time.monotonic_ns()
    tell(event="ready", pid=os.getpid(), began=began, opening=began, opened=opened)
    await serve(agent.actions)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--suite", default="hybrid-1")
    anyio.run(until_signal, main, parser.parse_args())
    # Its threads wait in system calls that nothing ends.
    sys.stdout.flush()
    os._exit(0)
