"""Chains that were handed over go again, also when it is not known which are needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from walyoff.child.acts import did_of
from walyoff.child.guests import NAME, Guests
from walyoff.errors import RemoteProtocolError, StoreError

GROUP = did_of("QmGroup")
A, B = did_of("QmA"), did_of("QmB")


class Chains:
    def __init__(self) -> None:
        self.held: set[str] = set()

    def has(self, chain: str) -> bool:
        return chain in self.held

    def discard(self, chain: str) -> None:
        self.held.discard(chain)


def guests(chains: Chains, home: Path) -> Guests:
    made: Any = chains
    return Guests(made, home, lambda _: None)


def broken() -> set[str]:
    raise StoreError("a key file is damaged")


def refuse(chains: Chains, made: Guests, did: str, belong: Any) -> None:
    """Somebody's chain is taken, and then it is refused."""

    def decide() -> None:
        with made.on_trial(GROUP, did, [did], belong):
            chains.held.add(did.rpartition(":")[2])
            raise RemoteProtocolError("refused")

    with pytest.raises(RemoteProtocolError, match="refused"):
        decide()


def test_what_is_needed_cannot_be_told_and_then_it_can(tmp_path: Path) -> None:
    chains = Chains()
    made = guests(chains, tmp_path)
    refuse(chains, made, A, broken)
    assert chains.held == {"QmA"}
    # Nothing more is taken while that is so: it is not known what would have to go.
    with (
        pytest.raises(StoreError),
        made.on_trial(GROUP, B, [B], broken),
    ):
        pytest.fail("a trial began")
    refuse(chains, made, B, set)
    assert chains.held == set()
    assert not (tmp_path / NAME).exists()


def test_what_became_needed_meanwhile_stays(tmp_path: Path) -> None:
    chains = Chains()
    made = guests(chains, tmp_path)
    refuse(chains, made, A, broken)
    refuse(chains, made, B, lambda: {A})
    assert chains.held == {"QmA"}


def test_a_restart_sweeps_what_could_not_be_decided(tmp_path: Path) -> None:
    chains = Chains()
    refuse(chains, guests(chains, tmp_path), A, broken)
    assert (tmp_path / NAME).exists()
    guests(chains, tmp_path).sweep(lambda *_: False)
    assert chains.held == set()
    assert not (tmp_path / NAME).exists()
