"""The supervised child process: `open_child` keeps one running for as long as it is open.

A child that dies, or does not answer a ping, is replaced. What was set up through
`IpfsNode` (listeners, forwards, subscriptions) is set up again before anybody's call gets
through to the new one; what others set up, their `on_restart` functions set up. Calls that
were under way fail with `ChildError`; calls that begin meanwhile wait.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
from anyio.abc import ObjectReceiveStream, TaskGroup, TaskStatus

from walyoff.abc import Broadcast
from walyoff.child.rpc import MAX_NAME, MAX_TIMEOUT
from walyoff.errors import (
    ChildError,
    LocalProtocolError,
    PayloadTooLargeError,
    WalyoffError,
)
from walyoff.fanout import Fanout
from walyoff.sealing import Sealing
from walyoff.tasks import background_tasks
from walyoff.walytis.link import GOODBYE_TIME, CallFailedError, Link, connect
from walyoff.walytis.spawning import ChildProcess

_log = logging.getLogger(__name__)
_NOT_SEALED = Sealing()

#: Seconds between pings, and for an answer. Two that are unanswered condemn the child, because
#: one may be if it was this process that did not run meanwhile.
PING_INTERVAL = 5.0
PING_TIME = 5.0
#: Seconds before the first new attempt, and at most; it doubles.
FIRST_BACKOFF = 0.05
MAX_BACKOFF = 10.0
#: A child that lived this long, in seconds, is replaced without back-off again.
HEALTHY_AFTER = 30.0
#: Seconds for one function of `on_restart`.
RESTART_HOOK_TIME = 60.0
#: Events that wait for one consumer; the oldest are dropped.
EVENT_BUFFER = 1_024
#: Pubsub messages that wait for one consumer (at most 1 MB each); the oldest are dropped.
PUBSUB_BUFFER = 256
#: Deadlines in seconds: swarm connections are slow to fail, the rest is immediate.
CONNECT_TIME = 10.0
CALL_TIME = 10.0
#: See `walyoff.child.kubo`, which cannot be imported here: it calls into Go.
MAX_PUBLISH = 1_000_000
MAX_SOCKET_PATH = 107
MAX_TOPIC = 512

#: In the functions of `on_restart`: the new child, whose calls must not wait for them.
_setting_up: ContextVar[Link | None] = ContextVar("walyoff_child_setup", default=None)


class Child:
    """The child process as the rest of walyoff sees it; it implements `abc.IpfsNode`."""

    def __init__(
        self,
        home: Path,
        sealing: Sealing,
        listen: Sequence[str],
        first: ChildProcess | None = None,
    ) -> None:
        self._home = home.absolute()
        #: A process that was started before the home was this device's.
        self._first = first
        self._hello = {**sealing.hello(), "listen": list(listen)}
        self._link: Link | None = None
        self._ready = anyio.Event()
        self._closing = False
        self._started = False
        self._failure = "the child is not started"
        self._peer_id = ""
        self._addresses: tuple[str, ...] = ()
        self._generation = 0
        self._pid: int | None = None
        self._listeners: dict[str, str] = {}
        self._forwards: dict[tuple[str, str], str] = {}
        self._topics: Fanout[Broadcast] = Fanout(PUBSUB_BUFFER)
        self._events: Fanout[Any] = Fanout(EVENT_BUFFER)
        self._setup_lock = anyio.Lock()
        #: Awaited, in order, each time the child was replaced (not the first time). Calls
        #: made by them go through at once; everybody else's wait until they are done.
        self.on_restart: list[Callable[[], Awaitable[None]]] = []

    def __repr__(self) -> str:
        state = self._failure if self._link is None else "running"
        return f"<Child pid={self._pid} generation={self._generation} [{state}]>"

    # ----------------------------------------------------------------------- calls

    async def call(self, method: str, args: dict[str, Any], *, timeout: float = 30.0) -> Any:
        """Call a method of the child, within `timeout` seconds (at most an hour).

        Cancelling leaves the call done or not done.

        Raises:
            ChildError: it failed (`CallFailedError.kind` says how), took too long, or the
                child was replaced meanwhile: it may have been done.
            LocalProtocolError: the arguments are wrong.
            WalyoffError: any other error of ours that the child answered with.
        """
        if not 0 < len(method) <= MAX_NAME or not 0 < timeout <= MAX_TIMEOUT:
            raise LocalProtocolError("a call needs a method name and a timeout")
        if not all(isinstance(key, str) for key in args):
            raise LocalProtocolError("arguments have names")
        link = self._link
        if not self._ready.is_set() and (link is None or _setting_up.get() is not link):
            began = anyio.current_time()
            await self.wait_ready(timeout=timeout)
            # What is left, but something: the child is there now.
            timeout = max(timeout - (anyio.current_time() - began), 0.1)
        return await self._now(method, args, timeout)

    def events(self, name: str) -> AbstractAsyncContextManager[ObjectReceiveStream[Any]]:
        """The child's events of a name; the oldest are dropped for a slow consumer."""
        return self._events.subscribe(name)

    async def wait_ready(self, *, timeout: float = math.inf) -> None:
        """Wait until the child is there and set up.

        Raises:
            ChildError: it was closed, or is not there after `timeout` seconds.
        """
        with anyio.move_on_after(timeout):
            while not self._ready.is_set() and not self._closing:
                await self._ready.wait()
            await anyio.lowlevel.checkpoint()
        if self._closing or not self._ready.is_set():
            raise ChildError(self._failure)

    @property
    def pid(self) -> int | None:
        """The process id of the present child, if there is one."""
        return self._pid

    # -------------------------------------------------------------------- IpfsNode

    @property
    def peer_id(self) -> str:
        """The node's libp2p peer id, in base58."""
        return self._peer_id

    @property
    def generation(self) -> int:
        """How many times the node was started."""
        return self._generation

    @property
    def addresses(self) -> Sequence[str]:
        """The node's multiaddrs, each ending in `/p2p/PEER_ID`."""
        return self._addresses

    async def connect(self, multiaddr: str) -> None:
        """Connect the swarm to a peer. Raises TransportError."""
        await self.call("ipfs.connect", {"multiaddr": multiaddr}, timeout=CONNECT_TIME)

    async def listen_streams(self, protocol: str, socket_path: str) -> None:
        """Hand incoming streams of a protocol to the listening Unix socket at a path."""
        check_socket_path(socket_path)
        await self.wait_ready(timeout=CALL_TIME)
        async with self._setup_lock:
            if protocol in self._listeners:
                raise LocalProtocolError(f"{protocol} has a listener already")
            self._listeners[protocol] = socket_path
            try:
                await self._now(*_listen(protocol, socket_path))
            except BaseException:
                # Whether it was done is unknown, so it is undone.
                del self._listeners[protocol]
                await self._undo("p2p.close", {"protocol": protocol})
                raise

    async def forward_streams(self, protocol: str, peer_id: str, socket_path: str) -> None:
        """Make connections to a Unix socket at a path streams of a protocol to a peer."""
        check_socket_path(socket_path)
        key = (protocol, peer_id)
        await self.wait_ready(timeout=CALL_TIME)
        async with self._setup_lock:
            if key in self._forwards:
                raise LocalProtocolError(f"{protocol} is forwarded to {peer_id} already")
            self._forwards[key] = socket_path
            try:
                await self._now(*_forward(key, socket_path))
            except BaseException:
                del self._forwards[key]
                await self._undo("p2p.close", {"protocol": protocol, "peer_id": peer_id})
                raise

    async def close_streams(
        self, protocol: str, *, peer_id: str | None = None, socket_path: str | None = None
    ) -> None:
        """End the listener (no peer id) or the forward to a peer. Idempotent."""
        async with self._setup_lock:
            if peer_id is None:
                self._listeners.pop(protocol, None)
            else:
                self._forwards.pop((protocol, peer_id), None)
            args = {"protocol": protocol, "peer_id": peer_id, "path": socket_path}
            # A child that is being replaced has forgotten it.
            if self._link is not None:
                await self._now("p2p.close", args)

    async def publish(self, topic: str, payload: bytes) -> None:
        """Publish once on pubsub, without any promise; at most 1,000,000 bytes."""
        if len(payload) > MAX_PUBLISH:
            raise PayloadTooLargeError(len(payload), MAX_PUBLISH, "pubsub message")
        args = {"topic": topic, "data": bytes(payload)}
        await self.call("pubsub.publish", args, timeout=CALL_TIME)

    @asynccontextmanager
    async def subscribe(self, topic: str) -> AsyncIterator[ObjectReceiveStream[Broadcast]]:
        """Receive pubsub messages, own ones included, oldest dropped when slow."""
        if not 0 < len(topic) <= MAX_TOPIC:
            raise LocalProtocolError(f"a topic has 1 to {MAX_TOPIC} characters")
        async with self._topics.subscribe(topic) as stream:
            try:
                await self.wait_ready(timeout=CALL_TIME)
                async with self._setup_lock:
                    await self._now("pubsub.subscribe", {"topic": topic})
                yield stream
            finally:
                with anyio.CancelScope(shield=True):
                    async with self._setup_lock:
                        # This one still counts.
                        if self._topics.count(topic) == 1:
                            await self._undo("pubsub.unsubscribe", {"topic": topic})

    async def topic_peers(self, topic: str) -> list[str]:
        """The peer ids that the node sees on a topic."""
        found = await self.call("pubsub.peers", {"topic": topic}, timeout=CALL_TIME)
        return [peer for peer in _list(found) if isinstance(peer, str)]

    # ----------------------------------------------------------------- supervision

    async def _supervise(self, *, task_status: TaskStatus[None]) -> None:
        """Keep a child running until cancelled; what the first start fails of is raised."""
        backoff = FIRST_BACKOFF
        while not self._closing:
            began = anyio.current_time()
            try:
                await self._one_life(task_status)
            except ChildError as error:
                if not self._started:
                    raise
                self._failure = str(error)
            if not self._started:
                raise ChildError(self._failure)
            if anyio.current_time() - began > HEALTHY_AFTER:
                backoff = FIRST_BACKOFF
            _log.warning("%s; a new one starts in %.2f s", self._failure, backoff)
            await anyio.sleep(backoff)
            backoff = min(backoff * 2, MAX_BACKOFF)

    async def _one_life(self, task_status: TaskStatus[None]) -> None:
        process, self._first = self._first or ChildProcess(self._home), None
        try:
            if process.pid is None:
                await anyio.to_thread.run_sync(process.spawn)
            self._pid = process.pid
            async with connect(process) as stream:
                link = Link(stream, self._dispatch)
                hello = await link.greet(self._hello)
                self._peer_id = str(hello.info.get("peer_id", ""))
                self._addresses = tuple(map(str, _list(hello.info.get("addresses"))))
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._set_up, link, process, task_status, tasks)
                    reason = await link.run()
                    if not self._closing:
                        self._failure = reason
                    tasks.cancel_scope.cancel()
        finally:
            self._link = None
            if self._ready.is_set():
                self._ready = anyio.Event()
            self._pid = None
            with anyio.CancelScope(shield=True):
                grace = GOODBYE_TIME if self._closing else 0.2
                await anyio.to_thread.run_sync(process.reap, grace)

    async def _set_up(
        self,
        link: Link,
        process: ChildProcess,
        task_status: TaskStatus[None],
        tasks: TaskGroup,
    ) -> None:
        """Make a new child what the old one was, then let everybody's calls through."""
        try:
            async with self._setup_lock:
                self._link = link
                self._generation += 1
                for protocol, path in self._listeners.items():
                    await link.call(*_listen(protocol, path), CALL_TIME)
                for key, path in self._forwards.items():
                    await link.call(*_forward(key, path), CALL_TIME)
                for topic in self._topics.names():
                    await link.call("pubsub.subscribe", {"topic": topic}, CALL_TIME)
        except WalyoffError as error:
            _log.warning("the new child could not be set up: %s", error)
            await anyio.to_thread.run_sync(process.kill)
            return
        if self._started:
            await self._run_hooks(link)
        self._ready.set()
        if not self._started:
            self._started = True
            task_status.started()
        tasks.start_soon(self._watch, link, process)

    async def _run_hooks(self, link: Link) -> None:
        _setting_up.set(link)
        for hook in list(self.on_restart):
            try:
                with anyio.fail_after(RESTART_HOOK_TIME):
                    await hook()
            except Exception:
                _log.exception("a function that was to run after a restart failed")

    async def _watch(self, link: Link, process: ChildProcess) -> None:
        while True:
            await anyio.sleep(PING_INTERVAL)
            for first in (True, False):
                try:
                    await link.call("ping", {}, PING_TIME)
                    break
                except WalyoffError as error:
                    if link.closed:
                        return
                    if not first:
                        _log.warning("the child does not answer (%s): it is killed", error)
                        await anyio.to_thread.run_sync(process.kill)
                        return

    async def _close(self) -> None:
        """Ask the child to end; `_one_life` waits for it, and kills it in the end."""
        self._closing = True
        self._failure = "the child is closed"
        link, self._link = self._link, None
        self._ready.set()
        self._topics.close()
        self._events.close()
        if link is not None:
            with contextlib.suppress(WalyoffError), anyio.move_on_after(0.5):
                await link.call("exit", {}, 1.0)

    def _dispatch(self, name: str, data: Any) -> None:
        if name != "pubsub":
            self._events.publish(name, data)
            return
        for item in _list(data):
            match item:
                case [str() as topic, str() as sender, bytes() as payload]:
                    self._topics.publish(topic, Broadcast(sender=sender, payload=payload))

    async def _now(self, method: str, args: dict[str, Any], timeout: float = CALL_TIME) -> Any:
        """Call without waiting for a child that is not there."""
        link = self._link
        if link is None:
            raise ChildError(f"{method}: {self._failure}")
        return await link.call(method, args, timeout)

    async def _undo(self, method: str, args: dict[str, Any]) -> None:
        # A child that is gone or being replaced has forgotten it anyway.
        with anyio.CancelScope(shield=True), contextlib.suppress(WalyoffError):
            if (link := self._link) is not None:
                await link.call(method, args, 1.0)


def check_socket_path(path: str) -> None:
    """Raise LocalProtocolError if no Unix socket can have this path."""
    size = len(path.encode("utf-8", "surrogateescape"))
    if not path.startswith("/") or "\0" in path or size > MAX_SOCKET_PATH:
        raise LocalProtocolError(
            f"socket path of {size} bytes is not absolute or exceeds {MAX_SOCKET_PATH}"
        )


def _listen(protocol: str, path: str) -> tuple[str, dict[str, Any]]:
    return "p2p.listen", {"protocol": protocol, "path": path}


def _forward(key: tuple[str, str], path: str) -> tuple[str, dict[str, Any]]:
    return "p2p.forward", {"protocol": key[0], "peer_id": key[1], "path": path}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


@asynccontextmanager
async def open_child(
    home: Path,
    *,
    sealing: Sealing = _NOT_SEALED,
    listen: Sequence[str] = (),
    process: ChildProcess | None = None,
) -> AsyncIterator[Child]:
    """Run the child process of a home (made if needed) while the context is open.

    Only one child may use a home at a time; the store's lock sees to that. Without a sealing
    its keys are in clear. `listen` are multiaddrs; without any it listens where it did last.
    `process` is one that was started already (see `walyoff.walytis.spawning`).

    Raises:
        ChildError: it could not be started; `HOME/child/child.log` says why.
    """
    child = Child(home, sealing, listen, process)
    async with background_tasks() as tasks:
        await tasks.start(child._supervise)
        try:
            yield child
        finally:
            # What remains after it is the wait for the process, shielded and bounded too.
            with anyio.CancelScope(shield=True):
                await child._close()


__all__ = ["CallFailedError", "Child", "check_socket_path", "open_child"]
