"""Which signatures were found good, remembered over restarts.

Decided here: what is believed without looking at it again. A chain's acts are signed by ML-DSA
and secp256k1 keys, and a process that starts reads all of them; that a signature is good once
means that it is good for ever. So the tag of each good one is kept in a file: a keyed hash of
keys, signature and text, under a key that only this home has. Who writes to the file can make
it forget, and nothing else: a tag that this home did not make fits nothing. What was found bad
is not kept.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from blake3 import blake3

from walyoff.child.verifiers import verifiers
from walyoff.files import open_private, replace_file, sweep_new
from walyoff.sealing import Sealing
from walyoff.wire import pack

TAG_SIZE = 32
#: Signatures that are remembered: those of a family of a thousand devices.
MAX_REMEMBERED = 8_192
#: The file is cut when it holds so many: older ones and doubled ones go.
_MAX_STORED = 2 * MAX_REMEMBERED
#: A pipe that somebody put in the file's place does not block.
_NOW = os.O_NONBLOCK
#: What another version, of walyoff or of a library, found good is checked again.
_PURPOSE = "signatures that were verified by "

_log = logging.getLogger(__name__)


class Verified:
    """Signatures that were checked. Safe to use from many threads."""

    def __init__(self, path: Path, sealing: Sealing) -> None:
        """Without a key in the sealing nothing is kept. What verifies must be loaded."""
        self._path = path
        self._key = sealing.derive(_PURPOSE + verifiers())
        self._lock = threading.Lock()
        self._known: OrderedDict[bytes, None] = OrderedDict()
        #: Anybody can make bad ones without end: they take no room from the good ones.
        self._bad: OrderedDict[bytes, None] = OrderedDict()
        #: Tags in the file.
        self._stored = 0
        #: How many were checked since the start.
        self.checked = 0
        if self._key is not None:
            self._load()

    def __repr__(self) -> str:
        return f"<Verified [{len(self._known)} known, {self.checked} checked]>"

    def __len__(self) -> int:
        return len(self._known)

    def check(
        self, key: str, signature: bytes, data: bytes, verify: Callable[[], bool]
    ) -> bool:
        """Whether a signature is good: as it was found before, or else by `verify`."""
        tag = blake3(pack([key, signature, data]), key=self._key or bytes(TAG_SIZE)).digest()
        with self._lock:
            if tag in self._known or tag in self._bad:
                return tag in self._known
        valid = verify()
        with self._lock:
            self.checked += 1
            _remember(self._known if valid else self._bad, tag)
            if valid and self._key is not None:
                self._append(tag)
        return valid

    def _append(self, tag: bytes) -> None:
        # Not synced: what a crash takes of it is checked once more.
        with contextlib.suppress(OSError):
            if self._stored >= _MAX_STORED:
                self._cut()
                return
            self._stored += 1
            fd = open_private(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | _NOW)
            try:
                os.write(fd, tag)
            finally:
                os.close(fd)

    def _load(self) -> None:
        try:
            fd = open_private(self._path, os.O_RDONLY | _NOW)
            with open(fd, "rb") as file:
                data = file.read(_MAX_STORED * TAG_SIZE + 1)
        except FileNotFoundError:
            return
        except OSError as error:
            _log.warning("what was verified is not remembered: %s", error)
            return
        for start in range(0, len(data) - TAG_SIZE + 1, TAG_SIZE):
            _remember(self._known, data[start : start + TAG_SIZE])
        self._stored = len(data) // TAG_SIZE
        if len(data) % TAG_SIZE or len(data) > MAX_REMEMBERED * TAG_SIZE:
            with contextlib.suppress(OSError):
                sweep_new(self._path.parent, self._path.name)
                self._cut()

    def _cut(self) -> None:
        replace_file(self._path, b"".join(self._known))
        self._stored = len(self._known)


def _remember(known: OrderedDict[bytes, None], tag: bytes) -> None:
    known[tag] = None
    while len(known) > MAX_REMEMBERED:
        known.popitem(last=False)


__all__ = ["MAX_REMEMBERED", "TAG_SIZE", "Verified"]
