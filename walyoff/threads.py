"""Short work in threads: begun at once, and back in the event loop in one hop.

`anyio.to_thread` first waits for a turn of the event loop, and comes back through several:
for a signature of a millisecond that is a tenth of its time, and more under load. Here a call
is queued before anything else runs. The threads of an event loop are few, are made when they
are needed, and end when there was nothing to do for a while.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar, TypeVarTuple, cast

import anyio
from anyio.lowlevel import RunVar, checkpoint_if_cancelled

from walyoff.waking import Waker

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

#: At once for one event loop; what comes beyond waits. Handshakes are bounded elsewhere.
MAX_THREADS = 8
#: A thread without work ends after so many seconds.
IDLE_S = 5.0


class _Call:
    """One call on its way: the work, and then its value or its error."""

    __slots__ = ("arguments", "done", "ended", "error", "function", "value")

    def __init__(
        self,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        done: anyio.Event | None = None,
    ) -> None:
        self.function = function
        self.arguments = arguments
        self.done = done or anyio.Event()
        self.ended = False
        self.value: Any = None
        self.error: BaseException | None = None


class _Threads:
    """The threads of one event loop."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[_Call] = queue.SimpleQueue()
        self._waker = Waker()
        self._lock = threading.Lock()
        self._threads = 0
        #: Calls that are queued or under way.
        self._calls = 0

    def begin(self, call: _Call) -> None:
        """Queue a call, and see to it that a thread takes it."""
        with self._lock:
            self._calls += 1
            if new := self._threads < min(self._calls, MAX_THREADS):
                self._threads += 1
        self._queue.put(call)
        if new:
            threading.Thread(target=self._work, name="worker of walyoff", daemon=True).start()

    def _work(self) -> None:
        while True:
            try:
                call = self._queue.get(timeout=IDLE_S)
            except queue.Empty:
                with self._lock:
                    # A call that is counted is queued, or will be in a moment.
                    if self._calls < self._threads:
                        self._threads -= 1
                        return
                continue
            try:
                call.value = call.function(*call.arguments)
            except BaseException as error:
                # Whatever it was: who waits gets it, and the thread goes on.
                call.error = error
            call.ended = True
            with self._lock:
                self._calls -= 1
            self._waker.wake([call.done])
            del call


_threads: RunVar[_Threads] = RunVar("walyoff.threads")


def _own_threads() -> _Threads:
    try:
        threads = _threads.get()
    except LookupError:
        threads = _Threads()
        _threads.set(threads)
    return threads


class Attempts(Generic[T]):
    """A function of luck in a thread: begun at once, and once more if it takes long.

    For one that takes a random time and whose results are all as good. The first that ends
    counts; the other is left to end by itself, also when nobody waits any more.
    """

    def __init__(self, function: Callable[..., T], *arguments: Any) -> None:
        self._threads = _own_threads()
        self._calls = [_Call(function, arguments)]
        self._threads.begin(self._calls[0])

    def again(self) -> bool:
        """Begin a further attempt, unless there is a result; True if it was begun."""
        first = self._calls[0]
        if first.done.is_set() or len(self._calls) > 1:
            return False
        self._calls.append(_Call(first.function, first.arguments, first.done))
        self._threads.begin(self._calls[1])
        return True

    async def value(self) -> T:
        """The first result; raises what the function raised."""
        await self._calls[0].done.wait()
        for call in self._calls:
            if call.ended:
                if call.error is not None:
                    raise call.error
                return cast(T, call.value)
        raise AssertionError("a call that is done has ended")


async def run_in_thread(function: Callable[[*Ts], T], *args: *Ts) -> T:
    """Run a short blocking function in a thread and give its value, or raise its error.

    A call that was begun is waited for also when the task is cancelled: what it works on may
    be used only when it has ended.
    """
    await checkpoint_if_cancelled()
    call = _Call(function, args)
    _own_threads().begin(call)
    with anyio.CancelScope(shield=True):
        await call.done.wait()
    if call.error is not None:
        raise call.error
    return cast(T, call.value)
