"""Hostile nodes and hostile members, each a process with the real thing below it.

Whatever they do is refused, counted by its reason and named in the log; what honest devices
say to each other goes on, and a restart finds nothing wrong.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from tests.real.processes import Device, Process, World, eventually
from walyoff.epochs import new_epoch, seal_anchor
from walyoff.handshakes import MAX_HANDSHAKES
from walyoff.session.handshake import REFUSAL
from walyoff.walytis.ledger import TOPIC


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World() as world:
        yield world


@pytest.fixture(scope="module")
def trio(world: World) -> tuple[Device, Device, Device]:
    """Three members who all talk with each other; the third one is a traitor."""
    a, b = world.pair()
    mallory = world.start("mallory")
    mallory.call("join", invitation=a.call("invite"), limit=60)
    for device in (a, b, mallory):
        device.call("send", content=b"hello from " + device.name.encode())
    for device in (a, b, mallory):
        device.call(
            "wait_content",
            contents=[b"hello from a", b"hello from b", b"hello from mallory"],
        )
        eventually(lambda d=device: len(d.call("info")["peers"]) == 2)  # type: ignore[misc]
    return a, b, mallory


@pytest.fixture(scope="module")
def outsider(world: World) -> Process:
    return world.outsider()


def faults(device: Device) -> dict[str, int]:
    found: dict[str, int] = device.call("status")["faults"]
    return found


def talk(*devices: Device) -> None:
    """Every device hears every other one."""
    contents = []
    for device in devices:
        contents.append(f"{device.name} at {time.monotonic()}".encode())
        device.call("send", content=contents[-1])
    for device in devices:
        device.call("wait_content", contents=contents, limit=40)


def contents_of(device: Device) -> list[bytes]:
    return [entry[3] for entry in device.call("history")]


@pytest.mark.parametrize("own", [True, False], ids=["own-certificate", "victims-certificate"])
@pytest.mark.parametrize("way", ["forge_over_session", "forge_on_ledger"])
def test_a_member_cannot_write_in_the_name_of_another(
    trio: tuple[Device, Device, Device], way: str, own: bool
) -> None:
    a, b, mallory = trio
    victim = b.call("info")["me"]
    before = {device: faults(device).get("wrong-signature", 0) for device in (a, b)}
    content = f"forged {way} {own}".encode()
    args = {"victim": victim, "content": content, "own": own}
    mallory.call("attack", name=way, args=args)
    for device in (a, b):
        eventually(lambda d=device: faults(d).get("wrong-signature", 0) > before[d])  # type: ignore[misc]
        assert "wrong-signature" in device.log
    # The victim can go on, and its numbers are still its own.
    talk(a, b)
    for device in (a, b):
        assert content not in contents_of(device)
        status = device.call("status")
        assert status["forked"] == []
        assert status["missing"] == 0


def test_content_that_was_altered_is_refused_and_fetched_again(
    trio: tuple[Device, Device, Device],
) -> None:
    a, b, mallory = trio
    before = faults(a).get("wrong-content", 0)
    args = {"did": a.call("info")["me"], "times": 3}
    mallory.call("attack", name="alter_contents_for", args=args)
    mallory.call("send", content=b"the true words")
    # From b, which was told the truth, or from mallory, when it tires of lying.
    for device in (a, b):
        device.call("wait_content", contents=[b"the true words"], limit=40)
    assert faults(a)["wrong-content"] > before
    assert bytes(len(b"the true words")) not in contents_of(a)
    mallory_did = mallory.call("info")["me"]
    assert mallory_did[-8:] in "".join(
        line for line in a.log.splitlines() if "wrong-content" in line
    )
    talk(a, b)


def test_a_stranger_who_dials_learns_one_refusal_and_nothing_else(
    world: World, trio: tuple[Device, Device, Device]
) -> None:
    a, b, mallory = trio
    stranger = world.start("stranger")
    stranger.call("create", name="family")
    stolen = mallory.call("attack", name="tag_key", args={})
    for device in (a, b):
        info = device.call("info")
        address = info["addresses"][0]
        heard = stranger.call("attack", name="dial_as_stranger", args={"address": address})
        assert heard == REFUSAL
        args = {"address": address, "channel": info["did"], "key": stolen}
        assert stranger.call("attack", name="dial_as_non_member", args=args) == "refused"
    for device in (a, b):
        # The refusal goes out first, and is told after it.
        for reason in ("(unknown-tag)", "(not-a-member)"):
            eventually(partial(lambda device, reason: reason in device.log, device, reason))
    stranger.close()
    talk(a, b)


def test_a_certificate_without_its_key_opens_nothing(
    trio: tuple[Device, Device, Device],
) -> None:
    a, b, mallory = trio
    args = {"address": a.call("info")["addresses"][0], "victim": b.call("info")["me"]}
    assert mallory.call("attack", name="dial_with_stolen_certificate", args=args) == "refused"
    assert "a peer was refused" in a.log
    # The session of the one whose certificate it was is as it was.
    assert b.call("info")["me"] in a.call("info")["peers"]
    talk(a, b)


def test_garbage_and_silence_on_the_stream_port_are_bounded(
    world: World, trio: tuple[Device, Device, Device], outsider: Process
) -> None:
    a, b, _ = trio
    for device in (a, b):
        multiaddr = device.call("info")["addresses"][0].removeprefix("ipfs:")
        outsider.call("connect", multiaddr=multiaddr)
        peer_id = multiaddr.rpartition("/")[2]
        common = {"peer_id": peer_id, "folder": str(world.root)}
        memory = resident(device.pid)
        for sent in (os.urandom(1 << 20), b"\xff" * 4096, REFUSAL * 100, b"GET / HTTP/1.1\r\n"):
            heard = outsider.call("stream", sent=sent, linger=1.0, repeat=8, **common)
            # A refusal each at most; Kubo may end the stream before it arrives.
            assert set(heard) <= {REFUSAL, b""}, heard
        assert resident(device.pid) - memory < 64 << 20
    # Many who say nothing keep nobody out, old or new.
    multiaddr = a.call("info")["addresses"][0].removeprefix("ipfs:")
    common = {"peer_id": multiaddr.rpartition("/")[2], "folder": str(world.root)}
    c = world.start("newcomer")
    room = "made room for another one"
    silent = outsider.ask("stream", sent=b"", linger=30.0, repeat=MAX_HANDSHAKES + 8, **common)
    # All places are taken now, so that nobody gets in who is not made room for.
    eventually(lambda: a.log.count(room) >= 8, 40)
    c.call("join", invitation=a.call("invite"), limit=60)
    assert a.log.count(room) > 8
    talk(a, b, c)
    assert set(outsider.answer(silent, limit=60)) <= {REFUSAL, b""}
    c.close()


def resident(pid: int) -> int:
    """Bytes of memory that a process holds now."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_what_an_outsider_writes_to_the_chains_is_counted_and_passed_over(
    world: World, trio: tuple[Device, Device, Device], outsider: Process
) -> None:
    a, b, _ = trio
    a.call("anchored")
    found = a.call("attack", name="chains", args={})
    identity, ledger = (take_up(outsider, *found[name]) for name in ("identity", "ledger"))
    for device in (a, b):
        multiaddr = device.call("info")["addresses"][0].removeprefix("ipfs:")
        outsider.call("connect", multiaddr=multiaddr)
    members = a.call("info")["members"]
    before = {device: faults(device) for device in (a, b)}

    def write(chain: str, content: bytes, topics: list[str]) -> str:
        written = rpc(outsider, "chain.append", chain=chain, content=content, topics=topics)
        rpc(outsider, "chain.announce", chain=chain)
        return str(written["ref"])

    blocks = rpc(outsider, "chain.blocks", chain=ledger, after=0, limit=1000)["blocks"]
    anchor = next(content for _, _, topics, content in blocks if TOPIC in topics)
    epoch = new_epoch(key=os.urandom(32), now_ms=1)
    foreign = seal_anchor(epoch, [], [(b"body", b"signature")], salt=os.urandom(16))
    for content in (b"garbage", b"\x94" + b"\xff" * 200_000, foreign, anchor):
        write(ledger, content, [TOPIC])
    joining = next(
        json.loads(content)
        for _, _, topics, content in rpc(
            outsider, "chain.blocks", chain=identity, after=0, limit=1000
        )["blocks"]
        if "member_joining" in topics
    )
    stranger = "did:walytisidentities:QmStranger"
    forged = joining | {"info_content": joining["info_content"] | {"did": stranger}}
    topics = ["GroupDidManager", "member_joining"]
    write(identity, json.dumps(forged).encode(), topics)
    write(identity, json.dumps(joining).encode(), topics)
    write(identity, b"garbage", topics)
    write(identity, b"[" * 100_000, topics)

    for device in (a, b):
        # Garbage, a foreign epoch's anchor and a copy never reach the ledger: they are named
        # where the guard counts, and the engine sees none of them.
        counted = eventually(lambda d=device: kept_out(d.call("status")["refused_blocks"]), 30)  # type: ignore[misc]
        assert faults(device) == before[device], counted
        wrong = eventually(lambda d=device: enough(d.call("status")["refused_blocks"]), 30)  # type: ignore[misc]
        print(device.name, faults(device), wrong)
        assert device.call("info")["members"] == members
        assert device.call("status")["forked"] == []
    talk(a, b)
    a.call("anchored", limit=40)
    b.call("anchored", limit=40)
    # Both read all of it again after a restart, and get past it.
    logs = {device.name: contents_of(device) for device in (a, b)}
    assert a.close() == b.close() == 0
    a, b = world.start("a"), world.start("b")
    talk(a, b)
    for device in (a, b):
        assert device.call("info")["members"] == members
        assert contents_of(device)[: len(logs[device.name])] == logs[device.name]
        device.call("anchored", limit=40)


def kept_out(refused: dict[str, int]) -> dict[str, int]:
    """True once what was written to the ledger was counted."""
    complete = refused.get("ledger-malformed", 0) >= 3 and "ledger-bad-proof" in refused
    return refused if complete else {}


def enough(refused: dict[str, int]) -> dict[str, int]:
    """True once the forged, the repeated and both malformed blocks were counted."""
    complete = refused.get("malformed", 0) >= 2 and sum(refused.values()) >= 4
    return refused if complete else {}


def take_up(outsider: Process, chain: str, files: list[bytes]) -> Any:
    """Follow a chain with nothing but its blocks."""
    rpc(outsider, "chain.import", chain=chain, files=files)
    rpc(outsider, "chain.open", chain=chain)
    return chain


def rpc(outsider: Process, method: str, **args: Any) -> Any:
    """Call a low-level method of the outsider's child."""
    return outsider.call("rpc", method=method, args=args)
