"""`walyoff demo --forget`: a message, the consent of three devices, and what is left of it.

Before, the keys and ciphertexts that the devices hold are read from their databases; after, the
homes are searched for them and for the text, in every byte of every file. A second message,
which stays, is the control: a search that finds nothing at all proves nothing.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio

from walyoff.cli.output import short
from walyoff.demo.devices import Agent, DemoError, start_agent
from walyoff.demo.search import forms
from walyoff.demo.transcript import Transcript

NAMES = ("alice", "bob", "carol")
REASON = "sent to the wrong group"
#: Seconds until all devices must have destroyed their copies.
FORGOTTEN_S = 30.0
#: Parts of a ciphertext by which it is found although a part of it was overwritten.
_PIECE = 16


@dataclass(frozen=True, slots=True)
class Traces:
    """What a home has of one content: its wrapped key, and its ciphertext."""

    key: bytes
    sealed: bytes


@dataclass(slots=True)
class ForgetOutcome:
    """What was asked, and what was found."""

    forgotten: bool = False
    agreed: list[str] = field(default_factory=list)
    erased: list[str] = field(default_factory=list)
    #: Bytes of the text, its keys and its ciphertexts that are left in any home.
    bytes_left: int = -1
    #: The same of the message that stays: the search finds what is there.
    bytes_of_control: int = 0
    searched_files: int = 0
    searched_bytes: int = 0
    #: Keys and ciphertexts that were there before, over all homes.
    traces: int = 0

    @property
    def ok(self) -> bool:
        """All of it went as it must."""
        return (
            self.forgotten
            and self.traces == len(NAMES)
            and self.bytes_left == 0
            and self.bytes_of_control > 0
        )

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "ok": self.ok,
            "forgotten": self.forgotten,
            "agreed": self.agreed,
            "erased": self.erased,
            "bytes_left": self.bytes_left,
            "bytes_of_control": self.bytes_of_control,
            "traces": self.traces,
            "searched_files": self.searched_files,
            "searched_bytes": self.searched_bytes,
        }


class ForgetStory:
    """Runs it once."""

    def __init__(self, transcript: Transcript, homes: Path, temporary: Path) -> None:
        self._transcript = transcript
        self._homes = [homes / name for name in NAMES]
        self._temporary = temporary
        self._secret = f"the code of the door is {os.urandom(6).hex()}"
        self._control = f"the walk begins at {os.urandom(6).hex()}"
        self.outcome = ForgetOutcome()

    async def run(self) -> ForgetOutcome:
        """All of it. Raises DemoError when a step cannot be done."""
        say = self._transcript.say
        async with AsyncExitStack() as stack:
            agents = []
            for name, home in zip(NAMES, self._homes, strict=True):
                agent = await stack.enter_async_context(
                    start_agent(name, home, self._temporary)
                )
                say(name, f"starts the device {short(agent.did)}")
                agents.append(agent)
            await self._meet(agents)
            message, traces = await self._send(agents)
            await self._agree(agents, message)
            with self._transcript.console.step("searching every byte while they run"):
                await anyio.to_thread.run_sync(self._search, traces)
        with self._transcript.console.step("searching every byte"):
            await anyio.to_thread.run_sync(self._search, traces)
        outcome = self.outcome
        megabytes = outcome.searched_bytes / 1e6
        self._transcript.say(
            "outside",
            f"searched {outcome.searched_files} files ({megabytes:.1f} MB) of three homes: "
            f"{outcome.bytes_left} bytes left of text, keys and ciphertexts",
        )
        return outcome

    async def _meet(self, agents: list[Agent]) -> None:
        alice, *others = agents
        with self._transcript.console.step("they join one channel"):
            await alice.ask("create", name=f"walks-{os.urandom(3).hex()}")
            for other in others:
                answer = await alice.ask("invite", lifetime=120)
                await other.ask("join", invitation=answer["invitation"])
            for agent in agents:
                for other in agents:
                    if other is not agent:
                        await agent.ask("peer", did=other.did)
        self._transcript.say("all", "are members of one channel, and connected")

    async def _send(self, agents: list[Agent]) -> tuple[str, list[Traces]]:
        alice, *others = agents
        before = await anyio.to_thread.run_sync(self._read)
        sent = await alice.ask("send", content=self._secret, topics=[])
        for other in others:
            await other.wait_message(sent["id"], timeout=FORGOTTEN_S)
            await alice.ask("settle", by=other.did)
        after = await anyio.to_thread.run_sync(self._read)
        traces = [trace for trace in after if trace not in before]
        self.outcome.traces = len(traces)
        self._transcript.say("alice", f"-> all   “{self._secret}”")
        kept = await alice.ask("send", content=self._control, topics=[])
        for other in others:
            await other.wait_message(kept["id"], timeout=FORGOTTEN_S)
        self._transcript.say("alice", f"-> all   “{self._control}”")
        return sent["id"], traces

    async def _agree(self, agents: list[Agent], message: str) -> None:
        alice, bob, carol = agents
        say = self._transcript.say
        await alice.ask("forget", id=message, reason=REASON)
        say("alice", f"asks all to forget {message[:8]}…: “{REASON}”")
        for agent in (bob, carol):
            await agent.ask("forget_request", id=message)
            status = await alice.ask("forget_status", id=message)
            waiting = ", ".join(short(did) for did in status["waiting"])
            say("all", f"still hold it; it waits for {waiting}")
            await agent.ask("approve", id=message)
            say(agent.name, "agrees")
        for agent in agents:
            status = await agent.ask("forgotten", id=message)
        self.outcome.forgotten = True
        self.outcome.agreed = status["agreed"]
        self.outcome.erased = status["erased"]
        if set(status["agreed"]) != {agent.did for agent in agents}:
            raise DemoError("not all agreed, and it is forgotten")
        say("all", "have destroyed it, and say so; the record stays, with who agreed")

    def _read(self) -> list[Traces]:
        """The keys and ciphertexts of all contents that the homes hold."""
        found = []
        for home in self._homes:
            with closing(sqlite3.connect(f"file:{home}/store.db?mode=ro", uri=True)) as store:
                rows = store.execute("SELECT key, data FROM contents WHERE data IS NOT NULL")
                found += [Traces(bytes(key), bytes(data)) for key, data in rows]
        return found

    def _search(self, traces: list[Traces]) -> None:
        outcome = self.outcome
        outcome.searched_files = outcome.searched_bytes = outcome.bytes_left = 0
        outcome.bytes_of_control = 0
        needles = set(forms(self._secret))
        control = {self._control.encode()}
        for trace in traces:
            for value in (trace.key, trace.sealed):
                starts = range(0, max(len(value) - _PIECE, 1), _PIECE)
                needles |= {value[at : at + _PIECE] for at in starts}
        for trace in self._read():
            control |= {trace.key} if any(trace.key) else set()
        for home in self._homes:
            for path in sorted(home.rglob("*")):
                if path.is_file() and not path.is_symlink():
                    data = path.read_bytes()
                    outcome.searched_files += 1
                    outcome.searched_bytes += len(data)
                    outcome.bytes_left += sum(len(n) * data.count(n) for n in needles)
                    outcome.bytes_of_control += sum(len(n) * data.count(n) for n in control)
