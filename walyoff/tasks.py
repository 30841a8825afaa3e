"""A task group that a context manager of ours may hold without its caller noticing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import anyio
from anyio.abc import TaskGroup

from walyoff.errors import WalyoffError

#: What happens to connections and devices: of several at once, the first says enough.
_ORDINARY = (WalyoffError, anyio.BrokenResourceError, anyio.ClosedResourceError)


@asynccontextmanager
async def background_tasks() -> AsyncIterator[TaskGroup]:
    """Like `anyio.create_task_group`, but cancelled at the end, and without its wrapping.

    An error of the caller's block would come out inside an exception group, because the
    block runs within the task group; the group is our affair, so the error comes out bare.
    Of several ordinary errors at once (a peer that misbehaves in two ways) the first comes
    out; with a fault of the program among them, all of them do, as a group.
    """
    try:
        async with anyio.create_task_group() as tasks:
            try:
                yield tasks
            finally:
                tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        _, rest = group.split(anyio.get_cancelled_exc_class())
        errors = [] if rest is None else list(_leaves(rest))
        if len(errors) == 1 or (errors and all(isinstance(e, _ORDINARY) for e in errors)):
            raise errors[0] from errors[0].__cause__
        raise


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
