"""Blocks of unknown epochs wait, bounded, for their keys; others are judged by their place."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.ledger_support import (
    ALL_KEYS,
    EPOCH,
    KEYS,
    LATER,
    anchor,
    children,
    found,
    hand_over,
    join,
    read,
    text_of,
    until,
    until_peers,
)
from walyoff.child import guard
from walyoff.child.blocks import MAX_CONTENT, BlockFile, decode_block
from walyoff.child.chainfiles import parent_ids
from walyoff.child.judging import EpochKeys, SegmentJudge
from walyoff.child.proofs import (
    TOPIC_LINK,
    Link,
    UnknownEpochError,
    link_body,
    open_link,
    seal_link,
    unwrap,
    wrap,
)
from walyoff.epochs import anchor_key
from walyoff.errors import LocalProtocolError, RemoteProtocolError
from walyoff.testing.walytis_blocks import birth
from walyoff.wire import pack

KEY = anchor_key(EPOCH)
GROUP = "did:walytisidentities:QmGroup"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
async def test_blocks_of_an_epoch_wait_for_its_key_and_then_come_in_order(home: Path) -> None:
    async with children(home, "a", "b") as (a, b):
        mine, one = await found(a)
        _, two = await join(mine, b)
        await until_peers(a, one.chain_id)
        await one.append(anchor(b"0"))
        await read(two, 1)
        await one.learn_keys(ALL_KEYS)
        for number in range(1, 4):
            await one.append(anchor(b"%d" % number, LATER))

        async def aside() -> bool:
            return bool((await two.statistics())["ledger"].get("kept-aside", 0) >= 3)

        await until(aside)
        assert len(await read(two, 1)) == 1
        await two.learn_keys(ALL_KEYS)
        blocks = await read(two, 4)
        assert text_of(blocks[0]) == b"0"
        assert [text_of(b, LATER) for b in blocks[1:]] == [b"1", b"2", b"3"]
        assert "kept-aside" not in (await two.statistics())["ledger"]


@pytest.mark.anyio
async def test_handed_over_blocks_without_a_key_are_taken_when_it_is_there(home: Path) -> None:
    async with children(home, "a", "b", connect=False) as (a, b):
        mine, one = await found(a)
        _, two = await join(mine, b)
        await one.learn_keys(ALL_KEYS)
        await one.append(anchor(b"1", LATER))
        wanted = await two.wanted(await one.leaves())
        assert wanted is not None
        files = await one.export(wanted)
        assert await two.import_files(files) == (0, {"unknown-epoch": 1})
        await two.learn_keys(ALL_KEYS)
        assert await hand_over(one, two) == 1


# ---------------------------------------------------------------------------- judges


def judge_for(chain: str, *, signed: bool = True) -> SegmentJudge:
    keys = EpochKeys()
    keys.add(KEYS.items())
    return SegmentJudge(chain, GROUP, keys, lambda: ["key"], lambda _k, s, _d: s == b"good")


def written(
    content: bytes, topics: list[str] | None = None
) -> tuple[SegmentJudge, BlockFile, list[bytes]]:
    """A block after a chain's birth, whose content is made for its parents."""
    born = birth()
    plain = decode_block(born.child(b"x"))
    ids = parent_ids(plain)
    made = wrap(content, KEY, born.chain, ids)
    return judge_for(born.chain), decode_block(born.child(made, topics=topics)), ids


def test_an_anchor_in_its_place_counts_and_nowhere_else() -> None:
    judge, block, ids = written(anchor(b"1"))
    assert judge.form(block)
    born = birth()
    elsewhere = born.child(block.content, born.blocks[2])
    with pytest.raises(RemoteProtocolError, match="written for this place"):
        judge.form(decode_block(elsewhere))
    other = judge_for("Qm" + "1" * 44)
    with pytest.raises(RemoteProtocolError):
        other.form(block)
    payload, proof = unwrap(block.content)
    assert wrap(payload, KEY, born.chain, list(reversed(ids))) == block.content
    assert len(proof) == 32


@pytest.mark.parametrize(
    "content",
    [b"x", pack([1, b"x", bytes(32)]), pack([1, anchor(b"x"), bytes(32)]), bytes(1000)],
    ids=["no envelope", "no anchor", "no proof", "zeros"],
)
def test_what_proves_nothing_is_refused(content: bytes) -> None:
    born = birth()
    with pytest.raises(RemoteProtocolError):
        judge_for(born.chain).form(decode_block(born.child(content)))


def test_an_epoch_that_is_not_known_is_told_apart() -> None:
    judge, block, _ = written(anchor(b"1", LATER))
    with pytest.raises(UnknownEpochError) as caught:
        judge.form(block)
    assert caught.value.epoch_id == LATER.epoch_id


def link(born_chain: str, *, signature: bytes = b"good", number: int = 1) -> Link:
    following = birth()
    return Link(
        group=GROUP,
        previous=born_chain,
        number=number,
        chain=following.chain,
        birth=tuple(following.files),
        signature=signature,
    )


@pytest.mark.parametrize("what", ["signed", "unsigned", "other group", "other birth"])
def test_a_link_counts_when_a_member_signed_it_for_this_segment(what: str) -> None:
    chain = birth().chain
    made = link(chain, signature=b"good" if what != "unsigned" else b"bad")
    if what == "other group":
        made = replace(made, group="did:other")
    if what == "other birth":
        made = replace(made, chain="Qm" + "1" * 44)
    sealed = seal_link(made, KEY, EPOCH.epoch_id, os.urandom(16))
    judge, block, _ = written(sealed, [TOPIC_LINK])
    if what == "signed":
        assert judge.form(block)
        assert judge.link(block.content) == made
        assert made.body() == link_body(GROUP, chain, 1, made.chain)
    else:
        with pytest.raises(RemoteProtocolError):
            judge.form(block)


def test_any_bytes_are_a_link_or_one_error() -> None:
    sealed = seal_link(link(birth().chain), KEY, EPOCH.epoch_id, bytes(16))
    for position in range(0, len(sealed), 97):
        damaged = bytearray(sealed)
        damaged[position] ^= 1
        with pytest.raises(RemoteProtocolError):
            open_link(KEY, bytes(damaged))
    with pytest.raises(RemoteProtocolError):
        open_link(anchor_key(LATER), sealed)


def test_keys_are_checked_counted_and_never_printed() -> None:
    keys = EpochKeys()
    assert keys.add(ALL_KEYS.items()) == 2
    assert keys.add(ALL_KEYS.items()) == 0
    assert keys.newest() == (LATER.epoch_id, anchor_key(LATER))
    assert repr(keys) == "<EpochKeys [2]>"
    for wrong in ((b"short", KEY), (EPOCH.epoch_id, b"short"), ("text", KEY)):
        with pytest.raises(LocalProtocolError):
            keys.add([wrong])  # type: ignore[list-item]


def test_what_is_kept_aside_is_bounded_in_number_and_size() -> None:
    aside = guard.Aside()
    born = birth()
    for number in range(guard.MAX_ASIDE + 20):
        data = born.child(b"%d" % number)
        aside.put(decode_block(data), data)
    assert len(aside) == guard.MAX_ASIDE
    big = born.child(bytes(MAX_CONTENT))
    for number in range(40):
        aside.put(decode_block(born.child(b"%d" % number + bytes(MAX_CONTENT - 8))), big)
    assert len(aside) <= guard.MAX_ASIDE_BYTES // MAX_CONTENT
    assert len(aside.take()) <= guard.MAX_ASIDE_BYTES // MAX_CONTENT
    assert len(aside) == 0


def test_refused_blocks_are_counted_once_and_remembered_within_bounds() -> None:
    refusals = guard.Refusals()
    for number in range(guard.MAX_REMEMBERED + 10):
        refusals.remember(str(number), "bad-proof")
        refusals.remember(str(number), "bad-proof")
    assert refusals.statistics() == {"bad-proof": guard.MAX_REMEMBERED + 10}
    assert "0" not in refusals
    assert str(guard.MAX_REMEMBERED) in refusals
