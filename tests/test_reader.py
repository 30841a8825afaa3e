"""What an identity's chain says, whoever wrote to it."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from walyoff.child import reader
from walyoff.child.reader import IdentityBlock, Reading, encode_segment, pin_of, segment_body
from walyoff.wire import pack

GROUP = "did:walytisidentities:QmGroup"
K0, K1, K2, EVIL = "|key-0", "|key-1", "|key-2", "|evil"
PIN = pin_of(K0)


def sign(key: str, data: bytes) -> bytes:
    """A toy signature: the reader is given the function that checks it."""
    return blake3(key.encode() + b"\0" + data).digest()


def verify(key: str, signature: bytes, data: bytes) -> bool:
    return signature == sign(key, data)


class Chain:
    """Blocks in causal order; each follows the last unless told otherwise."""

    def __init__(self) -> None:
        self.blocks: list[IdentityBlock] = []

    def add(
        self, topics: Sequence[str], content: bytes, parents: Sequence[str] | None = None
    ) -> str:
        ref = f"b{len(self.blocks):03}"
        before = [self.blocks[-1].ref] if self.blocks else []
        self.blocks.append(
            IdentityBlock(
                ref=ref,
                topics=tuple(topics),
                parents=tuple(before if parents is None else parents),
                content=content,
            )
        )
        return ref

    def key(self, old: str, new: str, signer: str | None = None, **kw: Any) -> str:
        data = f"{old}--{new}".encode()
        content = {
            "old_keys": old,
            "new_keys": new,
            "signature": base64.urlsafe_b64encode(sign(signer or old, data)).decode(),
            "priblocks_version": [0, 0, 1],
        }
        return self.add(["DidManager", "control_key"], json.dumps(content).encode(), **kw)

    def info(self, kind: str, info: Any, key: str = K0, **kw: Any) -> str:
        signature = sign(key, json.dumps(info).encode())
        content = {
            "info_content": info,
            "signature": base64.urlsafe_b64encode(signature).decode(),
            "priblocks_version": [0, 0, 1],
        }
        return self.add(["GroupDidManager", kind], json.dumps(content).encode(), **kw)

    def member(self, act: str, did: str, key: str = K0, **kw: Any) -> str:
        kind = {"join": "member_joining", "leave": "member_leaving"}[act]
        return self.info(kind, member_info(act, did, len(self.blocks)), key, **kw)

    def read(self, pin: bytes | None = PIN) -> Reading:
        return reader.read_identity(GROUP, pin, self.blocks, verify)


def member_info(act: str, did: str, nonce: int = 0, group: str = GROUP) -> dict[str, Any]:
    return {
        "did": did,
        "invitation": "{}",
        "walyoff": {
            "v": 1,
            "act": act,
            "group": group,
            "pin": did_pin(did).hex(),
            "nonce": f"{nonce:032x}",
        },
    }


def did_pin(did: str) -> bytes:
    return blake3(did.encode()).digest()


def current(reading: Reading) -> list[str]:
    return [member.did for member in reading.members.values() if member.current]


@pytest.fixture
def chain() -> Chain:
    made = Chain()
    made.key(K0, K0)
    return made


def test_members_join_leave_and_join_again(chain: Chain) -> None:
    chain.member("join", "a")
    chain.member("join", "b")
    chain.member("leave", "a")
    reading = chain.read()
    assert current(reading) == ["b"]
    assert not reading.members["a"].current
    assert reading.members["b"].pin == did_pin("b")
    chain.member("join", "a")
    reading = chain.read()
    assert current(reading) == ["b", "a"]
    assert [m.joined_at for m in reading.members.values()] == [1, 3]
    assert not reading.refused


def test_outsiders_blocks_are_counted_and_change_nothing(chain: Chain) -> None:
    chain.member("join", "a")
    chain.member("join", "evil", key=EVIL)
    chain.member("leave", "a", key=EVIL)
    chain.key(K0, EVIL, signer=EVIL)
    chain.key(EVIL, EVIL)
    chain.add(["GroupDidManager", "member_joining"], b"rubbish")
    reading = chain.read()
    assert current(reading) == ["a"]
    assert reading.keys == [K0]
    assert reading.refused == {
        reader.BAD_SIGNATURE: 3,
        reader.NOT_PINNED: 1,
        reader.MALFORMED: 1,
    }


def test_rival_first_key_before_the_real_one_is_refused_by_the_pin() -> None:
    chain = Chain()
    chain.key(EVIL, EVIL)
    chain.member("join", "evil", key=EVIL)
    chain.key(K0, K0)
    chain.member("join", "a")
    reading = chain.read()
    assert current(reading) == ["a"]
    assert reading.refused[reader.NO_KEYS_YET] == 1
    # Without a pin the doubt is visible.
    assert chain.read(pin=None).refused[reader.SECOND_FIRST_KEY] == 1


def test_replayed_contents_act_once(chain: Chain) -> None:
    chain.member("join", "a")
    joining = chain.blocks[-1].content
    chain.member("leave", "a")
    leaving = chain.blocks[-1].content
    chain.add(["GroupDidManager", "member_joining"], joining)
    assert current(chain.read()) == []
    chain.member("join", "a")
    chain.add(["GroupDidManager", "member_leaving"], leaving)
    reading = chain.read()
    assert current(reading) == ["a"]
    assert reading.refused == {reader.REPLAYED: 2}


def test_contents_for_another_purpose_or_group_are_refused(chain: Chain) -> None:
    chain.member("join", "a")
    chain.info("member_leaving", member_info("join", "a", 77))
    chain.info("member_joining", member_info("leave", "b", 78))
    chain.info("member_joining", member_info("join", "c", 79, group="did:other"))
    chain.info("member_joining", {"did": "d", "walyoff": {"v": 2}})
    chain.info("member_joining", {"did": "e", "walyoff": 7})
    reading = chain.read()
    assert current(reading) == ["a"]
    assert reading.refused == {reader.WRONG_PURPOSE: 3, reader.MALFORMED: 2}


def test_stock_joining_counts_and_its_replay_as_leaving_does_not(chain: Chain) -> None:
    chain.info("member_joining", {"did": "a", "invitation": "{}"})
    chain.add(["GroupDidManager", "member_leaving"], chain.blocks[-1].content)
    reading = chain.read()
    assert current(reading) == ["a"]
    assert reading.members["a"].pin == b""
    assert reading.refused == {reader.REPLAYED: 1}
    chain.info("member_leaving", {"did": "a", "invitation": "{}", "more": 1})
    assert current(chain.read()) == []


def test_update_of_a_member_cannot_be_replayed_as_its_joining(chain: Chain) -> None:
    chain.member("join", "a")
    chain.info("member_update", {"did": "a", "invitation": "new"})
    update = chain.blocks[-1].content
    chain.member("leave", "a")
    chain.add(["GroupDidManager", "member_joining"], update)
    reading = chain.read()
    assert current(reading) == []
    assert reading.refused == {reader.REPLAYED: 1}


def test_renewed_keys_replace_the_old_ones(chain: Chain) -> None:
    chain.member("join", "a")
    chain.key(K0, K1)
    chain.key(K1, K2)
    chain.member("join", "b", key=K2)
    chain.member("join", "old", key=K0)
    chain.member("join", "older", key=K1)
    chain.key(K0, EVIL)
    reading = chain.read()
    assert reading.keys == [K0, K1, K2]
    assert current(reading) == ["a", "b"]
    assert reading.refused == {reader.OLD_KEYS: 2, reader.STALE_RENEWAL: 1}


def test_block_written_while_keys_were_renewed_elsewhere_counts(chain: Chain) -> None:
    base = chain.member("join", "a")
    chain.key(K0, K1)
    # Its author had not seen the renewal.
    fork = chain.member("join", "b", key=K0, parents=[base])
    merge = chain.member("join", "c", key=K1, parents=[chain.blocks[-2].ref, fork])
    chain.member("join", "d", key=K0, parents=[merge])
    reading = chain.read()
    assert current(reading) == ["a", "b", "c"]
    assert reading.refused == {reader.OLD_KEYS: 1}


def test_of_two_renewals_at_once_the_first_counts(chain: Chain) -> None:
    base = chain.blocks[-1].ref
    chain.key(K0, K1, parents=[base])
    chain.key(K0, K2, parents=[base])
    reading = chain.read()
    assert reading.keys == [K0, K1]
    assert reading.refused == {reader.STALE_RENEWAL: 1}


def test_segment_counts_when_signed_and_the_smallest_name_wins(chain: Chain) -> None:
    def segment(name: str, key: str = K0, group: str = GROUP, number: int = 0) -> str:
        signature = pack([sign(key, segment_body(group, name, number))])
        return chain.add(["walyoff_segment"], encode_segment(group, name, number, signature))

    def check(key: str, signature: bytes, data: bytes) -> bool:
        return signature == pack([sign(key, data)])

    segment("QmEvil", key=EVIL)
    segment("QmOther", group="did:other")
    segment("QmLater", number=1)
    chain.add(["walyoff_segment"], b"rubbish")
    first = segment("QmSegment")
    segment("QmSecond")
    blocks = [b for b in chain.blocks if b.topics[0] == "walyoff_segment"]

    def both(key: str, signature: bytes, data: bytes) -> bool:
        return check(key, signature, data) or verify(key, signature, data)

    reading = reader.read_identity(GROUP, PIN, chain.blocks, both)
    assert reading.segments[first] == reading.segment == "QmSegment"
    assert len(reading.segments) == 2
    assert len(blocks) == 6
    assert reading.refused == {
        reader.BAD_SIGNATURE: 1,
        reader.WRONG_PURPOSE: 2,
        reader.MALFORMED: 1,
    }


def test_deep_or_large_json_is_refused_before_it_is_parsed(chain: Chain) -> None:
    topics = ["GroupDidManager", "member_joining"]
    chain.add(topics, b"[" * 100_000)
    chain.add(topics, b'{"a":' * 1_000 + b"1" + b"}" * 1_000)
    chain.add(topics, b'"' + b"x" * (1 << 20) + b'"')
    chain.add(topics, b'{"info_content": {"did": "\\ud800"}, "signature": "AAAA"}')
    chain.add(topics, b'{"info_content": {"did": "' + b"x" * 300 + b'"}, "signature": "AA=="}')
    assert chain.read().refused == {reader.MALFORMED: 5}


_json = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["did", "walyoff", "v", "act", "group", "pin", "x"]), inner
        ),
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(
                st.sampled_from(
                    [
                        *("control_key", "member_joining", "member_leaving", "member_update"),
                        *("did_doc", "walyoff_segment", "key_ownership", "other"),
                    ]
                ),
                max_size=2,
            ),
            st.one_of(
                st.binary(max_size=60),
                _json.map(lambda v: json.dumps(v).encode()),
                _json.map(
                    lambda v: json.dumps({"info_content": v, "signature": "AAAA"}).encode()
                ),
                st.builds(
                    lambda a, b: json.dumps(
                        {"old_keys": a, "new_keys": b, "signature": "AAAA"}
                    ).encode(),
                    _json,
                    _json,
                ),
                st.tuples(
                    *[st.one_of(st.integers(-9, 9), st.text(max_size=9), st.binary(max_size=9))]
                    * 5
                ).map(lambda v: pack(list(v))),
            ),
        ),
        max_size=6,
    )
)
def test_no_content_crashes_the_reader(items: list[tuple[list[str], bytes]]) -> None:
    chain = Chain()
    chain.key(K0, K0)
    for topics, content in items:
        chain.add(topics, content)
    chain.member("join", "a")
    accept_all = reader.read_identity(GROUP, PIN, chain.blocks, lambda *_: True)
    assert accept_all.keys[0] == K0
    reading = chain.read()
    assert current(reading) == ["a"]
    assert reading.keys == [K0]
