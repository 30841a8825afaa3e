"""The child process: `python -m walyoff.child.main FD HOME PARENT_PID`.

`walyoff.walytis.process` starts it with a prepared environment and a socketpair; see there
for what is set. It serves Kubo at once and Walytis as soon as that has been imported, and
it never outlives its parent: the end of the socket ends it, and because a fork of the
parent could hold that socket open, so does a change of the parent's process id.
(`PR_SET_PDEATHSIG` would not do: it fires when the parent's *thread* that made us ends, and
event loops make processes on threads that come and go.)
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import os
import resource
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from types import FrameType
from typing import Any

from walyoff.child import repo
from walyoff.child.hidden_key import hide_key, runnable
from walyoff.child.kubo import Kubo, KuboError
from walyoff.child.pubsub import PubsubHub, Subscription
from walyoff.child.server import Gate, Server, end_hung
from walyoff.errors import StoreError
from walyoff.sealing import Sealing

_log = logging.getLogger("walyoff.child")

_NOT_SEALED = Sealing()
#: Methods that the Walytis part answers, once it is there.
UPSTREAM_PREFIXES = ("chain.", "did.", "group.")
UPSTREAM_MODULE = "walyoff.child.upstream"
#: The log of everything that this process prints, Go's text included, in bytes.
MAX_LOG = 1 << 20
#: Older logs that are kept: child.log.1 is the newest of them.
OLD_LOGS = 2
#: Kubo's own log, in the working folder; it is cut, since it holds errors only.
MAX_KUBO_LOG = 4 << 20
#: Seconds between looks at the parent and the log.
WATCH_INTERVAL = 0.5
#: Seconds for bringing Walytis up: it takes less than one, and some on a very busy machine.
INSTALL_TIME = 60.0
#: Seconds for stopping Kubo before the process ends anyway.
STOP_TIME = 1.5
#: The most that one "pubsub" event carries, in bytes of messages.
MAX_EVENT = 4 << 20


class OutputLog:
    """File descriptors 1 and 2, sent to a file that is replaced when it grows.

    The descriptors lead to the file itself, not to a pipe with a reader: the reader would
    die with the process, and the last words of a Go panic are what one wants to read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._open()

    def rotate(self) -> None:
        """Start a new file if this one is full."""
        if os.fstat(2).st_size < MAX_LOG:
            return
        for number in range(OLD_LOGS, 0, -1):
            older = self._path.with_name(f"{self._path.name}.{number}")
            newer = self._path.with_name(f"{self._path.name}.{number - 1}")
            with contextlib.suppress(FileNotFoundError):
                os.replace(newer if number > 1 else self._path, older)
        self._open()

    def _open(self) -> None:
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        os.close(fd)


class PubsubEvents:
    """Sends the messages of the topics that the parent subscribed to, in batches."""

    def __init__(self, server: Server, hub: PubsubHub) -> None:
        self._server = server
        self._hub = hub
        self._lock = threading.Lock()
        self._subscriptions: dict[str, Subscription] = {}
        self._batch: list[tuple[str, str, bytes]] = []
        self._size = 0
        hub.after_round.append(self._flush)

    def subscribe(self, topic: str) -> None:
        """Begin; idempotent."""

        def receive(sender: str, data: bytes) -> None:
            self._batch.append((topic, sender, data))
            self._size += len(data)
            if self._size > MAX_EVENT:
                self._flush()

        with self._lock:
            if topic not in self._subscriptions:
                self._subscriptions[topic] = self._hub.subscribe(topic, receive)

    def unsubscribe(self, topic: str) -> None:
        """End; idempotent."""
        with self._lock:
            if subscription := self._subscriptions.pop(topic, None):
                subscription.close()

    def _flush(self) -> None:
        if self._batch:
            batch, self._batch, self._size = self._batch, [], 0
            self._server.emit("pubsub", batch)


def start_kubo(
    home: Path,
    sealing: Sealing = _NOT_SEALED,
    listen: Sequence[str] | None = None,
    kubo: Kubo | None = None,
) -> Kubo:
    """The running node of a home, on the port of its last start if that is still free.

    `listen` are multiaddrs, as in `repo.ensure_repo`; `kubo` is the library, if it is loaded.

    Raises:
        StoreError: the repository cannot be used.
        KuboError: the node does not start.
    """
    path = home / "ipfs"
    links = home / "child" / "repo"
    repo.ensure_repo(path, listen)
    hide_key(path, sealing)
    kubo = kubo or Kubo()
    try:
        kubo.start(runnable(path, links, sealing))
    except KuboError:
        config = repo.read_config(path)
        if host := repo.lost_host(config):
            raise KuboError(
                f"this machine has no address {host} any more: name another with --listen"
            ) from None
        # Most likely the port was taken meanwhile. Peers learn the new one from us.
        if not repo.forget_ports(path):
            raise
        _log.warning("Kubo did not start on its old port, trying any port")
        try:
            kubo.start(runnable(path, links, sealing))
        except KuboError:
            # It was something else, so the port may be free again next time.
            repo.write_config(path, config)
            raise
    repo.keep_ports(path, kubo.addresses())
    return kubo


def register_ipfs(server: Server, kubo: Kubo, hub: PubsubHub) -> None:
    """Offer what transports need of the node."""
    events = PubsubEvents(server, hub)

    server.register("ipfs.connect", kubo.connect)
    server.register("ipfs.addresses", kubo.addresses)
    server.register("ipfs.peers", kubo.peers)
    server.register("p2p.listen", kubo.p2p_listen)
    server.register("p2p.forward", kubo.p2p_forward)
    server.register("p2p.close", kubo.p2p_close)
    server.register("pubsub.publish", hub.publish)
    server.register("pubsub.subscribe", events.subscribe)
    server.register("pubsub.unsubscribe", events.unsubscribe)
    server.register("pubsub.peers", kubo.topic_peers)


def install_upstream(
    server: Server, kubo: Kubo, hub: PubsubHub, home: Path, owned: Future[Sealing]
) -> None:
    """Bring Walytis up, on a thread of its own: its import takes some tenths of a second."""
    failure = None
    began = time.monotonic()
    try:
        if importlib.util.find_spec(UPSTREAM_MODULE) is None:
            failure = "this installation has no Walytis part"
        else:
            upstream: Any = importlib.import_module(UPSTREAM_MODULE)
            upstream.install(server, kubo, hub, home, owned.result)
            _log.info("Walytis is up after %.0f ms", (time.monotonic() - began) * 1000)
    except BaseException as error:
        # SystemExit too: multi_crypt raises it when it finds no liboqs.
        _log.exception("Walytis could not be started")
        failure = f"Walytis could not be started: {type(error).__name__}: {error}"
    server.open_gate(failure)


def _listen(told: dict[str, Any]) -> list[str] | None:
    """The multiaddrs to listen at, if the parent named some."""
    listen = told.get("listen")
    if isinstance(listen, list) and listen and all(isinstance(a, str) for a in listen):
        return listen
    return None


def _cut_kubo_log() -> None:
    with contextlib.suppress(OSError):
        if os.stat("kubo.log").st_size > MAX_KUBO_LOG:
            os.truncate("kubo.log", 0)


def _end(kubo: Kubo | None, code: int) -> None:
    """Leave at once: threads in Go or in Walytis would keep an ordinary exit waiting."""
    if kubo is not None:
        stopper = threading.Thread(target=kubo.stop, daemon=True)
        stopper.start()
        stopper.join(STOP_TIME)
    logging.shutdown()
    os._exit(code)


def main(fd: int, home: Path, parent: int) -> None:
    """Serve until the parent ends the connection, dies, or a signal comes."""
    os.umask(0o077)
    # Keys are in the memory of this process: a core would lie in the home, in clear.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.set_inheritable(fd, False)
    connection = socket.socket(fileno=fd)
    (home / "child").mkdir(mode=0o700, parents=True, exist_ok=True)
    output = OutputLog(home / "child" / "child.log")
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(threadName)s %(name)s: %(message)s",
    )
    server = Server(connection, Gate(UPSTREAM_PREFIXES))
    try:
        _serve(server, connection, home, parent, output)
    except (KuboError, StoreError) as error:
        # The person who waits for the device reads this, and nobody reads the log.
        server.refuse(str(error))
        raise


def _serve(
    server: Server, connection: socket.socket, home: Path, parent: int, output: OutputLog
) -> None:
    kubo = Kubo()
    hub = PubsubHub(kubo)
    #: The sealing, when the home is this process's and the node runs.
    owned: Future[Sealing] = Future()
    upstream = threading.Thread(
        target=install_upstream,
        args=(server, kubo, hub, home, owned),
        name="upstream",
        daemon=True,
    )
    # Imports go on while the parent opens its store: until it says hello, the home may be
    # another process's, and nothing in it is read or changed.
    upstream.start()
    while not select.select([connection], [], [], WATCH_INTERVAL)[0]:
        if os.getppid() != parent:
            _end(None, 0)
    told = server.greet()
    if told is None:
        _end(None, 0)
        return
    began = time.monotonic()
    _cut_kubo_log()
    sealing = Sealing.from_hello(told)
    start_kubo(home, sealing, _listen(told), kubo)

    def on_signal(number: int, frame: FrameType | None) -> None:
        server.ended.set()

    def take_signals() -> None:
        # Go takes these over when the node starts, and so may what is imported later.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, on_signal)

    take_signals()
    register_ipfs(server, kubo, hub)
    server.start({"peer_id": kubo.peer_id, "addresses": kubo.addresses()})
    _log.info("ready after %.0f ms: %r", (time.monotonic() - began) * 1000, kubo)
    owned.set_result(sealing)
    watched_upstream = True
    while not server.ended.wait(WATCH_INTERVAL):
        if os.getppid() != parent:
            _log.warning("the parent is gone")
            break
        output.rotate()
        _cut_kubo_log()
        if watched_upstream and not upstream.is_alive():
            watched_upstream = False
            take_signals()
        if watched_upstream and time.monotonic() - began > INSTALL_TIME:
            end_hung("bringing Walytis up hangs")
    hub.close()
    _end(kubo, 0)


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
    except BaseException:
        _log.exception("the child could not start")
        _end(None, 1)
