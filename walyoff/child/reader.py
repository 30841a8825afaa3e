"""What an identity's chain says, by our own rules: its members, their roles, its keys.

Decided here: which acts count. Anyone who knows the chain's id can write to it, and stock
code believes joining blocks unseen. What does not count is counted by reason, never raised:
one bad block must not hide the good ones.

An act counts if (1) the identity's control keys of its place signed it, (2) the member who
acts signed it too, and (3) that member had joined in the act's own past and was not put out
by a leaving that the act does not precede:

    a joining J is *cut* for an act B by a leaving L of the same member
    if J is among the ancestors of L and B is not

So what somebody writes at the same time as its own leaving, or later, or with old parents so
that it looks so, counts for nothing. Leavings themselves are settled first (`_settle`): one
whose author is cut by a leaving that stands does not count; of members who put each other
out all are out. More leavings never bring anybody back in, except those of current members.

The rule "the member who acts signs" begins with the identity's first rules block; which one
that is, and what counts without an actor before it, is decided in `founding`.

In modules of their own: where acts stand (`placing`), how an identity begins (`founding`),
which acts count (`settling`), and what newer keys void (`outdated`).

The reading is a function of the set of blocks: the order is made here, from the blocks. Only
on chains without a birth the order in which two beginnings came here decides between them.
Pure: no I/O, no clock, no cryptography.
"""

from __future__ import annotations

from collections.abc import Iterable

from walyoff.child.acts import (
    DID_PREFIX,
    MALFORMED,
    MAX_CONTENT,
    MAX_KEY_ID,
    PIN_SIZE,
    RULE_ADMINS,
    RULE_ANY,
    TOPIC_JOIN,
    TOPIC_KEY,
    TOPIC_LEAVE,
    TOPIC_SEGMENT,
    TOPICS,
    WRONG_PLACE,
    WRONG_PURPOSE,
    IdentityBlock,
    chain_of,
    did_of,
    encode_segment,
    pin_of,
    segment_body,
)
from walyoff.child.births import Birth
from walyoff.child.outcome import (
    ALREADY_MEMBER,
    BAD_SIGNATURE,
    NO_ACTOR,
    NO_KEYS_YET,
    NOT_A_MEMBER,
    NOT_AN_ADMIN,
    NOT_PINNED,
    OLD_KEYS,
    OUTDATED,
    REPLAYED,
    SECOND_FIRST_KEY,
    SECOND_REGISTER,
    STALE_RENEWAL,
    MemberState,
    Reading,
)
from walyoff.child.outdated import without_outdated
from walyoff.child.placing import Approved, Placed, Verify, place_acts
from walyoff.child.settling import Pass, settle


def read_identity(
    group: str,
    pin: bytes | None,
    blocks: Iterable[IdentityBlock],
    verify: Verify,
    approved: Approved = lambda *_: 0,
    *,
    birth: Birth | None = None,
) -> Reading:
    """Read an identity's chain, given all its blocks in any order.

    The first keys must have the pin, and the one that the DID itself commits to, if it does;
    without either the first key block is believed: only for finding the pin of a chain that
    was handed over by somebody who is trusted to know it.
    """
    return settle_placed(place_acts(group, pin, blocks, verify, birth), approved)


def settle_placed(placed: Placed, approved: Approved) -> Reading:
    """The reading of acts that have their places."""
    refused = placed.refused.copy()
    nodes = without_outdated(placed.resolved(approved), placed.birth, refused)
    final = Pass(nodes, placed.birth, settle(nodes, placed.birth), final=True)
    final.result.refused += refused
    return final.result


__all__ = [
    "ALREADY_MEMBER",
    "BAD_SIGNATURE",
    "DID_PREFIX",
    "MALFORMED",
    "MAX_CONTENT",
    "MAX_KEY_ID",
    "NOT_AN_ADMIN",
    "NOT_A_MEMBER",
    "NOT_PINNED",
    "NO_ACTOR",
    "NO_KEYS_YET",
    "OLD_KEYS",
    "OUTDATED",
    "PIN_SIZE",
    "REPLAYED",
    "RULE_ADMINS",
    "RULE_ANY",
    "SECOND_FIRST_KEY",
    "SECOND_REGISTER",
    "STALE_RENEWAL",
    "TOPICS",
    "TOPIC_JOIN",
    "TOPIC_KEY",
    "TOPIC_LEAVE",
    "TOPIC_SEGMENT",
    "WRONG_PLACE",
    "WRONG_PURPOSE",
    "Approved",
    "Birth",
    "IdentityBlock",
    "MemberState",
    "Reading",
    "Verify",
    "chain_of",
    "did_of",
    "encode_segment",
    "pin_of",
    "read_identity",
    "segment_body",
]
