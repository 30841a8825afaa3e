"""Whole worlds from seeds: crashes, partitions, skewed clocks, joins, and a member that lies.

A failing seed says how to replay it: `python -m tests.sim.scenario SEED`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim.liars import LIES
from tests.sim.scenario import Plan, run_seed
from walyoff.testing.network import LINKS

SEEDS = 210
CHUNK = 10
ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_honest_devices_agree_whatever_happens(first: int) -> None:
    for seed in range(first, first + CHUNK):
        run_seed(seed)


def test_the_seeds_cover_every_link_every_lie_and_every_size() -> None:
    plans = [Plan.of(seed) for seed in range(SEEDS)]
    assert {plan.link for plan in plans} == set(LINKS)
    assert {plan.lie for plan in plans} == {*LIES, None}
    assert {plan.devices for plan in plans} == {2, 3, 5, 20}


def test_a_seed_is_one_story_in_every_process() -> None:
    """Seed 4 has a liar, seed 2 many crashes; hashes of strings differ between processes."""
    stories = set()
    for hash_seed in ("1", "2"):
        output = [
            subprocess.run(
                [sys.executable, "-m", "tests.sim.scenario", seed],
                cwd=ROOT,
                env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)},
                capture_output=True,
                check=True,
                timeout=300,
                text=True,
            ).stdout
            for seed in ("2", "4", "12")
        ]
        stories.add("".join(output))
    assert len(stories) == 1, stories
