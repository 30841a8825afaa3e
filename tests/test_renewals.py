"""Who renews a device's control keys: nobody but the device, whoever has stolen which keys."""

from __future__ import annotations

import base64
import itertools
import json
import random
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_reader import EVIL, GROUP, K0, K1, K2, PIN
from tests.test_reader import sign as toy
from tests.test_reader_rules import Group
from walyoff.child import reader
from walyoff.child.acts import IdentityBlock, pin_of
from walyoff.child.births import Birth
from walyoff.child.judging import IdentityJudge
from walyoff.child.outcome import NOT_COMMITTED, STALE_RENEWAL
from walyoff.child.renewals import (
    PUBLIC_SIZE,
    SCHEME,
    SIGNATURE_SIZE,
    as_field,
    renewal_body,
)
from walyoff.errors import RemoteProtocolError
from walyoff.wire import pack

K3 = "|key-3"


def public(name: str) -> bytes:
    """A toy renewal key."""
    return name.encode().ljust(PUBLIC_SIZE, b".")


def fingerprint(name: str) -> bytes:
    return pin_of(SCHEME + public(name).hex())


def sign(name: str, data: bytes) -> bytes:
    return toy(SCHEME + public(name).hex(), data).ljust(SIGNATURE_SIZE, b".")


def verify(key: str, signature: bytes, data: bytes) -> bool:
    if key.startswith(SCHEME):
        return signature == toy(key, data).ljust(SIGNATURE_SIZE, b".")
    return signature in (toy(key, data), toy(key, data).hex().encode())


def field(
    old: str, new: str, following: str, *, key: str = "", by: str | None = None
) -> dict[str, Any]:
    """What a renewal says, by a renewal key, or else by the old control keys.

    `by` signs in place of the one that it shows.
    """
    body = renewal_body(GROUP, old, new, fingerprint(following))
    if key:
        return as_field(GROUP, public(key), fingerprint(following), sign(by or key, body))
    signature = pack([toy(by or old, body)])
    return as_field(GROUP, b"", fingerprint(following), signature)


class Device(Group):
    """The chain of a device that has committed to the renewal key `r1`, or to none."""

    def __init__(self, seed: int = 0, *, committed: bool = True) -> None:
        self.blocks = []
        self._random = random.Random(seed)
        self.birth = Birth(pin=PIN, next=fingerprint("r1") if committed else b"")
        self.key(K0, K0)

    def renew(
        self,
        old: str,
        new: str,
        said: dict[str, Any] | None = None,
        *,
        parents: Sequence[str] | None = None,
    ) -> str:
        content: dict[str, Any] = {
            "old_keys": old,
            "new_keys": new,
            "signature": base64.urlsafe_b64encode(toy(old, f"{old}--{new}".encode())).decode(),
            "priblocks_version": [0, 0, 1],
        }
        if said is not None:
            content["walyoff"] = said
        return self.put(["DidManager", "control_key"], json.dumps(content).encode(), parents)

    def look(self, blocks: Sequence[IdentityBlock] | None = None) -> reader.Reading:
        found = self.blocks if blocks is None else blocks
        return reader.read_identity(GROUP, PIN, found, verify, birth=self.birth)

    def said(self) -> tuple[list[str], bytes]:
        """What the chain says, the same for blocks in any order."""
        reading = self.look()
        for _ in range(2):
            mixed = self._random.sample(self.blocks, len(self.blocks))
            assert self.look(mixed) == reading
        return reading.keys, reading.next


def renewed(seed: int = 0) -> Device:
    """A device that has renewed its keys twice: K2 are in use, r3 is next."""
    device = Device(seed)
    device.renew(K0, K1, field(K0, K1, "r2", key="r1"))
    device.renew(K1, K2, field(K1, K2, "r3", key="r2"))
    return device


Theft = Callable[[Device, Sequence[str]], object]

#: What a thief of K0, K1 and K2 can write; the renewal keys were seen on the chain.
THEFTS: dict[str, Theft] = {
    "as stock code": lambda d, on: d.renew(K0, EVIL, parents=on),
    "by the old keys": lambda d, on: d.renew(K0, EVIL, field(K0, EVIL, "e"), parents=on),
    "by a key of its own": lambda d, on: d.renew(
        K0, EVIL, field(K0, EVIL, "e", key="x"), parents=on
    ),
    "by a key whose turn is over": lambda d, on: d.renew(
        K0, EVIL, field(K0, EVIL, "e", key="r1", by="x"), parents=on
    ),
    "the device's, without what it says": lambda d, on: d.renew(K0, K1, parents=on),
    "the device's, by the old keys": lambda d, on: d.renew(
        K0, K1, field(K0, K1, "e"), parents=on
    ),
    "the device's, with another next key": lambda d, on: d.renew(
        K0, K1, {**field(K0, K1, "r2", key="r1"), "next": fingerprint("e").hex()}, parents=on
    ),
    "the device's, to other keys": lambda d, on: d.renew(
        K0, EVIL, field(K0, K1, "r2", key="r1"), parents=on
    ),
    "the device's, as it is": lambda d, on: d.renew(
        K0, K1, field(K0, K1, "r2", key="r1"), parents=on
    ),
}
#: And of the keys in use: who has K1 and K2 can sign the renewal to K2 once more.
IN_USE: dict[str, Theft] = {
    "as stock code": lambda d, on: d.renew(K2, EVIL, parents=on),
    "by the keys in use": lambda d, on: d.renew(K2, EVIL, field(K2, EVIL, "e"), parents=on),
    "by a key of its own": lambda d, on: d.renew(
        K2, EVIL, field(K2, EVIL, "e", key="x"), parents=on
    ),
    "by a key whose turn is over": lambda d, on: d.renew(
        K2, EVIL, field(K2, EVIL, "e", key="r2", by="x"), parents=on
    ),
    "by the key whose turn is next": lambda d, on: d.renew(
        K2, EVIL, field(K2, EVIL, "e", key="r3", by="x"), parents=on
    ),
    "to what comes after them, once more": lambda d, on: d.renew(
        K1, K2, field(K1, K2, "e"), parents=on
    ),
    "to what comes after them, by those": lambda d, on: d.renew(
        K1, K2, field(K1, K2, "e", by=K2), parents=on
    ),
}


@pytest.mark.parametrize("theft", THEFTS)
@pytest.mark.parametrize("seed", range(4))
def test_who_has_stolen_keys_that_were_replaced_changes_nothing(theft: str, seed: int) -> None:
    """On the first block, beside the device's renewals, and after them; names are chance."""
    device = renewed(seed)
    first = device.blocks[0].ref
    for parents in ([first], [device.blocks[1].ref, first], device.tips()):
        THEFTS[theft](device, parents)
        assert device.said() == ([K0, K1, K2], fingerprint("r3"))
    # The device goes on over it.
    device.renew(K2, K3, field(K2, K3, "r4", key="r3"))
    assert device.said() == ([K0, K1, K2, K3], fingerprint("r4"))


@pytest.mark.parametrize("theft", IN_USE)
@pytest.mark.parametrize("seed", range(4))
def test_who_has_stolen_the_keys_in_use_does_not_renew_them(theft: str, seed: int) -> None:
    device = renewed(seed)
    before = [device.blocks[0].ref], [device.blocks[1].ref], [device.blocks[2].ref]
    for parents in before:
        IN_USE[theft](device, parents)
        assert device.said() == ([K0, K1, K2], fingerprint("r3"))
    device.renew(K2, K3, field(K2, K3, "r4", key="r3"), parents=[device.blocks[2].ref])
    for parents in (*before, device.tips()):
        IN_USE[theft](device, parents)
    assert device.said() == ([K0, K1, K2, K3], fingerprint("r4"))


@pytest.mark.parametrize("order", [*itertools.permutations(range(3))], ids=str)
def test_every_order_of_the_thiefs_block_and_the_devices(order: tuple[int, ...]) -> None:
    """The names are given, so that each of three blocks on the same parent comes first once."""
    device = Device()
    first = device.blocks[0].ref
    device.renew(K0, K1, field(K0, K1, "r2", key="r1"), parents=[first])
    device.renew(K0, EVIL, field(K0, EVIL, "e"), parents=[first])
    device.renew(K0, K1, parents=[first])
    blocks = [
        device.blocks[0],
        *(
            IdentityBlock(ref=f"{place}", topics=b.topics, parents=b.parents, content=b.content)
            for place, b in zip(order, device.blocks[1:], strict=True)
        ),
    ]
    reading = device.look(blocks)
    assert (reading.keys, reading.next) == ([K0, K1], fingerprint("r2"))
    assert reading.refused[NOT_COMMITTED] + reading.refused[STALE_RENEWAL] == 1


def test_whoever_has_the_renewal_key_renews_once() -> None:
    """A thief of the whole home, or a copy of it: of two renewals one counts, for all alike."""
    found = set()
    for seed in range(20):
        device = Device(seed)
        first = device.blocks[0].ref
        device.renew(K0, K1, field(K0, K1, "r2", key="r1"))
        device.renew(K0, EVIL, field(K0, EVIL, "e", key="r1"), parents=[first])
        device.renew(K1, K2, field(K1, K2, "r3", key="r2"), parents=[device.blocks[1].ref])
        found.add(tuple(device.said()[0]))
    assert found == {(K0, K1, K2), (K0, EVIL)}


@pytest.mark.parametrize("seed", range(4))
def test_a_device_of_before_is_read_as_before_and_commits_with_its_next_renewal(
    seed: int,
) -> None:
    device = Device(seed, committed=False)
    device.renew(K0, K1)
    assert device.said() == ([K0, K1], b"")
    device.renew(K1, K2, field(K1, K2, "r1"))
    assert device.said() == ([K0, K1, K2], fingerprint("r1"))
    # An outsider writes it again without what it says: on nothing and on all.
    committed = device.blocks[2].ref
    for parents in ([device.blocks[1].ref], device.tips()):
        device.renew(K1, K2, parents=parents)
        assert device.said() == ([K0, K1, K2], fingerprint("r1"))
    # Of what comes after it, a thief has use no more; nor of what only others have signed.
    device.renew(K2, EVIL, parents=[committed])
    device.renew(K2, EVIL, field(K2, EVIL, "e"), parents=[committed])
    device.renew(K1, K2, field(K1, K2, "e", by=K2), parents=[device.blocks[1].ref])
    device.renew(K1, K2, field(K1, K2, "e", key="x"), parents=[device.blocks[1].ref])
    assert device.said() == ([K0, K1, K2], fingerprint("r1"))
    device.renew(K2, K3, field(K2, K3, "r2", key="r1"))
    assert device.said() == ([K0, K1, K2, K3], fingerprint("r2"))


def test_of_a_device_of_before_the_first_commitment_counts_whoever_wrote_it() -> None:
    """Who has keys from before it, which the device has replaced: nothing tells them apart."""
    found = set()
    for seed in range(20):
        device = Device(seed, committed=False)
        first = device.blocks[0].ref
        device.renew(K0, K1, field(K0, K1, "r1"))
        device.renew(K1, K2, field(K1, K2, "r2", key="r1"))
        device.renew(K0, EVIL, field(K0, EVIL, "e"), parents=[first])
        found.add(tuple(device.said()[0]))
    assert found == {(K0, K1, K2), (K0, EVIL)}


_acts = st.tuples(
    st.sampled_from(["device", *(f"replaced {name}" for name in THEFTS), *IN_USE]),
    st.lists(st.integers(0, 30), min_size=1, max_size=3),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(_acts, max_size=12), st.integers(0, 2**32))
def test_whatever_thieves_write_anywhere_the_device_goes_on(
    acts: list[tuple[str, list[int]]], seed: int
) -> None:
    device = renewed(seed)
    keys, turn = [K0, K1, K2], 3
    for who, places in acts:
        if who == "device":
            new = f"|key-{turn}"
            device.renew(keys[-1], new, field(keys[-1], new, f"r{turn + 1}", key=f"r{turn}"))
            keys.append(new)
            turn += 1
        else:
            parents = [device.blocks[place % len(device.blocks)].ref for place in places]
            name = who.removeprefix("replaced ")
            (THEFTS if who.startswith("replaced") else IN_USE)[name](device, parents)
        assert device.said() == (keys, fingerprint(f"r{turn}"))


MALFORMED: dict[str, dict[str, Any]] = {
    "another act": {"act": "join"},
    "another DID": {"group": "did:other"},
    "a short key": {"key": base64.b64encode(bytes(PUBLIC_SIZE - 1)).decode()},
    "no base64": {"key": "?"},
    "a short fingerprint": {"next": "00"},
    "no hex": {"next": "zz" * 32},
    "a short signature": {"sig": base64.b64encode(bytes(SIGNATURE_SIZE - 1)).decode()},
    "no text": {"sig": 7},
    "one more": {"more": 1},
    "another's signature": {"sig": base64.b64encode(bytes(SIGNATURE_SIZE)).decode()},
}


@pytest.mark.parametrize("what", MALFORMED)
def test_a_renewal_that_is_malformed_or_not_signed_is_refused_by_reader_and_guard(
    what: str,
) -> None:
    device = Device()
    good = field(K0, K1, "r2", key="r1")
    device.renew(K0, K1, {**good, **MALFORMED[what]})
    assert device.said() == ([K0], fingerprint("r1"))
    guarded = [({**good, **MALFORMED[what]}, False), (good, True), (None, True)]
    for said, admitted in guarded:
        assert _admits(said) == admitted


class _Files:
    """The chain as the guard sees it: nothing but the first block."""

    def __init__(self, first: IdentityBlock) -> None:
        self._first = first
        self.lock = threading.RLock()

    def entries(self) -> list[Any]:
        return []

    def in_past(self, parents: object, among: dict[str, str]) -> list[str]:
        return list(among)


def _admits(said: dict[str, Any] | None) -> bool:
    device = Device()
    device.renew(K0, K1, said)
    first, block = device.blocks
    judge = IdentityJudge(GROUP, PIN, verify)
    judge._introduced[first.ref] = K0
    made: Any = type("Block", (), {
        "cid": block.ref, "topics": block.topics, "parents": block.parents,
        "content": block.content,
    })  # fmt: skip
    files: Any = _Files(first)
    try:
        judge.place(files, made)
    except RemoteProtocolError:
        return False
    return True
