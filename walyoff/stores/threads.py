"""One long-lived thread that works through a queue, and the way back to the event loop.

Nothing here knows what the work is. A worker takes everything that waits (up to a limit),
hands it to its `run` function as one group, and wakes the event loop once for all of it.
A call that was cancelled while it waited is carried out all the same: it was queued in
order, and what comes after it may build on it.
"""

from __future__ import annotations

import queue
import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Generic, TypeVar, cast

import anyio

from walyoff.errors import StoreError, WalyoffError
from walyoff.waking import Waker

T = TypeVar("T")

#: How many calls may share one group: bounds how long the first one waits for the last.
MAX_GROUP = 256


class Job(Generic[T]):
    """One call on its way: the work, and then its value or its error."""

    __slots__ = ("done", "error", "outside", "settle", "size", "value", "work")

    def __init__(
        self,
        work: Callable[[sqlite3.Connection], T],
        *,
        settle: Callable[[bool], None] | None = None,
        size: int = 0,
        outside: bool = False,
    ) -> None:
        self.work = work
        #: Done outside of any transaction, after those that wait beside it.
        self.outside = outside
        #: Called in the thread, once, with whether the work was committed.
        self.settle = settle
        #: About how many bytes it writes.
        self.size = size
        self.done = anyio.Event()
        self.value: T | None = None
        self.error: Exception | None = None


class Worker:
    """A thread with a queue of jobs. Made and used in one event loop."""

    def __init__(
        self,
        name: str,
        waker: Waker,
        connection: sqlite3.Connection,
        run: Callable[[sqlite3.Connection, list[Job[Any]]], None],
        *,
        idle: Callable[[sqlite3.Connection], None] | None = None,
        group: int = MAX_GROUP,
    ) -> None:
        """`run` does a group and sets values and errors; `idle` runs after each group."""
        self._queue: queue.SimpleQueue[Job[Any] | None] = queue.SimpleQueue()
        self._waker = waker
        self._connection = connection
        self._run = run
        self._idle = idle
        self._group = group
        self._closing = False
        self._ended = anyio.Event()
        #: How many jobs and groups were done.
        self.jobs = 0
        self.groups = 0
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._thread.start()

    def check_open(self) -> None:
        """Raises anyio.ClosedResourceError after `aclose` began."""
        if self._closing:
            raise anyio.ClosedResourceError

    async def call(self, job: Job[T]) -> T:
        """Queue a job and wait for it. Cancelling stops the waiting, not the job.

        Raises:
            anyio.ClosedResourceError: the worker was closed before.
            StoreError: what the job raised.
        """
        self.submit(job)
        return await self.wait(job)

    def submit(self, job: Job[Any]) -> None:
        """Queue a job, which will be done. Raises anyio.ClosedResourceError."""
        self.check_open()
        self._queue.put(job)

    @staticmethod
    async def wait(job: Job[T]) -> T:
        """Wait for a job that was queued. Raises StoreError: what the job raised."""
        await job.done.wait()
        if job.error is not None:
            raise job.error
        return cast(T, job.value)

    async def aclose(self) -> None:
        """Do what is queued, then end the thread and close the connection. Idempotent."""
        if not self._closing:
            self._closing = True
            self._queue.put(None)
        with anyio.CancelScope(shield=True):
            await self._ended.wait()
        self._thread.join()

    def _loop(self) -> None:
        going = True
        while going:
            job = self._queue.get()
            if job is None:
                break
            group = [job]
            while len(group) < self._group:
                try:
                    job = self._queue.get_nowait()
                except queue.Empty:
                    break
                if job is None:
                    going = False
                    break
                group.append(job)
            self._do(group)
        # Everything that was confirmed is durable already: closing only tidies up.
        with suppress(sqlite3.Error):
            self._connection.close()
        self._waker.wake([self._ended])

    def _do(self, group: list[Job[Any]]) -> None:
        try:
            self._run(self._connection, group)
        except BaseException as error:
            # Whatever it was (memory, a bug): nobody may wait for ever, and the thread
            # must go on, or all later calls would.
            for job in group:
                job.error = job.error or as_store_error(error)
        self.jobs += len(group)
        self.groups += 1
        self._waker.wake([job.done for job in group])
        if self._idle is not None:
            self._idle(self._connection)


def as_store_error(error: BaseException) -> Exception:
    """The one place where foreign errors become ours.

    A row that is not what was written makes our own decoding raise ValueError, IndexError
    and the like: to the caller that is the same as any other damage.
    """
    if isinstance(error, WalyoffError):
        return error
    if isinstance(error, sqlite3.Error):
        text = f"the database failed: {error}"
    elif isinstance(error, OSError):
        text = f"the home cannot be used: {error.strerror or type(error).__name__}"
    else:
        text = f"the store is damaged: {type(error).__name__}"
    wrapped = StoreError(text)
    wrapped.__cause__ = error
    return wrapped
