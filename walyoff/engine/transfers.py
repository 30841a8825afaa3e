"""Which chunk is asked from whom: the plan of all transfers of a channel.

Decided here: the next range to ask for, how much may be under way to each peer, when a peer is
given up, and when an attachment is whole. Never done here: I/O, hashing, reading a clock,
drawing randomness. Facts come in with `now`, orders go out, as in the reconciler. The bytes
themselves never come here.

A chunk goes through these states:

    missing --ask--> under way (one peer) --all parts--> storing --stored--> held
       ^                |                                   |
       +-- timeout, gone, broken rule, peer left --+-- wrong bytes, store failed

A chunk that several attachments use, or one at many places, is fetched once. How much is under
way to a peer follows the rate at which its answers come, so that a slow link is never filled
with seconds of data that a message would have to wait for.
"""

from __future__ import annotations

import random

from walyoff.chunk_frames import PART
from walyoff.engine.facts import Reason, Report
from walyoff.engine.transfer_facts import (
    MIN_WINDOW,
    Ask,
    Discard,
    Fetch,
    Key,
    Part,
    Range,
    ServingPeer,
    Transfer,
    TransferOrder,
    Watch,
    Whole,
)
from walyoff.manifest import Manifest

#: Without a part for so long a peer is given up for a chunk.
PART_TIMEOUT = 8.0
#: Bytes under way to one peer, at most.
MAX_WINDOW = 8 * 1024 * 1024
#: What may queue on the way, in seconds.
TARGET_DELAY = 0.05
#: The rate of a peer is the best of its answers; each answer takes a tenth off the last best.
RATE_DECAY = 0.9
MIN_LATENCY = 0.0001
#: Chunks under way, and being stored: bounds the memory of all transfers of a channel.
MAX_CHUNKS_AT_ONCE = 12
#: Back-off of a peer after a fault: doubles from the first to the last, with jitter.
RETRY_FIRST = 0.5
RETRY_LAST = 60.0
#: At the end a chunk is taken from a peer that is so much slower than one with nothing to do.
STEAL_AFTER = 2.0
STEAL_FACTOR = 4.0
#: After a failure of the store nothing is asked for so long.
STORE_PAUSE = 5.0


class Transfers:
    """The plan of one channel on one device."""

    def __init__(self, *, seed: int) -> None:
        self.transfers: dict[bytes, Transfer] = {}
        self.peers: dict[str, ServingPeer] = {}
        self.fetches: dict[int, Fetch] = {}
        #: Chunks that came and are being checked and stored: key to the peer that sent it.
        self.storing: dict[Key, str] = {}
        #: Bytes that may still be stored; None without a quota.
        self.budget: int | None = None
        self._numbers = 0
        self._paused_until = 0.0
        self._wake: float | None = None
        self._orders: list[TransferOrder] = []
        # Jitter and where to begin only: seeded from outside, so that a run can be repeated.
        self._random = random.Random(seed)  # noqa: S311

    # ------------------------------------------------------------------- output

    def orders(self) -> list[TransferOrder]:
        """The orders since the last call."""
        out, self._orders = self._orders, []
        return out

    def deadline(self) -> float | None:
        """When `tick` is due, if nothing happens before."""
        return self._wake

    def sources(self, record_id: bytes) -> list[str]:
        """The DIDs of the peers that an attachment comes from now."""
        return sorted(
            {self.peers[f.peer].did for f in self.fetches.values() if f.record_id == record_id}
        )

    # -------------------------------------------------------------------- facts

    def add(
        self, record_id: bytes, manifest: Manifest, held: bytes, *, wanted: bool, now: float
    ) -> None:
        """An attachment is not held as a whole."""
        if record_id in self.transfers:
            return
        count = manifest.count
        bits = int.from_bytes(held, "little") & ((1 << count) - 1)
        places: dict[bytes, int] = {}
        for place, chunk_id in enumerate(manifest.chunk_ids()):
            places[chunk_id] = places.get(chunk_id, 0) | 1 << place
        transfer = Transfer(
            record_id=record_id,
            manifest=manifest,
            held=bits,
            missing=~bits & ((1 << count) - 1),
            wanted=wanted,
            places=places,
        )
        self.transfers[record_id] = transfer
        for key in (*self.storing, *(fetch.key for fetch in self.fetches.values())):
            transfer.missing &= ~self._bits(transfer, key)
        if transfer.whole:
            self._orders.append(Whole(record_id))
        elif wanted:
            for peer in self.peers:
                self._orders.append(Watch(peer, (record_id,)))
        self._plan(now)

    def remove(self, record_id: bytes, now: float) -> None:
        """An attachment is whole, forgotten, or nothing to care about now."""
        if self.transfers.pop(record_id, None) is None:
            return
        for peer in self.peers.values():
            peer.has.pop(record_id, None)
        for fetch in list(self.fetches.values()):
            if fetch.record_id == record_id:
                self._abort(fetch)
        self._plan(now)

    def want(self, record_id: bytes, wanted: bool, now: float) -> None:
        """Somebody wants an attachment, or no longer."""
        transfer = self.transfers.get(record_id)
        if transfer is None or transfer.wanted == wanted:
            return
        transfer.wanted = wanted
        if wanted:
            for peer in self.peers:
                self._orders.append(Watch(peer, (record_id,)))
        else:
            for fetch in list(self.fetches.values()):
                if fetch.record_id == record_id:
                    self._abort(fetch)
        self._plan(now)

    def prefer(self, record_id: bytes, place: int) -> None:
        """Somebody reads at a place: what follows it is fetched first."""
        if transfer := self.transfers.get(record_id):
            transfer.start = place

    def set_budget(self, left: int | None, now: float) -> None:
        """So many bytes may be stored beside those that are held now."""
        if left is not None:
            left -= sum(fetch.key[1] for fetch in self.fetches.values())
            left -= sum(size for _, size in self.storing)
        self.budget = left
        self._plan(now)

    def peer_joined(self, peer: str, did: str, now: float) -> None:
        """A session with a member is up."""
        self.peers[peer] = ServingPeer(did)
        wanted = tuple(t.record_id for t in self.transfers.values() if t.wanted)
        if wanted:
            self._orders.append(Watch(peer, wanted))
        self._plan(now)

    def peer_left(self, peer: str, now: float) -> None:
        """A session is over."""
        state = self.peers.get(peer)
        if state is None:
            return
        for fetch in list(state.fetches.values()):
            self._abort(fetch)
        del self.peers[peer]
        self._plan(now)

    def peer_has(self, peer: str, record_id: bytes, bits: bytes, now: float) -> None:
        """A peer says which chunks of an attachment it holds."""
        state, transfer = self.peers.get(peer), self.transfers.get(record_id)
        if state is None or transfer is None:
            return
        count = transfer.manifest.count
        places = int.from_bytes(bits, "little")
        if places >> count:
            self._fault(state, peer, Reason.MALFORMED, "chunks that there are not", now)
            return
        state.has[record_id] = places
        self._plan(now)

    def part(self, peer: str, number: int, offset: int, size: int, now: float) -> Part:
        """A part came from a peer."""
        fetch, state = self.fetches.get(number), self.peers.get(peer)
        if fetch is None or state is None or fetch.peer != peer:
            return Part.IGNORED
        left = fetch.asked - fetch.got
        # Only the end of a chunk may be shorter: nobody keeps a fetch alive byte by byte.
        if offset != fetch.got or not left or size != min(PART, fetch.key[1] - fetch.got):
            self._fault(state, peer, Reason.MALFORMED, "a part that was not asked for", now)
            self._abort(fetch)
            self._plan(now)
            return Part.IGNORED
        fetch.got += size
        state.under_way -= size
        state.delivered += size
        fetch.until = now + PART_TIMEOUT
        while fetch.asks and fetch.got >= fetch.asks[0].end:
            self._answered(state, fetch.asks.popleft(), now)
        if fetch.got < fetch.key[1]:
            # Planning looks at everything, so it waits until there is room for something.
            if state.window - state.under_way >= state.window / 4:
                self._plan(now)
            return Part.TAKEN
        del self.fetches[number], state.fetches[number]
        self.storing[fetch.key] = peer
        self._plan(now)
        return Part.COMPLETE

    @staticmethod
    def _answered(state: ServingPeer, ask: Range, now: float) -> None:
        """How fast answers come decides how much may be under way (as in BBR).

        The bandwidth times the shortest time that an answer took keeps the link busy, and
        TARGET_DELAY more is all that may queue somewhere.
        """
        latency = max(now - ask.at, MIN_LATENCY)
        state.base = min(state.base, latency)
        state.rate = max((state.delivered - ask.delivered) / latency, state.rate * RATE_DECAY)
        window = state.rate * (state.base + TARGET_DELAY)
        state.window = min(max(window, MIN_WINDOW), MAX_WINDOW)

    def stored(self, key: Key, now: float) -> None:
        """A chunk is durable, or nobody needs it any more."""
        peer = self.storing.pop(key, None)
        if peer is not None and (state := self.peers.get(peer)):
            state.score /= 2
            state.failures = 0
        for transfer in self.transfers.values():
            bits = self._bits(transfer, key)
            if bits & ~transfer.held:
                transfer.held |= bits
                transfer.missing &= ~bits
                if transfer.whole:
                    self._orders.append(Whole(transfer.record_id))
        self._plan(now)

    def wrong(self, key: Key, record_id: bytes, now: float) -> None:
        """What a peer sent was not the chunk."""
        peer = self.storing.get(key)
        self._release(key)
        if peer is not None and (state := self.peers.get(peer)):
            state.has.pop(record_id, None)
            self._fault(state, peer, Reason.WRONG_CONTENT, "a chunk of an attachment", now)
        self._plan(now)

    def failed(self, key: Key, now: float) -> None:
        """The store could not take a chunk: a full disk, mostly."""
        self._release(key)
        self._paused_until = now + STORE_PAUSE
        self._plan(now)

    def gone(self, peer: str, number: int, now: float) -> None:
        """A peer does not hold what it was asked for."""
        fetch, state = self.fetches.get(number), self.peers.get(peer)
        if fetch is None or state is None or fetch.peer != peer:
            return
        self._abort(fetch)
        state.has[fetch.record_id] = state.has.get(fetch.record_id, 0) & ~(1 << fetch.place)
        # It may have dropped it in good faith; who claims and does not give is asked last.
        state.score += 1
        self._plan(now)

    def tick(self, now: float) -> None:
        """A deadline passed."""
        if self._wake is None or now < self._wake:
            return
        self._wake = None
        for fetch in list(self.fetches.values()):
            if self.fetches.get(fetch.number) is not fetch:
                continue
            if fetch.until > now:
                self._wake_at(fetch.until)
                continue
            self._abort(fetch)
            state = self.peers[fetch.peer]
            self._fault(state, fetch.peer, Reason.TIMEOUT, "a chunk of an attachment", now)
        self._plan(now)

    # ----------------------------------------------------------------- planning

    @staticmethod
    def _bits(transfer: Transfer, key: Key) -> int:
        """The places of an attachment where a chunk belongs."""
        bits = transfer.places.get(key[0], 0)
        if not bits:
            return 0
        last = transfer.manifest.count - 1
        if bits >> last & 1 and transfer.manifest.length(last) != key[1]:
            bits &= ~(1 << last)
        first = bits & -bits
        if bits and first != 1 << last and transfer.manifest.length(0) != key[1]:
            bits &= 1 << last
        return bits

    def _mark(self, key: Key, *, missing: bool) -> None:
        for transfer in self.transfers.values():
            bits = self._bits(transfer, key) & ~transfer.held
            if missing:
                transfer.missing |= bits
            else:
                transfer.missing &= ~bits

    def _release(self, key: Key) -> None:
        """A chunk that came is not held after all."""
        if self.storing.pop(key, None) is not None:
            self._mark(key, missing=True)
            if self.budget is not None:
                self.budget += key[1]

    def _abort(self, fetch: Fetch) -> None:
        """A fetch ends without its chunk."""
        del self.fetches[fetch.number]
        state = self.peers[fetch.peer]
        del state.fetches[fetch.number]
        state.under_way -= fetch.asked - fetch.got
        self._mark(fetch.key, missing=True)
        if self.budget is not None:
            self.budget += fetch.key[1]
        self._orders.append(Discard(fetch.number))

    def _fault(
        self, state: ServingPeer, peer: str, reason: str, detail: str, now: float
    ) -> None:
        state.score += 1
        pause = min(RETRY_FIRST * 2.0 ** min(state.failures, 10), RETRY_LAST)
        state.failures += 1
        state.until = now + pause * (0.5 + self._random.random())
        state.window = MIN_WINDOW
        self._orders.append(Report(reason, peer, detail))

    def _plan(self, now: float) -> None:
        """Ask for as much as there is room for."""
        if now < self._paused_until:
            self._wake_at(self._paused_until)
            return
        ranked = sorted(self.peers.items(), key=lambda item: (item[1].score, item[1].under_way))
        wanted = sorted(
            (t for t in self.transfers.values() if t.wanted),
            # What is nearly there first: a small file does not wait for a large one.
            key=lambda t: t.manifest.count - t.held.bit_count(),
        )
        for transfer in wanted:
            transfer.over_quota = False
        for name, state in ranked:
            if state.until > now:
                if state.has:
                    self._wake_at(state.until)
                continue
            for fetch in state.fetches.values():
                self._ask(state, fetch, now)
            while state.under_way < state.window and self._begin(name, state, wanted, now):
                continue

    def _begin(self, name: str, state: ServingPeer, wanted: list[Transfer], now: float) -> bool:
        """Begin to fetch one more chunk from a peer."""
        if len(self.fetches) + len(self.storing) >= MAX_CHUNKS_AT_ONCE:
            return False
        for transfer in wanted:
            found = state.has.get(transfer.record_id, 0) & transfer.missing
            if not found:
                continue
            # Those who fetch the same take different chunks, and have something to share.
            start = transfer.start
            if start is None:
                start = self._random.randrange(transfer.manifest.count)
            first = (found >> start << start) or found
            place = (first & -first).bit_length() - 1
            size = transfer.manifest.length(place)
            if self.budget is not None:
                if size > self.budget:
                    transfer.over_quota = True
                    continue
                self.budget -= size
            self._numbers += 1
            key = (transfer.manifest.chunk_id(place), size)
            fetch = Fetch(
                self._numbers, key, name, transfer.record_id, place, now, now + PART_TIMEOUT
            )
            self.fetches[fetch.number] = state.fetches[fetch.number] = fetch
            self._mark(key, missing=False)
            self._ask(state, fetch, now)
            self._wake_at(fetch.until)
            return True
        return self._steal(state, now)

    def _steal(self, state: ServingPeer, now: float) -> bool:
        """Nothing is missing that this peer has: take over from one that is much slower."""
        for fetch in self.fetches.values():
            other = self.peers[fetch.peer]
            if (
                other is not state
                and now - fetch.since > STEAL_AFTER
                and other.window * STEAL_FACTOR < state.window
                and state.has.get(fetch.record_id, 0) >> fetch.place & 1
                and state.score <= other.score
            ):
                self._abort(fetch)
                other.score += 1
                return True
        return False

    def _ask(self, state: ServingPeer, fetch: Fetch, now: float) -> None:
        """Ask for as much of a chunk as the window allows, in whole parts."""
        room = state.window - state.under_way
        size = fetch.key[1]
        if fetch.asked >= size or room <= 0:
            return
        parts = max(int(room) // PART, 1)
        length = min(parts * PART, size - fetch.asked)
        self._orders.append(
            Ask(fetch.peer, fetch.number, fetch.record_id, fetch.place, fetch.asked, length)
        )
        fetch.asked += length
        fetch.asks.append(Range(fetch.asked, now, state.delivered))
        state.under_way += length

    def _wake_at(self, when: float) -> None:
        if self._wake is None or when < self._wake:
            self._wake = when
