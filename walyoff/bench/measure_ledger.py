"""The register over years: what a block, a start and a join cost after a long history.

Two homes: one whose register holds all the batches, written one block after the other by
stock Walytis, and one that is new. They take turns, so what the machine does otherwise
cancels in the ratios. Then a device that was away gets all of it.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

from walyoff.bench.bench import Bench
from walyoff.bench.lab import OURS, BenchError
from walyoff.bench.machine import cpu_seconds
from walyoff.epochs import Epoch, anchor_key, new_epoch, seal_anchor
from walyoff.walytis.identity import WalytisIdentity
from walyoff.walytis.process import Child, open_child
from walyoff.walytis.register import RegisterLedger

#: Batches of one block, and the bytes of each: what a device writes in a quarter of a second
#: while a few people talk.
BATCHES = 10
BATCH_BYTES = 300
#: Blocks that are timed in each home.
TIMED = 100
#: Starts of each home.
STARTS = 5
#: Blocks that a device misses in a short absence.
FEW = 10

#: The epoch that all of it is sealed under.
EPOCH: Epoch = new_epoch(key=b"benchmark".ljust(32), now_ms=1)


async def measure(bench: Bench) -> None:
    """Fill one home, compare it with a new one, and hand everything over."""
    (batches,) = bench.sizes("batches")
    (segment,) = bench.sizes("segment")
    bench.notes |= {"batches": batches, "batches_of_a_block": BATCHES, "segment": segment}
    for _ in range(bench.repeats):
        async with bench.lab() as lab:
            homes = {name: lab.new_home(name) for name in ("long", "new")}
            figures, groups = await _append(homes, batches // BATCHES, segment)
            figures |= await _start(homes, groups)
            figures |= await _join(homes, groups, lab.new_home("joiner"), segment)
            bench.figures.add(OURS, figures)


def anchor_payload() -> bytes:
    """What a block anchors."""
    parts = [(os.urandom(BATCH_BYTES), bytes(64)) for _ in range(BATCHES)]
    return seal_anchor(EPOCH, [], parts, salt=os.urandom(16))


async def learn(identity: WalytisIdentity) -> RegisterLedger:
    """The register of an identity, with the key of the epoch."""
    ledger = await identity.ledger()
    await ledger.learn_keys({EPOCH.epoch_id: anchor_key(EPOCH)})
    return ledger


async def found(child: Child, segment: int) -> tuple[WalytisIdentity, RegisterLedger]:
    """A new identity with its register."""
    did, _ = await WalytisIdentity.create_device_did(child)
    identity = await WalytisIdentity.create(child, did, guarded=True, segment_blocks=segment)
    return identity, await learn(identity)


def _cpu(child: Child) -> float:
    return 0.0 if child.pid is None else cpu_seconds(child.pid)


async def _timed(ledger: RegisterLedger, child: Child) -> tuple[float, float]:
    """Seconds and the child's processor seconds of one block."""
    payload = anchor_payload()
    cpu, began = _cpu(child), time.perf_counter()
    await ledger.append(payload)
    return time.perf_counter() - began, _cpu(child) - cpu


async def _append(
    homes: Mapping[str, Path], blocks: int, segment: int
) -> tuple[dict[str, float], dict[str, tuple[Any, ...]]]:
    """Write all blocks, then some more in turns with a new register."""
    async with open_child(homes["long"]) as child, open_child(homes["new"]) as other:
        identity, ledger = await found(child, segment)
        written = [await _timed(ledger, child) for _ in range(blocks)]
        fresh, short = await found(other, segment)
        late: list[tuple[float, float]] = []
        early: list[tuple[float, float]] = []
        for _ in range(TIMED):
            early.append(await _timed(short, other))
            late.append(await _timed(ledger, child))
        segments = len(await ledger.segments())
        if segments < blocks // segment:
            raise BenchError(f"{segments} segments for {blocks} blocks")
        first, last = written[: blocks // 10 or 1], written[-(blocks // 10 or 1) :]
        groups = {
            name: (one.did, one.pin, one.member_did)
            for name, one in (("long", identity), ("new", fresh))
        }
    figures = {
        "segments": float(segments),
        "append_first_ms": _median_ms(first),
        "append_last_ms": _median_ms(last),
        "append_new_ms": _median_ms(early),
        "append_end_ms": _median_ms(late),
        "append_ratio": _median_ms(late) / _median_ms(early),
        "append_cpu_ratio": sum(c for _, c in late) / max(sum(c for _, c in early), 0.01),
        "append_cpu_ms": 1000 * sum(c for _, c in late) / TIMED,
        "append_last_to_first_ratio": _median_ms(last) / _median_ms(first),
    }
    return figures, groups


def _median_ms(times: list[tuple[float, float]]) -> float:
    return 1000 * statistics.median(seconds for seconds, _ in times)


@asynccontextmanager
async def opened(
    home: Path, group: tuple[Any, ...]
) -> AsyncIterator[tuple[Child, WalytisIdentity, RegisterLedger]]:
    """A home that is there."""
    async with open_child(home) as child:
        identity = await WalytisIdentity.open(child, *group, guarded=True)
        yield child, identity, await learn(identity)


async def _start(
    homes: Mapping[str, Path], groups: Mapping[str, tuple[Any, ...]]
) -> dict[str, float]:
    """From starting the process to the first block, in turns."""
    times: dict[str, list[float]] = {"long": [], "new": []}
    for _ in range(STARTS):
        for name, spent in times.items():
            began = time.perf_counter()
            async with opened(homes[name], groups[name]) as (_, _, ledger):
                await ledger.append(anchor_payload())
                spent.append(time.perf_counter() - began)
    long, new = (statistics.median(times[name]) for name in ("long", "new"))
    return {"start_new_s": new, "start_end_s": long, "start_ratio": long / new}


async def _join(
    homes: Mapping[str, Path], groups: Mapping[str, tuple[Any, ...]], home: Path, segment: int
) -> dict[str, float]:
    """From the grant to the joiner's first block, in turns; then the history for it."""
    times: dict[str, list[float]] = {"long": [], "new": []}
    figures: dict[str, float] = {}
    async with (
        opened(homes["long"], groups["long"]) as long,
        opened(homes["new"], groups["new"]) as new,
        open_child(home) as joiner,
    ):
        theirs: dict[str, RegisterLedger] = {}
        for name, (_, identity, _) in (("new", new), ("long", long)):
            did, pin = await WalytisIdentity.create_device_did(joiner)
            files = await WalytisIdentity.export_did(joiner, did)
            await identity.add_member(did, files, pin=pin)
            began = time.perf_counter()
            adopted = await WalytisIdentity.adopt(
                joiner, await identity.grant(), did, guarded=True, segment_blocks=segment
            )
            theirs[name] = await learn(adopted)
            await theirs[name].append(anchor_payload())
            times[name].append(time.perf_counter() - began)
        figures |= {
            "join_new_s": times["new"][0],
            "join_end_s": times["long"][0],
            "join_ratio": times["long"][0] / times["new"][0],
        }
        child, _, ledger = long
        before = _cpu(child), _cpu(joiner)
        began = time.perf_counter()
        count = await hand_over(ledger, theirs["long"])
        spent = time.perf_counter() - began
        figures |= {
            "missed": float(count),
            "missed_s": spent,
            "missed_per_s": count / spent,
            "missed_giver_cpu_us": 1e6 * (_cpu(child) - before[0]) / count,
            "missed_taker_cpu_us": 1e6 * (_cpu(joiner) - before[1]) / count,
        }
        for _ in range(FEW):
            await ledger.append(anchor_payload())
        began = time.perf_counter()
        await hand_over(ledger, theirs["long"])
        figures["missed_few_s"] = time.perf_counter() - began
    return figures


async def hand_over(source: RegisterLedger, target: RegisterLedger) -> int:
    """What devices do over a session: compare, then send pieces while the next are read."""
    total = 0
    while (wanted := await target.wanted(await source.leaves())) is not None:
        send, receive = anyio.create_memory_object_stream[list[bytes]](4)

        async def give(
            known: list[str] = wanted,
            stream: anyio.abc.ObjectSendStream[list[bytes]] = send,
        ) -> None:
            async with stream:
                async for piece in source.pieces(known):
                    await stream.send(piece)

        admitted = 0
        async with receive, anyio.create_task_group() as tasks:
            tasks.start_soon(give)
            async for piece in receive:
                new, refused = await target.import_files(piece)
                if refused:
                    raise BenchError(f"handed over blocks were refused: {refused}")
                admitted += new
        total += admitted
        if not admitted:
            break
    return total
