"""`walyoff bench transport` measures whatever transport is installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.libp2p_support import needs_libp2p

FIGURES = {
    "connect_p50_ms",
    "round_p50_ms",
    "round_p99_ms",
    "round_16k_p50_ms",
    "rounds_50_streams_per_s",
    "mib_per_s",
    "broadcast_lost",
    "broadcasts_per_s",
    "broadcast_and_back_p50_ms",
}


def measured(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "walyoff.cli",
            "bench",
            "transport",
            "--repeat",
            "1",
            *arguments,
        ],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@needs_libp2p
def test_every_figure_is_there_as_json() -> None:
    done = measured("--transport", "libp2p", "--json")
    assert done.returncode == 0, done.stderr
    value: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert value.keys() >= FIGURES
    assert value["mib_per_s"]["median"] > 0
    assert value["options"]["transport"] == "libp2p"


def test_people_get_a_table_with_the_floor_beside_it() -> None:
    done = measured("--transport", "tcp", "--vs", "tcp")
    assert done.returncode == 0, done.stderr
    assert "round_p50_ms" in done.stdout
    assert "x tcp" in done.stdout


def test_a_transport_that_is_not_installed_is_told(tmp_path: Path) -> None:
    done = measured("--transport", "nowhere")
    assert done.returncode == 1
    assert "nowhere" in done.stderr
