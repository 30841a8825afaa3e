"""A trio loop in a thread of its own, for asyncio and trio applications alike.

py-libp2p runs on trio only. What runs on the loop here is one `main`, and what `call` hands
to it. Nothing that the application does can cancel anything over there: a cancelled `call`
only stops waiting. When the loop ends, for whatever reason, everybody who waits gets an
error, and nothing of the thread is left behind.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Generic, TypeVar, TypeVarTuple, cast

import anyio
import trio

from walyoff.errors import TransportError

_log = logging.getLogger(__name__)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

#: Runs a function in another thread's event loop, soon. May raise when that loop is gone.
Post = Callable[[Callable[[], object]], object]
#: Seconds for the loop to end when it is asked to, and again when it is cancelled; then the
#: thread is abandoned.
END_TIME = 8.0


def post_here() -> Post:
    """How another thread reaches the event loop that runs now, asyncio's or trio's."""
    try:
        return trio.lowlevel.current_trio_token().run_sync_soon
    except RuntimeError:
        return asyncio.get_running_loop().call_soon_threadsafe


class _Call:
    """A call that the application waits for."""

    __slots__ = ("done", "error", "value")

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.value: Any = None
        self.error: BaseException | None = None


class TrioThread:
    """A running trio loop. Its methods are for the thread that made it, unless they say so."""

    def __init__(self) -> None:
        self._post = post_here()
        self._token: trio.lowlevel.TrioToken | None = None
        self._nursery: trio.Nursery | None = None
        self._lock = threading.Lock()
        self._calls: set[_Call] = set()
        self._over = False
        #: Why it ended, if it was not asked to.
        self.error: BaseException | None = None
        self.started = anyio.Event()
        self.ended = anyio.Event()
        self._thread: threading.Thread | None = None
        self._asked = trio.Event()

    def __repr__(self) -> str:
        return f"<TrioThread [{'ended' if self._over else 'running'}]>"

    def start(self, main: Callable[[TrioThread], Awaitable[None]]) -> None:
        """Begin: `main` runs until it ends by itself or the loop is asked to end."""
        self._thread = threading.Thread(
            target=self._run, args=(main,), name="walyoff-libp2p", daemon=True
        )
        self._thread.start()

    async def call(self, function: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
        """Run an async function on the trio loop and wait for what it gives.

        Cancelling stops the waiting only; the function must bound its own time.

        Raises:
            TransportError: the loop ended before the function did.
        """
        call = _Call()
        with self._lock:
            if self._over or self._nursery is None or self._token is None:
                raise TransportError("the libp2p loop is not running")
            self._calls.add(call)
        nursery, token = self._nursery, self._token

        def start() -> None:
            try:
                nursery.start_soon(self._do, call, function, args)
            except RuntimeError:
                # The nursery was closed meanwhile: the end of the thread answers.
                return

        with suppress(trio.RunFinishedError):
            token.run_sync_soon(start)
        await call.done.wait()
        if call.error is not None:
            raise call.error
        return cast("T", call.value)

    def post(self, function: Callable[[], object]) -> bool:
        """From the trio thread: run a function in the application's loop, soon.

        False if that loop is gone already.
        """
        try:
            self._post(function)
        except (RuntimeError, trio.RunFinishedError):
            return False
        return True

    async def stop(self) -> None:
        """End the loop and wait for its thread. Idempotent."""
        with anyio.CancelScope(shield=True):
            if self._thread is None:
                return
            for ask in (self._asked.set, self._cancel):
                with anyio.move_on_after(END_TIME):
                    if await self._ask_to_end(ask):
                        # Its last act was to say that it ends.
                        self._thread.join()
                        return
            _log.error("the libp2p thread does not end: it is abandoned")

    async def _ask_to_end(self, ask: Callable[[], object]) -> bool:
        while not self.ended.is_set():
            if self._token is None:
                # The thread was started and has not come to its loop yet.
                await anyio.sleep(0.005)
                continue
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(ask)
            await self.ended.wait()
        return True

    def _cancel(self) -> None:
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    async def asked_to_end(self) -> None:
        """In the trio thread: wait until the loop is asked to end."""
        await self._asked.wait()

    # ------------------------------------------------------------- in the trio thread

    def _run(self, main: Callable[[TrioThread], Awaitable[None]]) -> None:
        try:
            trio.run(self._main, main)
        except BaseException as error:  # a crash is told to whoever waits, not to stderr
            self.error = error
        finally:
            with self._lock:
                self._over = True
                calls = list(self._calls)
                self._calls.clear()
            for call in calls:
                call.error = TransportError("the libp2p loop ended")
                self.post(call.done.set)
            self.post(self.ended.set)

    async def _main(self, main: Callable[[TrioThread], Awaitable[None]]) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._token = trio.lowlevel.current_trio_token()
            try:
                await main(self)
            finally:
                nursery.cancel_scope.cancel()

    async def _do(
        self, call: _Call, function: Callable[..., Awaitable[Any]], args: tuple[Any, ...]
    ) -> None:
        try:
            call.value = await function(*args)
        except Exception as error:
            # It is the caller's affair, and no reason for the loop to end.
            call.error = error
        except BaseException:
            call.error = TransportError("the libp2p loop ended")
            raise
        finally:
            with self._lock:
                self._calls.discard(call)
            self.post(call.done.set)


class Hosted(Generic[T]):
    """What a trio thread's `main` serves, and the thread."""

    def __init__(self, thread: TrioThread, value: T) -> None:
        self.thread = thread
        self.value = value


@asynccontextmanager
async def trio_thread(
    main: Callable[[TrioThread, Callable[[T], None]], Awaitable[None]],
) -> AsyncIterator[Hosted[T]]:
    """Run `main(thread, ready)` on a trio loop in a thread while the context is open.

    `main` calls `ready` with what it serves; the context begins then.

    Raises:
        TransportError: `main` ended before it was ready; its error is the cause.
    """
    thread = TrioThread()
    served: list[T] = []

    def ready(value: T) -> None:
        served.append(value)
        thread.post(thread.started.set)

    async def run(_: TrioThread) -> None:
        await main(thread, ready)

    thread.start(run)
    try:
        async with anyio.create_task_group() as tasks:

            async def until_ended() -> None:
                await thread.ended.wait()
                tasks.cancel_scope.cancel()

            tasks.start_soon(until_ended)
            await thread.started.wait()
            tasks.cancel_scope.cancel()
        if not served:
            raise TransportError(
                f"libp2p did not start: {_bare(thread.error)}"
            ) from thread.error
        yield Hosted(thread, served[0])
    finally:
        await thread.stop()


def _bare(error: BaseException | None) -> BaseException | None:
    """The one error inside groups of one."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


__all__ = ["Hosted", "Post", "TrioThread", "post_here", "trio_thread"]
