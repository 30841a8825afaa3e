"""The faults that processes meet, on the other transports: content over libp2p or TCP alone.

The child is there all the same, for the chain; but no content goes through it.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator

import pytest

from tests.libp2p_support import needs_libp2p
from tests.real.processes import Device, World, eventually, stopped

ROUNDS = 3

both = pytest.mark.parametrize("transport", [pytest.param("libp2p", marks=needs_libp2p), "tcp"])
libp2p = pytest.mark.parametrize("transport", [pytest.param("libp2p", marks=needs_libp2p)])


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        yield world


@both
def test_what_was_confirmed_survives_kills_and_reaches_the_other_device(
    world: World, transport: str
) -> None:
    options = ("--transport", transport)
    dice = random.Random(ROUNDS)
    a, b = world.pair("a", "b", *options)
    confirmed: list[tuple[str, int, bytes]] = []
    for number in range(ROUNDS):
        a.ready()
        a.call("flood", label=f"round {number}", pause=dice.choice([0, 0.01]))
        time.sleep(dice.uniform(0, 0.5))
        a.kill()
        confirmed += a.sent()
        a = world.begin("a", *options)
    a.ready()
    a.call("send", content=b"the end")
    b.call("wait_content", contents=[b"the end"], limit=40)
    assert len(confirmed) > ROUNDS
    for log in (a.call("history", limit=40), b.call("history", limit=40)):
        known = {(entry[0], entry[2], entry[3]) for entry in log}
        assert [message for message in confirmed if message not in known] == []
        assert sorted(entry[2] for entry in log) == list(range(1, len(log) + 1))
    for device in (a, b):
        assert device.call("status")["forked"] == []


@libp2p
def test_the_childs_death_does_not_interrupt_the_messages(world: World, transport: str) -> None:
    a, b = world.pair("a", "b", "--transport", transport)
    (session,) = [peer["did"] for peer in a.call("status")["peers"]]
    a.call("flood", label="a", pause=0.02)
    generations = {}
    for device in (a, b):
        generations[device.name] = device.call("child")["generation"]
        os.kill(device.child(), signal.SIGKILL)
    before = len(a.sent())
    eventually(lambda: len(a.sent()) > before + 5)
    assert [peer["did"] for peer in a.call("status")["peers"]] == [session]
    a.call("calm")
    b.call("wait_content", contents=[content for _, _, content in a.sent()], limit=40)
    for device in (a, b):

        def replaced(device: Device = device) -> bool:
            return bool(device.call("child")["generation"] > generations[device.name])

        eventually(replaced)
    a.call("anchored", limit=60)
    assert a.call("status")["faults"] == b.call("status")["faults"] == {}


@libp2p
def test_a_peer_that_stands_still_is_noticed_and_taken_up_again(
    world: World, transport: str
) -> None:
    a, b = world.pair("a", "b", "--transport", transport)
    with stopped(b.pid):
        a.call("send", content=b"meanwhile")
        eventually(lambda: not a.call("status")["peers"], 17)
    b.call("wait_content", contents=[b"meanwhile"], limit=45)
    b.call("send", content=b"after")
    a.call("wait_content", contents=[b"after"], limit=45)


@both
def test_a_newcomer_gets_in_although_its_inviter_has_gone(world: World, transport: str) -> None:
    """No node announces the joining block here, and over libp2p nothing who is there."""
    options = ("--transport", transport)
    a, m = world.pair("a", "m", *options)
    eventually(lambda: a.call("addresses"))
    assert m.close() == 0
    n = world.start("n", *options)
    n.call("join", invitation=a.call("invite"), limit=40)
    n.call("wait_peer")
    a.kill()
    m = world.start("m", *options)
    n.call("send", content=b"nobody told you of me")
    m.call("wait_content", contents=[b"nobody told you of me"], limit=60)
    assert n.call("info")["me"] in m.call("info")["members"]
    m.call("send", content=b"welcome")
    n.call("wait_content", contents=[b"welcome"])
