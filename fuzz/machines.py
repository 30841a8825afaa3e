"""The machines that do no I/O, driven by any bytes: their laws hold, with one kind of error."""

from __future__ import annotations

import hmac
from contextlib import suppress

from walyoff_codecs.classic1 import Classic1

from walyoff.abc import StoredContent
from walyoff.certificates import Certificate, encode
from walyoff.engine.anchoring import Anchoring
from walyoff.engine.facts import FetchBatches, FetchContents, Reason, Write
from walyoff.engine.reconciler import Reconciler
from walyoff.errors import RemoteProtocolError
from walyoff.records import Batch, Record, Seen, chain_start, commit, device_id, make_batch
from walyoff.session import HandshakeContext, Initiator, Mode, PeerPresented, Responder
from walyoff.session.flights import decode_hello, encode_hello, frame
from walyoff.session.records import SecureChannel
from walyoff.session.transcript import SessionKeys, blinded_tag

CHANNEL = "did:x:channel"
CIPHER = Classic1()
KEY = CIPHER.new_sign_key()
TAG_KEY = b"t" * 32
SALT = bytes(32)
#: Bytes of an input that become steps of a machine, two each: more are only slower.
MAX_STEPS = 160


def _context() -> HandshakeContext:
    certificate = Certificate(
        channel=CHANNEL,
        member="did:x:me",
        suite=CIPHER.name,
        key_types=CIPHER.key_types,
        sign_public=KEY.public,
        seal_public=CIPHER.new_seal_key().public,
        not_before_ms=0,
        not_after_ms=1,
    )
    return HandshakeContext(
        channel=CHANNEL, sign_key=KEY, certificate=encode(certificate, b"signature")
    )


CONTEXT = _context()


def _random(size: int) -> bytes:
    return b"r" * size


def _find(mode: Mode, ephemeral: bytes, tag: bytes) -> HandshakeContext | None:
    known = hmac.compare_digest(tag, blinded_tag(TAG_KEY, mode, ephemeral))
    return CONTEXT if known and mode == "member" else None


def _responder() -> Responder:
    return Responder(
        cipher_for=lambda name: CIPHER, suites=[CIPHER.name], find_tag=_find, random=_random
    )


def initiator(data: bytes) -> None:
    """What a responder may send back: raw, and as a message of the right length."""
    for answer in (data, frame(data[:60_000])):
        machine = Initiator(
            cipher_for=lambda name: CIPHER,
            suites=[CIPHER.name],
            mode="member",
            tag_key=TAG_KEY,
            context=CONTEXT,
            random=_random,
        )
        machine.start()
        _expect_nobody(machine, answer)


def responder(data: bytes) -> None:
    """What an initiator may send: raw, and with the tag that only members can make."""
    _expect_nobody(_responder(), data)
    try:
        hello = decode_hello(data)
    except RemoteProtocolError:
        return
    tag = blinded_tag(TAG_KEY, hello.mode, hello.ephemeral)
    tagged = type(hello)(
        mode=hello.mode,
        suites=hello.suites,
        ephemeral_suite=hello.ephemeral_suite,
        ephemeral=hello.ephemeral,
        tag=tag,
    )
    _expect_nobody(_responder(), frame(encode_hello(tagged)))


def _expect_nobody(machine: Initiator | Responder, data: bytes) -> None:
    try:
        events = machine.receive(data)
    except RemoteProtocolError:
        return
    assert not any(isinstance(event, PeerPresented) for event in events), "forged"


def session_records(data: bytes) -> None:
    """Raw bytes, and any plaintext of an authenticated peer, in two records."""
    keys = SessionKeys(
        cipher=CIPHER,
        initiator_key=b"i" * 32,
        responder_key=b"r" * 32,
        session_id=bytes(32),
    )
    with suppress(RemoteProtocolError):
        assert SecureChannel(keys, "responder").feed(data) == []
    channel, aead, held = SecureChannel(keys, "responder"), CIPHER.aead(b"i" * 32), 0
    half = len(data) // 2
    for count, plaintext in enumerate((data[:half], data[half:])):
        sealed = aead.encrypt(count.to_bytes(12, "big"), plaintext, None)
        try:
            frames = channel.feed(len(sealed).to_bytes(4, "big") + sealed)
        except RemoteProtocolError:
            return
        held += sum(map(len, frames))
        assert held <= len(data), "more came out than went in"


AUTHORS = ("did:x:a", "did:x:b", "did:x:c")


def _batches() -> dict[str, list[Batch]]:
    """Four batches of each of three authors; each has seen the batches of the one before."""
    made: dict[str, list[Batch]] = {}
    seen: list[Seen] = []
    for author in AUTHORS:
        previous, made[author] = chain_start(CHANNEL, author), []
        for first in (1, 3, 5, 7):
            batch = make_batch(
                channel=CHANNEL,
                author=author,
                certificate_id=bytes(32),
                first_seq=first,
                prev=previous,
                seen=seen,
                records=[Record(1, 0, (), 1, commit(SALT, b"%d" % n)) for n in range(2)],
            )
            previous = batch.record_ids[-1]
            made[author].append(batch)
        last = made[author][-1]
        seen = [Seen(device_id(author), last.last_seq, last.batch_id)]
    return made


BATCHES = _batches()
PEERS = ("p", "q")


class _World:
    """A reconciler, and what it ordered."""

    def __init__(self) -> None:
        self.reconciler = Reconciler(channel=CHANNEL, author="did:x:me", heads=(), seed=1)
        self.now = 0.0
        self.delivered: set[bytes] = set()
        self.held: set[bytes] = set()

    def step(self, what: int, which: int) -> None:
        machine, now = self.reconciler, self.now
        author, peer = AUTHORS[which % 3], PEERS[which // 3 % 2]
        batch = BATCHES[author][which // 6 % 4]
        content = StoredContent(salt=SALT, data=b"0")
        match what % 9:
            case 0:
                machine.peer_joined(peer, "did:x:" + peer, {author: (which, frozenset())}, now)
            case 1:
                machine.peer_left(peer, now)
            case 2:
                machine.peer_has(peer, {author: (which % 9, frozenset({which % 5}))}, now)
            case 3 | 4:
                machine.batch(batch, b"s", [content if which & 64 else None, None], peer, now)
            case 5:
                machine.content(batch.record_ids[which & 1], content, peer, now)
            case 6:
                machine.content_failed(batch.record_ids, peer, Reason.GONE, now)
            case 7:
                machine.range_end(peer, author, now)
            case _:
                self.now += which / 8
                machine.tick(self.now)
        self.check()

    def check(self) -> None:
        """Orders are about known peers; nothing is delivered twice or before it is held."""
        for order in self.reconciler.orders():
            if isinstance(order, Write):
                self.held.update(record_id for record_id, _ in order.contents)
                self.reconciler.landed(record_id for record_id, _ in order.contents)
                for record_id in order.deliver:
                    assert record_id in self.held, "delivered without content"
                    assert record_id not in self.delivered, "delivered twice"
                    self.delivered.add(record_id)
            elif isinstance(order, FetchBatches | FetchContents):
                assert order.peer in PEERS
        for state in self.reconciler.peers.values():
            assert state.fetching >= 0
            assert state.bytes >= 0
            assert state.ranges >= 0


def reconciler(data: bytes) -> None:
    """Facts in any order, two bytes each."""
    world = _World()
    for at in range(0, min(len(data), MAX_STEPS) - 1, 2):
        world.step(data[at], data[at + 1])


def anchoring(data: bytes) -> None:
    """Batches that come, blocks that succeed and fail, at any times."""
    machine, now = Anchoring(seed=1), 0.0
    added: set[bytes] = set()
    for at in range(0, min(len(data), MAX_STEPS) - 1, 2):
        what, which = data[at] % 5, data[at + 1]
        now += which / 32
        if what == 0:
            name = bytes([which])
            added.add(name)
            machine.add(name, 1 + which * 4000, own=bool(which & 1), now=now)
        elif what == 1:
            machine.anchored(bytes([which]))
        elif what == 2:
            machine.failed(now)
        else:
            chosen = machine.take(now)
            assert set(chosen) <= added, "a batch that nobody added"
            assert len(set(chosen)) == len(chosen), "a batch twice in one block"
            if what == 4:
                machine.written(chosen, now)
        deadline = machine.deadline()
        assert deadline is None or deadline >= 0.0
