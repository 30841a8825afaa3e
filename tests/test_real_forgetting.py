"""Forgetting on real nodes: three devices, of which one is killed in the middle."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import anyio

from walyoff.demo.devices import start_agent

SECRET = "nobody was to read this"
BOUND_S = 900


def _traces(home: Path) -> set[bytes]:
    """The keys and ciphertexts that a home holds."""
    with closing(sqlite3.connect(f"file:{home}/store.db?mode=ro", uri=True)) as store:
        rows = store.execute("SELECT key, data FROM contents WHERE data IS NOT NULL")
        return {bytes(value) for row in rows for value in row if any(value)}


def _left(homes: list[Path], needles: set[bytes]) -> list[str]:
    """Files that have any of it in any byte."""
    return [
        str(path)
        for home in homes
        for path in home.rglob("*")
        if path.is_file()
        for data in [path.read_bytes()]
        if any(needle in data for needle in needles)
    ]


def test_a_device_that_is_killed_in_the_middle_destroys_its_copy_when_it_returns(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        homes = [tmp_path / name for name in "abc"]
        async with (
            start_agent("a", homes[0], tmp_path) as a,
            start_agent("c", homes[2], tmp_path) as c,
        ):
            async with start_agent("b", homes[1], tmp_path) as b:
                await a.ask("create", name="family")
                for other in (b, c):
                    invitation = (await a.ask("invite", lifetime=120))["invitation"]
                    await other.ask("join", invitation=invitation)
                    await a.ask("peer", did=other.did)
                before = set[bytes]().union(*map(_traces, homes))
                sent = await a.ask("send", content=SECRET, topics=[])
                for other in (b, c):
                    await other.wait_message(sent["id"], timeout=300)
                    await a.ask("settle", by=other.did)
                needles = set[bytes]().union(*map(_traces, homes)) - before
                assert len(needles) == 6, "a key and a ciphertext on each device"
                assert len({path.split("/")[-2] for path in _left(homes, needles)}) == 3
                await a.ask("forget", id=sent["id"], reason="")
                await c.ask("forget_request", id=sent["id"])
                await c.ask("approve", id=sent["id"])
                await b.ask("forget_request", id=sent["id"])
                # The last one to agree is killed as soon as its word is durable.
                await b.ask("approve", id=sent["id"])
                await b.kill()
            async with start_agent("b", homes[1], tmp_path) as b:
                await b.ask("peer", did=a.did)
                for agent in (a, b, c):
                    status = await agent.ask("forgotten", id=sent["id"])
                    assert set(status["erased"]) == {a.did, b.did, c.did}
                needles |= {SECRET.encode()}
                assert _left(homes, needles) == []
        assert _left(homes, needles) == []

    async def bounded() -> None:
        with anyio.fail_after(BOUND_S):
            await main()

    anyio.run(bounded)
