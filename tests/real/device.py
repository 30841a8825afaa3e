"""A device as a process: `device.py HOME [--trio] [--record FILE] [--transport NAME]...`.

It opens the home, says so, and then does what it is told until its input ends. It uses the
public interface alone; what only an attacker does is in `attacks`.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio

# Started as a script, but a part of the tests.
sys.path.append(str(Path(__file__).parents[2]))

import walyoff
from tests.real import attacks, recording, wire


class Commands:
    """What a test can make a device do; the first channel is meant where none is named."""

    def __init__(self, device: walyoff.Device, tasks: anyio.abc.TaskGroup) -> None:
        self.device = device
        self._tasks = tasks
        self._receipts: list[walyoff.Receipt] = []
        self._flood: anyio.CancelScope | None = None

    @property
    def channel(self) -> walyoff.Channel:
        return self.device.channels()[0]

    async def create(self, name: str, admins: bool = False) -> str:
        return (await self.device.create_channel(name, admins=admins)).did

    async def make_admin(self, did: str) -> None:
        await self.channel.make_admin(did)

    async def leave(self, erase: bool = False) -> int:
        await self.channel.leave(erase=erase)
        return len(self.device.channels())

    async def renew(self, own: bool = False) -> None:
        if own:
            await self.device.renew_keys()
        else:
            await self.channel.renew_control_keys()

    async def governance(self) -> dict[str, Any]:
        found = self.channel.foundation.identity.membership.governance
        return {
            "rule": found.rule,
            "admins": list(found.admins),
            "newest": found.newest_key,
            "lacks": len(found.lacking),
            "due": found.renewal_due,
            "members": {m.did: m.role for m in self.channel.members()},
            "refused": dict(self.channel.status()["refused_blocks"]),
        }

    async def invite(self, lifetime: float = 3600) -> str:
        return await self.channel.invite(lifetime=lifetime)

    async def join(self, invitation: str) -> str:
        return (await self.device.join(invitation)).did

    async def remove(self, did: str) -> None:
        await self.channel.remove(did)

    async def info(self) -> dict[str, Any]:
        return {
            "did": self.channel.did,
            "me": self.channel.me,
            "addresses": self.device.addresses,
            "members": [member.did for member in self.channel.members()],
            "peers": self.channel.peers(),
        }

    async def send(self, content: bytes, topics: list[str] | None = None) -> tuple[str, int]:
        receipt = await self.channel.send(content, topics=topics or ())
        self._receipts.append(receipt)
        return receipt.id.hex(), receipt.seq

    async def received(self) -> None:
        """All that was sent here has been received by somebody."""
        for receipt in self._receipts:
            await receipt.wait_received()

    async def anchored(self) -> None:
        """All that was sent here is on the ledger."""
        for receipt in self._receipts:
            await receipt.wait_anchored()

    async def history(self) -> list[tuple[Any, ...]]:
        return [
            (m.id.hex(), m.author, m.seq, m.content, m.topics, m.anchored, m.position)
            async for m in self.channel.history()
        ]

    async def wait_content(self, contents: list[bytes]) -> None:
        """Wait until messages with these contents were delivered."""
        left = set(contents)
        async for message in self.channel.messages():
            left.discard(message.content or b"")
            if not left:
                return

    async def wait_anchor_of(self, content: bytes) -> None:
        """Wait until the message with this content is delivered and anchored."""
        async for message in self.channel.messages(anchored=True):
            if message.content == content:
                return

    async def consume(self, cursor: str, until: bytes) -> list[tuple[str, int, bytes | None]]:
        """The next messages of a cursor up to a content; the last is not committed."""
        got: list[tuple[str, int, bytes | None]] = []
        async for message in self.channel.messages(cursor=cursor):
            got.append((message.author, message.seq, message.content))
            if message.content == until:
                break
        return got

    async def addresses(self) -> dict[str, list[str]]:
        """What it will know of the others when it comes back."""
        return await self.device.address_book.of(self.channel.did)

    async def status(self) -> dict[str, Any]:
        return self.channel.status()

    async def wait_peer(self, did: str | None = None) -> str:
        return await self.channel.wait_peer(did)

    async def child(self) -> dict[str, Any]:
        node: Any = self.device.platform.ipfs
        return {"pid": node.pid, "generation": node.generation}

    async def flood(self, label: str, pause: float) -> None:
        """Send for ever, and name each message once it is durable."""
        self._flood = anyio.CancelScope()
        self._tasks.start_soon(self._keep_sending, label, pause, self._flood)

    async def _keep_sending(self, label: str, pause: float, scope: anyio.CancelScope) -> None:
        number = 0
        with scope:
            while True:
                number += 1
                content = f"{label} {number}".encode()
                receipt = await self.channel.send(content)
                self._receipts.append(receipt)
                wire.write(
                    {"event": "sent", "message": (receipt.id.hex(), receipt.seq, content)}
                )
                await anyio.sleep(pause)

    async def calm(self) -> None:
        """End the flood."""
        if self._flood is not None:
            self._flood.cancel()

    async def attack(self, name: str, args: dict[str, Any]) -> Any:
        """Do what no honest device does."""
        return await getattr(attacks, name)(self.device, **args)


async def serve(commands: Commands, request: dict[str, Any]) -> None:
    """Do one thing and answer."""
    handler: Callable[..., Awaitable[Any]] = getattr(commands, request["do"])
    try:
        value = await handler(**request["args"])
    except Exception as error:
        if not isinstance(error, walyoff.WalyoffError):
            logging.exception("%s failed", request["do"])
        wire.write({"id": request["id"], "error": (type(error).__name__, str(error))})
    else:
        wire.write({"id": request["id"], "value": value})


async def main(options: argparse.Namespace) -> None:
    """Open, serve, close."""
    began = time.perf_counter()
    transports: Any = tuple(options.transport or ("ipfs",))
    if options.record:
        transports = {"ipfs": recording.transport(Path(options.record))}
    try:
        async with (
            walyoff.open_device(options.home, transports=transports) as device,
            anyio.create_task_group() as tasks,
        ):
            seconds = time.perf_counter() - began
            wire.write({"event": "ready", "addresses": device.addresses, "seconds": seconds})
            commands = Commands(device, tasks)
            async for request in wire.requests():
                tasks.start_soon(serve, commands, request)
            tasks.cancel_scope.cancel()
    except walyoff.WalyoffError as error:
        wire.write({"event": "failed", "error": (type(error).__name__, str(error))})
        raise SystemExit(1) from error


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("home")
    parser.add_argument("--trio", action="store_true")
    parser.add_argument("--record")
    parser.add_argument("--transport", action="append")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    arguments = parser.parse_args()
    anyio.run(main, arguments, backend="trio" if arguments.trio else "asyncio")
