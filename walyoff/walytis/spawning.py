"""The operating system's side of the child: how it is started, and that it always ends.

Decided here: what the child knows of our environment, and when it is started: a home that had
one before gets it while the parent still imports and opens the store, since the child needs as
long for its own imports. It touches nothing in the home until it is told that the store's lock
is held (`walyoff.child.main`). So this module imports nothing that takes time.
"""

from __future__ import annotations

import contextlib
import os
import signal
import site
import socket
import subprocess
import sys
import threading
from pathlib import Path

from walyoff.errors import ChildError

#: Seconds that the kernel gets to end a killed process.
REAP_TIME = 5.0
#: -P because the working folder, in the home, is no place for modules. -I would take away
#: the user's site folder, where walyoff may well be installed.
CHILD_COMMAND = ("-P", "-m", "walyoff.child.main")

#: What the child may know of our environment: no secret, and nothing that steers Go.
KEPT_ENVIRONMENT = (
    "PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH",
    "SYSTEMROOT", "VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE",
    "PYTHONPYCACHEPREFIX", "OQS_INSTALL_PATH",
)  # fmt: skip


def child_environment(home: Path) -> dict[str, str]:
    """The environment that the child is exec'ed with; Go reads no later one."""
    kept = {name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ}
    return kept | {
        # Without this a taken port is shared in silence, and peers reach the wrong node.
        "LIBP2P_TCP_REUSEPORT": "false",
        # A processor that is left by a call from outside, as each look at pubsub is, keeps Go's
        # monitor awake for 10 ms if another one is idle. One is enough for what a node carries.
        "GOMAXPROCS": "1",
        "IPFS_TK_MODE": "EMBEDDED",
        "IPFS_REPO_DIR": str(home / "ipfs"),
        "WALYTIS_BETA_DATA_DIR": str(home / "walytis"),
        "WALY_LOG_DIR": "DISABLED",
        # Upstream code writes below these; it shall write into the home and nowhere else.
        "HOME": str(home / "child"),
        "TMPDIR": str(home / "child" / "tmp"),
        "PYTHONUSERBASE": site.getuserbase() or "",
    }


class ChildProcess:
    """The operating system's side: always reaped, whatever is cancelled when.

    Its methods block for milliseconds, so they are called on worker threads.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._lock = threading.Lock()
        self._closed = False
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    @property
    def pid(self) -> int | None:
        """The process id while there is a process."""
        return self._process.pid if self._process else None

    def spawn(self) -> None:
        """Start the process. Raises ChildError."""
        with self._lock:
            if self._closed:
                raise ChildError("the child was closed before it was started")
            try:
                self._spawn(self._home / "child")
            except OSError as error:
                raise ChildError(f"the child process cannot be started: {error}") from error

    def _spawn(self, folder: Path) -> None:
        # mkdir's mode is for the last folder only, so one after the other.
        for path in (self._home, folder, folder / "tmp", self._home / "walytis"):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        ours, theirs = socket.socketpair()
        # The child opens its log itself; this is for what fails before it can.
        log = os.open(folder / "child.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self._process = subprocess.Popen(  # noqa: S603 (no part of it is from outside)
                [sys.executable, *CHILD_COMMAND,
                 str(theirs.fileno()), str(self._home), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(theirs.fileno(),),
                cwd=folder,
                env=child_environment(self._home),
                # Ctrl-C in a terminal is for the parent, which ends the child in order.
                start_new_session=True,
                umask=0o077,
            )  # fmt: skip
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(log)
        self._socket = ours

    def take_socket(self) -> socket.socket:
        """The connection; whoever takes it owns it."""
        taken, self._socket = self._socket, None
        if taken is None:
            raise ChildError("the child process has no connection")
        return taken

    def kill(self) -> None:
        """Send SIGKILL, if the process is there."""
        with self._lock, contextlib.suppress(ProcessLookupError):
            if self._process is not None and self._process.returncode is None:
                self._process.send_signal(signal.SIGKILL)

    def reap(self, grace: float) -> None:
        """Wait for the end for `grace` seconds, then enforce it. Never raises."""
        with self._lock:
            self._closed = True
            process, sock = self._process, self._socket
            self._socket = None
        if sock is not None:
            sock.close()
        if process is None:
            return
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(REAP_TIME)


def start_early(home: Path) -> ChildProcess | None:
    """The process of a home that had one before; None if it had none, or none can be made.

    Whoever gets it has to `reap` it, unless a child takes it over. Blocks for milliseconds.
    """
    process = ChildProcess(home.absolute())
    if not (home / "child").is_dir():
        return None
    try:
        process.spawn()
    except ChildError:
        # It is tried again when the store is open, and then the error counts.
        return None
    return process


__all__ = ["ChildProcess", "child_environment", "start_early"]
