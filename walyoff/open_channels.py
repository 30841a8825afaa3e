"""The channels of a device that are open, each in tasks of its own.

Decided here: in which order a channel and what it stands on are entered and left, whoever ends
them. What a channel's tasks do is decided in `walyoff.running`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import anyio
from anyio.abc import TaskGroup, TaskStatus

from walyoff.channel import Channel
from walyoff.channel_state import ChannelState, load_epochs
from walyoff.discovery import Discovery
from walyoff.platform import Foundation
from walyoff.running import run_channel
from walyoff.tasks import background_tasks

if TYPE_CHECKING:
    from walyoff.node import Device


class OpenChannels:
    """The open channels of one device, by DID; their tasks end with the device's."""

    def __init__(self, device: Device, tasks: TaskGroup) -> None:
        self._device = device
        self._tasks = tasks
        self.by_did: dict[str, Channel] = {}
        #: Per channel what ends it, and the end: of the channel, of what it stands on.
        self._runs: dict[str, tuple[anyio.CancelScope, anyio.Event]] = {}
        self._holds: dict[str, tuple[anyio.CancelScope, anyio.Event]] = {}

    @asynccontextmanager
    async def entered(
        self, context: AbstractAsyncContextManager[Foundation]
    ) -> AsyncIterator[Foundation]:
        """Enter a foundation's context in a task of its own; left again if the block fails."""
        foundation: Foundation
        scope: anyio.CancelScope
        foundation, scope = await self._tasks.start(self._hold, context)
        try:
            yield foundation
        except BaseException:
            # Nobody knows of it: the next try would find it open.
            scope.cancel()
            raise

    async def _hold(
        self,
        context: AbstractAsyncContextManager[Foundation],
        *,
        task_status: TaskStatus[tuple[Foundation, anyio.CancelScope]],
    ) -> None:
        ended = anyio.Event()
        try:
            with anyio.CancelScope() as scope:
                async with context as foundation:
                    self._holds[foundation.identity.did] = (scope, ended)
                    task_status.started((foundation, scope))
                    await anyio.sleep_forever()
        finally:
            ended.set()

    async def run(self, state: ChannelState, foundation: Foundation) -> Channel:
        """Open a channel on its foundation; it runs until it is closed."""
        channel: Channel = await self._tasks.start(self._run_scoped, state, foundation)
        return channel

    async def _run_scoped(
        self,
        state: ChannelState,
        foundation: Foundation,
        *,
        task_status: TaskStatus[Channel],
    ) -> None:
        ended = anyio.Event()
        try:
            with anyio.CancelScope() as scope:
                self._runs[state.did] = (scope, ended)
                await self._run(state, foundation, task_status=task_status)
        finally:
            ended.set()

    async def _run(
        self,
        state: ChannelState,
        foundation: Foundation,
        *,
        task_status: TaskStatus[Channel],
    ) -> None:
        device = self._device
        async with (
            run_channel(
                device=device,
                store=device.store,
                state=state,
                foundation=foundation,
                suite=device.suite,
                epochs=await load_epochs(device.store, state.did),
            ) as channel,
            background_tasks() as tasks,
        ):
            self.by_did[state.did] = channel
            discovery = Discovery(
                channel=channel,
                transports=device.transports,
                book=partial(device.address_book.of, state.did),
                dial=partial(device.dial, channel),
                runtime=device.runtime,
            )
            tasks.start_soon(discovery.run)
            device.kinship.wake()
            task_status.started(channel)
            try:
                await anyio.sleep_forever()
            finally:
                del self.by_did[state.did]

    async def close(self, did: str) -> None:
        """Close a channel and what it stands on."""
        for running in (self._runs, self._holds):
            scope, ended = running[did]
            scope.cancel()
            await ended.wait()


__all__ = ["OpenChannels"]
