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
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from walyoff.child.blocks import MAX_FILE, check_cid, cid_of
from walyoff.errors import LedgerError, RemoteProtocolError, TransportError

#: How long a read of a block from other nodes may take, in seconds.
READ_DEADLINE_S = 5.0
#: A download that nobody answers cannot be cancelled and keeps a thread: at most so many.
MAX_DOWNLOADS = 64
#: Of these, at most so many on behalf of one announcer, and of all those who never announced
#: anything of use: strangers can be as many as they like.
MAX_DOWNLOADS_EACH = 4
MAX_DOWNLOADS_STRANGERS = 32
#: A download of an announcer of use is in its share for so long, in seconds: it may hang, and
#: what comes later must not wait for the next process. Strangers' stay in theirs for good, as
#: strangers could fill all the room with them.
IN_SHARE_FOR_S = 20.0
#: A block that was not to be had is not asked for again before, in seconds.
ABSENT_FOR_S = 10.0
#: Blocks that were not to be had, and announcers of use, that are remembered.
MAX_REMEMBERED = 1_024
#: When nothing can be downloaded for so long, the process ends, as that is what ends hung
#: downloads; the parent begins a new one within a second.
FULL_FOR_S = 60.0
#: A download that grows beyond this is ended in the same way, before it fills the disk.
MAX_DOWNLOAD_FILE = 256 << 20
#: Seconds between looks at the size of what is being downloaded.
WATCH_INTERVAL_S = 0.5
EXIT_DOWNLOADS = 71
#: Newest published blocks kept in memory: stock code reads back what it has just written.
MAX_RECENT = 32

_log = logging.getLogger(__name__)


class InertListener:
    """What stock code gets instead of a conversation listener: it listens to nothing."""

    def terminate(self, wait: bool = False) -> None:
        """Nothing to end."""


class _Download:
    """One download, which may hang for ever; those who wait for it do not."""

    def __init__(self, cid: str, announcer: str, path: Path) -> None:
        self.cid = cid
        self.announcer = announcer
        self.path = path
        self.data: bytes | None = None
        self.too_large = False
        self.done = threading.Event()
        self.began = time.monotonic()


def _remember(known: OrderedDict[str, float], key: str, value: float) -> None:
    known[key] = value
    known.move_to_end(key)
    if len(known) > MAX_REMEMBERED:
        known.popitem(last=False)


class _Known:
    """Stands for the set of all pins: stock code looks for one CID in it, at each add."""

    def __init__(self, is_known: Callable[[str], bool]) -> None:
        self._is_known = is_known

    def __contains__(self, cid: str) -> bool:
        return self._is_known(cid)


class Files:
    """Block files: read with a deadline, pins asked for one by one."""

    def __init__(self, kubo: Any, scratch: Path) -> None:
        self._kubo = kubo
        self._scratch = scratch
        self._lock = threading.Lock()
        self._recent: OrderedDict[str, bytes] = OrderedDict()
        #: By CID, so that many announcements of one block are one download.
        self._downloads: dict[str, _Download] = {}
        self._absent: OrderedDict[str, float] = OrderedDict()
        self._proven: OrderedDict[str, float] = OrderedDict()
        self._full_since: float | None = None
        self._refused = 0
        self._watching = False
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

    def prove(self, announcer: str) -> None:
        """An announcer was of use: it no longer counts as a stranger."""
        with self._lock:
            _remember(self._proven, announcer, 0.0)

    def statistics(self) -> dict[str, int]:
        """How many downloads are under way (most of them hang), and how many were refused."""
        with self._lock:
            return {"downloads": len(self._downloads), "downloads_refused": self._refused}

    def _download(self, cid: str, announcer: str) -> bytes:
        with self._lock:
            if time.monotonic() < self._absent.get(cid, 0.0):
                raise TransportError(f"block {cid} was not to be had a moment ago")
            download = self._downloads.get(cid)
            if download is None:
                self._check_room(announcer)
                path = self._scratch / f"download-{next(self._names)}"
                download = self._downloads[cid] = _Download(cid, announcer, path)
                name = "download"
                args = (download,)
                threading.Thread(
                    target=self._run_download, args=args, daemon=True, name=name
                ).start()
                self._watch()
        if not download.done.wait(READ_DEADLINE_S):
            with self._lock:
                _remember(self._absent, cid, time.monotonic() + ABSENT_FOR_S)
            raise TransportError(f"nobody gave block {cid} in time")
        if download.too_large:
            raise RemoteProtocolError("block file too large", reason="too-large")
        if download.data is None:
            raise TransportError(f"block {cid} could not be read")
        return download.data

    def _check_room(self, announcer: str) -> None:
        """Raise TransportError if too much hangs already. The lock is held."""
        recent = time.monotonic() - IN_SHARE_FOR_S
        of_announcer = Counter(
            download.announcer
            for download in self._downloads.values()
            if download.began > recent or download.announcer not in self._proven
        )
        strangers = sum(n for who, n in of_announcer.items() if who not in self._proven)
        full = len(self._downloads) >= MAX_DOWNLOADS
        if not full:
            self._full_since = None
        elif self._full_since is None:
            self._full_since = time.monotonic()
        if (
            full
            or of_announcer[announcer] >= MAX_DOWNLOADS_EACH
            or (announcer not in self._proven and strangers >= MAX_DOWNLOADS_STRANGERS)
        ):
            self._refused += 1
            if self._full_since and time.monotonic() - self._full_since > FULL_FOR_S:
                self._end(f"{len(self._downloads)} downloads hang")
            raise TransportError("too many downloads hang")

    def _run_download(self, download: _Download) -> None:
        try:
            self._kubo.download(download.cid, str(download.path))
            if download.path.is_file():
                with open(download.path, "rb") as file:
                    data = file.read(MAX_FILE + 1)
                if len(data) > MAX_FILE:
                    download.too_large = True
                else:
                    download.data = data
                    self.hold(download.cid, data)
        except Exception as error:
            _log.debug("download of %s failed: %s", download.cid, error)
        finally:
            with contextlib.suppress(OSError):
                download.path.unlink()
            with self._lock:
                self._downloads.pop(download.cid, None)
                if download.data is not None:
                    self._absent.pop(download.cid, None)
            download.done.set()

    def _watch(self) -> None:
        """Look at the sizes of downloads, while there are any. The lock is held."""
        if not self._watching:
            self._watching = True
            threading.Thread(target=self._watch_sizes, daemon=True, name="downloads").start()

    def _watch_sizes(self) -> None:
        while True:
            time.sleep(WATCH_INTERVAL_S)
            with self._lock:
                downloads = list(self._downloads.values())
                if not downloads:
                    self._watching = False
                    return
            for download in downloads:
                try:
                    size = download.path.stat().st_size
                except OSError:
                    continue
                if size > MAX_DOWNLOAD_FILE:
                    self._end(f"a download has {size} bytes")
                if size > MAX_FILE:
                    download.too_large = True
                    download.done.set()

    @staticmethod
    def _end(reason: str) -> None:
        _log.critical("%s, and nothing else ends a download: the child ends", reason)
        logging.shutdown()
        os._exit(EXIT_DOWNLOADS)

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
        """Keep a file."""
        self._kubo.pin(cid)

    def unpin(self, cid: str) -> None:
        """Let a file go."""
        self._kubo.unpin(cid)

    def remove(self, cid: str) -> None:
        """Stock code removes what it could not read; nothing of ours is ever removed."""

    def list_pins(self, cids_only: bool = True, cache_age_s: float | None = None) -> _Known:
        """What is pinned, as far as it can be asked for: blocks that are known here."""
        return _Known(lambda cid: self.local(cid) is not None)

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
