"""Cursors and kills: what was committed by asking for the next message is not given again."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from walyoff.stores import open_store
from walyoff.stores.marks import MARKS_NAME, CursorMarks
from walyoff.stores.vault import Vault
from walyoff.testing.store_base import ALICE, CHANNEL, make_batch, make_content

pytestmark = pytest.mark.anyio

REF = bytes(16)
ENTRY = 32


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


#: A device on the real store, in a simulated world that each process makes anew.
READER = textwrap.dedent(
    """
    import sys, anyio
    from contextlib import asynccontextmanager
    from pathlib import Path
    from walyoff.opening import open_device
    from walyoff.testing.platform import SimPlatform
    from walyoff.testing.world import SimWorld
    from walyoff.wire import pack

    home = Path(sys.argv[1])
    note = home / "did"

    @asynccontextmanager
    async def platform(home):
        world = SimWorld(1)
        if note.exists():
            chain = world.chain("a", note.read_text() + "/identity")
            chain.append(pack(["join", "did:sim:a"]))
        yield SimPlatform(world, "a")

    async def main():
        async with open_device(home, transports={}, platform=platform) as device:
            if not device.channels():
                channel = await device.create_channel("family")
                note.write_text(channel.did)
                for _ in range(4):
                    await channel.send_many([b"x"] * 1000)
            (channel,) = device.channels()
            async for message in channel.messages(cursor="app"):
                print(message.position, flush=True)

    anyio.run(main)
    """
)


def test_a_kill_repeats_at_most_the_message_in_hand(tmp_path: Path) -> None:
    home, script = tmp_path / "home", tmp_path / "reader.py"
    home.mkdir()
    script.write_text(READER)
    choice = random.Random()
    last = 0
    for _ in range(5):
        with subprocess.Popen(
            [sys.executable, str(script), str(home)], stdout=subprocess.PIPE
        ) as reader:
            assert reader.stdout is not None
            first = int(reader.stdout.readline())
            # The last one was in the consumer's hand, or just given back.
            assert last <= first <= last + 1
            time.sleep(choice.random() * 0.03)
            reader.send_signal(signal.SIGKILL)
            rest = reader.stdout.read()
        # A line that the kill cut off was printed before it was asked for more.
        lines = rest[: rest.rfind(b"\n") + 1].split()
        positions = [first, *map(int, lines)]
        assert positions == list(range(first, positions[-1] + 1))
        last = positions[-1]
    assert last < 4000, "the reader was never in the middle: nothing was tried"


async def test_a_mark_beyond_the_log_does_not_skip_messages(tmp_path: Path) -> None:
    batch = make_batch(ALICE, 1, [make_content(b"%d" % n) for n in range(3)])
    async with open_store(tmp_path / "home") as store:
        channel = store.channel(CHANNEL)
        channel.mark_cursor("reader", 9)
        assert await channel.get_cursor("reader") == 0
        await channel.write(batches=[batch], deliver=batch.record_ids)
    async with open_store(tmp_path / "home") as store:
        assert await store.channel(CHANNEL).get_cursor("reader") == 3


def test_marks_that_were_altered_or_cut_off_are_none(tmp_path: Path) -> None:
    vault = Vault(bytes(32))
    marks = CursorMarks(tmp_path, vault)
    for n in range(3):
        marks.set(bytes([n]) * 16, 10 + n)
    marks.close()
    path = tmp_path / MARKS_NAME
    whole = path.read_bytes()
    assert len(whole) == 3 * ENTRY
    for at in range(ENTRY):
        path.write_bytes(
            whole[: ENTRY + at] + bytes([whole[ENTRY + at] ^ 1]) + whole[ENTRY + at + 1 :]
        )
        marks = CursorMarks(tmp_path, vault)
        assert [marks.get(bytes([n]) * 16) for n in range(3)] == [10, 0, 12]
        marks.close()
    path.write_bytes(whole[:-1])
    marks = CursorMarks(tmp_path, vault)
    assert marks.get(bytes([2]) * 16) == 0
    marks.set(bytes([2]) * 16, 20)
    marks.close()
    marks = CursorMarks(tmp_path, vault)
    assert [marks.get(bytes([n]) * 16) for n in range(3)] == [10, 11, 20]
    marks.close()


def test_marks_of_another_home_are_none(tmp_path: Path) -> None:
    marks = CursorMarks(tmp_path, Vault(bytes(32)))
    marks.set(REF, 7)
    marks.close()
    other = CursorMarks(tmp_path, Vault(bytes([1]) * 32))
    assert other.get(REF) == 0
    other.close()


def test_a_mark_costs_microseconds(tmp_path: Path) -> None:
    marks = CursorMarks(tmp_path, Vault(bytes(32)))
    begun = time.process_time()
    for n in range(1000):
        marks.set(REF, n + 1)
    took = time.process_time() - begun
    marks.close()
    assert took < 0.2, "a hundred times what it takes"
