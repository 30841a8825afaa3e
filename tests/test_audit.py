"""The audit finds everything that is wrong with a home, and nothing where nothing is."""

from __future__ import annotations

import functools
import json
import os
import shutil
import sqlite3
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest
from anyio.from_thread import start_blocking_portal

from walyoff import open_device
from walyoff.audit import Report, audit, audit_with, find_channel
from walyoff.audit_chains import read_chain
from walyoff.channel_state import ChannelState
from walyoff.child.acts import chain_of
from walyoff.child.births import read_birth
from walyoff.child.blocks import BlockFile, decode_block
from walyoff.cli import run
from walyoff.errors import HomeInUseError, LocalProtocolError
from walyoff.graph import draw, layout
from walyoff.stores import open_store
from walyoff.testing.walytis_blocks import make_block
from walyoff.walytis.platform import open_platform
from walyoff.walytis.process import Child, open_child

SEGMENT = 4
MESSAGES = 10


@dataclass
class Made:
    """A home, and what is in it."""

    home: Path
    did: str
    report: Report

    def blocks(self, segment: int) -> list[BlockFile]:
        return self.report.segments[segment].raw.blocks

    def path(self, block: BlockFile, segment: int) -> Path:
        chain = self.report.segments[segment].chain
        folder = self.home / "walytis" / chain / "ReceivedBlocks"
        return folder / block.cid[:4] / block.cid

    def sql(self, statement: str) -> None:
        connection = sqlite3.connect(self.home / "store.db")
        assert connection.execute(statement).rowcount > 0
        connection.commit()
        connection.close()


async def make(home: Path) -> None:
    platform = functools.partial(open_platform, segment_blocks=SEGMENT)
    async with open_device(home, platform=platform, transports=[]) as device:
        channel = await device.create_channel("family")
        for number in range(MESSAGES):
            await channel.send(b"message %d" % number + bytes(100))
            while channel.status()["unanchored"]:  # noqa: ASYNC110
                await anyio.sleep(0.02)
        await channel.send(os.urandom(200_000))
        while channel.status()["unanchored"]:  # noqa: ASYNC110
            await anyio.sleep(0.02)


@pytest.fixture(scope="module")
def original() -> Iterator[Made]:
    home = Path(tempfile.mkdtemp(prefix="wo-"))
    anyio.run(make, home / "a")
    report = anyio.run(functools.partial(audit, home / "a"))
    yield Made(home / "a", report.channel, report)
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def copy(original: Made, home: Path) -> Made:
    """The same home in another place: what is done to it is done to it alone."""
    shutil.copytree(original.home, home / "a", ignore=shutil.ignore_patterns("*.sock"))
    return Made(home / "a", original.did, original.report)


@pytest.fixture(scope="module")
def kinds(original: Made) -> Iterator[Callable[[Made], set[str]]]:
    """What an audit finds; one child serves all, as it only checks signatures."""

    async def look(child: Child, home: Path) -> set[str]:
        async with open_store(home) as store:
            report = await audit_with(child, home, store, await find_channel(store, None))
        return {finding.kind for finding in report.findings}

    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(open_child(original.home.parent / "child")) as child,
    ):
        yield lambda made: portal.call(look, child, made.home)


def test_a_sound_home_is_found_sound_and_all_of_it_is_looked_at(
    original: Made, kinds: Callable[[Made], set[str]]
) -> None:
    report = original.report
    assert report.sound, report.findings
    assert report.counts["records"] == report.counts["contents"] == MESSAGES + 1
    assert report.counts["segments"] >= 2
    assert report.counts["anchored batches"] == report.counts["batches"] >= MESSAGES
    assert not report.refused
    assert json.loads(json.dumps(report.as_json()))["sound"]
    assert kinds(original) == set()


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_device_with_sealed_keys_that_were_renewed_is_sound_and_stays_as_it_is(
    home: Path,
) -> None:
    async with open_device(home) as device:
        channel = await device.create_channel("family")
        for _ in range(2):
            await device.renew_keys()
            await (await channel.send(b"by new keys")).wait_anchored()

    def every_file() -> dict[Path, bytes]:
        # Whoever opens the store writes its files beside the database.
        files = (path for path in home.rglob("*") if path.is_file())
        return {p: p.read_bytes() for p in files if not p.name.startswith("store.db")}

    before = every_file()
    report = await audit(home)
    assert report.sound, report.findings
    assert not report.refused
    assert report.counts["records"] == 2
    assert every_file() == before


def test_an_identity_commits_to_its_register(original: Made) -> None:
    chain = chain_of(original.did)
    first = read_chain(original.home, chain, lambda: None).blocks[0]
    born = read_birth(first.content)
    assert first.cid == chain
    assert born is not None
    assert born.register == original.report.segments[0].chain


def flip(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


def put(made: Made, name: str, data: bytes, segment: int) -> None:
    chain = made.report.segments[segment].chain
    folder = made.home / "walytis" / chain / "ReceivedBlocks" / name[:4]
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)


def forge(made: Made, *, copied: bool) -> None:
    """A well-formed block of an outsider: rubbish, or a true anchor in a wrong place."""
    blocks = made.blocks(0)
    chain = made.report.segments[0].chain
    content = blocks[-2].content if copied else b"rubbish"
    parents = [blocks[-1].short_id, blocks[0].short_id]
    data = make_block(content, ["walyoff", chain], parents)
    put(made, decode_block(data).cid, data, 0)


def change_store(made: Made, key: str, value: bytes | None) -> None:
    async def change() -> None:
        async with open_store(made.home) as store:
            (name,) = await store.keys(key)
            await store.put({name: value})

    anyio.run(change)


def remove_segment(made: Made) -> None:
    shutil.rmtree(made.home / "walytis" / made.report.segments[1].chain)


def tear_index(made: Made) -> None:
    folder = made.home / "walytis" / made.report.segments[0].chain / "KnownBlocksIndex"
    path = next(folder.iterdir())
    path.write_bytes(path.read_bytes()[:-20])


def damage_identity(made: Made) -> None:
    folder = made.home / "walytis" / made.did.split(":")[-1] / "ReceivedBlocks"
    flip(sorted(folder.glob("*/*"))[-1])


PLANTED: dict[str, tuple[Callable[[Made], None], str]] = {
    "a bit of a block": (lambda m: flip(m.path(m.blocks(0)[7], 0)), "block-damaged"),
    "a block is cut": (lambda m: os.truncate(m.path(m.blocks(1)[5], 1), 300), "block-damaged"),
    "the newest block is gone": (
        lambda m: m.path(m.blocks(1)[-1], 1).unlink(),
        "block-missing",
    ),
    "an inner block is gone": (lambda m: m.path(m.blocks(0)[6], 0).unlink(), "block-missing"),
    "a birth block is gone": (lambda m: m.path(m.blocks(0)[2], 0).unlink(), "birth-damaged"),
    "a segment is gone": (remove_segment, "segment-missing"),
    "the index is torn": (tear_index, "index-differs"),
    "an outsider's block": (lambda m: forge(m, copied=False), "block-forged"),
    "an anchor in a wrong place": (lambda m: forge(m, copied=True), "block-forged"),
    "rubbish among the blocks": (lambda m: put(m, "Qm" + "1" * 44, b"x", 0), "block-damaged"),
    "the identity's chain": (damage_identity, "block-damaged"),
    "an epoch is gone": (lambda m: change_store(m, "epochs/", b"\x90"), "unknown-epoch"),
    "a certificate is rubbish": (
        lambda m: change_store(m, "certificate/", b"rubbish"),
        "certificate-missing",
    ),
    "a content": (
        lambda m: m.sql("UPDATE contents SET data = zeroblob(length(data)) WHERE record = 3"),
        "content-damaged",
    ),
    "a content's key": (
        lambda m: m.sql(
            "UPDATE contents SET key = (SELECT key FROM contents WHERE record = 1)"
            " WHERE record = 2"
        ),
        "content-damaged",
    ),
    "a content in a file": (
        lambda m: flip(next(p for p in (m.home / "chunks").rglob("*") if p.is_file())),
        "content-damaged",
    ),
    "a batch": (
        lambda m: m.sql("UPDATE batches SET body = zeroblob(length(body)) WHERE batch = 2"),
        "store-damaged",
    ),
    "a signature": (
        lambda m: m.sql(
            "UPDATE batches SET signature = (SELECT signature FROM batches"
            " WHERE batch = 1) WHERE batch = 2"
        ),
        "store-damaged",
    ),
    "a batch is gone": (
        lambda m: m.sql("DELETE FROM batches WHERE batch = 3"),
        "batch-missing",
    ),
    "an anchor": (
        lambda m: m.sql(
            "UPDATE batches SET anchor = (SELECT anchor FROM batches"
            " WHERE batch = 1) WHERE batch = 2"
        ),
        "store-damaged",
    ),
}


@pytest.mark.parametrize("what", PLANTED)
def test_what_was_planted_is_found(
    copy: Made, what: str, kinds: Callable[[Made], set[str]]
) -> None:
    plant, kind = PLANTED[what]
    plant(copy)
    assert kind in kinds(copy)


def test_a_link_that_no_member_signed_is_found(copy: Made) -> None:
    first = copy.report.segments[0]
    ref, link = next(iter(first.links.items()))
    assert link.number == 1
    assert not copy.report.segments[0].raw.findings
    # Without the identity's keys no link holds: the walk ends at the first segment.
    from walyoff.audit_chains import read_segments
    from walyoff.channel_state import load_epochs
    from walyoff.epochs import anchor_key

    async def keys() -> dict[bytes, bytes]:
        async with open_store(copy.home) as store:
            epochs = await load_epochs(store, copy.did)
        return {epoch.epoch_id: anchor_key(epoch) for epoch in epochs}

    segments = read_segments(
        copy.home,
        first.chain,
        group=copy.did,
        keys=anyio.run(keys),
        control_keys=["key"],
        verify=lambda _k, _s, _d: False,
        tick=lambda: None,
    )
    assert [finding.kind for finding in segments[0].raw.findings] == ["link-forged"]
    assert (len(segments), ref in segments[0].links) == (1, False)


def test_a_home_in_use_and_an_unknown_channel_are_refused(original: Made) -> None:
    async def both() -> None:
        with pytest.raises(LocalProtocolError, match="say which channel"):
            await audit(original.home, "nobody")
        async with open_store(original.home) as store:
            (key,) = await store.keys("channel/")
            value = await store.get(key)
            assert value is not None
            assert ChannelState.decode(value).did == original.did
            with pytest.raises(HomeInUseError):
                await audit(original.home)

    anyio.run(both)


def test_the_command_reports_for_people_and_for_machines(
    original: Made, copy: Made, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["audit", "family", "--home", str(original.home)]) == 0
    out = capfd.readouterr().out
    assert "family: sound" in out
    flip(copy.path(copy.blocks(0)[7], 0))
    assert run(["audit", "--home", str(copy.home), "--json"]) == 1
    captured = capfd.readouterr()
    found = json.loads(captured.out)
    assert not found["sound"]
    assert found["findings"][0]["kind"] == "block-damaged"
    assert "wrong" in captured.err


def test_the_graph_shows_every_block_and_says_what_it_is(
    original: Made, capfd: pytest.CaptureFixture[str], home: Path
) -> None:
    out = home / "family.svg"
    assert run(["graph", "family", "--home", str(original.home), "--out", str(out)]) == 0
    assert str(out) in capfd.readouterr().out
    root = ET.fromstring(out.read_text(encoding="utf-8"))
    titles = [e.text or "" for e in root.iter() if e.tag.endswith("title")]
    blocks = [b for s in original.report.segments for b in s.raw.blocks]
    assert len(titles) == len(blocks)
    for block in blocks:
        assert any(block.cid in title for title in titles)
    assert sum("link to segment" in title for title in titles) >= 1
    assert sum("birth" in title for title in titles) == 5 * len(original.report.segments)
    assert any(original.did[:10] in title and "anchors" in title for title in titles)
    texts = {e.text for e in root.iter() if e.tag.endswith("text")}
    assert {f"segment {s.number}" for s in original.report.segments} <= texts
    # The legend: who, a birth, a link; and nothing that is not there.
    (author,) = {item.author for item in layout(original.report.segments)} - {None}
    assert author is not None
    assert {f"…{author[-6:]}", "birth of a chain", "link to the next"} <= texts
    assert "does not open" not in texts


def test_the_graph_of_a_long_channel_shows_the_newest(original: Made) -> None:
    segments = original.report.segments
    placed = layout(segments, limit=7)
    assert len(placed) == 7
    assert placed[-1].block in segments[-1].raw.blocks
    assert len({(p.x, p.y) for p in placed}) == 7
    assert "<svg" in draw([], "nothing")
