"""Readings of chains that stand on one another."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from tests.test_reader import sign, verify
from walyoff.child import readings
from walyoff.child.acts import TOPIC_RULES, Claim, IdentityBlock, chain_of, pin_of
from walyoff.child.readings import Readings

PREFIX = "did:walytisidentities:Qm"


class Held:
    """Chains that are held, written by their members, each block after the one before."""

    def __init__(self) -> None:
        self.blocks: dict[str, list[IdentityBlock]] = {}

    def has(self, chain: str) -> bool:
        return chain in self.blocks

    def files(self, chain: str) -> Any:
        found = self.blocks[chain]

        class Files:
            def __len__(self) -> int:
                return len(found)

            def in_order(self) -> list[Any]:
                return [
                    SimpleNamespace(cid=b.ref, topics=b.topics, parents=b.parents)
                    for b in found
                ]

            def read(self, cid: str) -> bytes:
                return next(b.content for b in found if b.ref == cid)

        return Files()

    def put(self, did: str, topic: str, content: bytes) -> None:
        found = self.blocks.setdefault(chain_of(did), [])
        parents = (found[-1].ref,) if found else ()
        ref = f"{did}-{len(found)}"[-60:]
        found.append(IdentityBlock(ref=ref, topics=(topic,), parents=parents, content=content))

    def claim(self, did: str, by: str, kind: str, **more: Any) -> Claim:
        found = self.blocks[chain_of(did)]
        nonce = len(found).to_bytes(16, "big")
        return Claim(group=did, kind=kind, by=by, nonce=nonce, parents=(found[-1].ref,), **more)

    def key(self, did: str, old: str, new: str) -> None:
        data = f"{old}--{new}".encode()
        value: dict[str, Any] = {
            "old_keys": old,
            "new_keys": new,
            "signature": base64.urlsafe_b64encode(sign(old, data)).decode(),
        }
        self.put(did, "control_key", json.dumps(value).encode())

    def join(self, did: str, by: str, member: str, *, own: str) -> None:
        key = f"|{did}"
        pin = pin_of(f"|{member}")
        claim = self.claim(did, by, "join", subject=member, pin=pin)
        info = {"did": member, "walyoff": claim.as_field(sign(own, claim.body()))}
        signature = sign(key, json.dumps(info).encode())
        value = {
            "info_content": info,
            "signature": base64.urlsafe_b64encode(signature).decode(),
        }
        self.put(did, "member_joining", json.dumps(value).encode())

    def rules(self, did: str, by: str) -> None:
        claim = self.claim(did, by, "rules", rule="any")
        body = claim.body()
        block = claim.as_block(sign(f"|{by}", body), sign(f"|{did}", body))
        self.put(did, TOPIC_RULES, block)

    def identity(self, did: str, founder: str) -> None:
        self.key(did, f"|{did}", f"|{did}")
        self.join(did, founder, founder, own=f"|{founder}")
        self.rules(did, founder)

    def readings(self) -> Readings:
        return Readings(self, verify, verify)  # type: ignore[arg-type]


@pytest.fixture
def held() -> Iterator[Held]:
    with mock.patch.object(readings, "content_of", lambda file: file):
        yield Held()


def test_a_long_row_of_identities_that_act_for_one_another_is_read(held: Held) -> None:
    device = PREFIX + "device"
    held.key(device, f"|{device}", f"|{device}")
    before = device
    for n in range(400):
        did = f"{PREFIX}{n}"
        held.identity(did, before)
        before = did
    reading = held.readings().read(before, pin_of(f"|{before}"))
    assert [m.did for m in reading.members.values()] == [f"{PREFIX}398"]


def test_a_reading_is_made_anew_when_the_chain_of_an_actor_grows(held: Held) -> None:
    a, b, c = PREFIX + "a", PREFIX + "b", PREFIX + "c"
    group = PREFIX + "group"
    held.key(a, f"|{a}", f"|{a}")
    held.identity(group, a)
    held.join(group, a, b, own=f"|{a}")
    held.join(group, a, c, own="|renewed")
    made = held.readings()
    assert set(made.read(group, pin_of(f"|{group}")).members) == {a, b}
    # Somebody else's first keys there are nobody's.
    held.key(a, "|renewed", "|renewed")
    assert set(made.read(group, pin_of(f"|{group}")).members) == {a, b}
    held.key(a, f"|{a}", "|renewed")
    assert set(made.read(group, pin_of(f"|{group}")).members) == {a, b, c}
