"""What an identity is told, decoded: grants of other devices, and the answers of the child.

A grant is a stranger's until the chains in it were read. The child answers with what chains
say, to which anybody may write: so its answers are bounded too.
"""

from __future__ import annotations

from typing import Any

from walyoff.abc import EndedLink, Governance, Member, Membership
from walyoff.child.acts import RULE_ADMINS
from walyoff.errors import ChildError, RemoteProtocolError
from walyoff.wire import MAX_DID, expect_array, expect_bytes, expect_int, expect_str, unpack

PIN_SIZE = 32
#: A grant: the chains of identity and members, 70 KB for two, and one segment.
MAX_GRANT = 56 << 20
#: Devices of one identity: as a vector names.
MAX_MEMBERS = 4_096
GRANT_VERSION = 2
#: Segments in a grant: as many as keep it below a frame of a session.
MAX_SEGMENTS = 20_000
#: Bytes of control keys in a grant, and of one group's id.
MAX_SECRETS = 8 << 20
MAX_KEY_GROUP = 16 * 1024


def decode_grant(grant: bytes) -> dict[str, Any]:
    """The arguments of "group.adopt" that a grant holds. Raises RemoteProtocolError."""
    value = unpack(grant, MAX_GRANT)
    names = {"v", "did", "pin", "secrets", "files", "member_files", "segments", "segment_files"}
    if not isinstance(value, dict) or set(value) != names or value["v"] != GRANT_VERSION:
        raise RemoteProtocolError("grant has another form or version")
    members = value["member_files"]
    if not isinstance(members, dict) or len(members) > MAX_MEMBERS:
        raise RemoteProtocolError("grant has malformed members")
    return {
        "did": expect_str(value["did"], "DID", limit=MAX_DID),
        "pin": expect_bytes(value["pin"], "pin", size=PIN_SIZE),
        "secrets": expect_bytes(value["secrets"], "secrets", limit=MAX_SECRETS),
        "files": decode_files(value["files"]),
        "member_files": {
            expect_str(did, "DID", limit=MAX_DID): decode_files(files)
            for did, files in members.items()
        },
        "segments": _segments(value["segments"]),
        "segment_files": decode_files(value["segment_files"]),
    }


def _segments(value: Any) -> list[list[str]]:
    if not isinstance(value, list) or len(value) > MAX_SEGMENTS:
        raise RemoteProtocolError("grant has malformed segments")
    return [
        [expect_str(name, "segment", limit=64) for name in expect_array(item, 3, "segment")]
        for item in value
    ]


def decode_files(value: Any) -> list[bytes]:
    """Block files. Raises RemoteProtocolError."""
    if not isinstance(value, list):
        raise RemoteProtocolError("grant has malformed files")
    return [expect_bytes(item, "block file", limit=1 << 21) for item in value]


def did_and_pin(answer: Any) -> tuple[str, bytes]:
    """Of a DID that was made or opened. Raises ChildError."""
    if not isinstance(answer, dict):
        raise ChildError("the child's answer is no map")
    did = expect_str(answer.get("did"), "DID", limit=MAX_DID)
    return did, expect_bytes(answer.get("pin"), "pin", size=PIN_SIZE)


def decode_membership(did: str, answer: Any) -> tuple[Membership, str | None]:
    """What the child says of an identity, and the segment that its chain names."""
    match answer:
        case {
            "members": list() as members,
            "ended": list() as ended,
            "kin": list() as kin,
            "direct": list() as direct,
            "refused": dict() as refused,
            "segment": segment,
        }:
            governance = _governance(answer.get("standing"))
            membership = Membership(
                did=did,
                members=tuple(_member(item, governance) for item in members),
                ended=tuple(_ended(item) for item in ended),
                direct=tuple(_did(item) for item in direct),
                kin=tuple(_did(item) for item in kin),
                refused={str(k): n for k, n in refused.items() if isinstance(n, int)},
                governance=governance,
            )
            return membership, segment if isinstance(segment, str) else None
    raise ChildError("the child's membership is malformed")


def _did(value: Any) -> str:
    return expect_str(value, "DID", limit=MAX_DID)


def _member(item: Any, governance: Governance) -> Member:
    did, pin, current, joined_at, path, links = expect_array(item, 6, "member")
    steps = tuple(_did(step) for step in path)
    rules = governance.rule == RULE_ADMINS and steps[-1:] != ()
    return Member(
        did=_did(did),
        pin=expect_bytes(pin, "pin", limit=PIN_SIZE),
        current=current is True,
        joined_at=expect_int(joined_at, "place"),
        path=steps,
        role="admin" if rules and steps[-1] in governance.admins else "member",
        links=tuple((bytes(link), expect_int(at, "place")) for link, at in links),
    )


def _ended(item: Any) -> EndedLink:
    link, joined_at, identity = expect_array(item, 3, "ended membership")
    return EndedLink(
        link=bytes(link), joined_at=expect_int(joined_at, "place"), identity=identity is True
    )


def _governance(value: Any) -> Governance:
    match value:
        case {
            "actor": actor,
            "rule": rule,
            "admins": list() as admins,
            "lacking": list() as lacking,
            "newest": newest,
            "renewal_due": bool() as renewal_due,
            "keys_unshown": bool() as keys_unshown,
        }:
            return Governance(
                rule=expect_str(rule, "rule", limit=16),
                admins=tuple(expect_str(did, "DID", limit=MAX_DID) for did in admins),
                actor=None if actor is None else expect_str(actor, "DID", limit=MAX_DID),
                newest_key=expect_bytes(newest, "fingerprint", size=PIN_SIZE),
                lacking=tuple(
                    expect_bytes(key, "fingerprint", size=PIN_SIZE) for key in lacking
                ),
                renewal_due=renewal_due,
                keys_unshown=keys_unshown,
            )
    raise ChildError("the child's membership says nothing of its rules")


__all__ = [
    "GRANT_VERSION",
    "MAX_KEY_GROUP",
    "MAX_SECRETS",
    "PIN_SIZE",
    "decode_files",
    "decode_grant",
    "decode_membership",
    "did_and_pin",
]
