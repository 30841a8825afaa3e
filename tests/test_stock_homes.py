"""Identities of stock walytis-identities are opened here, and ours by it, in its process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import pytest

import walyoff
from tests.cli_processes import walyoff as command
from walyoff.child.acts import DID_PREFIX, pin_of
from walyoff.child.blocks import decode_block
from walyoff.child.chainfiles import ChainFiles
from walyoff.child.copies import Standing, name_of, sift
from walyoff.child.dag import GENESIS_BLOCKS
from walyoff.child.judging import IdentityJudge
from walyoff.stock import adopt_stock, export_stock

NODE = Path(__file__).parent / "stock_identity.py"
TIMEOUT_S = 600.0

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """One event loop: the work is in other processes."""
    return "asyncio"


def stock(what: str, home: Path) -> dict[str, Any]:
    """What stock software makes, or sees."""
    done = subprocess.run(
        [sys.executable, str(NODE), what, str(home)],
        capture_output=True, text=True, timeout=TIMEOUT_S, check=False, env=os.environ,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("@")]
    assert lines, done.stdout[-2000:] + done.stderr[-3000:]
    value: dict[str, Any] = json.loads(lines[0][1:])
    return value


def paths(home: Path) -> dict[str, Path]:
    """Where a stock home of `stock_identity` has what."""
    return {
        "chains": home / "walytis",
        "member": home / "keys" / "member.json",
        "group": home / "keys" / "group.json",
        "unlock": home / "keys" / "unlock.json",
    }


def all_are_admitted(chains: Path, did: str, keys: list[str]) -> int:
    """Hand a chain over to somebody who has its birth; returns how many blocks it has more."""
    chain = did.removeprefix(DID_PREFIX)
    held = ChainFiles(chain, chains / chain, chains / f"{chain}.positions")
    held.load()
    (chains / f"{chain}.positions").unlink()
    blocks = [(decode_block(held.read(e.cid)), held.read(e.cid)) for e in held.in_order()]
    with TemporaryDirectory() as folder:
        files = ChainFiles(chain, Path(folder), Path(folder) / "positions")
        files.add_closed(blocks[:GENESIS_BLOCKS])
        judge = IdentityJudge(did, pin_of(keys[0]), lambda *_: True, lambda _: True)
        refused: list[str] = []
        kept = sift(judge.look(files), blocks[GENESIS_BLOCKS:], refused.append)
        files.add_closed(kept, refused.append, judge=lambda b: judge.place(files, b))
        assert refused == []
        # And each is one that nobody else can write: it repeats nothing.
        look = judge.look(held)
        assert len({name_of(judge.act(block)) for block, _ in kept}) == len(kept)
        assert all(look.take(block) is Standing.NEW for block, _ in kept)
        return len(kept)


async def test_a_stock_identity_is_adopted_used_shared_and_handed_back(home: Path) -> None:
    made = await anyio.to_thread.run_sync(stock, "make", home / "stock")
    for who in ("group", "member"):
        chains = home / "stock" / "walytis"
        assert all_are_admitted(chains, made[who], made[f"{who}_keys"]) >= 2
    assert len(made["group_keys"]) == 2
    assert made["unlocked"] == [True, True]
    with anyio.fail_after(TIMEOUT_S):
        async with (
            walyoff.open_device(home / "ours") as ours,
            walyoff.open_device(home / "other") as other,
        ):
            # Keys that somebody put into the key store are not the chain's.
            forged = home / "forged.json"
            value = json.loads(paths(home / "stock")["group"].read_text())
            value["keys"] = value["keys"][:1]
            forged.write_text(json.dumps(value))
            with pytest.raises(walyoff.RemoteProtocolError, match="newest keys"):
                await adopt_stock(ours, name="x", **{**paths(home / "stock"), "group": forged})
            assert ours.channels() == []
            channel = await adopt_stock(ours, name="family", **paths(home / "stock"))
            assert (channel.did, channel.me) == (made["group"], made["member"])
            assert [m.did for m in channel.members()] == made["members"]
            # It is used as any other: somebody joins, and they talk.
            joined = await other.join(await channel.invite())
            await (await channel.send(b"from a stock identity")).wait_received()
            await (await joined.send(b"and back")).wait_received()
            await (await channel.send(b"anchored")).wait_anchored()
            with pytest.raises(walyoff.LocalProtocolError):
                await adopt_stock(other, name="y", **paths(home / "stock"))
            await export_stock(ours, channel, home / "back")
            with pytest.raises(walyoff.StoreError, match="not empty"):
                await export_stock(ours, channel, home / "back")
            members = sorted(m.did for m in channel.members())
        # And again after a restart.
        async with walyoff.open_device(home / "ours") as ours:
            again = ours.channel("family")
            assert sorted(m.did for m in again.members()) == members
            assert again.status()["refused_blocks"] == {}
    for path in (home / "back").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
    seen = await anyio.to_thread.run_sync(stock, "load", home / "back")
    # Stock's blocks and ours on one chain.
    chains = home / "back" / "walytis"
    assert all_are_admitted(chains, made["group"], made["group_keys"]) > 5
    assert seen["members"] == members
    assert len(members) == 2
    assert seen["group"] == made["group"]
    assert seen["member_keys"] == made["member_keys"]
    assert seen["group_keys"][:2] == made["group_keys"]
    assert seen["unlocked"] == [True, True]
    assert seen["verified"]


async def test_an_identity_of_ours_is_opened_by_stock_software(home: Path) -> None:
    ours = ("--home", str(home / "ours"))

    def make() -> dict[str, Any]:
        created = command(*ours, "create", "family", "--json")
        assert created.returncode == 0, created.stderr
        done = command(*ours, "did", "export-stock", str(home / "out"), "--json")
        assert done.returncode == 0, done.stderr
        value: dict[str, Any] = json.loads(created.stdout)
        return value

    made = await anyio.to_thread.run_sync(make)
    expected = (made["channel"], made["me"])
    seen = await anyio.to_thread.run_sync(stock, "load", home / "out")
    assert (seen["group"], seen["member"]) == expected
    assert seen["members"] == [expected[1]]
    assert seen["unlocked"] == [True, True]
    assert seen["verified"]
    assert all_are_admitted(home / "out" / "walytis", made["channel"], seen["group_keys"]) > 4
    shutil.rmtree(home / "out")
