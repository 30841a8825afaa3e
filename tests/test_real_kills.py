"""Devices and their children killed or stopped at any instant, while they work."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.real.processes import Device, World, eventually, stopped

ROUNDS = 20


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        yield world


def test_what_was_confirmed_survives_any_kill_and_reaches_the_other_device(
    world: World,
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    a, b = world.pair()
    author = a.call("info")["me"]
    confirmed: list[tuple[str, int, bytes]] = []
    for number in range(ROUNDS):
        # Some rounds end before the device is even open.
        if dice.random() < 0.8:
            a.ready()
            flood = a.ask("flood", label=f"round {number}", pause=dice.choice([0, 0, 0.01]))
            a.answer(flood)
        time.sleep(dice.uniform(0, 0.6))
        a.kill()
        confirmed += a.sent()
        a = world.begin("a")
    a.ready()
    a.call("send", content=b"the end")
    b.call("wait_content", contents=[b"the end"], limit=40)
    assert len(confirmed) > ROUNDS
    history = a.call("history", limit=40)
    copies = b.call("history", limit=40)
    for log in (history, copies):
        known = {(entry[0], entry[2], entry[3]) for entry in log}
        assert [message for message in confirmed if message not in known] == []
        # Each exactly once, and the author's numbers without a gap. Where content came late
        # it has a later place in the log; at the author it never does.
        numbers = [entry[2] for entry in log]
        assert (numbers if log is history else sorted(numbers)) == list(range(1, len(log) + 1))
        assert {entry[1] for entry in log} == {author}
    assert len(history) == len(copies)
    for device in (a, b):
        status = device.call("status")
        assert status["forked"] == []
        assert "fork" not in status["faults"]
    # A cursor over a kill of the consumer: everything at least once and in order.
    consumed = b.call("consume", cursor="app", until=copies[len(copies) // 2][3])
    b.kill()
    b = world.start("b")
    rest = b.call("consume", cursor="app", until=copies[-1][3], limit=40)
    order = [entry[1:4] for entry in copies]
    # From where it was, or earlier; never later.
    assert len(rest) >= len(order) - len(consumed) + 1
    assert consumed == order[: len(consumed)]
    assert rest == order[-len(rest) :]
    # The last one that was given had not been committed.
    assert b.close() == 0
    b = world.start("b")
    assert b.call("consume", cursor="app", until=copies[-1][3]) == rest[-1:]
    a.call("anchored", limit=60)


def test_a_killed_child_is_replaced_under_traffic(world: World) -> None:
    a, b = world.pair()
    a.call("flood", label="a", pause=0.02)
    b.call("flood", label="b", pause=0.02)
    for device in (a, b, a):
        time.sleep(0.7)
        generation = device.call("child")["generation"]
        os.kill(device.child(), signal.SIGKILL)
        while device.call("child")["generation"] == generation:
            time.sleep(0.1)
        a.call("wait_peer", limit=40)
        b.call("wait_peer", limit=40)
    time.sleep(0.5)
    for device in (a, b):
        device.call("calm")
    for device, other in ((a, b), (b, a)):
        contents = [content for _, _, content in device.sent()]
        assert contents
        other.call("wait_content", contents=contents, limit=40)
        device.call("anchored", limit=60)
    for device in (a, b):
        status = device.call("status")
        assert status["faults"] == {}
        assert status["forked"] == []


def peers(device: Device) -> Any:
    return device.call("status")["peers"]


def test_a_peer_that_stands_still_is_noticed_and_taken_up_again(world: World) -> None:
    a, b = world.pair()
    a.call("send", content=b"before")
    a.call("received")
    with stopped(b.pid):
        began = time.monotonic()
        a.call("send", content=b"meanwhile")
        # 10 s of silence, looked at every 2 s; the rest is for a busy machine.
        eventually(lambda: not peers(a), 17)
        print(f"silence noticed after {time.monotonic() - began:.1f} s")
    b.call("wait_content", contents=[b"meanwhile"], limit=45)
    a.call("received", limit=45)
    print(f"taken up again {time.monotonic() - began:.1f} s after it began")
    b.call("send", content=b"after")
    a.call("wait_content", contents=[b"after"])
