"""Who may change an identity, on real chains: three processes, of which one breaks rules."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.real.processes import Device, FailedError, World, eventually


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        yield world


def governance(device: Device) -> dict[str, Any]:
    found: dict[str, Any] = device.call("governance")
    return found


def agree(*devices: Device) -> bytes:
    """Wait until devices have the same newest control keys, and return their fingerprint."""

    def same() -> bytes | None:
        found = [governance(device) for device in devices]
        if any(one["lacks"] or one["due"] for one in found):
            return None
        newest: set[bytes] = {one["newest"] for one in found}
        return newest.pop() if len(newest) == 1 else None

    keys: bytes = eventually(same, 60)
    return keys


def test_rules_roles_renewal_and_leaving_on_every_device(world: World) -> None:
    a, b, c = (world.begin(name) for name in "abc")
    a.ready().call("create", name="family", admins=True, limit=60)
    for device in (b, c):
        device.ready().call("join", invitation=a.call("invite"), limit=60)
    one, two, three = (device.call("info")["me"] for device in (a, b, c))
    eventually(lambda: len(governance(b)["members"]) == 3, 30)
    assert governance(c)["members"] == {one: "admin", two: "member", three: "member"}

    # Who is no admin is told so, and nothing is written.
    before = b.call("attack", name="tips", args={})
    for do, args in (("invite", {}), ("remove", {"did": three}), ("make_admin", {"did": two})):
        with pytest.raises(FailedError, match="only admins") as refused:
            b.call(do, **args)
        assert refused.value.kind == "LocalProtocolError"
    assert b.call("attack", name="tips", args={}) == before
    # With a client of its own it writes, and no device takes it for a change.
    b.call("attack", name="write_acts", args={"kinds": ["join", "admin"]}, limit=60)
    for device in (a, c):
        eventually(lambda d=device: governance(d)["refused"].get("not-an-admin") == 2, 60)  # type: ignore[misc]
        assert set(governance(device)["members"]) == {one, two, three}

    # An admin names another one.
    a.call("make_admin", did=two)
    for device in (b, c):
        eventually(lambda d=device: governance(d)["members"][two] == "admin", 30)  # type: ignore[misc]
    b.call("invite")

    # Control keys are renewed while messages flow and one device is away.
    first = agree(a, b, c)
    a.call("send", content=b"by the first keys")
    c.call("wait_content", contents=[b"by the first keys"], limit=60)
    assert c.close() == 0
    b.call("flood", label="flood", pause=0.05)
    b.call("renew", limit=60)
    assert agree(a, b) != first
    a.call("renew", own=True, limit=60)
    a.call("send", content=b"by the next keys")
    b.call("wait_content", contents=[b"by the next keys"], limit=60)
    b.call("calm")
    sent = {content for _, _, content in b.sent()}
    old = a.call("attack", name="tips", args={})
    c = world.start("c")
    second = agree(a, b, c)
    wanted = sorted({b"by the first keys", b"by the next keys", *sent})
    c.call("wait_content", contents=wanted, limit=60)

    # Who is removed has kept its keys; nothing counts that it writes, wherever it stands.
    a.call("remove", did=three, limit=60)
    third = agree(a, b)
    assert third not in (first, second)
    eventually(lambda: three not in governance(c)["members"], 60)
    kinds = ["join", "leave", "renew", "segment", "rules", "admin"]
    count = 0
    for parents in (old, None):
        for about, some in ((three, kinds), (two, ["leave"])):
            args = {"kinds": some, "about": about, "parents": parents}
            taken = c.call("attack", name="write_acts", args=args, limit=60)
            count += sum(taken.values())
        args = {"kinds": ["join"], "about": three, "parents": parents, "old_format": True}
        count += sum(c.call("attack", name="write_acts", args=args, limit=60).values())
    assert count >= 8
    # Whatever its own chain took it announces; the others count what they refuse of it.
    eventually(lambda: sum(governance(a)["refused"].values()) >= 6, 60)
    time.sleep(1)
    for device in (a, b):
        found = governance(device)
        assert found["members"] == {one: "admin", two: "admin"}
        assert found["newest"] == third
    b.call("send", content=b"on and on")
    a.call("wait_content", contents=[b"on and on"], limit=60)
    a.call("wait_anchor_of", content=b"on and on", limit=60)

    # Who leaves by itself tells the others, forgets, and can come back.
    assert b.call("leave", limit=60) == 0
    eventually(lambda: set(governance(a)["members"]) == {one}, 30)
    keys = {path.name for path in (b.home / "keys").iterdir()}
    assert a.call("info")["did"].split(":")[-1] not in keys
    b.call("join", invitation=a.call("invite"), limit=60)
    assert governance(b)["members"] == {one: "admin", two: "member"}
    b.call("send", content=b"back again")
    a.call("wait_content", contents=[b"back again"], limit=60)

    # The only admin does not leave the others without one, and nothing is written of it.
    before = a.call("attack", name="tips", args={})
    with pytest.raises(FailedError, match="only admin"):
        a.call("leave", limit=60)
    assert a.call("attack", name="tips", args={}) == before
    for device in (a, b):
        assert governance(device)["members"] == {one: "admin", two: "member"}
