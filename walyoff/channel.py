"""A channel: the message log of one identity, as this device sees it."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from anyio.abc import ObjectReceiveStream

from walyoff.abc import Member
from walyoff.channel_files import FilesApi
from walyoff.channel_state import ChannelState
from walyoff.channel_status import statistics_of, status_of
from walyoff.connections import Connections
from walyoff.describing import describe
from walyoff.engine.driver import Engine
from walyoff.engine.facts import Report
from walyoff.engine.outbox import Outgoing
from walyoff.errors import LocalProtocolError, NotAMemberError, WalyoffError
from walyoff.fanout import Fanout
from walyoff.forgetting import ForgettingApi, lifetime_ms
from walyoff.invitations import DEFAULT_LIFETIME_S, Purpose
from walyoff.inviting import Confirm, InvitationInfo, Inviter, Joiner
from walyoff.leaving import leave
from walyoff.message import Message, make_message
from walyoff.messages import LogReader, MessageStream, Receipt, RecordStream, find_messages
from walyoff.platform import Foundation
from walyoff.records import KIND_MESSAGE, check_content, check_topics
from walyoff.removing import remove
from walyoff.session.handshake import HandshakeContext

if TYPE_CHECKING:
    from walyoff.node import Device

log = logging.getLogger("walyoff.channel")

#: Faults kept for the application to look at; older ones are only counted.
MAX_REPORTS = 256


class Channel(FilesApi, ForgettingApi):
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
        self.connections = Connections(
            device=device, engine=engine, channel=state.did, chains=foundation.chains
        )
        self._started = device.runtime.now()
        ForgettingApi.__init__(self)
        #: The invitations of this channel.
        self.inviter = Inviter(device, self)

    def __repr__(self) -> str:
        reconciler = self._engine.reconciler
        fetching = sum(1 for r in reconciler.open.values() if r.peer is not None)
        wanted = len(reconciler.open) - fetching
        return (
            f"<Channel {self.name} [{wanted} wanted, {fetching} fetching | "
            f"{len(self.connections.sessions())} peers]>"
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

    @property
    def kin(self) -> frozenset[str]:
        """The DIDs under this identity, past ones included: devices, people, groups."""
        return frozenset(self._foundation.identity.membership.kin)

    def members(self) -> list[Member]:
        """The devices of now, in order of joining, as the chains say; `path` tells whose."""
        return self._foundation.identity.membership.current()

    def voices(self) -> list[str]:
        """The direct members of now: devices, people, groups."""
        return list(self._foundation.identity.membership.direct)

    async def did_document(self) -> dict[str, Any]:
        """The identity's W3C DID document: its control keys and its devices' newest keys.

        Raises:
            ChildError: the chain cannot be read now.
        """
        return await describe(self)

    async def invite(
        self,
        *,
        lifetime: float = DEFAULT_LIFETIME_S,
        uses: int | None = 1,
        purpose: Purpose = "any",
        confirm: Confirm | None = None,
    ) -> str:
        """A short string that lets others join, `uses` of them, within `lifetime` seconds.

        It is a secret: hand it over in a way that nobody else can read. This device, or
        rather its home, must be running when it is used. `uses=None` sets no limit.
        `purpose` says who may use it: a "device", an "identity" with its devices, or "any".

        `confirm` is awaited with each `Joiner` before anything is written, and False refuses
        it: show its words, and say yes if the joiner shows the same ones. While this run of
        the device lasts; after it nobody can be asked, and the invitation lets nobody in.

        Raises:
            LocalProtocolError: the lifetime is not from 1 second to a year, the uses are not
                from 1 to 1,024, or only admins may invite here.
        """
        self.check_right("invite")
        return await self.inviter.invite(
            lifetime=lifetime, uses=uses, purpose=purpose, confirm=confirm
        )

    def invitations(self) -> list[InvitationInfo]:
        """The invitations that this device made to the channel, the oldest first."""
        return self.inviter.list()

    async def revoke(self, invitation: str) -> InvitationInfo:
        """End an invitation, named by its string, its id or the beginning of the id.

        Raises:
            InvitationError: this device made none of that name, or several are meant.
        """
        return await self.inviter.revoke(invitation)

    def joins(self) -> AbstractAsyncContextManager[ObjectReceiveStream[Joiner]]:
        """Those who join by invitations of this device, as they do, with the words to compare.

        A slow consumer loses the oldest.
        """
        return self.inviter.joins()

    async def remove(self, did: str) -> None:
        """End the membership of a device or an identity, with all devices under it.

        From now on they get nothing, from anybody, here and in the groups that they were in
        through this identity. What they wrote counts as far as a member had it; what they got,
        they keep. Both can be invited again. Of two members who remove each other both are
        out. When this returns the removal is on the identity's chain, the identity's control
        keys were renewed, and whoever hears from this device learns of it first.

        Raises:
            LocalProtocolError: only admins may remove others here; or it is this device
                itself, or what it belongs to: see `leave`; or a device of a member: that
                member removes it from itself.
            NotAMemberError: it is not a member, or this device is none any more.
            ChildError: the chain could not be written now; try again.
        """
        self._check_member()
        await remove(self._device, self, did)

    async def leave(self, *, erase: bool = False) -> None:
        """End this device's own membership, and forget the channel here.

        Always allowed, but to the only admin of others. The leaving is on the chain, and was
        told to those who are connected, before the channel closes. The keys are deleted, the
        log stays in the home unless `erase` is given. By a new invitation this device can
        come back. Cancelled or killed in the middle, it can be called again.

        A device that leaves a person leaves the groups that it was in through the person. One
        that leaves such a group takes the person out of it, with all devices.

        Raises:
            LocalProtocolError: it is the only admin, and others are left: name another one.
            ChildError: the chain could not be written now; try again.
        """
        await leave(self._device, self, erase=erase)

    async def make_admin(self, did: str) -> None:
        """Let a direct member invite and remove, where only admins may.

        Raises:
            LocalProtocolError: here every member may, or this device is no admin.
            NotAMemberError: it is not a direct member.
            ChildError: the chain could not be written now; try again.
        """
        self._check_member()
        await self._foundation.identity.make_admin(did)
        await self._tell()

    async def renew_control_keys(self) -> None:
        """Replace the identity's control keys now; the other members get them by sessions.

        It happens by itself when a member leaves, and after some months.

        Raises:
            NotAMemberError: this device is not a member any more.
            ChildError: the chain could not be written now; try again.
        """
        self._check_member()
        await self._foundation.identity.renew_keys()
        await self._tell()

    def keys_given(self) -> list[str]:
        """The DIDs of the devices that this one gave the newest control keys, in this run."""
        newest = self._foundation.identity.membership.governance.newest_key
        return sorted(
            did for did, key in self._engine.control_keys.given.items() if key == newest
        )

    async def _tell(self) -> None:
        """The identity's chain has news by this device."""
        self._engine.membership_changed()
        await self.connections.announce_chains()

    def informed(self) -> list[str]:
        """The DIDs of the devices that said they hold all that this one has written."""
        engine = self._engine
        own = engine.durable.get(self.me, 0)
        return sorted(
            did
            for did, vector in engine.confirmed.items()
            if vector.get(self.me, (0, frozenset()))[0] >= own
        )

    def speaking_did(self) -> str:
        """The identity's DID, if this device may speak for it. Raises NotAMemberError."""
        self._check_member()
        return self.did

    async def learn_certificates(self, certificates: Iterable[bytes]) -> None:
        """Take certificates of others that came with a grant."""
        for certificate in certificates:
            try:
                await self._engine.trust.add(certificate)
            except WalyoffError as error:
                log.warning("a certificate of the channel was refused: %s", error)

    def _check_member(self) -> None:
        if not self._engine.trust.is_member(self.me):
            raise NotAMemberError(f"this device is not a member of {self.name!r} any more")

    # ------------------------------------------------------------------- sending

    async def send(
        self,
        content: bytes,
        *,
        topics: Sequence[str] = (),
        forget_after: timedelta | None = None,
    ) -> Receipt:
        """Send a message to all devices of the identity; durable here when this returns.

        At most 8 MiB of content; at most 8 topics of 64 characters, which nobody outside
        can read. With `forget_after` every device destroys the content by itself when that
        time is over, by its own clock; sending it so is agreeing to it. Cancelling leaves it
        sent or not sent.

        Raises:
            PayloadTooLargeError: the content is too large.
            LocalProtocolError: the topics or the time break a rule.
            NotAMemberError: this device was removed from the identity.
            StoreError: it could not be stored; nothing was sent.
        """
        item = Outgoing(
            _message(content), check_topics(topics), KIND_MESSAGE, lifetime_ms(forget_after)
        )
        self._check_member()
        await self._engine.outbox.send((item,))
        return Receipt(self._engine, item)

    async def resume_alone(self) -> None:
        """Write without having asked the others what this device wrote before it was restored.

        Sending waits for a member's word after a device was moved or restored. Only who knows
        that nothing was written after the export or backup may do without: otherwise the
        device contradicts itself, and nobody takes anything from it any more.
        """
        await self._engine.resuming.end()

    async def send_many(
        self,
        contents: Iterable[bytes],
        *,
        topics: Sequence[str] = (),
        forget_after: timedelta | None = None,
    ) -> list[Receipt]:
        """Send several messages in order, sharing signatures and commits. Raises as `send`."""
        checked, lifetime = check_topics(topics), lifetime_ms(forget_after)
        self._check_member()
        items = [
            Outgoing(_message(content), checked, KIND_MESSAGE, lifetime) for content in contents
        ]
        if items:
            await self._engine.outbox.send(items)
        return [Receipt(self._engine, item) for item in items]

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

    async def find(self, beginning: str, *, limit: int = 100) -> list[Message]:
        """The newest messages whose ids begin with these hexadecimal digits, newest first."""
        return await find_messages(self._engine, beginning.lower(), limit)

    def records(self, *, after: int = 0) -> RecordStream:
        """The metadata of every message in the log, with the salted commitments."""
        return RecordStream(self._engine, after=after)

    # ------------------------------------------------------------------- watching

    def status(self) -> dict[str, Any]:
        """What the channel is doing, for people and for `--json`."""
        return status_of(self)

    def statistics(self) -> dict[str, float]:
        """Counters since the channel was opened, and the sizes of now."""
        return statistics_of(self, self._device.runtime.now() - self._started)

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
        return sorted({session.did for session in self.connections.sessions()})

    async def changed(self) -> None:
        """Wait until something changes: messages, members, peers, anchors, confirmations.

        Raises:
            anyio.ClosedResourceError: the channel was closed.
        """
        await self._engine.changed()

    async def wait_peer(self, did: str | None = None) -> str:
        """Wait for a session with a device (any, without a DID); returns its DID."""
        while True:
            for session in self.connections.sessions():
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

    def check_right(self, what: str) -> None:
        """Raise LocalProtocolError if only admins may do this, and this device is none."""
        governance = self._foundation.identity.membership.governance
        if governance.rule == "admins" and governance.actor not in governance.admins:
            who = ", ".join(governance.admins) or "nobody is one any more"
            raise LocalProtocolError(f"only admins of {self.name!r} may {what}: ask {who}")

    def handshake_context(self) -> HandshakeContext:
        """What this device brings to a handshake of the channel."""
        credentials = self._engine.credentials
        return HandshakeContext(
            channel=self.did,
            sign_key=credentials.sign_key,
            certificate=credentials.encoded,
        )

    def note(self, report: Report) -> None:
        """Keep a fault for `reports`, and tell those who listen to `faults`."""
        self._reports.append(report)
        self._faults.publish("faults", report)


def _message(content: bytes) -> bytes:
    """What the application gave, if it can be a message. Raises LocalProtocolError."""
    if not isinstance(content, bytes):
        if not isinstance(content, bytearray | memoryview):
            raise LocalProtocolError(
                f"a message is bytes, not {type(content).__name__}: encode it first"
            )
        content = bytes(content)
    check_content(content)
    return content


__all__ = ["Channel"]
