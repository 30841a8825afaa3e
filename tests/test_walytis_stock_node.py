"""A stock Walytis node in a process of its own joins a device's chain, and sees all of it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

from tests.guard_attacks import prepare_stock
from tests.ledger_support import anchor, children, found, until
from walyoff.child.blocks import decode_block
from walyoff.child.patches import CREATOR

#: Stock code takes its time: its joining and its start are mostly waits.
BOUND_S = 450
BEFORE, AFTER = 4, 6


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def stock_node(home: Path, *args: str) -> AsyncIterator[Process]:
    script = Path(__file__).with_name("stock_node.py")
    environment, log = prepare_stock(home)
    with log:
        async with await anyio.open_process(
            [sys.executable, "-P", str(script), *args], cwd=home, env=environment, stderr=log
        ) as process:
            try:
                yield process
            finally:
                process.kill()


async def said(output: BufferedByteReceiveStream, word: str) -> str:
    while True:
        line = (await output.receive_until(b"\n", 1 << 22)).decode()
        if word in line:
            return line.partition(word)[2]


@pytest.mark.anyio
async def test_a_stock_node_sees_the_same_blocks_in_the_same_dag(home: Path) -> None:
    async with children(home, "a", connect=False) as (a,):
        _, one = await found(a, 64)
        for number in range(BEFORE):
            await one.append(anchor(b"before %d" % number))
        chain = one.chain_id
        folder = home / "a" / "walytis" / chain
        archive = shutil.make_archive(str(home / "chain"), "zip", folder)
        count = 5 + BEFORE + AFTER
        args = (chain, archive, a.addresses[0], str(count))
        async with stock_node(home / "stock", *args) as process:
            assert process.stdout is not None
            assert process.stdin is not None
            output = BufferedByteReceiveStream(process.stdout)
            with anyio.fail_after(BOUND_S):
                await said(output, "JOINED")
                # What follows it fetches from the device's node, as it is announced.
                for number in range(AFTER):
                    await one.append(anchor(b"after %d" % number))
                    await anyio.sleep(0.2)
                theirs: dict[str, Any] = json.loads(await said(output, "RESULT"))
                assert theirs["walyoff"] == []
                assert sorted(theirs["blocks"]) == await described(a, chain)
                # It can write to the chain like anybody; here that counts for nothing.
                await process.stdin.send(b"add\n")
                stranger = json.loads(await said(output, "RESULT"))
                # Stock blocks name the node that wrote them; ours do not.
                assert stranger["creator"] == stranger["peer_id"] != CREATOR

            async def refused() -> bool:
                return bool((await one.statistics())["ledger"])

            await until(refused)
        assert len(await described(a, chain)) == count


async def described(child: Any, chain: str) -> list[list[Any]]:
    """The blocks of a device's chain as `stock_node.py` tells of its own."""
    args = {"chain": chain, "known": None, "limit_bytes": 1 << 24}
    blocks = [decode_block(f) for f in (await child.call("chain.export", args))["files"]]
    return sorted(
        [b.cid, CREATOR, list(b.topics), b.content.hex(), sorted(b.parents)] for b in blocks
    )
