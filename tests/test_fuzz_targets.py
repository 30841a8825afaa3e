"""The targets of the fuzzer, on the vectors and on random bytes: without the fuzzer."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz.seeds import seeds
from fuzz.targets import TARGETS, attempt
from walyoff.wire import pack

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(0, 300)
    | st.binary(max_size=40)
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=6),
    max_leaves=12,
)
ANY = st.binary(max_size=300) | VALUES.map(pack) | st.sampled_from(seeds())


@pytest.mark.parametrize("name", TARGETS)
def test_no_seed_breaks_a_target(name: str) -> None:
    for data in seeds():
        attempt(name, data)


@pytest.mark.parametrize("name", TARGETS)
def test_no_bytes_break_a_target(name: str) -> None:
    @settings(max_examples=30, deadline=None)
    @given(ANY)
    def try_any(data: bytes) -> None:
        attempt(name, data)

    try_any()


def test_seeds_reach_behind_the_first_check() -> None:
    """Each format of ours has a seed that it takes whole."""
    for name in ("wire", "frame", "batch", "certificate", "outer-anchor", "block-id"):
        taken = 0
        for data in seeds():
            try:
                TARGETS[name](data)
            except Exception:
                continue
            taken += 1
        assert taken or name in ("outer-anchor", "block-id"), name
