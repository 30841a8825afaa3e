"""Measurements run on real devices: results are complete, bounded in time, and compared.

Nothing here asserts how long something took: other work on the machine decides that. Ratios
to what is measured in the same run have bounds that are several times what was measured.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import anyio
import pytest

from walyoff.bench import measure_idle, measure_ledger
from walyoff.bench.bench import Options, run
from walyoff.bench.lab import OURS, RAW, BenchError, Setup, next_run, open_lab
from walyoff.bench.measure_burst import once as burst
from walyoff.bench.registry import BENCHMARKS
from walyoff.bench.tracer import stages

ROOT = Path(__file__).parent.parent
#: The short forms promise 45 seconds; this is for a machine with other work.
BOUND_S = 600
#: Small sizes, the figures that must be there, and what is compared.
MEASUREMENTS: dict[str, tuple[dict[str, tuple[int, ...]], set[str], tuple[str, ...]]] = {
    "join": ({}, {"join_s", "first_session_s"}, ()),
    "burst": ({"messages": (200,)}, {"single_200_messages_per_s"}, (RAW,)),
    "both": ({"messages": (100,)}, {"messages_per_s"}, (RAW,)),
    "catchup": ({"messages": (200,)}, {"n200_messages_per_s"}, (RAW,)),
    "big": (
        {"records": (100, 3000)},
        {"n3000_open_s", "n3000_send_ms_ratio", "n3000_memory_mib"},
        (),
    ),
    "fanout": (
        {"receivers": (1, 2), "messages": (100,)},
        {"to_1_single_messages_per_s", "to_2_many_messages_per_s"},
        (),
    ),
    "idle": ({"seconds": (1,)}, {"core_percent", "memory_mib"}, ()),
    "ledger": (
        {"batches": (600,), "segment": (8,)},
        {"append_ratio", "start_ratio", "join_ratio", "missed_per_s", "missed_few_s"},
        (),
    ),
    "import": ({}, {"import_ms"}, ()),
    "start": ({}, {"first_send_s", "open_s"}, ()),
}


#: How much dearer things may be after a long history; times vary on a machine with other work.
FLAT = {"append_cpu_ratio": 1.5, "append_ratio": 2.0, "start_ratio": 2.0, "join_ratio": 3.0}
#: Processor time of a start to that of importing the library. It was 1.8 and 1.3 when this was
#: written, and the child's was 2.8 with all that stock code brings along.
START = {"cpu_to_import": 2.7, "child_cpu_to_import": 2.1}


def check_complete(value: dict[str, Any], figures: set[str], versus: tuple[str, ...]) -> None:
    assert figures <= set(value)
    for name in figures:
        figure = value[name]
        assert len(figure["all"]) >= 1
        assert figure["min"] <= figure["median"] <= figure["max"]
        assert figure["max"] > 0, name
    assert set(value["versus"]) == set(value["ratios"]) == set(versus)
    for other in versus:
        assert figures <= set(value["versus"][other])
        assert figures <= set(value["ratios"][other])
    assert value["environment"]["versions"]["walyoff"]
    assert value["meanwhile"]["seconds"] > 0
    assert 0 <= value["meanwhile"]["others"] <= 1
    assert value["options"]["suite"] == "hybrid-1"
    json.dumps(value)


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_a_measurement_is_complete(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_idle, "SETTLE_S", 0.1)
    monkeypatch.setattr(measure_ledger, "TIMED", 20)
    monkeypatch.setattr(measure_ledger, "STARTS", 2)
    sizes, figures, versus = MEASUREMENTS[name]
    options = Options(sizes=sizes, repeat=1, versus=versus)

    async def measure() -> dict[str, Any]:
        with anyio.fail_after(BOUND_S):
            return await run(BENCHMARKS[name], options)

    value = anyio.run(measure)
    assert value["benchmark"] == name
    check_complete(value, figures, versus)
    if name == "ledger":
        # Several segments against one: the long form has forty.
        assert value["segments"]["median"] >= 6
        check_bounds(value, FLAT)
        # Less than a second where nothing else runs.
        assert value["missed_few_s"]["median"] < 10
    if name == "start":
        check_bounds(value, START)


def check_bounds(value: dict[str, Any], bounds: dict[str, float]) -> None:
    for ratio, bound in bounds.items():
        assert value[ratio]["median"] <= bound, ratio


def test_latency_is_a_command_for_users(tmp_path: Path) -> None:
    # A short path: sockets have their places below it.
    with tempfile.TemporaryDirectory(prefix="wb-") as folder:
        command = [sys.executable, "-m", "walyoff.cli", "bench", "latency", "--json"]
        result = subprocess.run(
            [*command, "--repeat", "2", "--vs", "raw"],
            capture_output=True,
            timeout=BOUND_S,
            check=False,
            env={**os.environ, "TMPDIR": folder},
            cwd=tmp_path,
        )
        assert result.returncode == 0, result.stderr
        assert os.listdir(folder) == [], "something was left behind"
    (line,) = result.stdout.splitlines()
    value = json.loads(line)
    check_complete(value, {"p50_ms", "p99_ms"}, (RAW,))
    assert {"median", "min", "max"} <= set(value["p50_ms"])
    assert len(value["p99_ms"]["all"]) == 2
    # The regression check: it was 1.7 to 2.5 when this was written.
    assert value["ratios"][RAW]["p50_ms"]["median"] < 10


def test_a_burst_is_not_many_times_slower_than_the_limit() -> None:
    options = Options(sizes={"messages": (2000,)}, repeat=2, versus=(RAW,))
    value = anyio.run(run, BENCHMARKS["burst"], options)
    # It was 5 when this was written.
    assert value["ratios"][RAW]["many_2000_messages_per_s"]["median"] < 25


def test_the_limit_is_durable_and_signed_on_both_sides() -> None:
    async def main() -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
        async with open_lab(Setup()) as lab:
            a, b = await lab.pair(RAW)
            await burst(a, b, 300, batch=1)
            sent = read(lab.folder / a.name / "raw.db")
            return sent, read(lab.folder / b.name / "received.db")

    def read(path: Path) -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        try:
            rows = connection.execute("SELECT seq, content FROM messages ORDER BY seq")
            messages = rows.fetchall()
            signed = connection.execute(
                "SELECT length(signature) FROM batches ORDER BY first"
            ).fetchall()
        finally:
            connection.close()
        # The newest own signature goes into the next commit, as it does in walyoff.
        assert all(size == 3373 for (size,) in signed[:-1])
        return messages

    sent, received = anyio.run(main)
    assert len(sent) == 300
    assert [content for _, content in sent] == [content for _, content in received]


def test_stages_are_seen_in_both_processes() -> None:
    async def main() -> list[tuple[str, str, float, float]]:
        async with open_lab(Setup(trace=True)) as lab:
            a, b = await lab.pair(OURS)
            for agent in (a, b):
                await agent.ask("trace")
            number = next_run()
            await a.ask("latency", run=number, count=10, size=1024, every=0.1)
            await b.ask("expect", run=number, count=10)
            await anyio.sleep(0.2)
            return stages(*[(await agent.ask("trace"))["events"] for agent in (a, b)])

    rows = anyio.run(main)
    seen = {(side, stage) for side, stage, _, _ in rows}
    # Whoever renames one of the functions that are looked at finds it here.
    assert {("sender", s) for s in ("send is called", "signed", "committed", "sent")} <= seen
    assert {("sender", s) for s in ("the batch is made", "pushed", "the session wakes")} <= seen
    assert {("receiver", s) for s in ("received", "verified", "committed", "delivered")} <= seen
    times = {(side, stage): since for side, stage, since, _ in rows}
    assert 0 < times["sender", "committed"] < times["receiver", "delivered"]


def test_an_agent_that_cannot_start_says_why() -> None:
    async def main() -> None:
        async with open_lab(Setup(transport="none")) as lab:
            with pytest.raises(BenchError, match=r"none.*not installed"):
                await lab.start(OURS, lab.new_home("a"))

    began = time.monotonic()
    anyio.run(main)
    assert time.monotonic() - began < BOUND_S


def test_a_report_is_written_between_its_marks(tmp_path: Path) -> None:
    page, results = tmp_path / "page.md", tmp_path / "results"
    results.mkdir()
    value = anyio.run(run, BENCHMARKS["import"], Options(repeat=2))
    (results / "import.json").write_text(json.dumps(value) + "\n")
    text = (ROOT / "docs" / "performance.md").read_text()
    page.write_text(text)
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "benchmarks" / "report"),
            str(results),
            "--page",
            str(page),
        ],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    written = page.read_text()
    assert "### import" in written
    assert "| import: import_ms | <= 150 |" in written
    assert written.startswith(text[:200])
