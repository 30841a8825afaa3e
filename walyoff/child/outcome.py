"""What a reading of an identity's chain comes to: its members, its keys, what does not count.

Decided here: nothing; the words that the modules which read share.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from walyoff.child.acts import RULE_ADMINS

# Why an act does not count; more are in `acts`.
NOT_PINNED = "key-not-pinned"
SECOND_FIRST_KEY = "second-first-key"
STALE_RENEWAL = "stale-renewal"
BAD_SIGNATURE = "bad-signature"
OLD_KEYS = "old-keys"
REPLAYED = "replayed"
#: A device has committed to other keys.
NOT_COMMITTED = "not-committed"
ALREADY_MEMBER = "already-member"
NOT_A_MEMBER = "not-a-member"
NO_KEYS_YET = "no-keys-yet"
#: The actor's own keys were newer at that place.
OUTDATED = "outdated-keys"
#: Nobody who was a member at that place acted.
NO_ACTOR = "no-actor"
#: The one who acted may not do so: only admins may.
NOT_AN_ADMIN = "not-an-admin"
#: It names another register than the one that the identity has.
SECOND_REGISTER = "second-register"


class RefusedError(Exception):
    """An act does not count."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(slots=True, kw_only=True)
class MemberState:
    """A member as the chain says."""

    did: str
    #: Empty when a stock block named no pin.
    pin: bytes
    current: bool
    joined_at: int
    #: Whether it may invite and remove where only admins may.
    admin: bool = False


@dataclass(slots=True, kw_only=True)
class Reading:
    """What the chain says."""

    members: dict[str, MemberState] = field(default_factory=dict)
    #: Key group ids, oldest first.
    keys: list[str] = field(default_factory=list)
    #: Those whose renewals do not count; others may have signed by them, see `branches`.
    void_keys: list[str] = field(default_factory=list)
    #: Of a device, the fingerprint of the key that signs its next renewal; empty if it has
    #: committed to none.
    next: bytes = b""
    #: Valid segment blocks: block name -> chain.
    segments: dict[str, str] = field(default_factory=dict)
    #: The channel's first segment; which of several it is, is decided in `founding`.
    segment: str | None = None
    refused: Counter[str] = field(default_factory=Counter)
    #: Who may invite and remove; None on a chain without rules, where every member may.
    rule: str | None = None
    #: True if a member has left since the newest keys were made.
    renewal_due: bool = False
    #: By member, the newest of its own keys under which it acted here, its first being 1.
    shown: dict[str, int] = field(default_factory=dict)

    def may_manage(self, did: str) -> bool:
        """Whether a DID may invite and remove now."""
        member = self.members.get(did)
        if member is None or not member.current:
            return False
        return self.rule != RULE_ADMINS or member.admin
