"""A task group that a context manager of ours may hold without its caller noticing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from anyio.abc import TaskGroup


@asynccontextmanager
async def background_tasks() -> AsyncIterator[TaskGroup]:
    """Like `anyio.create_task_group`, but cancelled at the end, and without its wrapping.

    An error of the caller's block would come out inside an exception group, because the
    block runs within the task group; the group is our affair, so the error comes out bare.
    Several errors at once do come out as a group.
    """
    try:
        async with anyio.create_task_group() as tasks:
            try:
                yield tasks
            finally:
                tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        _, errors = group.split(anyio.get_cancelled_exc_class())
        if errors is not None and len(errors.exceptions) == 1:
            error = errors.exceptions[0]
            raise error from error.__cause__
        raise
