"""Devices as processes of their own, on real Kubo and Walytis: talking, resting, returning."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.real.processes import Device, World, eventually


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        yield world


def by_content(device: Device) -> dict[bytes, Any]:
    return {entry[3]: entry for entry in device.call("history")}


@pytest.mark.parametrize("options", [(), ("--trio",)], ids=["asyncio", "trio"])
def test_two_processes_talk_both_ways(world: World, options: tuple[str, ...]) -> None:
    a, b = world.pair("a", "b", *options)
    me, other = a.call("info"), b.call("info")
    assert me["did"] == other["did"]
    assert me["members"] == other["members"] == [me["me"], other["me"]]
    question, _ = a.call("send", content=b"how are you?", topics=["greeting", "question"])
    b.call("wait_content", contents=[b"how are you?"])
    answer, _ = b.call("send", content=b"fine")
    a.call("wait_content", contents=[b"fine"])
    for device in (a, b):
        device.call("received")
        device.call("anchored")
    for device in (a, b):
        device.call("wait_anchor_of", content=b"how are you?")
        device.call("wait_anchor_of", content=b"fine")
        assert [entry[:6] for entry in device.call("history")] == [
            (question, me["me"], 1, b"how are you?", ("greeting", "question"), True),
            (answer, other["me"], 1, b"fine", (), True),
        ]
        assert device.call("status")["faults"] == {}
        assert device.close() == 0
    # What a user of the terminal sees of the child: nothing.
    assert "IPFS" not in a.log


def test_a_restart_of_both_loses_nothing_and_they_find_each_other(world: World) -> None:
    a, b = world.pair()
    for number in range(5):
        a.call("send", content=b"from a %d" % number)
        b.call("send", content=b"from b %d" % number)
    a.call("received")
    b.call("received")
    consumed = a.call("consume", cursor="app", until=b"from a 1")
    assert a.close() == b.close() == 0
    # While the other one is away, too.
    a = world.start("a")
    a.call("send", content=b"while b was away")
    assert a.close() == 0
    b = world.begin("b")
    a = world.start("a")
    b.ready()
    print(f"warm start: {a.seconds:.2f} s and {b.seconds:.2f} s, both at once")
    began = time.perf_counter()
    a.call("wait_peer")
    b.call("wait_peer")
    print(f"found each other {time.perf_counter() - began:.2f} s later")
    b.call("wait_content", contents=[b"while b was away"])
    b.call("send", content=b"here again")
    a.call("wait_content", contents=[b"here again"])
    everything = {b"from %s %d" % (who, n) for who in (b"a", b"b") for n in range(5)}
    everything |= {b"while b was away", b"here again"}
    for device in (a, b):
        assert set(by_content(device)) == everything
        assert len(device.call("history")) == len(everything)
        status = device.call("status")
        assert (status["faults"], status["forked"]) == ({}, [])
    # The cursor goes on where it was: the last one that was given had not been committed.
    history = [entry[1:4] for entry in a.call("history")]
    rest = a.call("consume", cursor="app", until=history[-1][2])
    assert rest == history[len(consumed) - 1 :]


def test_a_message_to_a_device_that_is_away_arrives_when_it_is_back(world: World) -> None:
    a, b = world.pair()
    a.call("send", content=b"before")
    a.call("received")
    b.kill()
    a.call("send", content=b"into the void")
    a.call("anchored")
    b = world.start("b")
    b.call("wait_content", contents=[b"into the void"])
    a.call("received")
    assert set(by_content(b)) == {b"before", b"into the void"}


def test_a_third_device_catches_up_although_the_author_is_gone_for_good(world: World) -> None:
    a, b = world.pair()
    contents = [b"from a %d" % number for number in range(30)]
    for content in contents:
        a.call("send", content=content)
    a.call("received")
    a.call("anchored")
    author = a.call("info")["me"]
    a.kill()
    c = world.start("c")
    # The invitation is of a device that is not the author, and of no use before.
    c.call("join", invitation=b.call("invite"), limit=60)
    c.call("wait_content", contents=contents)
    history = c.call("history")
    assert [entry[3] for entry in history] == contents
    assert {entry[1] for entry in history} == {author}
    assert len(c.call("info")["members"]) == 3
    c.call("send", content=b"thanks")
    b.call("wait_content", contents=[b"thanks"])
    assert c.call("status")["faults"] == b.call("status")["faults"] == {}


def test_content_that_nobody_present_has_is_fetched_when_somebody_returns(
    world: World,
) -> None:
    a, b = world.pair()
    a.call("send", content=b"first")
    a.call("received")
    c = world.start("c")
    c.call("join", invitation=b.call("invite"), limit=60)
    c.call("wait_content", contents=[b"first"])
    # b knows of it from the ledger at most: it is asleep while a sends, and a goes then.
    b.kill()
    c.kill()
    a.call("send", content=bytes(200_000) + b"large")
    a.call("anchored")
    a.kill()
    b, c = world.start("b"), world.start("c")
    b.call("wait_peer")
    c.call("send", content=b"life goes on")
    b.call("wait_content", contents=[b"life goes on"])
    a = world.start("a")
    for device in (b, c):
        device.call("wait_content", contents=[bytes(200_000) + b"large"], limit=40)
    eventually(lambda: c.call("status")["missing"] == 0)


def test_two_that_were_killed_in_their_first_session_find_each_other_again(
    world: World,
) -> None:
    a, b = world.pair()
    eventually(lambda: a.call("addresses") and b.call("addresses"))
    a.kill()
    b.kill()
    a = world.start("a")
    a.call("send", content=b"anybody?")
    b = world.start("b")
    # Whoever comes back dials: neither waits for the other one's next attempt.
    b.call("wait_content", contents=[b"anybody?"], limit=10)
    a.kill()
    a = world.start("a")
    a.call("wait_peer", limit=10)
