"""Readings of chains that stand on one another: the same whichever is read first."""

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
TOPICS = {"join": "member_joining", "leave": "member_leaving"}


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
        return Claim(
            group=did, kind=kind, by=by, nonce=nonce, parents=(found[-1].ref,), **more
        )

    def key(self, did: str, old: str, new: str, by: str | None = None, own: str = "") -> None:
        data = f"{old}--{new}".encode()
        value: dict[str, Any] = {
            "old_keys": old,
            "new_keys": new,
            "signature": base64.urlsafe_b64encode(sign(old, data)).decode(),
        }
        if by is not None:
            claim = self.claim(did, by, "renew", pin=pin_of(new))
            value["walyoff"] = claim.as_field(sign(own, claim.body()))
        self.put(did, "control_key", json.dumps(value).encode())

    def member(self, did: str, key: str, by: str, own: str, kind: str, member: str) -> None:
        pin = pin_of(f"|{member}")
        claim = self.claim(did, by, kind, subject=member, pin=pin)
        info = {"did": member, "walyoff": claim.as_field(sign(own, claim.body()))}
        signature = sign(key, json.dumps(info).encode())
        value = {
            "info_content": info,
            "signature": base64.urlsafe_b64encode(signature).decode(),
        }
        self.put(did, TOPICS[kind], json.dumps(value).encode())

    def rules(self, did: str, by: str) -> None:
        claim = self.claim(did, by, "rules", rule="any")
        body = claim.body()
        block = claim.as_block(sign(f"|{by}", body), sign(f"|{did}", body))
        self.put(did, TOPIC_RULES, block)

    def identity(self, did: str, founder: str) -> None:
        self.key(did, f"|{did}", f"|{did}")
        self.member(did, f"|{did}", founder, f"|{founder}", "join", founder)
        self.rules(did, founder)

    def readings(self) -> Readings:
        return Readings(self, verify, verify)  # type: ignore[arg-type]


@pytest.fixture
def held() -> Iterator[Held]:
    with mock.patch.object(readings, "content_of", lambda file: file):
        yield Held()


def test_a_circle_is_read_alike_whichever_chain_is_read_first(held: Held) -> None:
    a, b, d = PREFIX + "a", PREFIX + "b", PREFIX + "d"
    group, person = PREFIX + "group", PREFIX + "person"
    for did in (a, b, d):
        held.key(did, f"|{did}", f"|{did}")
    held.identity(group, a)
    held.identity(person, b)
    held.member(group, f"|{group}", a, f"|{a}", "join", person)
    # What no honest device writes: the group is a member of its member, and acts there.
    held.member(person, f"|{person}", b, f"|{b}", "join", group)
    held.key(person, f"|{person}", "|new", by=group, own=f"|{group}")
    held.member(person, "|new", group, f"|{group}", "join", d)
    held.member(person, "|new", group, f"|{group}", "leave", b)
    # And its member acts in the group with the keys that it has from there.
    held.member(group, f"|{group}", person, "|new", "join", d)
    found = []
    for order in ((group, person), (person, group)):
        made = held.readings()
        read = {did: made.read(did, pin_of(f"|{did}")) for did in order}
        found.append({did: read[did] for did in sorted(read)})
    assert found[0] == found[1]


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
    held.member(group, f"|{group}", a, f"|{a}", "join", b)
    held.member(group, f"|{group}", a, "|renewed", "join", c)
    made = held.readings()
    assert set(made.read(group, pin_of(f"|{group}")).members) == {a, b}
    # Somebody else's first keys there are nobody's.
    held.key(a, "|renewed", "|renewed")
    assert set(made.read(group, pin_of(f"|{group}")).members) == {a, b}
    held.key(a, f"|{a}", "|renewed")
    assert set(made.read(group, pin_of(f"|{group}")).members) == {a, b, c}
