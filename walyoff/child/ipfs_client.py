"""The IPFS client that upstream Walytis is given: our own node, with limits.

Stock Walytis takes its client from one module; a module of that name holding an object of
this class is put in its place before Walytis is imported (see `upstream`). So there is no
second node, nothing is polled, no conversation is ever listened for, and no read waits for
ever.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from walyoff.child.blocks import MAX_FILE, check_cid, cid_of
from walyoff.errors import LedgerError, RemoteProtocolError, TransportError

#: How long a read of a block from other nodes may take, in seconds.
READ_DEADLINE_S = 5.0
#: A download that nobody answers cannot be cancelled and keeps a thread: at most so many.
MAX_DOWNLOADS = 64
#: Of these, at most so many on behalf of one announcer, so that one cannot stop the others.
MAX_DOWNLOADS_EACH = 4
#: Newest published blocks kept in memory: stock code reads back what it has just written.
MAX_RECENT = 32

_log = logging.getLogger(__name__)


class InertListener:
    """What stock code gets instead of a conversation listener: it listens to nothing."""

    def terminate(self, wait: bool = False) -> None:
        """Nothing to end."""


class Files:
    """Block files: read with a deadline, pins in memory."""

    def __init__(self, kubo: Any, scratch: Path) -> None:
        self._kubo = kubo
        self._scratch = scratch
        self._lock = threading.Lock()
        self._pins: set[str] | None = None
        self._recent: OrderedDict[str, bytes] = OrderedDict()
        self._downloads: dict[str, int] = {}
        self._names = itertools.count()
        #: Where a block may be on disk already: CID -> file content or None.
        self.local: Callable[[str], bytes | None] = lambda _cid: None

    def hold(self, cid: str, data: bytes) -> None:
        """Keep a block in memory for the reads that follow at once."""
        with self._lock:
            self._recent[cid] = data
            while len(self._recent) > MAX_RECENT:
                self._recent.popitem(last=False)

    def read(self, cid: str, announcer: str = "") -> bytes:
        """A file's content: memory, disk, then other nodes within the deadline.

        Raises:
            TransportError: nobody had it in time, or too many downloads hang.
            RemoteProtocolError: the CID is malformed or the file too large.
        """
        check_cid(cid)
        with self._lock:
            data = self._recent.get(cid)
        if data is None:
            data = self.local(cid)
        return data if data is not None else self._download(cid, announcer)

    def _download(self, cid: str, announcer: str) -> bytes:
        with self._lock:
            each = self._downloads.get(announcer, 0)
            if sum(self._downloads.values()) >= MAX_DOWNLOADS or each >= MAX_DOWNLOADS_EACH:
                raise TransportError("too many downloads hang")
            self._downloads[announcer] = each + 1
        answers: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        thread = threading.Thread(
            target=self._run_download,
            args=(cid, announcer, answers),
            daemon=True,
            name="download",
        )
        thread.start()
        try:
            data = answers.get(timeout=READ_DEADLINE_S)
        except queue.Empty:
            raise TransportError(f"nobody gave block {cid} in time") from None
        if data is None:
            raise TransportError(f"block {cid} could not be read")
        if len(data) > MAX_FILE:
            raise RemoteProtocolError("block file too large", reason="too-large")
        return data

    def _run_download(
        self, cid: str, announcer: str, answers: queue.SimpleQueue[bytes | None]
    ) -> None:
        path = self._scratch / f"download-{next(self._names)}"
        data: bytes | None = None
        try:
            self._kubo.download(cid, str(path))
            if path.is_file():
                with open(path, "rb") as file:
                    data = file.read(MAX_FILE + 1)
        except Exception as error:
            _log.debug("download of %s failed: %s", cid, error)
        finally:
            with contextlib.suppress(OSError):
                path.unlink()
            with self._lock:
                left = self._downloads[announcer] - 1
                if left:
                    self._downloads[announcer] = left
                else:
                    del self._downloads[announcer]
            answers.put(data)

    def publish(self, path: str) -> str:
        """Add a file to the node; returns its CID."""
        cid = str(self._kubo.add_file(path, False))
        size = os.path.getsize(path)
        if size <= MAX_FILE:
            self.hold(cid, Path(path).read_bytes())
        return cid

    def publish_bytes(self, cid: str, data: bytes) -> None:
        """Add and pin a block that was checked already, so that others can have it."""
        path = self._scratch / f"publish-{next(self._names)}"
        self.hold(cid, data)
        try:
            path.write_bytes(data)
            if str(self._kubo.add_file(str(path), False)) != cid:
                raise LedgerError("the node gave a block another CID")
            self.pin(cid)
        finally:
            with contextlib.suppress(OSError):
                path.unlink()

    def predict_cid(self, path: str) -> str:
        """The CID that a file will have."""
        with open(path, "rb") as file:
            return cid_of(file.read(MAX_FILE + 1))

    def pin(self, cid: str) -> None:
        """Keep a file; the node is asked once."""
        with self._lock:
            if self._pins is not None and cid in self._pins:
                return
        self._kubo.pin(cid)
        with self._lock:
            if self._pins is not None:
                self._pins.add(cid)

    def unpin(self, cid: str) -> None:
        """Let a file go."""
        self._kubo.unpin(cid)
        with self._lock:
            if self._pins is not None:
                self._pins.discard(cid)

    def remove(self, cid: str) -> None:
        """Stock code removes what it could not read; nothing of ours is ever removed."""

    def list_pins(self, cids_only: bool = True, cache_age_s: float | None = None) -> set[str]:
        """The pinned CIDs, from memory: listing them costs O(pins) at every add otherwise."""
        with self._lock:
            if self._pins is not None:
                return self._pins
        pins = set(self._kubo.list_pins())
        with self._lock:
            if self._pins is None:
                self._pins = pins
            return self._pins

    def terminate(self) -> None:
        """Nothing to end."""


class _Subscription:
    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def terminate(self, wait: bool = False) -> None:
        self._handle.close()


class Pubsub:
    """Pubsub through the child's hub: nothing is polled here."""

    def __init__(self, kubo: Any, hub: Any) -> None:
        self._kubo = kubo
        self._hub = hub

    def publish(self, topic: str, data: bytes) -> None:
        """Publish without promise."""
        self._hub.publish(topic, bytes(data))

    def subscribe(self, topic: str, handler: Callable[[dict[str, Any]], None]) -> _Subscription:
        """Hand messages to a stock handler; ours take `PubsubHub` itself."""

        def forward(sender: str, data: bytes) -> None:
            handler({"data": data, "senderID": sender})

        return _Subscription(self._hub.subscribe(topic, forward))

    def list_peers(self, topic: str) -> list[str]:
        """The peers that are seen on a topic."""
        return list(self._kubo.topic_peers(topic))


class Peers:
    """Peers are connected by address elsewhere; stock code is told what is there."""

    def __init__(self, kubo: Any) -> None:
        self._kubo = kubo

    def list_peers(self) -> list[str]:
        """The connected peers."""
        return list(self._kubo.peers())

    def connect(self, multiaddr: str) -> bool:
        """Connect to an address."""
        self._kubo.connect(multiaddr)
        return True

    def find(self, peer_id: str) -> list[str]:
        """Addresses of a peer: none are looked up."""
        return []

    def is_connected(self, peer_id: str, ping_count: int = 0) -> bool:
        """Whether a peer is connected."""
        return any(peer_id in peer for peer in self.list_peers())


class IpfsClient:
    """The client object that upstream modules import as `ipfs`."""

    def __init__(self, kubo: Any, hub: Any, scratch: Path) -> None:
        self._kubo = kubo
        self.files = Files(kubo, scratch)
        self.pubsub = Pubsub(kubo, hub)
        self.peers = Peers(kubo)

    @property
    def peer_id(self) -> str:
        """The node's peer id."""
        return str(self._kubo.peer_id)

    def get_addrs(self) -> list[str]:
        """The node's addresses."""
        return list(self._kubo.addresses())

    def terminate(self) -> None:
        """The node belongs to the child, which ends it."""

    def listen_for_conversations(self, name: str, handler: Any) -> InertListener:
        """Upstream's listeners can be used before authentication, so none is ever opened."""
        return InertListener()

    listen_for_transmissions = listen_for_conversations
    listen_for_file_transmissions = listen_for_conversations

    def _refuse(self, *_args: Any, **_kwargs: Any) -> Any:
        raise LedgerError("upstream conversations are not used")

    start_conversation = _refuse
    join_conversation = _refuse
    transmit_data = _refuse
    transmit_file = _refuse
