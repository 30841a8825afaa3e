"""Times that mean the same on a busy machine, and end on one that is busy for ever."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import waiting
from tests.waiting import MOST, Deadline, free_time


class Machine:
    """A clock, and the kernel's figure of how long processes waited meanwhile."""

    def __init__(self, pressure: Path) -> None:
        self._pressure = pressure
        self.now = self._waited = 1000.0
        self.passes(0)

    def passes(self, seconds: float, *, busy: float = 0.0) -> None:
        self.now += seconds
        self._waited += busy * seconds
        total = int(self._waited * 1e6)
        self._pressure.write_text(f"some avg10=0.00 avg60=0.00 avg300=0.00 total={total}\n")

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    made = Machine(tmp_path / "pressure")
    monkeypatch.setattr(waiting, "_PRESSURE", tmp_path / "pressure")
    monkeypatch.setattr(waiting, "time", made)
    return made


def test_what_takes_a_time_takes_that_on_an_idle_machine(machine: Machine) -> None:
    began, deadline = free_time(), Deadline(10)
    machine.passes(4)
    assert free_time() - began == pytest.approx(4)
    assert deadline.left() == pytest.approx(6)
    machine.passes(6.1)
    assert deadline.left() == 0


def test_time_in_which_others_had_the_processors_does_not_count(machine: Machine) -> None:
    began, deadline = free_time(), Deadline(10)
    machine.passes(20, busy=0.75)
    assert free_time() - began == pytest.approx(5)
    assert deadline.left() == pytest.approx(5)


def test_no_time_stands_still_on_a_machine_that_is_busy_for_ever(machine: Machine) -> None:
    began, deadline = free_time(), Deadline(10)
    machine.passes(10 * MOST - 1, busy=1)
    assert 0 < deadline.left() < 1
    machine.passes(2, busy=1)
    assert deadline.left() == 0
    assert free_time() - began > 10


def test_where_nobody_knows_the_machine_is_taken_to_be_busy(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "_PRESSURE", Path("/nonexistent"))
    began, deadline = free_time(), Deadline(10)
    machine.passes(10 * MOST - 5)
    assert free_time() - began == pytest.approx(9)
    assert deadline.left() == pytest.approx(1)
