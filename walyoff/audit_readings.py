"""What the identity chains of a home say, read from its files as they lie.

Decided here: nothing; the rules are those of the device itself (`child.circles`). Each chain is
read once, and counted for progress by who asks for it first.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from walyoff.audit_chains import RawChain, Verify, read_chain
from walyoff.child.acts import expand
from walyoff.child.births import Birth, read_birth
from walyoff.child.circles import Key, read_together, signed_by
from walyoff.child.placing import Placed, place_acts
from walyoff.child.reader import IdentityBlock, Reading, chain_of
from walyoff.errors import RemoteProtocolError


class RawReadings:
    """The readings of one home's chains."""

    def __init__(self, home: Path, verify: Verify, tick: Callable[[], None]) -> None:
        self._home = home
        self._verify = verify
        self._tick = tick
        self._raws: dict[str, RawChain] = {}
        self._readings: dict[Key, Reading] = {}

    def raw(self, did: str) -> RawChain:
        """The blocks of a DID's chain. Raises RemoteProtocolError if it is no DID."""
        chain = chain_of(did)
        if chain not in self._raws:
            self._raws[chain] = read_chain(self._home, chain, self._tick)
        return self._raws[chain]

    def read(self, did: str, pin: bytes | None) -> Reading:
        """What a chain says. Raises RemoteProtocolError if it is no DID's."""
        self.raw(did)
        if (did, pin) not in self._readings:
            found = read_together((did, pin), self._place, self._signer, self._readings.get)
            self._readings.update(found.readings)
        return self._readings[did, pin]

    def committed(self, did: str) -> bytes | None:
        """The pin that a DID itself commits to."""
        try:
            birth = _birth(self.raw(did))
        except RemoteProtocolError:
            return None
        return None if birth is None else birth.pin

    def _place(self, key: Key) -> Placed | None:
        try:
            raw = self.raw(key[0])
        except RemoteProtocolError:
            # What somebody called an actor is no DID.
            return None
        places = {cid: place for place, cid in enumerate(raw.listed, 1)}
        blocks = (
            IdentityBlock(
                ref=block.cid,
                topics=block.topics,
                parents=block.parents,
                content=block.content,
                place=places.get(block.cid, len(places) + 1),
            )
            for block in raw.blocks
        )
        return place_acts(*key, blocks, self._verify, _birth(raw))

    def _signer(self, keys: list[str], signature: bytes, body: bytes) -> int:
        try:
            stock = expand(signature)
        except RemoteProtocolError:
            return 0
        return signed_by(keys, lambda key: self._verify(key, stock, body))


def _birth(raw: RawChain) -> Birth | None:
    first = next((block for block in raw.blocks if block.cid == raw.chain), None)
    return None if first is None else read_birth(first.content)
