"""The plan of transfers under any facts: what must always hold, and that it ends."""

from __future__ import annotations

from collections import deque

from walyoff.chunk_frames import PART
from walyoff.engine.transfer_facts import MIN_WINDOW, Ask, Discard, Key, Part, Whole
from walyoff.engine.transfers import MAX_CHUNKS_AT_ONCE, Transfers
from walyoff.manifest import Manifest
from walyoff.records import CHUNK_SIZE

#: Bytes of an input that become facts, two each: more are only slower.
MAX_STEPS = 200
PEERS = ("a", "b", "c")
#: Parts of the longest chunk.
PARTS = CHUNK_SIZE // PART
#: Facts after which an honest peer must have given everything.
ENOUGH = 5000


def _manifest(size: int, ids: str) -> Manifest:
    return Manifest(
        caption=b"",
        name="n",
        media_type="a/b",
        size=size,
        ids=b"".join(letter.encode() * 32 for letter in ids),
    )


#: A chunk twice in one file, one in two files, a short end, and an id that has two lengths.
FILES = {
    b"1" * 32: _manifest(5 * CHUNK_SIZE - 7, "xyxzw"),
    b"2" * 32: _manifest(2 * CHUNK_SIZE, "zv"),
    b"3" * 32: _manifest(100, "x"),
}
#: The chunks of each: asked for after every fact.
KEYS = {
    record_id: [(m.chunk_id(place), m.length(place)) for place in range(m.count)]
    for record_id, m in FILES.items()
}


class World:
    """Transfers, what they asked for, and what is checked after every fact."""

    def __init__(self, seed: int = 1) -> None:
        self.plan = Transfers(seed=seed)
        self.now = 100.0
        self.asked: dict[str, deque[Ask]] = {name: deque() for name in PEERS}
        self.whole: set[bytes] = set()
        self.stored: set[Key] = set()
        self.parts: dict[int, int] = {}
        self.quota = False

    def add(self, record_id: bytes) -> None:
        """An attachment is taken up, with what is stored of it."""
        manifest = FILES[record_id]
        bits = 0
        for place, key in enumerate(KEYS[record_id]):
            if key in self.stored:
                bits |= 1 << place
        self.plan.add(record_id, manifest, bytes([bits]), wanted=True, now=self.now)

    def honest_part(self, peer: str) -> None:
        """The peer sends the next part of what it was asked for."""
        queue = self.asked[peer]
        if not queue:
            return
        ask = queue.popleft()
        size = min(PART, ask.length)
        if ask.length > size:
            rest = Ask(
                peer, ask.number, ask.record_id, ask.place, ask.offset + size, ask.length - size
            )
            queue.appendleft(rest)
        self.part(peer, ask.number, ask.offset, size)

    def part(self, peer: str, number: int, offset: int, size: int) -> None:
        """A part comes."""
        verdict = self.plan.part(peer, number, offset, size, self.now)
        if verdict is not Part.IGNORED:
            self.parts[number] = self.parts.get(number, 0) + size
        if verdict is Part.COMPLETE:
            # Exactly a chunk, or nothing is handed on.
            assert self.parts.pop(number) in {key[1] for key in self.plan.storing}

    def step(self, what: int, which: int) -> None:  # noqa: PLR0912 - a case for each fact
        """One fact."""
        plan, peer = self.plan, PEERS[which % 3]
        record_id = list(FILES)[which % 3]
        match what % 14:
            case 0:
                if peer not in plan.peers:
                    plan.peer_joined(peer, f"did:{peer}", self.now)
            case 1:
                plan.peer_left(peer, self.now)
                self.asked[peer].clear()
            case 2 | 3:
                plan.peer_has(peer, record_id, bytes([which >> 2]), self.now)
            case 4 | 5 | 6:
                for _ in range(min(which, len(self.asked[peer]) * PARTS)):
                    self.honest_part(peer)
            case 7:
                number = next(iter(plan.fetches), which)
                self.part(peer, number, which * 1000 % CHUNK_SIZE, which)
            case 8 | 9:
                for key in list(plan.storing)[: which % 4]:
                    self.settle(key, which)
            case 10:
                if self.asked[peer]:
                    plan.gone(peer, self.asked[peer].popleft().number, self.now)
            case 11:
                self.now += which / 16
                plan.tick(self.now)
            case 12:
                if which & 4:
                    plan.remove(record_id, self.now)
                elif record_id not in plan.transfers:
                    self.add(record_id)
                else:
                    plan.want(record_id, bool(which & 8), self.now)
            case _:
                self.quota = bool(which & 1)
                plan.set_budget(which * 64 * 1024 if self.quota else None, self.now)
        self.check()

    def settle(self, key: Key, how: int) -> None:
        """A chunk that came is checked and stored, or not."""
        if how & 16:
            self.plan.wrong(key, next(iter(FILES)), self.now)
        elif how & 32:
            self.plan.failed(key, self.now)
        else:
            self.stored.add(key)
            self.plan.stored(key, self.now)

    def check(self) -> None:
        """Take the orders, and see that everything fits together."""
        plan = self.plan
        for order in plan.orders():
            match order:
                case Ask(peer, _, record_id, place, offset, length):
                    assert offset % PART == 0
                    assert 0 < length <= KEYS[record_id][place][1] - offset
                    assert peer in plan.peers
                    self.asked[peer].append(order)
                case Discard(number):
                    self.parts.pop(number, None)
                case Whole(record_id):
                    self.whole.add(record_id)
                case _:
                    pass
        keys = [fetch.key for fetch in plan.fetches.values()] + list(plan.storing)
        busy = set(keys)
        assert len(busy) == len(keys) <= MAX_CHUNKS_AT_ONCE
        assert self.parts.keys() <= plan.fetches.keys()
        for peer, state in plan.peers.items():
            fetches = [f for f in plan.fetches.values() if f.peer == peer]
            assert state.under_way == sum(f.asked - f.got for f in fetches)
            assert state.under_way <= max(state.window, MIN_WINDOW) + CHUNK_SIZE * len(fetches)
            assert {f.number for f in fetches} == set(state.fetches)
        for record_id, transfer in plan.transfers.items():
            held, missing = transfer.held, transfer.missing
            for key in KEYS[record_id]:
                if held & 1:
                    assert not missing & 1
                    assert key in self.stored
                else:
                    assert missing & 1 == (key not in busy)
                held, missing = held >> 1, missing >> 1
        deadline = plan.deadline()
        assert not plan.fetches or (deadline is not None)

    def finish(self) -> None:
        """From anywhere: an honest peer that has everything gives everything."""
        plan = self.plan
        for peer in list(plan.peers):
            plan.peer_left(peer, self.now)
            self.check()
            self.asked[peer].clear()
        plan.set_budget(None, self.now)
        plan.peer_joined("a", "did:a", self.now)
        for record_id, manifest in FILES.items():
            if record_id in plan.transfers:
                plan.want(record_id, True, self.now)
            else:
                self.add(record_id)
            # The liar's: an id of another chunk's. Nobody can have it.
            if record_id != b"3" * 32:
                plan.peer_has("a", record_id, bytes([2**manifest.count - 1]), self.now)
        self.check()
        for _ in range(ENOUGH):
            for key in list(plan.storing):
                self.settle(key, 0)
            self.honest_part("a")
            self.check()
            if not plan.fetches and not plan.storing:
                deadline = plan.deadline()
                if deadline is None:
                    break
                self.now = max(self.now, deadline)
                plan.tick(self.now)
                self.check()
            if all(t.whole for r, t in plan.transfers.items() if r != b"3" * 32):
                break
        for record_id, transfer in plan.transfers.items():
            assert transfer.whole or record_id == b"3" * 32, f"never whole: {transfer}"


def transfers(data: bytes) -> None:
    """Facts in any order, two bytes each, and then the end."""
    world = World()
    for record_id in FILES:
        world.add(record_id)
    for at in range(0, min(len(data), MAX_STEPS) - 1, 2):
        world.step(data[at], data[at + 1])
    world.finish()
