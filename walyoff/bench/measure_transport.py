"""A transport by itself, without sessions: any that is installed, third-party ones too.

Two processes on this machine. `--vs tcp` measures plain TCP beside it, which is the floor.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from statistics import quantiles

import anyio
from anyio.abc import ByteStream, ObjectReceiveStream

from walyoff.abc import Broadcast, Transport
from walyoff.bench.bench import Bench
from walyoff.bench.lab import OURS, BenchError
from walyoff.bench.transport_peer import ANSWERED, ASKED, ECHO, END, SWALLOW, TOPIC, open_alone
from walyoff.errors import WalyoffError

SMALL, LARGE = 200, 16 * 1024
#: Streams that ask at the same time.
PARALLEL = 50
MIB = 1 << 20
#: Broadcasts a second when their delay is measured, and seconds of waiting for the last.
BROADCAST_EVERY_S = 0.02
LAST_WAIT_S = 1.0
#: Seconds until both sides have found each other on the topic, and for one repetition.
MEET_S, LIMIT_S = 20.0, 120.0


async def measure(bench: Bench) -> None:
    """All figures of each system in turn."""
    (rounds,) = bench.sizes("rounds")
    (mib,) = bench.sizes("mib")
    bench.notes |= {"rounds": rounds, "mib": mib, "small": SMALL, "large": LARGE}
    async with AsyncExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wo-")))
        pairs = {}
        for number, system in enumerate(bench.systems):
            name = bench.options.setup.transport if system == OURS else system
            try:
                pair = await stack.enter_async_context(_pair(name, root / str(number)))
            except WalyoffError as error:
                raise BenchError(f"{name}: {error}") from error
            pairs[system] = pair
        for _ in range(bench.repeats):
            for system, (transport, address) in pairs.items():
                try:
                    with anyio.fail_after(LIMIT_S):
                        bench.figures.add(system, await _once(transport, address, rounds, mib))
                except (TimeoutError, WalyoffError, anyio.EndOfStream) as error:
                    raise BenchError(f"{system}: {error!r}") from error


@asynccontextmanager
async def _pair(name: str, folder: Path) -> AsyncIterator[tuple[Transport, str]]:
    """This side, and the address of the other one."""
    command = ["-m", "walyoff.bench.transport_peer", name, str(folder / "b")]
    async with (
        open_alone(name, folder / "a") as transport,
        await anyio.open_process([sys.executable, *command], stderr=None) as process,
    ):
        try:
            assert process.stdout is not None
            text = b""
            with anyio.fail_after(MEET_S * 2):
                while not text.endswith(b"\n\n"):
                    text += await process.stdout.receive()
            yield transport, text.decode().split("\n", maxsplit=1)[0]
        except anyio.EndOfStream as error:
            raise BenchError(f"{name}: the other side did not start") from error
        finally:
            assert process.stdin is not None
            with anyio.move_on_after(10, shield=True) as scope:
                await process.stdin.aclose()
                await process.wait()
            if scope.cancelled_caught:
                process.kill()


async def _once(transport: Transport, address: str, rounds: int, mib: int) -> dict[str, float]:
    figures: dict[str, float] = {}
    connects = []
    for _ in range(20):
        began = time.perf_counter()
        async with await _open(transport, address, ECHO) as stream:
            await _round(stream, b"x")
            connects.append(time.perf_counter() - began)
    figures["connect_p50_ms"], _ = _spread(connects)
    async with await _open(transport, address, ECHO) as stream:
        for label, size in (("", SMALL), ("16k_", LARGE)):
            payload = os.urandom(size)
            await _rounds(stream, payload, 20)
            times = await _rounds(stream, payload, rounds)
            p50, p99 = _spread(times)
            figures[f"round_{label}p50_ms"], figures[f"round_{label}p99_ms"] = p50, p99
    figures["rounds_50_streams_per_s"] = await _parallel(transport, address, rounds)
    figures["mib_per_s"] = await _bulk(transport, address, mib)
    return figures | await _broadcasts(transport, rounds)


async def _open(transport: Transport, address: str, first: bytes) -> ByteStream:
    stream = await transport.connect(address)
    await stream.send(first)
    return stream


async def _round(stream: ByteStream, payload: bytes) -> None:
    await stream.send(payload)
    left = len(payload)
    while left:
        left -= len(await stream.receive(left))


async def _rounds(stream: ByteStream, payload: bytes, count: int) -> list[float]:
    times = []
    for _ in range(count):
        began = time.perf_counter()
        await _round(stream, payload)
        times.append(time.perf_counter() - began)
    return times


async def _parallel(transport: Transport, address: str, rounds: int) -> float:
    each = max(1, rounds // 10)
    async with AsyncExitStack() as stack:
        streams = [
            await stack.enter_async_context(await _open(transport, address, ECHO))
            for _ in range(PARALLEL)
        ]
        began = time.perf_counter()
        async with anyio.create_task_group() as tasks:
            for stream in streams:
                tasks.start_soon(_rounds, stream, bytes(SMALL), each)
        return PARALLEL * each / (time.perf_counter() - began)


async def _bulk(transport: Transport, address: str, mib: int) -> float:
    piece = os.urandom(MIB)
    async with await _open(transport, address, SWALLOW) as stream:
        began = time.perf_counter()
        for _ in range(mib):
            await stream.send(piece)
        await stream.send(END)
        await stream.receive(1)
        return mib / (time.perf_counter() - began)


async def _broadcasts(transport: Transport, rounds: int) -> dict[str, float]:
    if not transport.max_broadcast:
        return {}
    async with transport.subscribe(TOPIC) as heard, anyio.create_task_group() as tasks:
        arrived: dict[int, float] = {}
        tasks.start_soon(_collect, heard, arrived)
        with anyio.fail_after(MEET_S):
            while -1 not in arrived:
                await transport.broadcast(TOPIC, _numbered(-1))
                await anyio.sleep(0.1)
        sent: dict[int, float] = {}
        for number in range(rounds // 2):
            sent[number] = time.perf_counter()
            await transport.broadcast(TOPIC, _numbered(number))
            await anyio.sleep(BROADCAST_EVERY_S)
        began = time.perf_counter()
        burst = range(rounds // 2, rounds)
        for number in burst:
            await transport.broadcast(TOPIC, _numbered(number))
        with anyio.move_on_after(LAST_WAIT_S):
            while not arrived.keys() >= set(burst):  # noqa: ASYNC110 - a stream, not an event
                await anyio.sleep(0.005)
        last = max((arrived[number] for number in burst if number in arrived), default=began)
        tasks.cancel_scope.cancel()
    figures = {"broadcast_lost": 1 - len(arrived.keys() & set(range(rounds))) / rounds}
    times = [arrived[number] - sent[number] for number in sent if number in arrived]
    if len(times) > 1:
        p50, p99 = _spread(times)
        figures |= {"broadcast_and_back_p50_ms": p50, "broadcast_and_back_p99_ms": p99}
    got = sum(number in arrived for number in burst)
    if last > began:
        figures["broadcasts_per_s"] = got / (last - began)
    return figures


def _numbered(number: int) -> bytes:
    return ASKED + number.to_bytes(8, "big", signed=True) + bytes(SMALL)


async def _collect(heard: ObjectReceiveStream[Broadcast], arrived: dict[int, float]) -> None:
    with suppress(anyio.EndOfStream):
        async for broadcast in heard:
            if broadcast.payload.startswith(ANSWERED):
                number = int.from_bytes(broadcast.payload[1:9], "big", signed=True)
                arrived.setdefault(number, time.perf_counter())


def _spread(seconds: list[float]) -> tuple[float, float]:
    """The median and the 99th percentile, in milliseconds."""
    cuts = quantiles(seconds, n=100, method="inclusive")
    return 1000 * cuts[49], 1000 * cuts[98]
