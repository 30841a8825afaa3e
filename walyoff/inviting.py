"""A channel's invitations, as its application sees them: made, listed, revoked, used.

What is remembered of them is in `walyoff.issued`; how a join goes is in `walyoff.joining`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from anyio.abc import ObjectReceiveStream

from walyoff.errors import LocalProtocolError
from walyoff.fanout import Fanout
from walyoff.invitations import MAX_LIFETIME_S, SECRET_SIZE, Purpose, new_invitation
from walyoff.issued import Issued, State

if TYPE_CHECKING:
    from walyoff.channel import Channel
    from walyoff.node import Device

#: Joins that a slow consumer has not looked at yet; it loses the oldest.
_WAITING = 64
_JOINS = "joins"


@dataclass(frozen=True, slots=True, kw_only=True)
class Joiner:
    """Somebody who joins, or has joined, by an invitation of this device."""

    did: str
    #: The same words are shown at the joiner (`walyoff.words`).
    words: tuple[str, ...]
    invitation_id: str
    channel: str
    #: A device, or an identity with its devices.
    kind: Purpose = "device"


#: Asked before a joiner is let in; False refuses it, and nothing is written.
Confirm = Callable[[Joiner], Awaitable[bool]]


@dataclass(frozen=True, slots=True, kw_only=True)
class InvitationInfo:
    """An invitation that this device made, without its secret."""

    id: str
    channel: str
    state: State
    purpose: Purpose
    #: None if it was made before this was written down.
    created: datetime | None
    expires: datetime
    #: How many may use it (None: no limit), and the DIDs that have.
    uses: int | None
    used_by: tuple[str, ...]
    #: The DID of the device that made it.
    by: str
    confirm: bool


class Inviter:
    """The invitations of one channel."""

    def __init__(self, device: Device, channel: Channel) -> None:
        self._device = device
        self._channel = channel
        self._joins: Fanout[Joiner] = Fanout(_WAITING)

    async def invite(
        self,
        *,
        lifetime: float,
        uses: int | None,
        purpose: Purpose,
        confirm: Confirm | None,
    ) -> str:
        """See `Channel.invite`."""
        if not 1 <= lifetime <= MAX_LIFETIME_S:
            raise LocalProtocolError(f"a lifetime is 1 to {MAX_LIFETIME_S} seconds")
        book = self._device.invitations
        invitation = new_invitation(
            self._device.addresses,
            secret=self._device.runtime.random_bytes(SECRET_SIZE),
            now=book.now(),
            lifetime_s=lifetime,
            purpose=purpose,
        )
        issued = Issued(
            channel=self._channel.did,
            secret=invitation.secret,
            expires=invitation.expires,
            uses=uses,
            purpose=purpose,
            created=int(book.now()),
            by=self._channel.me,
            confirm=confirm is not None,
        )
        await book.keep(issued)
        if confirm is not None:
            book.confirms[issued.invitation_id] = confirm
        return str(invitation)

    def list(self) -> list[InvitationInfo]:
        """See `Channel.invitations`."""
        book = self._device.invitations
        return [_info(issued, book.now()) for issued in book.of(self._channel.did)]

    async def revoke(self, invitation: str) -> InvitationInfo:
        """See `Channel.revoke`."""
        book = self._device.invitations
        return _info(await book.revoke(self._channel.did, invitation), book.now())

    def joins(self) -> AbstractAsyncContextManager[ObjectReceiveStream[Joiner]]:
        """See `Channel.joins`."""
        return self._joins.subscribe(_JOINS)

    def joined(self, joiner: Joiner) -> None:
        """Tell those who listen."""
        self._joins.publish(_JOINS, joiner)


def _info(issued: Issued, now: float) -> InvitationInfo:
    return InvitationInfo(
        id=issued.invitation_id,
        channel=issued.channel,
        state=issued.state(now),
        purpose=issued.purpose,
        created=datetime.fromtimestamp(issued.created, UTC) if issued.created else None,
        expires=datetime.fromtimestamp(issued.expires, UTC),
        uses=issued.uses,
        used_by=issued.used_by,
        by=issued.by,
        confirm=issued.confirm,
    )
