"""A member is removed on real nodes: three processes, real chains, and it comes back."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.real.processes import Device, World, eventually


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        yield world


def contents(device: Device) -> set[bytes]:
    return {entry[3] for entry in device.call("history")}


def peers(device: Device) -> set[str]:
    return set(device.call("info")["peers"])


def test_a_removed_device_gets_nothing_more_and_comes_back(world: World) -> None:
    a, b = world.pair()
    c = world.start("c")
    c.call("join", invitation=a.call("invite"), limit=60)
    gone = c.call("info")["me"]
    eventually(lambda: gone in peers(a) and gone in peers(b))
    a.call("send", content=b"before")
    c.call("wait_content", contents=[b"before"])
    a.call("remove", did=gone, limit=60)
    assert gone not in peers(a)
    a.call("send", content=b"after, from a")
    b.call("wait_content", contents=[b"after, from a"])
    # It was told by a before it got the message, so it passes nothing on.
    assert gone not in peers(b)
    b.call("send", content=b"after, from b")
    a.call("wait_content", contents=[b"after, from b"])
    a.call("wait_anchor_of", content=b"after, from b", limit=60)
    eventually(lambda: gone not in c.call("info")["members"], 60)
    time.sleep(2)
    assert contents(c) == {b"before"}
    assert peers(c) == set()
    # A restart of the one who was removed changes nothing.
    assert c.close() == 0
    c = world.start("c")
    time.sleep(2)
    assert contents(c) == {b"before"}
    c.call("join", invitation=b.call("invite"), limit=60)
    everything = {b"before", b"after, from a", b"after, from b", b"back"}
    c.call("send", content=b"back")
    c.call("wait_content", contents=sorted(everything), limit=60)
    for device in (a, b):
        device.call("wait_content", contents=[b"back"], limit=60)
        assert contents(device) == everything
