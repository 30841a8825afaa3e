"""Calls that hang in the child: they are found, it is replaced, nothing confirmed is lost."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.ledger_support import anchor, children, found, hand_over, join, read, text_of, until
from tests.real.processes import World, eventually
from tests.waiting import HANGS_AFTER
from walyoff.errors import ChildError
from walyoff.walytis import ledger, spawning
from walyoff.walytis.process import Child

#: Seconds for a hung call to be reported, and for the new process after it.
SOON_S = HANGS_AFTER


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
async def test_hung_calls_of_any_kind_are_found_and_repeated(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Path(__file__).with_name("hanging_child.py")
    monkeypatch.setattr(spawning, "CHILD_COMMAND", ("-P", str(script)))
    async with children(home, "a", "b", connect=False) as (a, b):
        mine, one = await found(a)
        _, two = await join(mine, b)
        monkeypatch.setattr(ledger, "APPEND_TIME", 2.0)
        monkeypatch.setattr(ledger, "FILES_TIME", 2.0)
        confirmed: list[bytes] = []

        async def append() -> None:
            text = b"%d" % len(confirmed)
            await one.append(anchor(text))
            confirmed.append(text)

        async def listing() -> None:
            await one._page(0)

        async def export() -> None:
            await one.export(await two.leaves())

        async def give() -> None:
            await two.import_files(await one.export(await two.leaves()))

        for _ in range(3):
            await append()
        for kind, child, operation in (
            ("append", a, append),
            ("read", a, listing),
            ("export", a, export),
            ("append", a, append),
        ):
            seconds = await hang(home, kind, child, operation)
            print(f"hung {kind}: replaced after {seconds:.2f} s")
            blocks = await read(one, len(confirmed))
            # What was confirmed is there; what was under way when it hung is there or not.
            assert [text_of(block) for block in blocks][: len(confirmed)] == confirmed
        await give()
        await hand_over(one, two)
        assert [text_of(block) for block in await read(two, len(confirmed))] == confirmed


async def hang(
    home: Path, kind: str, child: Child, operation: Callable[[], Awaitable[None]]
) -> float:
    """Let an operation hang, and do it again; seconds until that was possible."""
    generation = child.generation
    (home / child._home.name / f"hang-{kind}").touch()
    began = time.perf_counter()
    with anyio.fail_after(SOON_S):
        with pytest.raises(ChildError):
            await operation()
        # It waits for the new process by itself.
        while True:
            try:
                await operation()
                break
            except ChildError:
                await anyio.sleep(0.05)

    async def replaced() -> bool:
        return child.generation == generation + 1

    await until(replaced)
    return time.perf_counter() - began


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        yield world


def test_a_stopped_child_interrupts_no_messages_and_anchors_follow(world: World) -> None:
    """Over a transport of the device's own process, messages go on while the child stands."""
    a, b = world.pair("a", "b", "--transport", "tcp")
    a.call("send", content=b"before")
    a.call("anchored")
    generation = a.call("child")["generation"]
    a.call("flood", label="a", pause=0.05)
    began = time.monotonic()
    os.kill(a.child(), signal.SIGSTOP)
    sent = len(a.sent())
    eventually(lambda: len(a.sent()) > sent + 10)
    during = a.sent()[sent:]
    b.call("wait_content", contents=[content for _, _, content in during], limit=10)
    assert a.call("child")["generation"] == generation

    def replaced() -> bool:
        return bool(a.call("child")["generation"] > generation)

    eventually(replaced, 40)
    print(f"a stopped child was replaced after {time.monotonic() - began:.1f} s")
    a.call("calm")
    contents = [content for _, _, content in a.sent()]
    b.call("wait_content", contents=contents, limit=40)
    a.call("anchored", limit=60)
    b.call("wait_anchor_of", content=contents[-1], limit=60)
    for device in (a, b):
        history: list[Any] = device.call("history", limit=40)
        assert {entry[3] for entry in history} >= set(contents)
        assert device.call("status")["faults"] == {}
