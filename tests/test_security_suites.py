"""Suites: mixed in one channel, from outside the repository, and never a weaker one."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from tests.sim.virtual import read, run
from tests.test_session_handshake import HYBRID_ALICE, HYBRID_BOB, initiator, responder, sent
from tests.test_suites_plugins import install
from walyoff import plugins
from walyoff.errors import RemoteProtocolError
from walyoff.session.flights import (
    HEADER,
    decode_answer,
    decode_hello,
    encode_answer,
    encode_hello,
    frame,
)
from walyoff.testing.world import SimWorld

ENTRY = "[walyoff.suites]\noutside-1 = outside:Outside\n"
#: A suite in full: other key sizes, other algorithms, nothing inherited from ours but one half.
CODE = '''
from walyoff_codecs.classic1 import Classic1

class Outside(Classic1):
    """Another name, other key types, and a signature with a byte of its own in front."""

    name = "outside-1"
    key_types = ("outside-sign", "outside-seal")

    def new_sign_key(self):
        return Key(super().new_sign_key())

    def load_sign_key(self, secret):
        return Key(super().load_sign_key(secret))

    def verify(self, public, message, signature):
        from walyoff.errors import CipherError
        if signature[:1] != b"!":
            raise CipherError("verification failed")
        super().verify(public, message, signature[1:])


class Key:
    def __init__(self, inner):
        self._inner = inner
        self.public = inner.public

    def sign(self, message):
        return b"!" + self._inner.sign(message)

    def secret(self):
        return self._inner.secret()
'''


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_devices_of_different_suites_share_a_channel(backend: str) -> None:
    async def main() -> None:
        world = SimWorld(4)
        async with (
            world.device("a", suite="hybrid-1") as one,
            world.device("b", suite="classic-1") as two,
            world.device("c", suite="hybrid-1") as three,
        ):
            a = await one.create_channel("family")
            b = await two.join(await a.invite())
            c = await three.join(await b.invite())
            for channel in (a, b, c):
                others = [x.me for x in (a, b, c) if x is not channel]
                receipt = await channel.send(channel.me.encode())
                await receipt.wait_received(by=others)
                used = {s.peer.certificate.suite for s in channel.connections.sessions()}
                expected = {"classic-1", "hybrid-1"} if channel is not b else {"hybrid-1"}
                assert used == expected
            assert len(await read(c, 3, anchored=True)) == 3

    run(backend, main)


def test_a_suite_from_outside_works_by_its_entry_point_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, "outside", ENTRY, CODE)

    async def main() -> None:
        world = SimWorld(5)
        async with (
            world.device("a", suite="outside-1") as one,
            world.device("b", suite="classic-1") as two,
        ):
            a = await one.create_channel("family")
            b = await two.join(await a.invite())
            certificate = a.engine.credentials.certificate
            assert certificate.key_types == ("outside-sign", "outside-seal")
            await (await a.send(b"from outside")).wait_received(by=b.me)
            await (await b.send(b"from classic")).wait_received(by=a.me)
            assert len(await read(b, 2, anchored=True)) == 2

    try:
        run("asyncio", main)
    finally:
        plugins.forget_plugins()


def offers() -> list[tuple[str, ...]]:
    """Every offer that somebody in the middle could make of an honest one."""
    names = ("hybrid-1", "classic-1", "outside-1")
    return [o for n in (1, 2, 3) for o in itertools.permutations(names, n)]


@pytest.mark.parametrize("offer", offers(), ids="+".join)
def test_nobody_in_the_middle_can_change_what_is_offered(offer: tuple[str, ...]) -> None:
    """Not even a member: the offer is not under a key, but it is in what both sides sign."""
    honest = ("hybrid-1", "classic-1")
    left = initiator(HYBRID_ALICE, suites=honest)
    hello = decode_hello(left.start()[HEADER:])
    if offer == honest:
        return
    # The ephemeral key is of the first suite and fits no other one.
    suite = "hybrid-1" if "hybrid-1" in offer else offer[0]
    changed = replace(hello, suites=offer, ephemeral_suite=suite)
    right = responder(HYBRID_BOB)
    with pytest.raises(RemoteProtocolError):
        left.receive(sent(right.receive(frame(encode_hello(changed)))))


@pytest.mark.parametrize("suite", ["classic-1", "outside-1", "hybrid-1 ", ""])
def test_nobody_in_the_middle_can_change_what_is_chosen(suite: str) -> None:
    left = initiator(HYBRID_ALICE, suites=("hybrid-1", "classic-1"))
    right = responder(HYBRID_BOB)
    answer = decode_answer(sent(right.receive(left.start()))[HEADER:])
    changed = replace(answer, suite=suite)
    with pytest.raises(RemoteProtocolError):
        left.receive(frame(encode_answer(changed)))


def test_the_best_common_suite_is_used_when_nobody_interferes() -> None:
    left = initiator(HYBRID_ALICE, suites=("hybrid-1", "classic-1"))
    right = responder(HYBRID_BOB)
    left.receive(sent(right.receive(left.start())))
    assert left.accept()
