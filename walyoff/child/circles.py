"""Readings of chains that stand on one another, also in circles.

Whether an act counts can depend on the actor's own chain, whose reading depends on others. No
honest device lets identities stand above themselves, but anybody who ever had an identity's
control keys can write to its chain as if one did. Decided here: what the readings are then.

Which chains a reading depends on is told by the chains' blocks alone, whatever counts in them
(`Placed.actors`). Chains that depend on one another are read together, in rounds: in the
first one nobody among them has keys, and each round takes the keys of the one before. What
does not depend on itself has its final reading after as many rounds as it is deep, whatever
stands beside it in the circle; what does, has the reading of the last round. So the result is
a function of the chains that are held, wherever one begins to read.

Pure: no I/O, no clock; nothing recursive, as a row of identities can have any length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from walyoff.child.family import MAX_DEPTH
from walyoff.child.outcome import Reading
from walyoff.child.placing import Placed
from walyoff.child.reader import settle_placed

#: A DID, and the pin by which its chain is read; None if the chain itself is believed.
Key = tuple[str, bytes | None]
#: place(key): the acts of a chain; None if it is not held.
Place = Callable[[Key], Placed | None]
#: ready(key): a reading that was made before and still holds; its chain is not placed again.
Ready = Callable[[Key], Reading | None]
#: signer(control keys, compact signature, body): which of the keys signed, from 1; else 0.
Signer = Callable[[list[str], bytes, bytes], int]

#: Rounds in a circle: identities deeper than this under one another count nowhere.
MAX_ROUNDS = 2 * MAX_DEPTH


@dataclass(slots=True)
class _Chain:
    placed: Placed
    needs: frozenset[Key]


@dataclass(slots=True, kw_only=True)
class Readings:
    """What came out: readings, and on which chains each stands, itself included."""

    readings: dict[Key, Reading] = field(default_factory=dict)
    stands_on: dict[Key, frozenset[Key]] = field(default_factory=dict)


def signed_by(keys: Sequence[str], signed: Callable[[str], bool]) -> int:
    """The number of the keys, from 1, that signed, the newest first; 0 if none did."""
    numbered = reversed(list(enumerate(keys, 1)))
    return next((number for number, key in numbered if signed(key)), 0)


def read_together(
    start: Key, place: Place, signer: Signer, ready: Ready = lambda _: None
) -> Readings:
    """The reading of a chain, and of all that it stands on and that were not ready."""
    found = Readings()
    chains: dict[Key, _Chain] = {}
    todo = [start]
    while todo:
        key = todo.pop()
        if key in chains or key in found.readings:
            continue
        if (known := ready(key)) is not None:
            found.readings[key] = known
        elif (placed := place(key)) is not None:
            needs = frozenset((did, pin or None) for did, pin in placed.actors())
            chains[key] = _Chain(placed, needs)
            todo.extend(needs)
    made = set(chains)
    for circle in _circles({key: chain.needs & made for key, chain in chains.items()}):
        found.readings.update(_read_circle(circle, chains, found.readings, signer))
        stands_on = set(circle)
        for key in circle:
            for needed in chains[key].needs:
                stands_on |= found.stands_on.get(needed, {needed})
        for key in circle:
            found.stands_on[key] = frozenset(stands_on)
    return found


def _read_circle(
    circle: list[Key],
    chains: Mapping[Key, _Chain],
    done: Mapping[Key, Reading],
    signer: Signer,
) -> dict[Key, Reading]:
    """Readings of chains that depend on one another; mostly it is one that does not."""
    among = set(circle)
    now: dict[Key, Reading] = {}
    changed = among
    for _ in range(MAX_ROUNDS):
        before = now

        def approved(did: str, pin: bytes, signature: bytes, body: bytes) -> int:
            key = (did, pin or None)
            reading = before.get(key) if key in among else done.get(key)  # noqa: B023
            return signer(reading.keys, signature, body) if reading else 0

        # What is built on the same keys as in the round before comes out the same.
        due = [k for k in circle if not before or chains[k].needs & changed]
        now = {**before, **{k: settle_placed(chains[k].placed, approved) for k in due}}
        changed = {k for k in due if k not in before or before[k].keys != now[k].keys}
        if not any(chains[k].needs & changed for k in circle):
            break
    return now


def _circles(needs: Mapping[Key, frozenset[Key]]) -> Iterator[list[Key]]:
    """Chains that depend on one another, each group after those that it needs (Tarjan's)."""
    numbers: dict[Key, int] = {}
    lowest: dict[Key, int] = {}
    held: list[Key] = []
    inside: set[Key] = set()
    for start in needs:
        if start in numbers:
            continue
        stack = [(start, iter(needs[start]))]
        numbers[start] = lowest[start] = len(numbers)
        held.append(start)
        inside.add(start)
        while stack:
            key, rest = stack[-1]
            for needed in rest:
                if needed not in numbers:
                    numbers[needed] = lowest[needed] = len(numbers)
                    held.append(needed)
                    inside.add(needed)
                    stack.append((needed, iter(needs[needed])))
                    break
                if needed in inside:
                    lowest[key] = min(lowest[key], numbers[needed])
            else:
                stack.pop()
                if stack:
                    above = stack[-1][0]
                    lowest[above] = min(lowest[above], lowest[key])
                if lowest[key] == numbers[key]:
                    circle: list[Key] = []
                    while not circle or circle[-1] != key:
                        circle.append(held.pop())
                        inside.discard(circle[-1])
                    yield circle
