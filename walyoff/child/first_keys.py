"""Which first control keys a chain that is held here has.

Decided here: whether a reading by a pin can come to anything. Who was ever a member of an
identity can write that a DID joined with any first keys, so with as many pins as it likes;
those that are none of the DID's are told from its birth, or from its key blocks alone, which
are looked at once for each length of the chain.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection

from walyoff.child.acts import MAX_CONTENT, RENEW, TOPIC_KEY, IdentityBlock, pin_of, read_act
from walyoff.child.births import Birth
from walyoff.child.chainfiles import content_of
from walyoff.child.chains import Chains
from walyoff.child.reader import chain_of
from walyoff.errors import RemoteProtocolError


class FirstKeys:
    """The pins of chains that are held here. Safe to use from many threads."""

    def __init__(self, chains: Chains, birth: Callable[[str], Birth | None]) -> None:
        self._chains = chains
        self._birth = birth
        self._lock = threading.Lock()
        #: By chain, how long it was, and the pins of its first keys.
        self._found: dict[str, tuple[int, frozenset[bytes]]] = {}

    def are(self, did: str, pin: bytes) -> bool:
        """Whether a chain can have first keys with this pin.

        Raises LocalProtocolError if it is not held here.
        """
        birth = self._birth(did)
        return pin in self._pins(did) if birth is None else pin == birth.pin

    def forget(self, chains: Collection[str]) -> None:
        """Drop what is known of chains that go."""
        with self._lock:
            for chain in chains:
                self._found.pop(chain, None)

    def _pins(self, did: str) -> frozenset[bytes]:
        chain = chain_of(did)
        files = self._chains.files(chain)
        length = len(files)
        with self._lock:
            known = self._found.get(chain)
        if known is not None and known[0] == length:
            return known[1]
        pins = set()
        for entry in files.with_topic(TOPIC_KEY):
            content = content_of(files.read(entry.cid))[: MAX_CONTENT + 1]
            block = IdentityBlock(
                ref=entry.cid, topics=entry.topics, parents=entry.parents, content=content
            )
            try:
                act = read_act(did, block)
            except RemoteProtocolError:
                continue
            if act is not None and act.kind == RENEW and act.old == act.new:
                pins.add(pin_of(act.new))
        with self._lock:
            self._found[chain] = (length, frozenset(pins))
        return frozenset(pins)


__all__ = ["FirstKeys"]
