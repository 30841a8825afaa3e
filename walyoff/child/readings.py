"""Readings of the chains that are held here, made once for as long as they hold.

Decided here: when a reading is made anew. Whether a member signed an act is told by that
member's own chain, so a reading stands on several chains and holds while none of them grows.
What chains say that stand on one another is decided in `circles`.
"""

from __future__ import annotations

import functools
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterator

from blake3 import blake3

from walyoff.child.acts import MAX_CONTENT, TOPICS, Approval, chain_of
from walyoff.child.births import Birth, read_birth
from walyoff.child.chainfiles import content_of
from walyoff.child.chains import Chains
from walyoff.child.circles import Key, read_together, signed_by
from walyoff.child.first_keys import FirstKeys
from walyoff.child.outcome import NOT_PINNED
from walyoff.child.placing import Placed, Verify, place_acts
from walyoff.child.reader import IdentityBlock, Reading
from walyoff.errors import LedgerError, LocalProtocolError, RemoteProtocolError
from walyoff.wire import pack

#: Readings that are kept, one or two of each chain; what is dropped is made again.
MAX_READINGS = 16_384

#: Approvals of which it is remembered who signed: a hundred bytes each, for blocks of 10 KB.
MAX_ANSWERS = 65_536

VerifyCompact = Callable[[str, bytes, bytes], bool]


class Readings:
    """What the chains say. Safe to use from many threads."""

    def __init__(self, chains: Chains, verify: Verify, verify_compact: VerifyCompact) -> None:
        self._chains = chains
        self._verify = verify
        self._verify_compact = verify_compact
        self._lock = threading.Lock()
        #: By DID and pin: how long each chain was on which a reading stands, and the reading.
        self._made: OrderedDict[Key, tuple[dict[str, int], Reading]] = OrderedDict()
        self._births: dict[str, Birth | None] = {}
        #: By control keys, signature and text, which of the keys signed.
        self._answers: OrderedDict[bytes, int] = OrderedDict()
        self._first_keys = FirstKeys(chains, self.birth)

    def read(self, did: str, pin: bytes | None) -> Reading:
        """What a chain that is held here says. Raises LocalProtocolError if it is not."""
        self._chains.files(chain_of(did))
        if pin and not self._first_keys.are(did, pin):
            # Nothing counts under other first keys, of which anybody can name any number.
            return Reading(refused=Counter({NOT_PINNED: 1}))
        key = (did, pin)
        ready = self._ready(key)
        return self._make(key) if ready is None else ready[1]

    def counting(self, did: str, pin: bytes | None) -> list[str]:
        """The control keys that count on a chain, the newest last; none if it is not here."""
        try:
            return self.read(did, pin).keys
        except (LedgerError, LocalProtocolError, RemoteProtocolError):
            return []

    def is_members(self, did: str, pin: bytes, approval: Approval) -> bool:
        """Whether a present member of a DID signed an act by its newest keys."""
        try:
            member = self.read(did, pin).members.get(approval.by)
        except (LedgerError, LocalProtocolError, RemoteProtocolError):
            return False
        if member is None or not member.current:
            return False
        keys = self.counting(approval.by, member.pin)[-1:]
        return self._signed(keys, approval.signature, approval.body) > 0

    def approves(self, approval: Approval) -> bool:
        """Whether a member signed an act, as far as that member's chain is held here."""
        try:
            birth = self.birth(approval.by)
            keys = self.read(approval.by, None if birth is None else birth.pin).keys
        except (LedgerError, LocalProtocolError, RemoteProtocolError):
            return False
        signature, body = approval.signature, approval.body
        return any(self._verify_compact(key, signature, body) for key in reversed(keys))

    def birth(self, did: str) -> Birth | None:
        """What a DID commits to. Raises LocalProtocolError if its chain is not held here."""
        chain = chain_of(did)
        with self._lock:
            if chain in self._births:
                return self._births[chain]
        # A chain begins with it, and never has another one.
        found = read_birth(content_of(self._chains.files(chain).read(chain)))
        with self._lock:
            self._births[chain] = found
        return found

    def _ready(self, key: Key) -> tuple[dict[str, int], Reading] | None:
        with self._lock:
            made = self._made.get(key)
        if made is None or any(self._length(c) != n for c, n in made[0].items()):
            return None
        return made

    def forget(self, chains: Collection[str]) -> None:
        """Drop what was read of chains that go: they may come back as other ones."""
        self._first_keys.forget(chains)
        with self._lock:
            for chain in chains:
                self._births.pop(chain, None)
            for key, (lengths, _) in list(self._made.items()):
                if not lengths.keys().isdisjoint(chains):
                    del self._made[key]

    def _make(self, start: Key) -> Reading:
        lengths: dict[Key, dict[str, int]] = {}

        def ready(key: Key) -> Reading | None:
            made = self._ready(key)
            if made is None:
                return None
            lengths[key] = made[0]
            return made[1]

        def place(key: Key) -> Placed | None:
            try:
                chain = chain_of(key[0])
                held = self._chains.has(chain)
            except RemoteProtocolError:
                # What somebody called an actor is no DID.
                return None
            # Before it is read: what grows meanwhile is read again.
            lengths[key] = {chain: self._length(chain)}
            if not held or (key[1] and not self._first_keys.are(key[0], key[1])):
                return None
            return self._place(key)

        found = read_together(start, place, self._signed, ready)
        with self._lock:
            for key, below in found.stands_on.items():
                stands_on = {c: n for k in below for c, n in lengths.get(k, {}).items()}
                self._made[key] = (stands_on, found.readings[key])
                self._made.move_to_end(key)
            while len(self._made) > MAX_READINGS:
                self._made.popitem(last=False)
        return found.readings[start]

    def _signed(self, keys: list[str], signature: bytes, body: bytes) -> int:
        """Which of the keys signed, from 1; else 0. Each is asked once.

        A member can write acts whose approvals hold under none, and a reading asks for all.
        """
        tag = blake3(_name_of(tuple(keys)) + pack([signature, body])).digest()
        with self._lock:
            if (known := self._answers.get(tag)) is not None:
                return known
        found = signed_by(keys, lambda key: self._verify_compact(key, signature, body))
        with self._lock:
            self._answers[tag] = found
            if len(self._answers) > MAX_ANSWERS:
                self._answers.popitem(last=False)
        return found

    def _place(self, key: Key) -> Placed:
        did, pin = key
        return place_acts(did, pin, self._blocks(did), self._verify, self.birth(did))

    def _blocks(self, did: str) -> Iterator[IdentityBlock]:
        files = self._chains.files(chain_of(did))
        for entry in files.in_order():
            # What cannot be an identity block is still an ancestor of others.
            content = b""
            if TOPICS.intersection(entry.topics):
                content = content_of(files.read(entry.cid))[: MAX_CONTENT + 1]
            yield IdentityBlock(
                ref=entry.cid,
                topics=entry.topics,
                parents=entry.parents,
                content=content,
                place=files.place(entry.cid),
            )

    def _length(self, chain: str) -> int:
        return len(self._chains.files(chain)) if self._chains.has(chain) else 0


@functools.lru_cache(256)
def _name_of(keys: tuple[str, ...]) -> bytes:
    return blake3(pack(keys)).digest()
