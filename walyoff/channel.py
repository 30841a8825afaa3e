"""A channel: the message log of one identity, as this device sees it."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
from anyio.abc import ObjectReceiveStream
from blake3 import blake3

from walyoff.abc import GuardedLedger, Ledger, Member, Store
from walyoff.engine.driver import Engine
from walyoff.engine.facts import Report
from walyoff.engine.links import LinkServer
from walyoff.engine.outbox import Outgoing
from walyoff.epochs import Epoch, anchor_key, decode_epochs, encode_epochs
from walyoff.errors import (
    ChildError,
    LocalProtocolError,
    NotAMemberError,
    StoreError,
    WalyoffError,
)
from walyoff.fanout import Fanout
from walyoff.invitations import (
    DEFAULT_LIFETIME_S,
    MAX_LIFETIME_S,
    Issued,
    new_invitation,
)
from walyoff.invitations import SECRET_SIZE as INVITATION_SECRET_SIZE
from walyoff.messages import (
    LogReader,
    Message,
    MessageStream,
    Receipt,
    RecordStream,
    make_message,
    make_receipt,
)
from walyoff.platform import Foundation
from walyoff.records import KIND_MESSAGE, check_content, check_topics
from walyoff.runtime import Runtime
from walyoff.session.handshake import HandshakeContext
from walyoff.tasks import background_tasks
from walyoff.trust import Trust, is_due, make_credentials, sign_leftovers
from walyoff.wire import pack, unpack

if TYPE_CHECKING:
    from walyoff.node import Device
    from walyoff.session.peer import Session

log = logging.getLogger("walyoff.channel")

MAX_NAME_CHARS = 64
SECRET_SIZE = 32
#: Faults kept for the application to look at; older ones are only counted.
MAX_REPORTS = 256
#: How often the place in the ledger is written down, at most; reading again is harmless.
LEDGER_POSITION_EVERY_S = 1.0
#: Device keys are renewed in the middle of their months, so an hour more or less is nothing.
RENEWAL_CHECK_S = 3600.0
#: A device key signs so many batches in one run before it is replaced.
MAX_SIGNATURES = 1 << 20
#: A store that failed (a full disk) is tried again so often.
STORE_RETRY_S = 5.0


class ChannelState:
    """What a device keeps of a channel between runs. Its secret never prints."""

    def __init__(self, *, did: str, name: str, pin: bytes, secret: bytes) -> None:
        self.did = did
        self.name = name
        self.pin = pin
        #: Shared by all who were ever members: blinds tags and topics, protects no content.
        self.secret = secret

    def __repr__(self) -> str:
        return f"<ChannelState {self.name!r}>"

    def derive(self, purpose: str) -> bytes:
        """A key for one purpose."""
        return blake3(
            self.secret, derive_key_context=f"walyoff 2026-11 channel {purpose}"
        ).digest()

    @property
    def tag_key(self) -> bytes:
        """For finding the channel that a session is about."""
        return self.derive("tag")

    @property
    def topic(self) -> str:
        """The broadcast topic of the channel: says nothing to outsiders."""
        return f"walyoff/{self.derive('topic').hex()[:32]}"

    def encode(self) -> bytes:
        """For the store."""
        return pack([self.did, self.name, self.pin, self.secret])

    @classmethod
    def decode(cls, data: bytes) -> ChannelState:
        """From the store."""
        did, name, pin, secret = unpack(data, 4096)
        return cls(did=did, name=name, pin=pin, secret=secret)


class Channel:
    """The log of one identity. Get one from `Device.create_channel`, `join` or `channel`."""

    def __init__(
        self, *, device: Device, state: ChannelState, foundation: Foundation, engine: Engine
    ) -> None:
        self._device = device
        self._state = state
        self._foundation = foundation
        self._engine = engine
        self._reports: deque[Report] = deque(maxlen=MAX_REPORTS)
        self._faults: Fanout[Report] = Fanout(MAX_REPORTS)
        self._sessions: dict[str, Session] = {}
        self._servers: dict[str, LinkServer] = {}
        #: Where devices said in a session that they are: nobody else can have said it.
        self.heard_addresses: dict[str, tuple[str, ...]] = {}
        #: Totals of sessions that have ended, so that counters never fall.
        self._ended: Counter[str] = Counter()
        self._started = device.runtime.now()

    def __repr__(self) -> str:
        reconciler = self._engine.reconciler
        fetching = sum(1 for r in reconciler.open.values() if r.peer is not None)
        wanted = len(reconciler.open) - fetching
        return (
            f"<Channel {self.name} [{wanted} wanted, {fetching} fetching | "
            f"{len(self._sessions)} peers]>"
        )

    # ------------------------------------------------------------------ identity

    @property
    def did(self) -> str:
        """The identity's DID, which is the channel's name in the world."""
        return self._state.did

    @property
    def name(self) -> str:
        """The name that this device gave the channel."""
        return self._state.name

    @property
    def me(self) -> str:
        """The DID of this device."""
        return self._engine.me

    def members(self) -> list[Member]:
        """The members of now, in order of joining, as the chain says."""
        return self._foundation.identity.membership.current()

    async def invite(self, *, lifetime: float = DEFAULT_LIFETIME_S) -> str:
        """A short string that lets one device join, once, within `lifetime` seconds.

        It is a secret: hand it over in a way that nobody else can read. This device, or
        rather its home, must be running when it is used.

        Raises:
            LocalProtocolError: the lifetime is not from 1 second to a year.
        """
        if not 1 <= lifetime <= MAX_LIFETIME_S:
            raise LocalProtocolError(f"a lifetime is 1 to {MAX_LIFETIME_S} seconds")
        invitation = new_invitation(
            self._device.addresses,
            secret=self._device.runtime.random_bytes(INVITATION_SECRET_SIZE),
            now=self._device.runtime.wall_ms() / 1000,
            lifetime_s=lifetime,
        )
        issued = Issued(channel=self.did, secret=invitation.secret, expires=invitation.expires)
        await self._device.remember_invitation(invitation.invitation_id, issued)
        return str(invitation)

    async def remove(self, did: str) -> None:
        """End a membership: from now on that device gets nothing, from anybody.

        What it wrote counts as far as a member had it; what it got, it keeps. It can be
        invited again. Of two members who remove each other both are out. When this returns
        the removal is on the identity's chain, and whoever hears from this device learns of
        it first.

        Raises:
            LocalProtocolError: it is this device itself.
            NotAMemberError: it is not a member, or this device is none any more.
            ChildError: the chain could not be written now; try again.
        """
        engine = self._engine
        if did == self.me:
            raise LocalProtocolError("a device does not remove itself: another member does")
        self._check_member()
        if not engine.trust.is_member(did):
            raise NotAMemberError(f"{did} is not a member of {self.name!r}")
        engine.trust.barred.add(did)
        self.end_sessions_of_strangers()
        try:
            await self._foundation.identity.remove_member(did)
            engine.membership_changed()
            await engine.removals.wait_stated(did)
        finally:
            engine.trust.barred.discard(did)
        if engine.rotation.usable() is None:
            engine.rotation.begin()
        for server in self.servers():
            await server.announce_chains()

    def informed(self) -> list[str]:
        """The DIDs of the devices that said they hold all that this one has written."""
        engine = self._engine
        own = engine.durable.get(self.me, 0)
        return sorted(
            did
            for did, vector in engine.confirmed.items()
            if vector.get(self.me, (0, frozenset()))[0] >= own
        )

    def _check_member(self) -> None:
        if not self._engine.trust.is_member(self.me):
            raise NotAMemberError(f"this device is not a member of {self.name!r} any more")

    # ------------------------------------------------------------------- sending

    async def send(self, content: bytes, *, topics: Sequence[str] = ()) -> Receipt:
        """Send a message to all devices of the identity; durable here when this returns.

        At most 8 MiB of content; at most 8 topics of 64 characters, which nobody outside
        can read. Cancelling leaves it sent or not sent.

        Raises:
            PayloadTooLargeError: the content is too large.
            LocalProtocolError: the topics break a rule.
            NotAMemberError: this device was removed from the identity.
            StoreError: it could not be stored; nothing was sent.
        """
        return (await self.send_many([content], topics=topics))[0]

    async def send_many(
        self, contents: Iterable[bytes], *, topics: Sequence[str] = ()
    ) -> list[Receipt]:
        """Send several messages in order, sharing signatures and commits. Raises as `send`."""
        checked = check_topics(topics)
        self._check_member()
        items = []
        for content in contents:
            if not isinstance(content, bytes | bytearray | memoryview):
                raise LocalProtocolError(
                    f"a message is bytes, not {type(content).__name__}: encode it first"
                )
            data = bytes(content)
            check_content(data)
            items.append(Outgoing(data, checked, KIND_MESSAGE))
        if items:
            await self._engine.outbox.send(items)
        return [make_receipt(self._engine, item) for item in items]

    # ------------------------------------------------------------------- reading

    def messages(
        self, *, cursor: str | None = None, after: int = 0, anchored: bool = False
    ) -> MessageStream:
        """All messages, own ones included: history after a position, then live, for ever.

        With a named `cursor` the stream begins after the last message that a stream of that
        name had committed, in this run or an earlier one, and asking for the next message
        commits the one before; so each message is seen at least once. With `after` too, it
        begins after whichever is later. `anchored` holds each message back until its metadata
        is on the ledger.

        Messages of one author come in its order, and an answer after its question where
        both are held, unless content came late.
        """
        return MessageStream(
            self._engine, cursor=cursor, after=after, anchored=anchored, live=True
        )

    def history(self, *, after: int = 0) -> MessageStream:
        """The messages that are held now, after a position, and then no more."""
        return MessageStream(self._engine, cursor=None, after=after, anchored=False, live=False)

    async def last(self, limit: int) -> list[Message]:
        """The newest messages, oldest of them first; at most `limit`."""
        reader = LogReader(self._engine)
        items = await reader.page(after=0, limit=limit, newest_first=True)
        return [make_message(self._engine, i) for i in reversed(items) if i.is_message]

    def records(self, *, after: int = 0) -> RecordStream:
        """The metadata of every message in the log, with the salted commitments."""
        return RecordStream(self._engine, after=after)

    # ------------------------------------------------------------------- watching

    def status(self) -> dict[str, Any]:
        """What the channel is doing, for people and for `--json`."""
        engine = self._engine
        reconciler = engine.reconciler
        identity = self._foundation.identity
        return {
            "channel": self.did,
            "name": self.name,
            "me": self.me,
            "messages": engine.top,
            "unanchored": len(engine.anchoring.waiting),
            "missing": len(reconciler.open),
            "members": len(self.members()),
            "peers": [
                {
                    "did": session.did,
                    "role": session.role,
                    "backlog": session.backlog,
                    "score": round(reconciler.peers[name].score, 2)
                    if name in reconciler.peers
                    else 0.0,
                }
                for name, session in self._sessions.items()
            ],
            "devices": dict(engine.durable),
            "forked": sorted(reconciler.forked),
            "faults": dict(engine.reports),
            "refused_blocks": dict(identity.membership.refused),
        }

    def statistics(self) -> dict[str, float]:
        """Counters since the channel was opened, and the sizes of now."""
        sessions = list(self._sessions.values())
        ended = self._ended
        return {
            "uptime_s": self._device.runtime.now() - self._started,
            "messages": self._engine.top,
            "unanchored": len(self._engine.anchoring.waiting),
            "missing": len(self._engine.reconciler.open),
            "members": len(self.members()),
            "peers": len(self.peers()),
            "sessions": len(sessions),
            "sessions_total": ended["sessions"] + len(sessions),
            "backlog": sum(s.backlog for s in sessions),
            "bytes_sent": ended["sent"] + sum(s.bytes_sent for s in sessions),
            "bytes_received": ended["received"] + sum(s.bytes_received for s in sessions),
            **{f"fault_{k}": v for k, v in Counter(self._engine.reports).items()},
        }

    def reports(self) -> list[Report]:
        """The latest faults of peers and authors, oldest first."""
        return list(self._reports)

    def faults(self) -> AbstractAsyncContextManager[ObjectReceiveStream[Report]]:
        """Faults as they happen: who contradicted itself, sent what does not hold, and so on.

        A slow consumer loses the oldest. Reasons are the constants of `Reason`; the proof of
        a contradiction (`Reason.FORK`) is kept in the store.
        """
        return self._faults.subscribe("faults")

    def peers(self) -> list[str]:
        """The DIDs of the devices that this one has a session with now."""
        return sorted({session.did for session in self._sessions.values()})

    async def changed(self) -> None:
        """Wait until something changes: messages, members, peers, anchors, confirmations.

        Raises:
            anyio.ClosedResourceError: the channel was closed.
        """
        await self._engine.changed()

    async def wait_peer(self, did: str | None = None) -> str:
        """Wait for a session with a device (any, without a DID); returns its DID."""
        while True:
            for session in self._sessions.values():
                if did is None or session.did == did:
                    return session.did
            await self._engine.changed()

    # -------------------------------------------------- for the device, not for others

    @property
    def state(self) -> ChannelState:
        """What is kept between runs."""
        return self._state

    @property
    def engine(self) -> Engine:
        """The channel's engine."""
        return self._engine

    @property
    def foundation(self) -> Foundation:
        """What the channel stands on."""
        return self._foundation

    def handshake_context(self) -> HandshakeContext:
        """What this device brings to a handshake of the channel."""
        credentials = self._engine.credentials
        return HandshakeContext(
            channel=self.did,
            sign_key=credentials.sign_key,
            certificate=credentials.encoded,
        )

    def servers(self) -> list[LinkServer]:
        """Those who serve the sessions of now."""
        return list(self._servers.values())

    def note(self, report: Report) -> None:
        """Keep a fault for `reports`, and tell those who listen to `faults`."""
        self._reports.append(report)
        self._faults.publish("faults", report)

    async def serve(self, session: Session) -> None:
        """Serve an established session of this channel until it ends."""
        replaced = self._choose(session)
        if replaced is session:
            async with session.run():
                return
        if replaced is not None:
            replaced.close()
        self._sessions[session.name] = session
        server = LinkServer(
            self._engine,
            session,
            addresses=tuple(self._device.addresses),
            chains=self._foundation.chains,
        )
        self._servers[session.name] = server
        try:
            async with session.run(), background_tasks() as tasks:
                self._engine.notify()
                tasks.start_soon(self._note_addresses, session.did, server)
                await server.run()
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            log.info("session with %s ended", session.did)
        finally:
            self._sessions.pop(session.name, None)
            self._servers.pop(session.name, None)
            self._ended.update(
                sessions=1, sent=session.bytes_sent, received=session.bytes_received
            )
            self._engine.notify()

    async def _note_addresses(self, did: str, server: LinkServer) -> None:
        """Keep what a device says of where it is, as soon as it says so.

        Not when the session ends: a device that is killed in its first session would know
        nobody when it comes back.
        """
        while not server.peer_addresses:
            await self._engine.changed()
        self.heard_addresses[did] = server.peer_addresses
        await self._device.remember_addresses(self.did, did, server.peer_addresses)

    def _choose(self, session: Session) -> Session | None:
        """Of two sessions with one device, the one to give up; both sides choose alike."""
        for other in self._sessions.values():
            if other.did != session.did:
                continue
            if other.role == session.role:
                # The same side dialled twice: the older connection is dead or dying.
                return other
            first = "initiator" if self.me < session.did else "responder"
            return other if session.role == first else session
        return None

    def end_expired_sessions(self, now_ms: int) -> None:
        """End the sessions whose other side showed a certificate that has ended."""
        for session in list(self._sessions.values()):
            if not session.peer.certificate.covers(now_ms):
                session.close()

    def end_sessions_of_strangers(self) -> None:
        """End the sessions with devices that are no longer members."""
        for session in list(self._sessions.values()):
            if not self._engine.trust.admits(session.did):
                session.close()


@asynccontextmanager
async def run_channel(
    *,
    device: Device,
    store: Store,
    state: ChannelState,
    foundation: Foundation,
    suite: str,
    epochs: Sequence[Epoch],
) -> AsyncIterator[Channel]:
    """Open a channel and run it while the context is open."""
    did = state.did
    trust = Trust(channel=did, identity=foundation.identity, store=store)
    await sign_leftovers(store, did)
    credentials = await make_credentials(
        channel=did,
        identity=foundation.identity,
        store=store,
        suite=suite,
        now_ms=device.runtime.wall_ms(),
    )
    await trust.add(credentials.encoded)
    stored = await store.get(f"ledger-position/{did}")
    keeper = _Keeper(store, did, foundation.ledger)
    await keeper.guard(epochs)
    channel: Channel | None = None

    def report(fault: Report) -> None:
        if channel is not None:
            channel.note(fault)

    engine = Engine(
        store=store.channel(did),
        ledger=foundation.ledger,
        trust=trust,
        credentials=credentials,
        epochs=epochs,
        ledger_position=int.from_bytes(stored or b"", "big"),
        on_ledger_position=keeper.position,
        on_report=report,
        on_epochs=lambda new: keeper.epochs(list(engine.epochs.values())),
        runtime=device.runtime,
    )
    async with engine.run() as tasks:
        channel = Channel(device=device, state=state, foundation=foundation, engine=engine)
        engine.on_membership = channel.end_sessions_of_strangers
        tasks.start_soon(keeper.run)
        tasks.start_soon(_watch_membership, channel)
        tasks.start_soon(_renew_credentials, channel, store, suite, device.runtime)
        try:
            yield channel
        finally:
            with anyio.CancelScope(shield=True):
                try:
                    await keeper.flush()
                except StoreError as error:
                    log.warning("new epochs were not stored, others have them: %s", error)


async def _watch_membership(channel: Channel) -> None:
    """Pass membership changes on, and end sessions with those who are no longer members."""
    identity = channel.foundation.identity
    async with identity.changes() as changes:
        async for _ in changes:
            channel.end_sessions_of_strangers()
            channel.engine.membership_changed()
            for server in channel.servers():
                await server.announce_chains()


async def _renew_credentials(
    channel: Channel, store: Store, suite: str, runtime: Runtime
) -> None:
    """Give a device that runs for months a new key before its certificate ends."""
    engine = channel.engine
    while True:
        await anyio.sleep(RENEWAL_CHECK_S)
        now_ms = runtime.wall_ms()
        channel.end_expired_sessions(now_ms)
        used_up = engine.signatures >= MAX_SIGNATURES
        if not used_up and not is_due(engine.credentials.certificate, now_ms):
            continue
        try:
            credentials = await make_credentials(
                channel=channel.did,
                identity=channel.foundation.identity,
                store=store,
                suite=suite,
                now_ms=now_ms,
                renew=used_up,
            )
            await engine.trust.add(credentials.encoded)
        except WalyoffError as error:
            log.warning("the device key was not renewed, it is tried again: %s", error)
            continue
        # Batches name their certificate and are signed by it without a pause between.
        engine.credentials = credentials
        engine.signatures = 0


class _Keeper:
    """Writes down epochs at once, and the place in the ledger some time after it was read."""

    def __init__(self, store: Store, did: str, ledger: Ledger) -> None:
        self._store = store
        self._did = did
        self._ledger = ledger
        self._position = 0
        self._epochs: list[Epoch] | None = None
        self._work = anyio.Event()

    def position(self, position: int) -> None:
        self._position = position
        self._work.set()

    def epochs(self, epochs: list[Epoch]) -> None:
        self._epochs = epochs
        self._work.set()

    async def run(self) -> None:
        stored = 0
        while True:
            await self._work.wait()
            self._work = anyio.Event()
            try:
                await self.flush()
                # What was read from the ledger up to here is in the store before its place
                # is: the batches were queued for the same writer long before.
                position = self._position
                if position > stored:
                    await anyio.sleep(LEDGER_POSITION_EVERY_S)
                    key = f"ledger-position/{self._did}"
                    await self._store.put({key: position.to_bytes(8, "big")})
                    stored = position
            except StoreError as error:
                log.warning("the store failed, it is tried again: %s", error)
                await anyio.sleep(STORE_RETRY_S)
                self._work.set()

    async def flush(self) -> None:
        """Write down the epochs. Raises StoreError; they are written the next time."""
        epochs = self._epochs
        if epochs is not None:
            await save_epochs(self._store, self._did, epochs)
            if self._epochs is epochs:
                self._epochs = None
            await self.guard(epochs)

    async def guard(self, epochs: Sequence[Epoch]) -> None:
        """Tell a guarded ledger what to admit."""
        if isinstance(self._ledger, GuardedLedger):
            ordered = sorted(epochs, key=lambda e: (e.created_ms, e.epoch_id))
            try:
                await self._ledger.learn_keys({e.epoch_id: anchor_key(e) for e in ordered})
            except ChildError as error:
                # The ledger keeps them, and tells the next child.
                log.warning("the ledger did not take the epochs' keys: %s", error)


async def save_epochs(store: Store, did: str, epochs: Sequence[Epoch]) -> None:
    """Keep the epochs of a channel."""
    await store.put({f"epochs/{did}": pack(encode_epochs(epochs))})


async def load_epochs(store: Store, did: str) -> list[Epoch]:
    """The epochs that the store has of a channel."""
    value = await store.get(f"epochs/{did}")
    return [] if value is None else decode_epochs(unpack(value, 1 << 20), 1 << 16)


__all__ = ["Channel", "ChannelState", "load_epochs", "run_channel", "save_epochs"]
