"""What a device takes that missed everything: blocks a second, and the processor's time.

One home holds a register whose blocks are written here, as a member's device writes them, so
that it is there in a minute: Walytis makes the last of each segment, and the link to the next.
Each repetition is a new device that joins and is handed all of it.
"""

from __future__ import annotations

import time
from pathlib import Path

import anyio

from walyoff.bench.bench import Bench
from walyoff.bench.lab import OURS, BenchError
from walyoff.bench.machine import cpu_seconds
from walyoff.bench.measure_ledger import (
    EPOCH,
    FEW,
    anchor_payload,
    found,
    hand_over,
    learn,
    opened,
)
from walyoff.child.blocks import decode_block
from walyoff.child.proofs import TOPIC_ANCHOR, wrap
from walyoff.epochs import anchor_key
from walyoff.testing.walytis_blocks import make_block
from walyoff.walytis.identity import WalytisIdentity
from walyoff.walytis.process import Child, open_child
from walyoff.walytis.register import RegisterLedger
from walyoff.wire import pack

#: So long opening the next segment may take.
NEXT_S = 60.0


async def measure(bench: Bench) -> None:
    """Fill one home, and hand all of it to devices that have nothing."""
    (blocks,) = bench.sizes("blocks")
    (segment,) = bench.sizes("segment")
    bench.notes |= {"blocks": blocks, "segment": segment}
    async with bench.lab() as lab:
        home = lab.new_home("giver")
        async with open_child(home) as giver:
            identity, ledger = await found(giver, segment)
            for _ in range(blocks // segment):
                await _fill(giver, ledger, segment)
            group = (identity.did, identity.pin, identity.member_did)
        # Opened again, so that nothing lingers.
        async with opened(home, group) as (giver, identity, ledger):
            for number in range(bench.repeats):
                figures = await _take(giver, identity, ledger, lab.new_home(f"taker-{number}"))
                bench.figures.add(OURS, figures)


async def _fill(child: Child, ledger: RegisterLedger, segment: int) -> None:
    """Fill the newest segment, and wait for the next one."""
    known = await ledger.segments()
    chain = known[-1]["chain"]
    args = {"chain": chain, "known": None, "limit_bytes": 1 << 20}
    birth = [decode_block(file) for file in (await child.call("chain.export", args))["files"]]
    first, tip = birth[0], birth[-1]
    files: list[bytes] = []
    for number in range(segment - 1):
        parents = sorted([tip.short_id, first.short_id])
        content = wrap(anchor_payload(), anchor_key(EPOCH), chain, parents)
        data = make_block(content, [TOPIC_ANCHOR, chain], parents, minute=number % 60)
        tip = decode_block(data)
        files.append(pack([chain, data]))
    if await ledger.import_files(files) != (len(files), {}):
        raise BenchError("blocks that were made were refused")
    await ledger.append(anchor_payload())
    with anyio.fail_after(NEXT_S):
        while len(await ledger.segments()) == len(known):  # noqa: ASYNC110  (a process)
            await anyio.sleep(0.05)


async def _take(
    giver: Child, identity: WalytisIdentity, ledger: RegisterLedger, home: Path
) -> dict[str, float]:
    async with open_child(home) as taker:
        did, pin = await WalytisIdentity.create_device_did(taker)
        files = await WalytisIdentity.export_did(taker, did)
        await identity.add_member(did, files, pin=pin)
        adopted = await WalytisIdentity.adopt(taker, await identity.grant(), did, guarded=True)
        theirs = await learn(adopted)
        assert giver.pid is not None
        assert taker.pid is not None
        pids = (giver.pid, taker.pid)
        cpu = [cpu_seconds(pid) for pid in pids]
        parent, began = time.process_time(), time.perf_counter()
        count = await hand_over(ledger, theirs)
        spent = time.perf_counter() - began
        parent = time.process_time() - parent
        giver_cpu, taker_cpu = (
            cpu_seconds(pid) - before for pid, before in zip(pids, cpu, strict=True)
        )
        for _ in range(FEW):
            await ledger.append(anchor_payload())
        began = time.perf_counter()
        await hand_over(ledger, theirs)
        few = time.perf_counter() - began
    return {
        "blocks": float(count),
        "all_s": spent,
        "blocks_per_s": count / spent,
        "giver_child_cpu_us": 1e6 * giver_cpu / count,
        "taker_child_cpu_us": 1e6 * taker_cpu / count,
        # Both sides' parents are this process, without the session between them.
        "parents_cpu_us": 1e6 * parent / count,
        "few_s": few,
    }
