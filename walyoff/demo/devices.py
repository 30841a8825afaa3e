"""The demo's side of its two agents: starting, asking, stopping them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import Process

from walyoff.agents import asking as agents
from walyoff.errors import WalyoffError


class DemoError(WalyoffError):
    """A step of the demo failed."""


class Agent(agents.Agent):
    """One running agent. Get one from `start_agent`."""

    failure = DemoError
    answer_s = 40.0

    def __init__(self, name: str, process: Process, said: Path) -> None:
        super().__init__(name, process, said)
        #: What came in, in the order of coming.
        self.messages: list[dict[str, Any]] = []

    @property
    def did(self) -> str:
        """The DID of its device."""
        return str(self.ready["did"])

    def heard(self, event: dict[str, Any]) -> None:
        """Messages are events."""
        if event["event"] == "message":
            self.messages.append(event)
        else:
            super().heard(event)

    async def wait_message(self, message_id: str, *, timeout: float) -> dict[str, Any]:
        """Wait until a message came, and return it. Raises DemoError."""
        return await self.until(
            lambda: next((m for m in self.messages if m["id"] == message_id), None),
            timeout,
            "did not get a message",
        )


@asynccontextmanager
async def start_agent(name: str, home: Path, temporary: Path) -> AsyncIterator[Agent]:
    """Run an agent while the context is open. Raises DemoError if it does not start."""
    said = temporary / f"{name}.err"
    with said.open("ab") as stderr:
        process = await _run(home, temporary, stderr.fileno())
    agent = Agent(name, process, said)
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(agent.read)
            try:
                await agent.wait_ready()
                yield agent
            finally:
                tasks.cancel_scope.cancel()
    finally:
        await agent.stop()


async def _run(home: Path, temporary: Path, stderr: int) -> Process:
    return await anyio.open_process(
        [sys.executable, "-m", "walyoff.demo.agent", "--home", str(home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        # What it leaves behind when it is killed is removed with the demo's own folder.
        env={**os.environ, "TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"},
        # Ctrl-C is for the demo, which ends its agents itself.
        start_new_session=True,
    )
