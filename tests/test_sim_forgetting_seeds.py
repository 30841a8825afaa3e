"""Many lives of worlds that forget: see `tests.sim.forgetting`."""

from __future__ import annotations

import pytest

from tests.sim.forgetting import run_seed


@pytest.mark.parametrize("seed", range(12))
def test_devices_come_to_the_same_whatever_happens(seed: int) -> None:
    run_seed(seed)
