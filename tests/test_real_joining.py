"""Joining a channel of a device in another process, and everything that can go wrong."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.real.processes import Device, FailedError, World, eventually
from walyoff.invitations import parse

#: A join takes half a second; what waits longer than this would be waiting for a time-out.
SOON = 15.0


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World() as world:
        yield world


@pytest.fixture(scope="module")
def inviter(world: World) -> Device:
    device = world.start("inviter")
    device.call("create", name="family")
    return device


@pytest.fixture(scope="module")
def joiner(world: World) -> Device:
    """A device that never gets in."""
    return world.start("joiner")


def refused(device: Device, invitation: str) -> FailedError:
    with pytest.raises(FailedError) as caught:
        device.call("join", invitation=invitation, limit=SOON)
    return caught.value


def outcome(device: Device, join: int) -> str:
    """What became of a join: "joined", or the class of the error."""
    try:
        device.answer(join, limit=SOON)
    except FailedError as error:
        return error.kind
    return "joined"


def test_a_mistyped_invitation_is_named_as_such(inviter: Device, joiner: Device) -> None:
    invitation = inviter.call("invite")
    for at in (0, 7, len(invitation) // 2, len(invitation) - 1):
        other = "b" if invitation[at] == "a" else "a"
        error = refused(joiner, invitation[:at] + other + invitation[at + 1 :])
        assert error.kind == "InvitationError"
        assert "mistyped" in error.text
    assert refused(joiner, invitation[:-5]).kind == "InvitationError"
    assert "not an invitation" in refused(joiner, "").text


def test_an_expired_invitation_is_refused(inviter: Device, joiner: Device) -> None:
    invitation = inviter.call("invite", lifetime=1)
    time.sleep(2.1)
    error = refused(joiner, invitation)
    assert (error.kind, "expired" in error.text) == ("InvitationError", True)
    # A joiner whose clock is wrong, or who lies about it, does not get further.
    late = str(replace(parse(invitation, now=0), expires=1 << 31))
    error = refused(joiner, late)
    assert (error.kind, "expired" in error.text) == ("InvitationError", True)


def test_an_invitation_that_the_inviter_does_not_know_is_refused(
    inviter: Device, joiner: Device
) -> None:
    invitation = parse(inviter.call("invite"), now=0)
    error = refused(joiner, str(replace(invitation, secret=bytes(16))))
    assert error.kind == "InvitationError"
    assert "ask for a new one" in error.text
    eventually(lambda: "unknown-tag" in inviter.log)


def test_an_invitation_serves_one_device_and_no_other(
    world: World, inviter: Device, joiner: Device
) -> None:
    invitation = inviter.call("invite")
    first = world.start("first")
    # People write it in groups and in capitals.
    spaced = " ".join(invitation[i : i + 5].upper() for i in range(0, len(invitation), 5))
    first.call("join", invitation=spaced, limit=SOON)
    error = refused(joiner, invitation)
    assert (error.kind, "used already" in error.text) == ("InvitationError", True)
    # The one that used it is told that it is in, and stays in.
    error = refused(first, invitation)
    assert (error.kind, "already" in error.text) == ("LocalProtocolError", True)
    first.call("wait_peer")
    first.call("send", content=b"I am in")
    inviter.call("wait_content", contents=[b"I am in"])
    assert first.close() == 0


def test_an_invitation_of_a_device_that_does_not_run_can_be_used_later(world: World) -> None:
    a, b = world.start("a"), world.start("b")
    a.call("create", name="family")
    invitation = a.call("invite")
    assert a.close() == 0
    error = refused(b, invitation)
    assert error.kind == "TransportError"
    assert "is it running?" in error.text
    a = world.start("a")
    b.call("join", invitation=invitation, limit=SOON)
    a.close()
    b.close()


def test_a_join_that_broke_at_the_joiner_succeeds_when_it_is_tried_again(
    world: World, inviter: Device
) -> None:
    for number, delay in enumerate((0.05, 0.25, 0.4)):
        name = f"broken{number}"
        device = world.start(name)
        invitation = inviter.call("invite")
        device.ask("join", invitation=invitation)
        time.sleep(delay)
        device.kill()
        device = world.start(name)
        # It may have been done when the kill came.
        assert outcome(device, device.ask("join", invitation=invitation)) in (
            "joined",
            "LocalProtocolError",
        )
        device.call("send", content=b"made it %d" % number)
        inviter.call("wait_content", contents=[b"made it %d" % number])
        device.close()
    members = inviter.call("info")["members"]
    assert len(members) == len(set(members))


def test_a_join_that_broke_at_the_inviter_succeeds_when_it_is_tried_again(
    world: World,
) -> None:
    a = world.start("fragile")
    a.call("create", name="family")
    for number, delay in enumerate((0.1, 0.25, 0.4)):
        b = world.start(f"patient{number}")
        invitation = a.call("invite")
        join = b.ask("join", invitation=invitation)
        time.sleep(delay)
        a.kill()
        # In seconds, not after some long time-out.
        first = outcome(b, join)
        assert first in ("joined", "TransportError")
        a = world.start("fragile")
        if first != "joined":
            b.call("join", invitation=invitation, limit=SOON)
        b.call("send", content=b"made it %d" % number)
        a.call("wait_content", contents=[b"made it %d" % number])
        me = b.call("info")["me"]
        assert a.call("info")["members"].count(me) == 1
        b.close()
