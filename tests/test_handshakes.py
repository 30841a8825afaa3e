"""A source of many handshakes is in the way of nobody but itself."""

from __future__ import annotations

import anyio
from hypothesis import given
from hypothesis import strategies as st

from tests.sim.virtual import in_virtual_time
from walyoff.handshakes import (
    MAX_FAILURES,
    MAX_HANDSHAKES,
    MAX_PER_SOURCE,
    MAX_SOURCES,
    WINDOW_S,
    Handshake,
    Handshakes,
)
from walyoff.testing.world import SimWorld


class Table(Handshakes):
    """Notes who was given up."""

    def __init__(self) -> None:
        super().__init__()
        self.given_up: list[str] = []

    def add(self, source: str, now: float = 0.0) -> Handshake | None:
        return self.begin(source, lambda: self.given_up.append(source), now=now)


def test_a_source_of_many_gives_up_its_own() -> None:
    table = Table()
    for n in range(5):
        assert table.add(f"honest-{n}")
    for _ in range(1000):
        assert table.add("flood")
    assert set(table.given_up) == {"flood"}
    assert len(table) == 5 + MAX_PER_SOURCE


def test_many_sources_share_what_there_is_and_a_new_one_finds_room() -> None:
    table = Table()
    for _ in range(MAX_PER_SOURCE):
        for n in range(10):
            table.add(f"flood-{n}")
    assert len(table) == MAX_HANDSHAKES
    table.given_up.clear()
    for n in range(4):
        assert table.add(f"honest-{n}")
    assert all(source.startswith("flood") for source in table.given_up)


def test_who_fails_too_often_waits_and_is_heard_again() -> None:
    table = Table()
    for _ in range(MAX_FAILURES):
        handshake = table.add("former member", 1.0)
        assert handshake
        table.end(handshake, failed=True, now=1.0)
    assert table.add("former member", 1.0 + WINDOW_S / 2) is None
    assert table.add("honest", 1.0)
    handshake = table.add("former member", 1.1 + WINDOW_S)
    assert handshake
    table.end(handshake, failed=True, now=1.1 + WINDOW_S)
    assert table.add("former member", 1.2 + WINDOW_S)


def test_where_nothing_is_known_all_share_what_there_is() -> None:
    table = Table()
    for n in range(2 * MAX_HANDSHAKES):
        handshake = table.add("", 1.0)
        assert handshake
        if n % 2:
            table.end(handshake, failed=True, now=1.0)
    assert len(table) == MAX_HANDSHAKES - 1


def test_who_gets_in_has_a_clean_sheet() -> None:
    table = Table()
    for n in range(10 * MAX_FAILURES):
        handshake = table.add("restless", 1.0)
        assert handshake, n
        table.end(handshake, failed=bool(n % 20), now=1.0)


@given(st.lists(st.tuples(st.integers(0, 3000), st.booleans()), max_size=300))
def test_all_is_bounded(steps: list[tuple[int, bool]]) -> None:
    table = Table()
    for number, failed in steps:
        handshake = table.add(f"s{number}", 0.0)
        if handshake and failed:
            table.end(handshake, failed=True, now=0.0)
        assert len(table) <= MAX_HANDSHAKES
        assert len(table._failures) <= MAX_SOURCES


@in_virtual_time
async def test_silent_streams_of_one_device_keep_no_other_out() -> None:
    world = SimWorld(1)
    async with world.device("a") as a, world.device("b") as b:
        channel = await a.create_channel("family")
        invitation = await channel.invite()
        flood = world.network.transport("flood")
        async with flood, anyio.create_task_group() as tasks:
            held = []

            async def hold() -> None:
                while True:
                    held.append(await flood.connect("sim:a"))
                    await anyio.sleep(0.001)

            tasks.start_soon(hold)
            await anyio.sleep(1.0)
            assert a.statistics()["handshakes"] == MAX_PER_SOURCE
            with anyio.fail_after(2.0):
                theirs = await b.join(invitation)
                await theirs.wait_peer(channel.me)
            tasks.cancel_scope.cancel()
        assert len(held) > 10 * MAX_HANDSHAKES
