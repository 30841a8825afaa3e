"""A device under test: its task, its crashes, its reader and what it was promised."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import anyio
from anyio.abc import TaskGroup

from walyoff import Channel, Device
from walyoff.errors import InvitationError, TransportError, WalyoffError
from walyoff.testing.world import SimWorld

WEEK_S = 7 * 24 * 3600.0


class Node:
    """One device of a world; it can crash and come back."""

    def __init__(self, world: SimWorld, name: str, tasks: TaskGroup) -> None:
        self.world = world
        self.name = name
        self.did = f"did:sim:{name}"
        self.device: Device | None = None
        self.channel: Channel | None = None
        #: Records whose `send` returned.
        self.promised: list[bytes] = []
        #: Per run of the reader: (position, record id), in order.
        self.read: list[list[tuple[int, bytes]]] = []
        #: Called with the channel whenever the device has opened it.
        self.on_open: Callable[[Channel], None] | None = None
        self._tasks = tasks
        self._inviter: Node | None = None
        self._scope = anyio.CancelScope()
        self._ended = anyio.Event()
        self._ended.set()

    @property
    def is_up(self) -> bool:
        """True between start and crash."""
        return self.device is not None

    async def start(self) -> None:
        """Start, or restart after a crash."""
        self._ended = anyio.Event()
        await self._tasks.start(self._run)

    async def _run(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        try:
            with anyio.CancelScope() as self._scope:
                async with (
                    self.world.device(self.name) as device,
                    anyio.create_task_group() as g,
                ):
                    self.device = device
                    self._group = g
                    if device.channels():
                        self._opened(device.channels()[0])
                    elif self._inviter is not None:
                        g.start_soon(self._join, device, self._inviter)
                    task_status.started()
                    await anyio.sleep_forever()
        finally:
            self.device = self.channel = None
            self._ended.set()

    def _opened(self, channel: Channel) -> None:
        self.channel = channel
        if self.on_open is not None:
            self.on_open(channel)
        self._group.start_soon(self._read, channel)

    async def _read(self, channel: Channel) -> None:
        run: list[tuple[int, bytes]] = []
        self.read.append(run)
        # The channel may close before this reader is cancelled.
        with contextlib.suppress(anyio.ClosedResourceError):
            async for message in channel.messages(cursor="app"):
                run.append((message.position, message.id))

    async def crash(self) -> None:
        """Stop at once: what was not synced is lost."""
        self._scope.cancel()
        await self._ended.wait()

    async def create(self) -> None:
        """Make the channel."""
        assert self.device is not None
        self._opened(await self.device.create_channel("family"))

    def join(self, inviter: Node) -> None:
        """Join by invitations of another node, now and after crashes, until it is done."""
        self._inviter = inviter
        if self.device is not None:
            self._group.start_soon(self._join, self.device, inviter)

    async def _join(self, device: Device, inviter: Node) -> None:
        while not device.channels():
            if inviter.channel is not None:
                try:
                    invitation = await inviter.channel.invite(lifetime=WEEK_S)
                    self._opened(await device.join(invitation))
                except (TransportError, InvitationError):
                    pass
                else:
                    return
            await anyio.sleep(0.5)

    async def send(self, contents: list[bytes]) -> None:
        """Send if it can; notes what was promised."""
        if self.channel is None:
            return
        try:
            receipts = await self.channel.send_many(contents)
        except (WalyoffError, anyio.ClosedResourceError):
            return
        self.promised += [receipt.id for receipt in receipts]


def check_reading(node: Node) -> None:
    """Each message once per run, in order, and no run leaves out what none before gave."""
    given = 0
    for run in node.read:
        positions = [position for position, _ in run]
        assert positions == sorted(set(positions)), f"{node.name}: positions go back"
        assert len({i for _, i in run}) == len(run), f"{node.name}: delivered twice"
        if positions:
            assert positions[0] <= given + 1, f"{node.name}: the cursor skipped messages"
            assert positions == list(range(positions[0], positions[-1] + 1))
            given = max(given, positions[-1])
