"""Acknowledged broadcasts over lossy gossip: the windows, without I/O.

Kubo's pubsub drops messages in silence when they come fast (its queues hold 32), so each
sender numbers its messages per topic, keeps at most 16 of them in flight, and repeats what
peers on the topic have not acknowledged. After five repeats it gives up: a broadcast is
still a broadcast. Time is an argument here; nothing reads a clock or sends anything.

On the topic travel canonical msgpack arrays:

    data  [1, 0, instance (8 bytes), sequence number, payload]
    acks  [1, 1, [[instance, upto, [further numbers]], ...]]

An instance is one sender on one topic, from its start to its end, and its numbers begin
at 1. Acknowledgements are not authenticated: a false one can only save a repeat.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from walyoff.errors import RemoteProtocolError
from walyoff.wire import expect_array, expect_bytes, expect_int, expect_version, pack, unpack

VERSION = 1
_DATA, _ACKS = 0, 1
INSTANCE_SIZE = 8
#: The largest payload; with the envelope it stays below what gossip carries.
MAX_PAYLOAD = 900_000
_MAX_ENVELOPE = MAX_PAYLOAD + 64
#: Messages in flight per sender and topic: half of what Kubo's queues hold.
WINDOW = 16
#: Bytes in flight; one message may always go. More would wait longer than the timeouts.
WINDOW_BYTES = 1 << 20
#: Sources that one message may acknowledge.
MAX_ACKS = 64
#: Repeats of a message until it is given up.
MAX_REPEATS = 5
#: Seconds until the first repeat when nothing was measured yet, and its bounds.
FIRST_TIMEOUT, MIN_TIMEOUT, MAX_TIMEOUT = 0.2, 0.1, 0.8
#: Bytes a second that a large message is granted on top, through encoding and signing.
SLOW_RATE = 2_000_000
#: A number this far below an acknowledged one counts as lost (gossip reorders a little).
REORDER = 3
#: Seconds since the last sending before such a message is repeated ahead of its timeout.
EARLY_REPEAT = 0.04
#: Seconds that a peer gets for its first acknowledgement; then it is not waited for, since
#: anybody can sit on a topic and say nothing.
PROVE_TIME = 1.0
#: Messages that a peer may miss one after the other until it is not waited for.
MAX_MISSES = 2
#: Seconds within which a new topic may still find its first peers.
SETTLE_TIME = 0.25
#: Peers, and instances of each, whose numbers are remembered; the oldest are forgotten,
#: which can only let a duplicate through.
MAX_PEERS = 1_024
MAX_INSTANCES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """A message."""

    instance: bytes
    seq: int
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Ack:
    """All of an instance's messages up to a number arrived, and some after it."""

    instance: bytes
    upto: int
    further: tuple[int, ...]


def encode_data(data: Data) -> bytes:
    """The envelope of a message."""
    return pack([VERSION, _DATA, data.instance, data.seq, data.payload])


def encode_acks(acks: Iterable[Ack]) -> bytes:
    """The envelope of at most `MAX_ACKS` acknowledgements."""
    return pack([VERSION, _ACKS, [[a.instance, a.upto, list(a.further)] for a in acks]])


def decode(envelope: bytes) -> Data | tuple[Ack, ...]:
    """What came over a topic. Raises RemoteProtocolError for anything else."""
    value = unpack(envelope, _MAX_ENVELOPE)
    if not isinstance(value, list) or len(value) < 2:
        raise RemoteProtocolError("not a broadcast")
    expect_version(value[0], "broadcast", VERSION)
    if type(value[1]) is int and value[1] == _DATA:
        _, _, instance, seq, payload = expect_array(value, 5, "broadcast")
        return Data(
            instance=expect_bytes(instance, "instance", size=INSTANCE_SIZE),
            seq=expect_int(seq, "sequence number", low=1),
            payload=expect_bytes(payload, "payload", limit=MAX_PAYLOAD),
        )
    if type(value[1]) is int and value[1] == _ACKS:
        _, _, acks = expect_array(value, 3, "acknowledgements")
        if not isinstance(acks, list) or len(acks) > MAX_ACKS:
            raise RemoteProtocolError("not a list of acknowledgements")
        return tuple(_decode_ack(ack) for ack in acks)
    raise RemoteProtocolError("unknown kind of broadcast")


def _decode_ack(value: object) -> Ack:
    instance, upto, further = expect_array(value, 3, "acknowledgement")
    if not isinstance(further, list) or len(further) > WINDOW:
        raise RemoteProtocolError("not a list of numbers")
    return Ack(
        instance=expect_bytes(instance, "instance", size=INSTANCE_SIZE),
        upto=expect_int(upto, "number"),
        further=tuple(expect_int(number, "number") for number in further),
    )


class ReceiveWindow:
    """Which messages of one instance have arrived."""

    __slots__ = ("_beyond", "_upto")

    def __init__(self) -> None:
        self._upto = -1
        self._beyond: set[int] = set()

    def accept(self, seq: int) -> bool:
        """True if this message is new, False if it is a duplicate or too old to tell."""
        # The sender has nothing in flight that is a window older than this, so whatever
        # is missing there will never come.
        if seq - WINDOW > self._upto:
            self._upto = seq - WINDOW
            self._beyond = {number for number in self._beyond if number > self._upto}
        if seq <= self._upto or seq in self._beyond:
            return False
        self._beyond.add(seq)
        while self._upto + 1 in self._beyond:
            self._upto += 1
            self._beyond.remove(self._upto)
        return True

    def ack(self, instance: bytes) -> Ack:
        """The acknowledgement of everything so far."""
        further = tuple(sorted(self._beyond))[:WINDOW]
        return Ack(instance=instance, upto=max(self._upto, 0), further=further)


class Received:
    """The receive windows of everybody who sends on a topic, bounded.

    They are kept by the peer id that Kubo has authenticated, so that nobody can spoil
    another one's numbers.
    """

    def __init__(self) -> None:
        self._peers: OrderedDict[str, OrderedDict[bytes, ReceiveWindow]] = OrderedDict()

    def window(self, sender: str, instance: bytes) -> ReceiveWindow:
        """The window of one sender's instance, made when it is new."""
        instances = self._peers.setdefault(sender, OrderedDict())
        self._peers.move_to_end(sender)
        if len(self._peers) > MAX_PEERS:
            self._peers.popitem(last=False)
        window = instances.setdefault(instance, ReceiveWindow())
        instances.move_to_end(instance)
        if len(instances) > MAX_INSTANCES:
            instances.popitem(last=False)
        return window


@dataclass(slots=True)
class _InFlight:
    envelope: bytes
    sent_at: float
    repeat_at: float
    repeats: int = 0
    acked: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Peer:
    #: When a message was first sent while the peer was there.
    since: float | None = None
    proven: bool = False
    misses: int = 0


class SendWindow:
    """This device's messages in flight on one topic."""

    def __init__(self, instance: bytes, now: float) -> None:
        self.instance = instance
        self._opened = now
        self._next = 1
        self._flight: OrderedDict[int, _InFlight] = OrderedDict()
        self._peers: dict[str, _Peer] = {}
        self._smooth: float | None = None
        self._variance = 0.0
        #: How often the latest messages had to be repeated; none of those tells the time that
        #: an acknowledgement takes (RFC 6298, 5), so new ones wait as long at once.
        self._backoff = 0
        #: Totals since the start.
        self.repeated = 0
        self.given_up = 0

    @property
    def idle(self) -> bool:
        """Whether nothing is in flight."""
        return not self._flight

    @property
    def has_room(self) -> bool:
        """Whether another message may be sent now."""
        if not self._flight:
            return True
        size = sum(len(message.envelope) for message in self._flight.values())
        return self._next - next(iter(self._flight)) < WINDOW and size < WINDOW_BYTES

    def add(self, payload: bytes, now: float) -> tuple[int, bytes]:
        """A new message, in flight from now: its number and its envelope to publish."""
        seq = self._next
        self._next += 1
        envelope = encode_data(Data(instance=self.instance, seq=seq, payload=payload))
        repeat_at = now + self._timeout(self._backoff, len(envelope))
        self._flight[seq] = _InFlight(envelope, now, repeat_at)
        for peer in self._peers.values():
            if peer.since is None:
                peer.since = now
        return seq, envelope

    def withdraw(self, seq: int) -> None:
        """Forget a message that could not be published."""
        self._flight.pop(seq, None)

    def set_peers(self, peers: Iterable[str], now: float) -> None:
        """Say who is on the topic now."""
        since = now if self._flight else None
        self._peers = {peer: self._peers.get(peer) or _Peer(since=since) for peer in set(peers)}
        self._settle(now)

    def on_ack(self, peer: str, ack: Ack, now: float) -> list[bytes]:
        """Take an acknowledgement; returns the envelopes to repeat at once."""
        if ack.instance != self.instance:
            return []
        # Somebody who was not seen on the topic yet may acknowledge, but nobody waits for
        # him before he is seen.
        if known := self._peers.get(peer):
            known.proven, known.misses = True, 0
        further = set(ack.further)
        newest = max(further, default=ack.upto)
        again = []
        for seq, message in self._flight.items():
            if seq <= ack.upto or seq in further:
                if peer not in message.acked and len(message.acked) < MAX_PEERS:
                    message.acked.add(peer)
                    if message.repeats == 0:
                        self._measure(now - message.sent_at)
                        self._backoff = 0
            elif (
                seq + REORDER <= newest
                and known is not None
                and peer not in message.acked
                and now - message.sent_at >= EARLY_REPEAT
                and message.repeats < MAX_REPEATS
            ):
                again.append(self._repeat(message, now))
        self._settle(now)
        return again

    def due(self, now: float) -> list[bytes]:
        """The envelopes to repeat now; what was repeated enough is given up."""
        self._settle(now)
        again = []
        for seq, message in list(self._flight.items()):
            if message.repeat_at > now:
                continue
            if message.repeats < MAX_REPEATS:
                again.append(self._repeat(message, now))
                self._backoff = max(self._backoff, message.repeats)
                continue
            del self._flight[seq]
            self.given_up += 1
            for name, peer in self._peers.items():
                peer.misses += name not in message.acked
        return again

    @property
    def deadline(self) -> float | None:
        """When `due` has something to do, if nothing else happens."""
        return min((message.repeat_at for message in self._flight.values()), default=None)

    def _repeat(self, message: _InFlight, now: float) -> bytes:
        message.repeats += 1
        message.sent_at = now
        message.repeat_at = now + self._timeout(message.repeats, len(message.envelope))
        self.repeated += 1
        return message.envelope

    def _settle(self, now: float) -> None:
        """Drop what everybody who is waited for has acknowledged."""
        if not self._peers and now - self._opened < SETTLE_TIME:
            # Nobody is seen yet, but it takes a moment to be seen.
            return
        waited = {
            name
            for name, peer in self._peers.items()
            if peer.misses < MAX_MISSES
            and (peer.proven or peer.since is None or now - peer.since < PROVE_TIME)
        }
        for seq, message in list(self._flight.items()):
            if waited <= message.acked:
                del self._flight[seq]

    def _measure(self, elapsed: float) -> None:
        # The estimator of RFC 6298.
        if self._smooth is None:
            self._smooth, self._variance = elapsed, elapsed / 2
            return
        self._variance += (abs(self._smooth - elapsed) - self._variance) / 4
        self._smooth += (elapsed - self._smooth) / 8

    def _timeout(self, repeats: int, size: int) -> float:
        base = FIRST_TIMEOUT
        if self._smooth is not None:
            base = max(MIN_TIMEOUT, self._smooth + 4 * self._variance)
        return min(base * 2.0**repeats, MAX_TIMEOUT) + size / SLOW_RATE
