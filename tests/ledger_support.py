"""Registers on real children for tests: guarded identities, anchors, hand-over."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

from tests.waiting import HANGS_AFTER, Deadline
from walyoff.abc import Block
from walyoff.child.blocks import decode_block
from walyoff.child.proofs import wrap
from walyoff.epochs import Epoch, anchor_key, new_epoch, open_anchor, seal_anchor
from walyoff.testing.walytis_blocks import make_block
from walyoff.walytis.identity import WalytisIdentity
from walyoff.walytis.process import Child, open_child
from walyoff.walytis.register import RegisterLedger
from walyoff.wire import pack

EPOCH = new_epoch(key=b"e" * 32, now_ms=1)
LATER = new_epoch(key=b"l" * 32, now_ms=2)
KEYS = {EPOCH.epoch_id: anchor_key(EPOCH)}
ALL_KEYS = {**KEYS, LATER.epoch_id: anchor_key(LATER)}


def anchor(text: bytes, epoch: Epoch = EPOCH) -> bytes:
    """An anchor's payload that says something."""
    return seal_anchor(epoch, [], [(text, b"signature")], salt=os.urandom(16))


def text_of(block: Block, epoch: Epoch = EPOCH) -> bytes:
    return open_anchor(epoch, block.payload).batches[0][0]


@asynccontextmanager
async def children(home: Path, *names: str, connect: bool = True) -> AsyncIterator[list[Child]]:
    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(open_child(home / name)) for name in names]
        if connect:
            for child in opened[1:]:
                await child.connect(opened[0].addresses[0])
        yield opened


async def found(child: Child, blocks: int = 8) -> tuple[WalytisIdentity, RegisterLedger]:
    """A guarded identity with one device."""
    did, _ = await WalytisIdentity.create_device_did(child)
    identity = await WalytisIdentity.create(child, did, guarded=True, segment_blocks=blocks)
    ledger = await identity.ledger()
    await ledger.learn_keys(KEYS)
    return identity, ledger


async def join(
    identity: WalytisIdentity, child: Child, blocks: int = 8
) -> tuple[WalytisIdentity, RegisterLedger]:
    """Another device of it."""
    did, pin = await WalytisIdentity.create_device_did(child)
    await identity.add_member(did, await WalytisIdentity.export_did(child, did), pin=pin)
    theirs = await WalytisIdentity.adopt(
        child, await identity.grant(), did, guarded=True, segment_blocks=blocks
    )
    ledger = await theirs.ledger()
    await ledger.learn_keys(KEYS)
    return theirs, ledger


async def hand_over(source: RegisterLedger, target: RegisterLedger) -> int:
    """Compare leaves, and give what lacks, as devices do in a session; how many were new."""
    total = 0
    while True:
        wanted = await target.wanted(await source.leaves())
        if wanted is None:
            return total
        admitted, refused = await target.import_files(await source.export(wanted))
        assert not refused, refused
        total += admitted
        if not admitted:
            return total


async def read(ledger: RegisterLedger, count: int, after: int = 0) -> list[Block]:
    """The next blocks."""
    blocks: list[Block] = []
    with anyio.fail_after(HANGS_AFTER):
        async with ledger.blocks(after) as stream:
            while len(blocks) < count:
                blocks.append(await stream.receive())
    return blocks


async def until(condition: Callable[[], Any], timeout: float = 20) -> None:
    """Wait until an asynchronous condition holds."""
    deadline = Deadline(timeout)
    while not await condition():
        assert deadline.left(), "it did not happen in time"
        await anyio.sleep(0.02)


async def until_peers(child: Child, topic: str) -> None:
    async def seen() -> bool:
        return bool(await child.topic_peers(topic))

    await until(seen)


async def head(ledger: RegisterLedger) -> dict[str, Any]:
    """The newest segment."""
    return (await ledger.segments())[-1]


def made_blocks(
    birth: list[bytes], count: int, epoch: Epoch = EPOCH, parent: bytes | None = None
) -> list[bytes]:
    """Block files as a member's device writes them one after the other, on a chain's birth.

    Made here, because Walytis takes some hundredths of a second for each.
    """
    first = decode_block(birth[0])
    tip = decode_block(parent or birth[-1])
    key = anchor_key(epoch)
    made: list[bytes] = []
    for number in range(count):
        ids = sorted([tip.short_id, first.short_id])
        content = wrap(anchor(b"made %d" % number, epoch), key, first.cid, ids)
        made.append(make_block(content, ["walyoff", first.cid], ids, minute=number % 60))
        tip = decode_block(made[-1])
    return made


async def fill(ledger: RegisterLedger, child: Child, count: int) -> None:
    """Give a register that has one segment so many blocks at once."""
    args = {"chain": ledger.chain_id, "known": None, "limit_bytes": 48 << 20}
    files = (await child.call("chain.export", args))["files"]
    made = made_blocks([files[0], files[-1]], count)
    for start in range(0, count, 2_000):
        part = [pack([ledger.chain_id, file]) for file in made[start : start + 2_000]]
        assert await ledger.import_files(part) == (len(part), {})
