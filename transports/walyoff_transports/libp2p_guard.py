"""What must be put right in py-libp2p 0.8.1 before anybody may rely on it.

Each function here is for one thing that was seen to go wrong; the canary tests show it go
wrong without the guard, so that a guard which upstream has made needless shows too. Private
attributes are touched, which is why the version is pinned. Runs on the trio loop.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from weakref import WeakKeyDictionary

import trio
from libp2p.network.connection import swarm_connection
from libp2p.peer.peerstore import env_to_send_in_RPC
from libp2p.pubsub import gossipsub
from libp2p.pubsub import pubsub as pubsub_module
from libp2p.stream_muxer.yamux import yamux
from libp2p.tools.anyio_service.trio_manager import TrioManager

_log = logging.getLogger("walyoff_transports.libp2p")

#: Seconds between heartbeats of a connection, and of silence until it is given up.
BEAT_EVERY = 2.0
DEAD_AFTER = 8.0
#: Seconds for one frame to leave; a connection on which it does not is dead.
WRITE_TIME = 20.0
#: Bytes that wait unread on one connection. An honest peer keeps to the credit it got, which
#: upstream lets grow to 16 MiB for each stream that is read fast; nothing enforces it there.
MAX_UNREAD = 48 * 1024 * 1024
#: Seconds for a service to stop; then its tasks are cancelled.
STOP_TIME = 3.0
#: Streams of one connection that are served at a time, and of all connections.
MAX_PEER_STREAMS = 192
MAX_STREAMS = 1_024
#: Pubsub messages a second that one peer may hand on, and at once after a rest.
PEER_RATE, PEER_BURST = 1_000.0, 2_000.0
#: Peers whose rate is remembered.
MAX_RATED = 1_024
#: Pubsub messages that wait for one peer (upstream: 32, and it drops in silence), and bytes.
QUEUE_MESSAGES = 4_096
QUEUE_BYTES = 32 * 1024 * 1024
#: Pubsub messages kept for a peer that may be about to say that it wants them (upstream: 100,
#: so 90 MB, for everybody who is connected, and all of it is sent when the peer subscribes).
MAX_PENDING = 8


def silence_logging() -> None:
    """Keep upstream from adding a root handler, and from writing to standard error.

    `swarm_connection` calls `logging.debug` itself, which sets up the root logger of
    whoever's program this is; and the package's logger has no handler at all, for which
    Python has one of last resort.
    """
    swarm_connection.logging = logging.getLogger("libp2p.network.connection")
    logger = logging.getLogger("libp2p")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())


# ------------------------------------------------------------------------ connections


class GuardedYamux(yamux.Yamux):  # type: ignore[misc]
    """A connection that nobody's cancellation breaks, that has a heartbeat, and a bound."""

    @classmethod
    def adopt(cls, muxed: Any) -> None:
        """Turn a connection that was not started yet into one of these."""
        muxed.__class__ = cls
        muxed.secured_conn = _Listening(muxed.secured_conn)
        muxed.stream_buffers = _Buffers()

    async def _write_frame(self, data: bytes) -> None:
        # A frame that is cut off has used up its nonce: all that follows would not decrypt.
        with trio.CancelScope(shield=True, deadline=trio.current_time() + WRITE_TIME) as scope:
            await super()._write_frame(data)
        if scope.cancelled_caught:
            await self.give_up()

    async def _measure_rtt_loop(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._beat)
            # In steps: time in which this process did not run says nothing about the peer.
            step, silent = BEAT_EVERY / 2, 0.0
            while not self.event_shutting_down.is_set():
                before = self.secured_conn.heard
                await trio.sleep(step)
                silent = silent + step if self.secured_conn.heard == before else 0.0
                if silent >= DEAD_AFTER:
                    _log.info("a peer is silent: its connection is closed")
                    await self.give_up()
                    break
            nursery.cancel_scope.cancel()

    async def _beat(self) -> None:
        number = 0
        while True:
            number = (number + 1) % (1 << 32)
            header = yamux.struct.pack(
                yamux.YAMUX_HEADER_FORMAT, 0, yamux.TYPE_PING, yamux.FLAG_SYN, 0, number
            )
            # For the round-trip time, which sizes the windows.
            self._ping_sent_time = trio.current_time()
            try:
                await self._write_frame(header)
            except Exception:
                # It is broken; whoever reads it finds out and says so.
                return
            await trio.sleep(BEAT_EVERY)

    async def give_up(self) -> None:
        """Close a connection that does not answer, whatever waits on it."""
        with trio.CancelScope(shield=True):
            await self._cleanup_on_error()


class _Listening:
    """A secure connection that counts how often it was heard."""

    def __init__(self, conn: Any) -> None:
        self._conn = conn
        self.heard = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._conn, name)

    async def read(self, n: int | None = None) -> bytes:
        data: bytes = await self._conn.read(n)
        self.heard += 1
        return data


class _Buffers(dict[int, bytearray]):
    """The unread bytes of a connection's streams, bounded in sum."""

    def __setitem__(self, stream_id: int, buffer: bytearray) -> None:
        super().__setitem__(stream_id, _Buffer(buffer, self))


class _Buffer(bytearray):
    def __init__(self, data: bytearray, all_buffers: _Buffers) -> None:
        super().__init__(data)
        self._all = all_buffers

    def extend(self, data: Any) -> None:
        if len(data) + sum(map(len, self._all.values())) > MAX_UNREAD:
            # Upstream ends the stream then.
            raise BufferError("more is unread than the peer got credit for")
        super().extend(data)


def guard_connections(swarm: Any) -> set[Any]:
    """Guard every connection of a swarm from its start; free its place when it ends.

    Upstream counts a connection that came in as there until the host ends, and refuses all
    others after 250. Returns the connections, also those that upstream forgets to close when
    it is cancelled at the wrong moment.
    """
    upgrade = swarm.upgrader.upgrade_connection
    accept = swarm.upgrade_inbound_raw_conn
    connections: set[Any] = set()

    async def upgrade_guarded(conn: Any, peer_id: Any) -> Any:
        muxed = await upgrade(conn, peer_id)
        GuardedYamux.adopt(muxed)
        connections.difference_update([c for c in connections if c.event_closed.is_set()])
        connections.add(muxed)
        return muxed

    async def accept_until_closed(raw_conn: Any, maddr: Any) -> Any:
        muxed = await accept(raw_conn, maddr)
        await muxed.event_closed.wait()
        # The caller's way to let go of what it holds.
        raise ConnectionError("the connection ended")

    swarm.upgrader.upgrade_connection = upgrade_guarded
    swarm.upgrade_inbound_raw_conn = accept_until_closed
    return connections


# ------------------------------------------------------------------- handlers and tasks


def guard_streams(swarm: Any) -> None:
    """Let nothing that happens in a stream's handler reach the host, and bound the streams.

    An exception there ends upstream's host: 50 bytes of garbage were enough.
    """
    handle = swarm.common_stream_handler
    served: Counter[Any] = Counter()

    async def guarded(stream: Any) -> None:
        conn = stream.muxed_conn
        if served[conn] >= MAX_PEER_STREAMS or served.total() >= MAX_STREAMS:
            await _reset(stream)
            return
        served[conn] += 1
        try:
            await handle(stream)
        except Exception as error:
            _log.debug("a stream's handler failed: %r", error)
            await _reset(stream)
        finally:
            served[conn] -= 1
            if not served[conn]:
                del served[conn]

    swarm.set_stream_handler(guarded)


async def _reset(stream: Any) -> None:
    try:
        await stream.reset()
    except Exception as error:
        _log.debug("a stream could not be reset: %r", error)


@asynccontextmanager
async def run_service(service: Any) -> AsyncIterator[None]:
    """Run one of upstream's services while the context is open, its tasks on their own.

    There a failing task ends its service, and that the host. Here it ends alone; if it was a
    connection's, the connection with it.
    """
    async with trio.open_nursery() as nursery:
        manager = TrioManager(service)
        service._manager = manager

        run_itself = manager.run_task

        def run_task(
            function: Callable[..., Awaitable[Any]], *args: Any, **options: Any
        ) -> None:
            if options.get("_internal"):
                run_itself(function, *args, **options)
            else:
                nursery.start_soon(_alone, function, args)

        manager.run_task = run_task
        nursery.start_soon(manager.run)
        await manager.wait_started()
        try:
            yield
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + STOP_TIME):
                await manager.stop()
            nursery.cancel_scope.cancel()


async def _alone(function: Callable[..., Awaitable[Any]], args: tuple[Any, ...]) -> None:
    try:
        await function(*args)
    except Exception as error:
        _log.debug("a task failed: %r", error)
        owner = getattr(function, "__self__", None)
        if isinstance(owner, GuardedYamux):
            await owner.give_up()


# ----------------------------------------------------------------------------- pubsub


def guard_pubsub(pubsub: Any, counter: int) -> None:
    """Longer queues, bounded in bytes; a limit for each peer; numbers that grow over restarts.

    Upstream adds a signed record of the host's addresses to every message, for which it looks
    all of them up, which was a third of the work; here it is made once.

    Upstream begins its numbers with the time in seconds, so that what a publisher sends after
    a quick restart counts as seen.

    Upstream tells a peer of the topics while it takes it up, and everybody of each change: who
    is being taken up in that moment would never hear of the change.

    Upstream writes what it kept for a peer, what was said lately and what is said now in three
    tasks on one stream: long messages got mixed, and the stream was good for nothing from then
    on. They take turns here.
    """
    pubsub.counter = counter
    pubsub.peer_queues = _Queues()
    pubsub.router._pending_messages = defaultdict(_Few)
    pubsub_module.env_to_send_in_RPC = gossipsub.env_to_send_in_RPC = _record
    write = pubsub.write_msg
    turns: WeakKeyDictionary[Any, trio.Lock] = WeakKeyDictionary()

    async def write_in_turn(stream: Any, message: Any) -> bool:
        async with turns.setdefault(stream, trio.Lock()):
            written: bool = await write(stream, message)
            return written

    pubsub.write_msg = write_in_turn
    push = pubsub.push_msg
    rates = _Rates()

    async def push_limited(forwarder: Any, message: Any) -> None:
        if forwarder == pubsub.my_id or rates.allow(forwarder, trio.current_time()):
            await push(forwarder, message)

    pubsub.push_msg = push_limited
    take_up = pubsub._handle_new_peer

    async def take_up_and_tell(peer: Any) -> None:
        known, told = peer in pubsub.peers, set(pubsub.topic_ids)
        await take_up(peer)
        queue = pubsub.peer_queues.get(peer)
        if queue is None or known:
            return
        topics = set(pubsub.topic_ids)
        for topic in told ^ topics:
            packet, change = pubsub._build_announce_rpc(topic, subscribe=topic in topics)
            pubsub._enqueue_or_retry_announce(peer, queue, packet, change)

    pubsub._handle_new_peer = take_up_and_tell


def _record(host: Any) -> tuple[bytes, bool]:
    """The host's signed record, made when it is first needed: it listens by then."""
    found = getattr(host, "walyoff_record", None)
    if found is None:
        found = host.walyoff_record = env_to_send_in_RPC(host)[0]
    return found, False


class _Queues(dict[Any, Any]):
    def __setitem__(self, peer: Any, queue: Any) -> None:
        inner = queue._queue
        inner.max_size = QUEUE_MESSAGES
        push, pop, held = inner.push, inner.pop, 0

        def push_bounded(rpc: Any, priority: bool = False) -> bool:
            nonlocal held
            size = rpc.ByteSize()
            if held + size > QUEUE_BYTES or not push(rpc, priority):
                return False
            held += size
            return True

        def pop_counted() -> Any:
            nonlocal held
            rpc = pop()
            held = held - rpc.ByteSize() if rpc is not None else 0
            return rpc

        inner.push, inner.pop = push_bounded, pop_counted
        super().__setitem__(peer, queue)


class _Few(list[Any]):
    """Messages for a peer that is not subscribed."""

    def append(self, message: Any) -> None:
        super().append(message)
        del self[:-MAX_PENDING]


class _Rates:
    """A token bucket for each peer."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[Any, tuple[float, float]] = OrderedDict()

    def allow(self, peer: Any, now: float) -> bool:
        """Take one token if there is one."""
        tokens, since = self._buckets.pop(peer, (PEER_BURST, now))
        tokens = min(PEER_BURST, tokens + (now - since) * PEER_RATE)
        allowed = tokens >= 1
        self._buckets[peer] = (tokens - allowed, now)
        if len(self._buckets) > MAX_RATED:
            self._buckets.popitem(last=False)
        return allowed
