"""Readings of the chains that are held here, made once for as long as they hold.

Decided here: when a reading is made anew. Whether a member signed an act is told by that
member's own chain, so a reading stands on several chains and holds while none of them grows.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence

from walyoff.child.acts import MAX_CONTENT, TOPICS, chain_of
from walyoff.child.chainfiles import content_of
from walyoff.child.chains import Chains
from walyoff.child.family import MAX_DEPTH
from walyoff.child.reader import IdentityBlock, Reading, Verify, read_identity
from walyoff.errors import RemoteProtocolError

#: Identities that act for one another in a row: each is a reading within a reading, and one who
#: is a member in several families could make as many as Python's stack does not hold.
MAX_ROW = 2 * MAX_DEPTH

VerifyCompact = Callable[[str, bytes, bytes], bool]


def signed_by(keys: Sequence[str], signed: Callable[[str], bool]) -> int:
    """The number of the keys, from 1, that signed, the newest first; 0 if none did."""
    numbered = reversed(list(enumerate(keys, 1)))
    return next((number for number, key in numbered if signed(key)), 0)


class Readings:
    """What the chains say. Safe to use from many threads."""

    def __init__(self, chains: Chains, verify: Verify, verify_compact: VerifyCompact) -> None:
        self._chains = chains
        self._verify = verify
        self._verify_compact = verify_compact
        self._lock = threading.Lock()
        #: By DID and pin: how long each chain was on which a reading stands, and the reading.
        self._made: dict[tuple[str, bytes | None], tuple[dict[str, int], Reading]] = {}
        self._local = threading.local()

    def read(self, did: str, pin: bytes | None) -> Reading:
        """What a chain that is held here says. Raises LocalProtocolError if it is not."""
        chain = chain_of(did)
        self._chains.files(chain)
        with self._lock:
            made = self._made.get((did, pin))
        if made is None or any(self._length(c) != n for c, n in made[0].items()):
            made = self._make(did, pin)
            with self._lock:
                self._made[did, pin] = made
        if under_way := self._under_way():
            under_way[-1][1].update(made[0])
        return made[1]

    def forget(self, chains: Collection[str]) -> None:
        """Drop what was read of chains that go: they may come back as other ones."""
        with self._lock:
            for key, (lengths, _) in list(self._made.items()):
                if not lengths.keys().isdisjoint(chains):
                    del self._made[key]

    def _make(self, did: str, pin: bytes | None) -> tuple[dict[str, int], Reading]:
        chain = chain_of(did)
        files = self._chains.files(chain)
        # Before it is read: what grows meanwhile is read again.
        lengths = {chain: len(files)}
        blocks = []
        for entry in files.in_order():
            # What cannot be an identity block is still an ancestor of others.
            content = b""
            if TOPICS.intersection(entry.topics):
                content = content_of(files.read(entry.cid))[: MAX_CONTENT + 1]
            blocks.append(
                IdentityBlock(
                    ref=entry.cid, topics=entry.topics, parents=entry.parents, content=content
                )
            )
        under_way = self._under_way()
        under_way.append((did, lengths))
        try:
            reading = read_identity(did, pin, blocks, self._verify, self._approved)
        finally:
            under_way.pop()
        return lengths, reading

    def _approved(self, did: str, pin: bytes, signature: bytes, body: bytes) -> int:
        """Which control keys of a member, of now or of before, signed: `reader.Approved`."""
        under_way = self._under_way()
        try:
            chain = chain_of(did)
            held = self._chains.has(chain)
        except RemoteProtocolError:
            return 0
        if not held:
            under_way[-1][1][chain] = 0
            return 0
        # Who stands above itself has no say: nothing would be the first to be believed.
        # Nor who stands under more than any family has.
        if len(under_way) > MAX_ROW or any(did == reading for reading, _ in under_way):
            return 0
        keys = self.read(did, pin or None).keys
        return signed_by(keys, lambda key: self._verify_compact(key, signature, body))

    def _length(self, chain: str) -> int:
        return len(self._chains.files(chain)) if self._chains.has(chain) else 0

    def _under_way(self) -> list[tuple[str, dict[str, int]]]:
        """The readings that this thread is making, the outermost first."""
        found: list[tuple[str, dict[str, int]]] = self._local.__dict__.setdefault("stack", [])
        return found
