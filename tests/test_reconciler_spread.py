"""Catching up asks several peers at once."""

from __future__ import annotations

from collections import Counter

from walyoff.engine.facts import FetchBatches
from walyoff.engine.reconciler import Reconciler

PEERS = ("p", "q", "r")


def test_the_histories_of_several_devices_are_fetched_from_several_peers_at_once() -> None:
    for seed in range(20):
        reconciler = Reconciler(channel="c", author="me", heads=(), seed=seed)
        for peer in PEERS:
            reconciler.peer_joined(peer, f"did of {peer}", {}, 0.0)
        everything = {f"device {n}": (10, frozenset[int]()) for n in range(6)}
        # The first that says what it holds is asked for all of it.
        for peer in PEERS:
            reconciler.peer_has(peer, everything, 0.0)
        asked = [order for order in reconciler.orders() if isinstance(order, FetchBatches)]
        assert sorted(order.author for order in asked) == sorted(everything)
        # It gives nothing: the others share the work.
        for order in asked:
            reconciler.range_end(order.peer, order.author, 0.1)
        again = [order for order in reconciler.orders() if isinstance(order, FetchBatches)]
        assert sorted(order.author for order in again) == sorted(everything)
        busy = Counter(order.peer for order in again)
        assert len(busy) > 1
        assert max(busy.values()) - min(busy.values()) <= 1, f"seed {seed}: {busy}"
