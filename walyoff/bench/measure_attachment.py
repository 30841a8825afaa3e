"""A file from one device to another: storing it, fetching it, and the memory it takes.

Raw is what the same bytes cost with nothing but the algorithms: BLAKE3 and AES-GCM into synced
files of 1 MiB on the one side; on the other reading, AES-GCM over plain TCP, BLAKE3, AES-GCM
and synced files again.
"""

from __future__ import annotations

import os
import socket
import tempfile
import threading
import time
from pathlib import Path

from anyio import to_thread
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from walyoff.bench.bench import Bench
from walyoff.bench.lab import OURS, Agent

MIB = 1024 * 1024
#: Memory is judged after a first transfer: caches, threads and windows are there then.
WARM_UP_MIB = 16
_NONCE = bytes(12)
_KEY = bytes(32)


async def measure(bench: Bench) -> None:
    """Each size is new bytes, so that nothing is spared by an earlier transfer."""
    sizes = bench.sizes("mib")
    bench.notes |= {"mib": list(sizes)}
    async with bench.lab() as lab:
        pair = await lab.pair(OURS)
        await _once(*pair, WARM_UP_MIB)
        for size in sizes:
            for _ in range(bench.repeats):
                ours = await _once(*pair, size)
                raw = await to_thread.run_sync(measure_raw, lab.folder, size)
                figures = {
                    **ours,
                    **raw,
                    "store_ratio": ours["store_mb_s"] / raw["raw_store_mb_s"],
                    "transfer_ratio": ours["transfer_mb_s"] / raw["raw_transfer_mb_s"],
                }
                bench.figures.add(OURS, {f"n{size}_{key}": v for key, v in figures.items()})
        for agent in pair:
            await agent.stop()


async def _once(a: Agent, b: Agent, mib: int) -> dict[str, float]:
    size = mib * MIB
    before = {"a": await a.ask("usage"), "b": await b.ask("usage")}
    sent = await a.ask("attach", size=size)
    got = await b.ask("attached", id=sent["id"])
    after = {"a": await a.ask("usage"), "b": await b.ask("usage")}
    store_s = (sent["ended"] - sent["began"]) / 1e9
    transfer_s = (got["ended"] - sent["ended"]) / 1e9
    return {
        "store_mb_s": size / 1e6 / store_s,
        "transfer_mb_s": size / 1e6 / transfer_s,
        "in_all_mb_s": size / 1e6 / (store_s + transfer_s),
        "sender_growth_mib": max(sent["memory_mib"], after["a"]["memory_mib"])
        - before["a"]["memory_mib"],
        "receiver_growth_mib": got["memory_mib"] - before["b"]["memory_mib"],
        "sender_cpu_ms_per_mib": (after["a"]["cpu_s"] - before["a"]["cpu_s"]) * 1e3 / mib,
        "receiver_cpu_ms_per_mib": (after["b"]["cpu_s"] - before["b"]["cpu_s"]) * 1e3 / mib,
        "carrier_cpu_ms_per_mib": sum(
            after[side]["child_cpu_s"] - before[side]["child_cpu_s"] for side in "ab"
        )
        * 1e3
        / mib,
    }


# ------------------------------------------------------------------------------- raw


def _write(folder: Path, number: int, data: bytes) -> None:
    blake3(data, key=_KEY).digest()
    sealed = AESGCM(_KEY).encrypt(_NONCE, data, None)
    descriptor = os.open(folder / str(number), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(descriptor, sealed)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def measure_raw(root: Path, mib: int) -> dict[str, float]:
    """Megabytes a second of the algorithms alone, on this disk."""
    data = bytearray(os.urandom(MIB))
    with tempfile.TemporaryDirectory(dir=root) as temporary:
        mine, theirs = Path(temporary) / "a", Path(temporary) / "b"
        mine.mkdir()
        theirs.mkdir()
        began = time.monotonic()
        for number in range(mib):
            data[:8] = number.to_bytes(8, "big")
            _write(mine, number, bytes(data))
        stored = time.monotonic()
        ours, other = socket.socketpair()
        sender = threading.Thread(target=_send, args=(ours, mine, mib))
        sender.start()
        aead = AESGCM(_KEY)
        with other, other.makefile("rb") as stream:
            for number in range(mib):
                _write(theirs, number, aead.decrypt(_NONCE, stream.read(MIB + 16), None))
        sender.join()
        ended = time.monotonic()
    size = mib * MIB / 1e6
    return {
        "raw_store_mb_s": size / (stored - began),
        "raw_transfer_mb_s": size / (ended - stored),
    }


def _send(sock: socket.socket, folder: Path, count: int) -> None:
    aead = AESGCM(_KEY)
    with sock:
        for number in range(count):
            plain = aead.decrypt(_NONCE, (folder / str(number)).read_bytes(), None)
            sock.sendall(aead.encrypt(_NONCE, plain, None))
