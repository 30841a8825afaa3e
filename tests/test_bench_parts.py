"""The parts of measurements that need no device: figures, tallies, the machine, the tracer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

from click import Group
from click.testing import CliRunner

from walyoff.bench.figures import Figures, slower, summary, table
from walyoff.bench.load import HEADER, Tallies, payload, quantile, shares
from walyoff.bench.machine import Meter, cpu_seconds, descendants, environment, memory_mib
from walyoff.bench.registry import BENCHMARKS
from walyoff.bench.tracer import stages
from walyoff.cli.commands import cli


def test_a_summary_has_every_repetition_in_its_order() -> None:
    assert summary([3.0, 1.0, 2.0]) == {
        "median": 2.0,
        "min": 1.0,
        "max": 3.0,
        "all": [3.0, 1.0, 2.0],
    }


def test_a_ratio_above_one_is_slower_for_times_and_for_rates() -> None:
    assert slower("p50_ms", 6.0, 3.0) == 2.0
    assert slower("messages_per_s", 1000.0, 3000.0) == 3.0


def test_ratios_pair_repetitions_so_that_what_slowed_both_cancels() -> None:
    figures = Figures()
    for factor in (1.0, 10.0, 3.0):
        figures.add("walyoff", {"p50_ms": 4.0 * factor, "rate_per_s": 100 / factor})
        figures.add("raw", {"p50_ms": 2.0 * factor, "rate_per_s": 300 / factor})
    ratios = figures.ratios("walyoff", "raw")
    assert ratios["p50_ms"]["all"] == [2.0, 2.0, 2.0]
    assert ratios["rate_per_s"]["median"] == 3.0


def test_the_table_shows_figures_and_what_they_are_compared_with() -> None:
    figures = Figures()
    figures.add("walyoff", {"p50_ms": 4.0})
    figures.add("raw", {"p50_ms": 2.0})
    text = table(
        {
            **figures.of("walyoff"),
            "versus": {"raw": figures.of("raw")},
            "ratios": {"raw": figures.ratios("walyoff", "raw")},
        }
    )
    assert text.splitlines()[0].split() == ["median", "min", "max", "raw", "x", "raw"]
    assert text.splitlines()[1].split() == ["p50_ms", "4", "4", "4", "2", "2.00"]


def test_a_payload_has_its_size_its_run_and_its_moment() -> None:
    before = time.monotonic_ns()
    content = payload(7, 1024, 5)
    run, sent = HEADER.unpack_from(content)
    assert len(content) == 1024
    assert run == 7
    assert before <= sent <= time.monotonic_ns()
    assert content[16:] != payload(7, 1024, 6)[16:]
    assert len(payload(1, 65536, 10**6)) == 65536


def test_a_tally_counts_its_own_run_and_tells_when_it_is_complete() -> None:
    told = []
    tallies = Tallies()
    tallies[1].when(2, lambda: told.append(True))
    tallies.take(HEADER.pack(1, 1_000_000), 3_000_000)
    tallies.take(HEADER.pack(2, 0), 5)
    assert told == []
    tallies.take(HEADER.pack(1, 2_000_000), 6_000_000)
    assert told == [True]
    found = tallies[1].summary()
    assert (found["count"], found["first"], found["last"]) == (2, 3_000_000, 6_000_000)
    assert (found["p50_ms"], found["max_ms"]) == (2.0, 4.0)
    tallies[2].when(1, lambda: told.append(True))
    assert told == [True, True], "it may be complete before it is asked for"


def test_quantiles_are_nearest_ranks() -> None:
    ordered = list(range(1, 101))
    assert [quantile(ordered, share) for share in (0.5, 0.99, 1.0)] == [50.0, 99.0, 100.0]
    assert quantile([], 0.5) == 0.0


def test_shares_cover_every_number_once() -> None:
    assert sorted(n for part in shares(10, 3) for n in part) == list(range(10))
    assert len(list(shares(2, 1000))) == 2


def test_the_environment_names_the_machine_and_what_runs_on_it() -> None:
    found = environment()
    assert set(found) == {
        "cpu", "cores", "memory_mib", "kernel", "machine", "python", "versions", "revision"
    }  # fmt: skip
    assert found["cores"] >= 1
    assert found["memory_mib"] > 100
    assert found["versions"]["walyoff"]
    assert found["versions"]["cryptography"]
    json.dumps(found)


def test_processor_time_of_others_is_told_from_ours() -> None:
    burn = "import time\nend = time.monotonic() + 0.6\nwhile time.monotonic() < end: pass"
    with Meter() as meter:
        subprocess.run([sys.executable, "-c", burn], check=True)
        reading = meter.reading()
    assert set(reading) == {"seconds", "load", "ours", "others", "stolen"}
    # The one that ended counts as ours; how much it got depends on who else wanted it.
    assert reading["ours"] * reading["seconds"] * (os.cpu_count() or 1) > 0.1
    assert 0 <= reading["others"] <= 1


def test_a_process_below_this_one_is_found_with_its_memory() -> None:
    code = "import sys; print(1, flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"1\n"
        assert process.pid in descendants(os.getpid())
        assert memory_mib(process.pid) > 1
        assert process.stdin is not None
        process.stdin.close()
    assert process.pid not in descendants(os.getpid())
    assert cpu_seconds(process.pid) == 0.0


def test_stages_of_two_processes_are_put_in_order() -> None:
    ms = 1_000_000
    sender, receiver = [], []
    for begin in (0, 100 * ms):
        sender += [
            ("send is called", begin),
            ("signed", begin + 2 * ms),
            ("sent", begin + 3 * ms),
        ]
        receiver += [
            ("received", begin + 1 * ms),
            ("received", begin + 4 * ms),
            ("decrypted and decoded", begin + 5 * ms),
            ("delivered", begin + 9 * ms),
        ]
    assert stages(sender, receiver) == [
        ("sender", "send is called", 0.0, 0.0),
        ("sender", "signed", 2.0, 2.0),
        ("sender", "sent", 3.0, 1.0),
        ("receiver", "received", 4.0, 4.0),
        ("receiver", "decrypted and decoded", 5.0, 1.0),
        ("receiver", "delivered", 9.0, 4.0),
    ]


def test_every_measurement_has_a_command_and_a_function() -> None:
    assert {"join", "latency", "burst", "both", "catchup", "big", "fanout", "idle"} <= set(
        BENCHMARKS
    )
    assert {"import", "start"} <= set(BENCHMARKS)
    bench = cli.commands["bench"]
    assert isinstance(bench, Group)
    assert set(bench.commands) == set(BENCHMARKS)
    for entry in BENCHMARKS.values():
        assert callable(entry.load())


def test_what_is_not_installed_is_told_at_once() -> None:
    result = CliRunner().invoke(cli, ["bench", "latency", "--suite", "none-0"])
    assert "none-0" in str(result.exception)
