"""What an inviter remembers of its invitations: who may still join, and who has.

Decided here: whether an invitation is good for a DID now, and how that is kept. A use is
written down before the joining is, and names the DID, so that a join that broke can be tried
again by the same DID and never by another. An invitation that let in somebody who has been
removed since is good for nothing any more: whoever was removed still knows the string.
"""

from __future__ import annotations

import hmac
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import anyio

from walyoff.abc import Store
from walyoff.errors import InvitationError, LocalProtocolError, RemoteProtocolError
from walyoff.invitations import EXPIRED, PURPOSES, SECRET_SIZE, Invitation, Purpose, parse
from walyoff.runtime import Runtime
from walyoff.session.transcript import blinded_tag
from walyoff.wire import MAX_DID, expect_bytes, expect_int, expect_str, pack, unpack

if TYPE_CHECKING:
    from walyoff.inviting import Confirm

VERSION = 2
#: A spent invitation is remembered so long, so that the joiner gets a clear answer.
REMEMBER_S = 30 * 24 * 3600
#: DIDs that one invitation can let in: all of them are remembered.
MAX_USES = 1024
#: A thousand DIDs, and the rest.
MAX_SIZE = 512 * 1024
#: Join sessions of one invitation at a time, and what they may hold together: one large family.
MAX_JOIN_SESSIONS = 16
MAX_JOIN_BYTES = 56 << 20
_PREFIX = "invitation/"

State = Literal["open", "used", "expired", "revoked"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """What the inviter remembers of an invitation. Its secret never prints."""

    channel: str
    secret: bytes = field(repr=False)
    #: Seconds since 1970; the inviter's clock decides.
    expires: int
    #: The DIDs that used it, which may finish a join that broke.
    used_by: tuple[str, ...] = ()
    #: How many may use it; None is as many as like, up to `MAX_USES`.
    uses: int | None = 1
    purpose: Purpose = "any"
    #: Seconds since 1970, 0 if it is not known.
    created: int = 0
    #: The DID of the device that made it.
    by: str = ""
    revoked: bool = False
    #: A person at the inviter says yes to each join.
    confirm: bool = False

    def __post_init__(self) -> None:
        if self.uses is not None and not 1 <= self.uses <= MAX_USES:
            raise LocalProtocolError(f"an invitation has 1 to {MAX_USES} uses, or no limit")
        if self.purpose not in PURPOSES:
            raise LocalProtocolError(
                f"an invitation is for {', '.join(PURPOSES)}, not {self.purpose!r}"
            )

    def encode(self) -> bytes:
        """For the store."""
        return pack(
            [
                VERSION,
                {
                    "channel": self.channel,
                    "secret": self.secret,
                    "expires": self.expires,
                    "used_by": list(self.used_by),
                    "uses": self.uses,
                    "purpose": self.purpose,
                    "created": self.created,
                    "by": self.by,
                    "revoked": self.revoked,
                    "confirm": self.confirm,
                },
            ]
        )

    @classmethod
    def decode(cls, data: bytes) -> Issued:
        """From the store, this version or the one before.

        Raises RemoteProtocolError if it is neither.
        """
        value = unpack(data, MAX_SIZE)
        if not isinstance(value, list):
            raise RemoteProtocolError("invitation is not an array")
        if len(value) == 4:
            # Version 1: for one device, and nothing but what was needed.
            channel, secret, expires, user = value
            found: dict[str, Any] = {
                "channel": channel,
                "secret": secret,
                "expires": expires,
                "used_by": [user] if user != "" else [],
                "purpose": "device",
            }
        elif len(value) == 2 and value[0] == VERSION and isinstance(value[1], dict):
            found = value[1]
        else:
            raise RemoteProtocolError("invitation has another form or version")
        return _checked(found)

    @property
    def invitation_id(self) -> str:
        """Names the invitation without giving it away."""
        return self.invitation().invitation_id

    def invitation(self) -> Invitation:
        """The invitation without its addresses."""
        return Invitation(
            secret=self.secret, expires=self.expires, addresses=(), purpose=self.purpose
        )

    def state(self, now: float) -> State:
        """What it is good for, by a clock in seconds since 1970."""
        if self.revoked:
            return "revoked"
        limit = MAX_USES if self.uses is None else self.uses
        if len(self.used_by) >= limit:
            return "used"
        return "expired" if now > self.expires else "open"

    def problem(
        self,
        did: str,
        now: float,
        *,
        kind: Purpose = "device",
        removed: Collection[str] = (),
    ) -> str | None:
        """Why a DID of a kind may not use it now, or None.

        `removed` are the DIDs that were members and are not any more.
        """
        if self.revoked:
            return "the invitation was revoked: ask for a new one"
        if any(user in removed for user in self.used_by):
            return "the invitation let in somebody who was removed since: ask for a new one"
        if now > self.expires:
            return EXPIRED
        if did not in self.used_by and self.state(now) == "used":
            return "the invitation was used already: ask for a new one"
        if self.purpose not in ("any", kind):
            return f"the invitation is for {_named(self.purpose)}, not for {_named(kind)}"
        return None

    def used(self, did: str) -> Issued:
        """The same after a DID has begun to use it."""
        return self if did in self.used_by else replace(self, used_by=(*self.used_by, did))


def _named(kind: Purpose) -> str:
    return {"device": "a device", "identity": "an identity", "any": "anybody"}[kind]


def _checked(found: dict[str, Any]) -> Issued:
    users = found.get("used_by", [])
    if not isinstance(users, list) or len(users) > MAX_USES:
        raise RemoteProtocolError("invitation with malformed users")
    uses = found.get("uses", 1)
    try:
        return Issued(
            channel=expect_str(found.get("channel"), "channel", limit=MAX_DID),
            secret=expect_bytes(found.get("secret"), "secret", size=SECRET_SIZE),
            expires=expect_int(found.get("expires"), "expiry"),
            used_by=tuple(expect_str(user, "user", limit=MAX_DID) for user in users),
            uses=None if uses is None else expect_int(uses, "uses", low=1, high=MAX_USES),
            purpose=expect_str(found.get("purpose", "any"), "purpose", limit=16),  # type: ignore[arg-type]  # checked when it is made
            created=expect_int(found.get("created", 0), "time"),
            by=expect_str(found.get("by", ""), "inviter", limit=MAX_DID),
            revoked=found.get("revoked", False) is True,
            confirm=found.get("confirm", False) is True,
        )
    except LocalProtocolError as error:
        raise RemoteProtocolError(str(error)) from error


class InvitationBook:
    """The invitations that one device has made."""

    def __init__(self, store: Store, runtime: Runtime) -> None:
        self._store = store
        self._runtime = runtime
        self._issued: dict[str, Issued] = {}
        #: Held while a use is decided and written down: of two at once, one is first.
        self.lock = anyio.Lock()
        #: Who is asked, in this run, about the joins of an invitation.
        self.confirms: dict[str, Confirm] = {}
        #: Questions that wait for a person.
        self.asked = 0
        #: Join sessions of now, and what they hold in bytes, by invitation.
        self._sessions: Counter[str] = Counter()
        self._held: Counter[str] = Counter()

    @contextmanager
    def room(self, invitation_id: str) -> Iterator[Callable[[int], bool] | None]:
        """Room for one join session: takes bytes, if there are any left; None if there is none.

        Whoever has an invitation, also a spent one, is in the way of that invitation alone.
        """
        taken = 0

        def take(size: int) -> bool:
            nonlocal taken
            if self._held[invitation_id] + size > MAX_JOIN_BYTES:
                return False
            self._held[invitation_id] += size
            taken += size
            return True

        if self._sessions[invitation_id] >= MAX_JOIN_SESSIONS:
            yield None
            return
        self._sessions[invitation_id] += 1
        try:
            yield take
        finally:
            self._sessions[invitation_id] -= 1
            self._held[invitation_id] -= taken

    def now(self) -> float:
        """Seconds since 1970."""
        return self._runtime.wall_ms() / 1000

    async def load(self) -> None:
        """Read what the store has, and forget what ended long ago."""
        for key in await self._store.keys(_PREFIX):
            if value := await self._store.get(key):
                issued = Issued.decode(value)
                if self.now() > issued.expires + REMEMBER_S:
                    await self._store.put({key: None})
                else:
                    self._issued[key.removeprefix(_PREFIX)] = issued

    async def keep(self, issued: Issued) -> None:
        """Keep an invitation, or what became of it, durably."""
        name = issued.invitation_id
        await self._store.put({f"{_PREFIX}{name}": issued.encode()})
        self._issued[name] = issued

    def get(self, invitation_id: str) -> Issued | None:
        """What is known of an invitation."""
        return self._issued.get(invitation_id)

    def of(self, channel: str) -> list[Issued]:
        """The invitations to a channel, the oldest first."""
        found = [issued for issued in self._issued.values() if issued.channel == channel]
        return sorted(found, key=lambda issued: issued.created)

    async def forget(self, channel: str) -> None:
        """Forget the invitations to a channel that this device has left."""
        names = [issued.invitation_id for issued in self.of(channel)]
        await self._store.put({f"{_PREFIX}{name}": None for name in names})
        for name in names:
            del self._issued[name]

    def find(self, ephemeral: bytes, tag: bytes) -> Issued | None:
        """The invitation that a join session is about."""
        for issued in self._issued.values():
            expected = blinded_tag(issued.invitation().tag_key, "join", ephemeral)
            if hmac.compare_digest(expected, tag):
                return issued
        return None

    async def revoke(self, channel: str, invitation: str) -> Issued:
        """End an invitation to a channel, named by its string, its id or the id's beginning.

        Raises:
            InvitationError: no such invitation was made here, or several are meant.
        """
        name = invitation.strip().lower()
        if len(name) > 16:
            name = parse(invitation, now=0).invitation_id
        async with self.lock:
            found = [i for i in self.of(channel) if i.invitation_id.startswith(name) and name]
            if len(found) != 1:
                what = "several invitations begin" if found else "no invitation here begins"
                raise InvitationError(f"{what} with that id: `walyoff invitations` lists them")
            ended = replace(found[0], revoked=True)
            await self.keep(ended)
        return ended
