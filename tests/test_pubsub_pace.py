"""How often a device looks at pubsub: often while messages flow, rarely when it is quiet."""

from __future__ import annotations

from pathlib import Path

from walyoff.child.pubsub import LONGEST, SHORTEST, pause_after
from walyoff.walytis.spawning import child_environment


def looks_in(seconds: float) -> int:
    """How many looks follow a message, if each takes no time and finds nothing."""
    looks, at = 0, 0.0
    while (at := at + pause_after(at)) < seconds:
        looks += 1
    return looks


def test_a_message_after_a_silence_waits_for_a_tenth_of_it_at_most() -> None:
    for quiet in (0.0, 0.005, 0.02, 0.1, 0.5, 2.0, 60.0):
        assert pause_after(quiet) <= max(SHORTEST, quiet * 0.1000001)
    assert pause_after(3600.0) == LONGEST == 0.25


def test_each_message_to_a_quiet_device_costs_few_looks() -> None:
    # It hears several in half a minute.
    assert looks_in(0.01) <= 10
    assert looks_in(5.0) <= 80


def test_the_node_has_one_processor(tmp_path: Path) -> None:
    # With more, Go looks about for itself fifty times after each look of ours.
    assert child_environment(tmp_path)["GOMAXPROCS"] == "1"
