"""Devices with several paths to each other: what happens when one hangs, breaks, comes back."""

from __future__ import annotations

import functools
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from tests.sim.virtual import Group, group, in_virtual_time, run, stand_still
from walyoff import Channel
from walyoff.paths import RETURN_LAST_S
from walyoff.testing.network import LAN, WIFI, Link, SimNetwork

FAILED_OVER = 2.0


def hang(network: SimNetwork) -> None:
    network.hold("a", "b")


def cut(network: SimNetwork) -> None:
    network.partition({"a"}, {"b"})


def heal(network: SimNetwork) -> None:
    network.release("a", "b")
    network.repair()


@asynccontextmanager
async def two_paths(link: Link = LAN, seed: int = 1) -> AsyncIterator[tuple[Group, SimNetwork]]:
    spare = SimNetwork(seed + 1, link, name="spare")
    async with group(2, link, seed=seed, others=[spare]) as g:
        yield g, spare


def path(channel: Channel) -> str:
    (peer,) = channel.peers()
    session = channel.connections.session(peer)
    assert session is not None
    return session.path


class Talk:
    """Messages from both sides at a pace, and how long each of them took."""

    def __init__(self, g: Group, pause: float = 0.25) -> None:
        self._channels = g.channels
        self._pause = pause
        self._sent: dict[bytes, float] = {}
        self.took: dict[bytes, float] = {}
        self.received: list[bytes] = []

    @asynccontextmanager
    async def going(self) -> AsyncIterator[None]:
        a, b = self._channels
        async with anyio.create_task_group() as readers:
            for channel in (a, b):
                readers.start_soon(self._read, channel)
            async with anyio.create_task_group() as writers:
                for channel, label in ((a, "a"), (b, "b")):
                    writers.start_soon(self._write, channel, label)
                yield
                writers.cancel_scope.cancel()
            with anyio.fail_after(60):
                while len(self.took) < len(self._sent):  # noqa: ASYNC110 - no event for it
                    await anyio.sleep(0.1)
            readers.cancel_scope.cancel()

    async def _write(self, channel: Channel, label: str) -> None:
        for number in itertools.count():
            content = f"{label} {number}".encode()
            self._sent[content] = anyio.current_time()
            with anyio.CancelScope(shield=True):
                await channel.send(content)
            await anyio.sleep(self._pause)

    async def _read(self, channel: Channel) -> None:
        async for message in channel.messages():
            content = message.content or b""
            if message.author != channel.me:
                self.received.append(content)
                self.took[content] = anyio.current_time() - self._sent[content]

    def check(self) -> None:
        assert len(self.received) == len(set(self.received)), "nothing comes twice"
        for label in ("a", "b"):
            numbers = [int(c.split()[1]) for c in self.received if c.startswith(label.encode())]
            assert numbers == sorted(numbers)


FAULTS = {"hang": hang, "break": cut}


@pytest.mark.parametrize(
    ("link", "backend"), [(LAN, "asyncio"), (LAN, "trio"), (WIFI, "asyncio")]
)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_path_costs_two_seconds_and_nothing_else(
    fault: str, link: Link, backend: str
) -> None:
    run(backend, functools.partial(broken_path, fault, link))


async def broken_path(fault: str, link: Link) -> None:
    async with two_paths(link) as (g, _):
        await anyio.sleep(7)
        assert {path(channel) for channel in g.channels} == {"sim"}
        talk = Talk(g)
        async with talk.going():
            await anyio.sleep(1)
            FAULTS[fault](g.world.network)
            await anyio.sleep(FAILED_OVER)
            assert {path(channel) for channel in g.channels} == {"spare"}
            heal(g.world.network)
            await anyio.sleep(8)
            assert {path(channel) for channel in g.channels} == {"sim"}
        talk.check()
        assert max(talk.took.values()) < FAILED_OVER
        totals = [c.statistics()["sessions_total"] for c in g.channels]
        assert max(totals) <= 5, "one there, one back, and what began it"


@pytest.mark.parametrize("faults", list(itertools.product(FAULTS, repeat=2)))
def test_the_third_path_takes_over_when_two_are_gone(faults: tuple[str, str]) -> None:
    async def main() -> None:
        others = [SimNetwork(n, LAN, name=f"spare{n}") for n in (2, 3)]
        async with group(2, LAN, others=others) as g:
            networks = [g.world.network, others[0]]
            await anyio.sleep(7)
            talk = Talk(g)
            async with talk.going():
                await anyio.sleep(1)
                for fault, network, expected in zip(
                    faults, networks, ("spare2", "spare3"), strict=True
                ):
                    FAULTS[fault](network)
                    await anyio.sleep(FAILED_OVER)
                    assert {path(channel) for channel in g.channels} == {expected}
            talk.check()
            assert max(talk.took.values()) < FAILED_OVER

    run("asyncio", main)


@in_virtual_time
async def test_a_path_that_hangs_while_nothing_is_said_is_left_with_the_next_message() -> None:
    async with two_paths() as (g, _):
        a, b = g.channels
        await anyio.sleep(30)
        hang(g.world.network)
        await anyio.sleep(1)
        began = anyio.current_time()
        await a.send(b"are you there")
        async for message in b.messages():
            if message.content == b"are you there":
                break
        assert anyio.current_time() - began < FAILED_OVER


@in_virtual_time
async def test_a_path_that_comes_and_goes_is_not_taken_each_time() -> None:
    async with two_paths() as (g, _):
        talk = Talk(g, pause=2.0)
        async with talk.going():
            for _ in range(20):
                await anyio.sleep(5)
                hang(g.world.network)
                await anyio.sleep(5)
                heal(g.world.network)
        talk.check()
        moves = g.channels[0].statistics()["sessions_total"]
        # Twenty times there and back would be 40.
        assert moves < 20, moves
        # And when it has been good for long, it is the one that is used.
        await anyio.sleep(1.25 * RETURN_LAST_S)
        assert path(g.channels[0]) == "sim"


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("paths", [1, 2])
def test_who_stands_still_for_a_while_keeps_its_session(backend: str, paths: int) -> None:
    run(backend, functools.partial(standing_still, paths))


async def standing_still(paths: int) -> None:
    others = [SimNetwork(2, name="spare")] if paths == 2 else []
    async with group(2, others=others) as g:
        a, b = g.channels
        await anyio.sleep(7)
        (before,) = a.connections.sessions()
        for network in g.world.networks:
            hang(network)
        await a.send(b"meanwhile")
        for _ in range(80):
            await anyio.sleep(0.1)
            assert a.peers() == [b.me]
            assert b.peers() == [a.me]
        for network in g.world.networks:
            heal(network)
        async for message in b.messages():
            if message.content == b"meanwhile":
                break
        if paths == 1:
            assert a.connections.sessions() == [before]


@in_virtual_time
async def test_who_stood_still_for_a_minute_reads_before_it_judges() -> None:
    async with two_paths() as (g, _):
        a, b = g.channels
        await anyio.sleep(30)
        (before,) = a.connections.sessions()
        talk = Talk(g)
        async with talk.going():
            for _ in range(5):
                await anyio.sleep(1.03)
                stand_still(60)
        talk.check()
        # Only what was on its way meanwhile took longer.
        assert sum(seconds > 0.1 for seconds in talk.took.values()) <= 2 * 5
        assert a.connections.sessions() == [before]
        assert b.peers() == [a.me]


@in_virtual_time
async def test_a_device_with_too_much_to_do_keeps_its_sessions() -> None:
    async with two_paths() as (g, _):
        await anyio.sleep(7)
        talk = Talk(g, pause=2.0)

        async def work() -> None:
            while True:
                stand_still(0.25)
                await anyio.lowlevel.checkpoint()

        async with talk.going(), anyio.create_task_group() as tasks:
            tasks.start_soon(work)
            await anyio.sleep(200)
            tasks.cancel_scope.cancel()
        talk.check()
        assert [c.statistics()["sessions_total"] for c in g.channels] == [1, 1]


@in_virtual_time
async def test_a_member_that_is_slower_at_times_keeps_its_session() -> None:
    async with two_paths() as (g, spare):
        await anyio.sleep(7)
        talk = Talk(g, pause=0.5)
        async with talk.going():
            for step in range(36):
                # There and back three times: 0 to 1.2 s.
                latency = 0.1 * min(step % 12, 12 - step % 12)
                for network in (g.world.network, spare):
                    network.set_link("a", "b", Link(latency=latency))
                await anyio.sleep(5)
        talk.check()
        assert [c.statistics()["sessions_total"] for c in g.channels] == [1, 1]


@in_virtual_time
async def test_who_answers_after_all_is_not_moved() -> None:
    async with two_paths() as (g, spare):
        await anyio.sleep(30)
        spare.set_link("a", "b", Link(latency=0.5))
        for _ in range(5):
            hang(g.world.network)
            await g.channels[0].send(b"are you there")
            await anyio.sleep(1.5)
            heal(g.world.network)
            await anyio.sleep(10)
        assert [c.statistics()["sessions_total"] for c in g.channels] == [1, 1]


@in_virtual_time
async def test_two_who_prefer_different_paths_do_not_move_for_ever() -> None:
    async with two_paths() as (g, _):
        a, b = g.channels
        for channel in (a, b):
            for session in channel.connections.sessions():
                session.close()
        await anyio.sleep(200)
        before = a.statistics()["sessions_total"]
        await anyio.sleep(200)
        assert a.statistics()["sessions_total"] == before
