"""One device of the demo, as a process: JSON lines in on stdin, JSON lines out on stdout.

    python -m walyoff.demo.agent --home DIR

It speaks as `walyoff.agents` says. Each message that comes in is an event, "message", with the
moment at which it left the async-for.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import TaskGroup

import walyoff
from walyoff.agents.serving import Action, serve, tell, until_signal
from walyoff.channel import Channel
from walyoff.messages import Receipt
from walyoff.node import Device

#: Seconds that any wait of a request may take.
WAIT_S = 30.0


class Agent:
    """Does what is asked."""

    def __init__(self, device: Device, tasks: TaskGroup) -> None:
        self._device = device
        self._tasks = tasks
        self._receipts: dict[str, Receipt] = {}
        self.actions: dict[str, Action] = {
            "create": self._create,
            "invite": self._invite,
            "join": self._join,
            "send": self._send,
            "settle": self._settle,
            "history": self._history,
            "peer": self._peer,
            "forget": self._forget,
            "forget_request": self._forget_request,
            "approve": self._approve,
            "forget_status": self._forget_status,
            "forgotten": self._forgotten,
        }
        for channel in device.channels():
            self._follow(channel)

    def _follow(self, channel: Channel) -> None:
        self._tasks.start_soon(self._tell_messages, channel)

    async def _tell_messages(self, channel: Channel) -> None:
        async for message in channel.messages(cursor="demo"):
            at = time.monotonic_ns()
            if message.author != channel.me and message.content is not None:
                tell(
                    event="message",
                    at=at,
                    id=message.id.hex(),
                    author=message.author,
                    seq=message.seq,
                    topics=message.topics,
                    content=message.content.decode(),
                    members=[member.did for member in channel.members()],
                )

    @property
    def _channel(self) -> Channel:
        return self._device.channels()[0]

    async def _create(self, request: dict[str, Any]) -> dict[str, Any]:
        channel = await self._device.create_channel(request["name"])
        self._follow(channel)
        return {"channel": channel.did, "me": channel.me}

    async def _invite(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"invitation": await self._channel.invite(lifetime=request["lifetime"])}

    async def _join(self, request: dict[str, Any]) -> dict[str, Any]:
        channel = await self._device.join(request["invitation"])
        self._follow(channel)
        return {
            "channel": channel.did,
            "me": channel.me,
            "name": channel.name,
            "members": [member.did for member in channel.members()],
        }

    async def _peer(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"did": await self._channel.wait_peer(request.get("did"))}

    async def _send(self, request: dict[str, Any]) -> dict[str, Any]:
        at = time.monotonic_ns()
        receipt = await self._channel.send(
            request["content"].encode(), topics=request["topics"]
        )
        self._receipts[receipt.id.hex()] = receipt
        return {"at": at, "id": receipt.id.hex(), "seq": receipt.seq}

    async def _settle(self, request: dict[str, Any]) -> dict[str, Any]:
        """Wait until what was sent is on the ledger, and with a device if one is named."""
        for receipt in self._receipts.values():
            await receipt.wait_anchored()
            if did := request.get("by"):
                await receipt.wait_received(did)
        return {"anchored": len(self._receipts)}

    async def _history(self, _: dict[str, Any]) -> dict[str, Any]:
        ids = [message.id.hex() async for message in self._channel.history()]
        return {"ids": ids}

    async def _forget(self, request: dict[str, Any]) -> dict[str, Any]:
        await self._channel.forget(bytes.fromhex(request["id"]), reason=request["reason"])
        return {}

    async def _forget_request(self, request: dict[str, Any]) -> dict[str, Any]:
        """Wait until this device's person is asked to forget a message."""
        async for asked in self._channel.forget_requests():
            if asked.id.hex() == request["id"]:
                return {"reason": asked.reason}
        raise AssertionError

    async def _approve(self, request: dict[str, Any]) -> dict[str, Any]:
        await self._channel.approve(bytes.fromhex(request["id"]))
        return {}

    async def _forget_status(self, request: dict[str, Any]) -> dict[str, Any]:
        status = await self._channel.forget_status(bytes.fromhex(request["id"]))
        return {
            "state": status.state.value,
            "waiting": list(status.waiting),
            "agreed": [word.voice for word in status.agreed],
            "erased": [word.device for word in status.erased],
            "done": status.erased_here and not status.not_yet,
        }

    async def _forgotten(self, request: dict[str, Any]) -> dict[str, Any]:
        """Wait until every device has said that its copy is destroyed."""
        while True:
            status = await self._forget_status(request)
            if status["state"] == "forgotten" and status["done"]:
                return status
            with anyio.move_on_after(0.2):
                await self._channel.changed()


async def main(home: Path) -> None:
    """Run until stdin ends."""
    async with walyoff.open_device(home) as device, anyio.create_task_group() as tasks:
        agent = Agent(device, tasks)
        tell(event="ready", at=time.monotonic_ns(), did=await device.did())
        await serve(agent.actions, within=WAIT_S)
        tasks.cancel_scope.cancel()


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] != "--home":
        sys.exit("usage: python -m walyoff.demo.agent --home DIR")
    anyio.run(until_signal, main, Path(sys.argv[2]))
