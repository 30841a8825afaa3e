"""What happens in the demo, and how it is judged."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio

from walyoff.cli.output import short
from walyoff.demo.devices import Agent, start_agent
from walyoff.demo.search import Findings, search
from walyoff.demo.transcript import Transcript

#: Seconds that an invitation is good for.
INVITATION_S = 120
#: Seconds until a message must have come, and until a device must have caught up.
DELIVERY_S = 20.0
CATCH_UP_S = 30.0

TALK = (
    ("alice", "the train leaves at nine", "plans-for-saturday"),
    ("bob", "then I bring the coffee", "plans-for-saturday"),
    ("alice", "and the map, it is still with you", "things-to-bring"),
    ("bob", "the map is packed already", "things-to-bring"),
    ("alice", "platform four, not seven as last time", "plans-for-saturday"),
    ("bob", "see you on platform four", "plans-for-saturday"),
)
WHILE_AWAY = (
    ("the train is ten minutes late", "plans-for-saturday"),
    ("I am waiting under the big clock", "plans-for-saturday"),
    ("take the stairs on the left", "where-to-meet"),
)


@dataclass(slots=True)
class Sent:
    """A message that was sent, as its author's process says."""

    sender: str
    receiver: str
    author: str
    id: str
    seq: int
    at: int
    content: str
    topics: list[str]


@dataclass(slots=True)
class Outcome:
    """What was measured and checked."""

    join_s: float = 0.0
    catch_up_s: float = 0.0
    latency_ms: list[float] = field(default_factory=list)
    sent: list[Sent] = field(default_factory=list)
    #: Ids of messages that came and are what was sent.
    good: set[str] = field(default_factory=set)
    #: What was wrong with a message or a log, for people.
    wrong: list[str] = field(default_factory=list)
    same_history: bool = False
    findings: Findings = field(default_factory=Findings)

    @property
    def verified(self) -> bool:
        """Every message that was sent came, as it was sent, from its author, a member."""
        return bool(self.sent) and not self.wrong and len(self.good) == len(self.sent)

    @property
    def ok(self) -> bool:
        """All of it went as it must."""
        findings = self.findings
        anchors = [block for block in findings.blocks if block.kind == "anchor"]
        return (
            self.verified
            and self.same_history
            and not findings.found
            and findings.control > 0
            and bool(anchors)
            and all(block.sealed for block in anchors)
        )

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "ok": self.ok,
            "join_s": round(self.join_s, 3),
            "messages": len(self.good),
            "sent": len(self.sent),
            "latency_ms": [round(value, 3) for value in self.latency_ms],
            "catch_up_s": round(self.catch_up_s, 3),
            "verified": self.verified,
            "same_history": self.same_history,
            "wrong": self.wrong,
            **self.findings.as_json(),
        }


class Story:
    """Runs the demo once."""

    def __init__(self, transcript: Transcript, homes: Path, temporary: Path) -> None:
        self._transcript = transcript
        self._homes = homes
        self._temporary = temporary
        self._members: set[str] = set()
        # Nobody else's file has this name in it by chance.
        self._name = f"saturday-walks-{os.urandom(3).hex()}"
        self.outcome = Outcome()

    async def run(self) -> Outcome:
        """All of it. Raises DemoError when a step cannot be done."""
        say, step = self._transcript.say, self._transcript.console.step
        async with start_agent("alice", self._homes / "alice", self._temporary) as alice:
            say("alice", f"starts her device {short(alice.did)}")
            await self._with_alice(alice)
        with step("searching everything that the devices wrote"):
            self.outcome.findings = await anyio.to_thread.run_sync(self._search)
        self._transcript.blank()
        self._transcript.blocks(self.outcome.findings)
        self._transcript.verdict(self.outcome.findings)
        return self.outcome

    async def _with_alice(self, alice: Agent) -> None:
        say, step = self._transcript.say, self._transcript.console.step
        async with start_agent("bob", self._homes / "bob", self._temporary) as bob:
            say("bob", f"starts his device {short(bob.did)}")
            with step("alice makes an identity"):
                made = await alice.ask("create", name=self._name)
            say("alice", f"makes the channel “{self._name}”, {short(made['channel'])}")
            await self._meet(alice, bob)
            await self._talk(alice, bob)
            with step("bob is killed"):
                await bob.kill()
        say("bob", "is switched off in the middle (SIGKILL)")
        bob_did = bob.did
        for content, topic in WHILE_AWAY:
            await self._send(alice, "bob", content, topic)
            say("alice", f"writes “{content}”")
        await self._come_back(alice, bob_did)

    async def _meet(self, alice: Agent, bob: Agent) -> None:
        say, step = self._transcript.say, self._transcript.console.step
        invitation = (await alice.ask("invite", lifetime=INVITATION_S))["invitation"]
        say("alice", f"invites: {invitation[:8]}…{invitation[-4:]} (a secret, good for one)")
        with step("bob joins"):
            begun = anyio.current_time()
            joined = await bob.ask("join", invitation=invitation)
            self.outcome.join_s = anyio.current_time() - begun
        say("bob", f"joins in {self.outcome.join_s:.2f} s")
        self._members = {alice.did, bob.did}
        if set(joined["members"]) != self._members:
            self.outcome.wrong.append("the members are not alice and bob")
        with step("they connect"):
            await alice.ask("peer", did=bob.did)
            await bob.ask("peer", did=alice.did)
        self._transcript.blank()

    async def _talk(self, alice: Agent, bob: Agent) -> None:
        agents = {"alice": alice, "bob": bob}
        for who, content, topic in TALK:
            sender = agents[who]
            receiver = bob if sender is alice else alice
            sent = await self._send(sender, receiver.name, content, topic)
            came = await receiver.wait_message(sent.id, timeout=DELIVERY_S)
            latency = (came["at"] - sent.at) / 1e6
            self.outcome.latency_ms.append(latency)
            self._transcript.arrow(sender.name, receiver.name, content, latency)
        for receiver in agents.values():
            self._check(receiver)
        with self._transcript.console.step("waiting for the ledger"):
            await alice.ask("settle", by=bob.did)
            await bob.ask("settle", by=alice.did)
        self._transcript.say("both", "hold everything; its metadata is on the ledger")
        self._transcript.blank()

    async def _send(self, sender: Agent, receiver: str, content: str, topic: str) -> Sent:
        answer = await sender.ask("send", content=content, topics=[topic])
        sent = Sent(
            sender=sender.name,
            receiver=receiver,
            author=sender.did,
            id=answer["id"],
            seq=answer["seq"],
            at=answer["at"],
            content=content,
            topics=[topic],
        )
        self.outcome.sent.append(sent)
        return sent

    async def _come_back(self, alice: Agent, bob_did: str) -> None:
        say, step = self._transcript.say, self._transcript.console.step
        missed = [sent.id for sent in self.outcome.sent[len(TALK) :]]
        begun = anyio.current_time()
        async with start_agent("bob", self._homes / "bob", self._temporary) as bob:
            say("bob", f"starts again after {anyio.current_time() - begun:.2f} s")
            if bob.did != bob_did:
                self.outcome.wrong.append("bob came back as somebody else")
            with step("bob catches up"):
                for message_id in missed:
                    await bob.wait_message(message_id, timeout=CATCH_UP_S)
            self.outcome.catch_up_s = anyio.current_time() - begun
            say(
                "bob",
                f"has caught up on {len(missed)} messages, {self.outcome.catch_up_s:.2f} s "
                "after his start",
            )
            self._check(bob)
            with step("waiting for the ledger"):
                await alice.ask("settle", by=bob.did)
            logs = [(await agent.ask("history"))["ids"] for agent in (alice, bob)]
            everything = {sent.id for sent in self.outcome.sent}
            self.outcome.same_history = all(
                set(log) == everything and len(log) == len(everything) for log in logs
            )
            say("both", f"have the same log of {len(everything)} messages")

    def _check(self, receiver: Agent) -> None:
        """Compare what a device was given with what was sent to it."""
        expected = {s.id: s for s in self.outcome.sent if s.receiver == receiver.name}
        for message in receiver.messages:
            sent = expected.get(message["id"])
            if sent is None:
                self.outcome.wrong.append(f"{receiver.name} got a message that nobody sent")
            elif (
                message["author"] != sent.author
                or message["author"] not in message["members"]
                or set(message["members"]) != self._members
                or message["content"] != sent.content
                or message["topics"] != sent.topics
                or message["seq"] != sent.seq
            ):
                self.outcome.wrong.append(f"{receiver.name} got a message that was changed")
            else:
                self.outcome.good.add(sent.id)

    def _search(self) -> Findings:
        return search(
            [self._homes / "alice", self._homes / "bob"],
            secrets={
                "content": sorted({sent.content for sent in self.outcome.sent}),
                "topic": sorted({t for sent in self.outcome.sent for t in sent.topics}),
                "channel name": [self._name],
            },
            authors=sorted(self._members),
        )
