"""What is printed: values as JSON or text, and hostile text made harmless.

Messages come from other people's devices. A terminal obeys control characters, so none gets
through: what is not printable is written as an escape.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from walyoff.cli.sizes import size_text

if TYPE_CHECKING:
    from walyoff.abc import Member
    from walyoff.message import Message
    from walyoff.records import Record

#: Characters of one message on a terminal; `--json` has no limit.
MAX_SHOWN = 8_000
SHORT_DID = 6
#: Digits of a message's id on a terminal: enough among a hundred thousand messages.
SHORT_ID = 8
#: Joins emoji; harmless, and messages look broken without it.
_JOINER = "\u200d"


def escape_line(text: str) -> str:
    """One line without anything that a terminal would obey."""
    return "".join(
        c if c.isprintable() or c == _JOINER else c.encode("unicode_escape", "replace").decode()
        for c in text
    )


def escape_text(text: str, indent: str = "") -> str:
    """Lines without anything that a terminal would obey; all but the first are indented.

    The indent keeps a message from faking the line of another one.
    """
    lines = text.removesuffix("\n").split("\n")
    return f"\n{indent}".join(escape_line(line.removesuffix("\r")) for line in lines)


def short(did: str) -> str:
    """A DID for people: its end, which differs (the beginning never does)."""
    return f"…{did[-SHORT_DID:]}"


def short_id(message_id: bytes) -> str:
    """A message's id for people: its beginning, which commands take."""
    return message_id.hex()[:SHORT_ID]


def dump(value: Mapping[str, Any]) -> str:
    """One object on one line. ASCII only, so it is safe on terminals as well."""
    return json.dumps(value, separators=(", ", ": "))


def encode_content(content: bytes | None) -> dict[str, str | None]:
    """Bytes in JSON: as text when they are UTF-8, else in base64; `encoding` says which."""
    if content is None:
        return {"content": None, "encoding": None}
    try:
        return {"content": content.decode(), "encoding": "utf-8"}
    except UnicodeDecodeError:
        return {"content": base64.b64encode(content).decode(), "encoding": "base64"}


def _head(message: Message, me: str) -> dict[str, Any]:
    return {
        "id": message.id.hex(),
        "channel": message.channel,
        "author": message.author,
        "path": list(message.path),
        "mine": message.author == me,
        "seq": message.seq,
        "time": message.time.isoformat(),
        "topics": list(message.topics),
    }


def message_json(message: Message, me: str) -> dict[str, Any]:
    """A message for machines."""
    return {
        **_head(message, me),
        "size": message.size,
        **encode_content(message.content),
        **_attachment_json(message),
        "forgotten": forgotten_json(message),
        "position": message.position,
        "anchored": message.anchored,
    }


def _attachment_json(message: Message) -> dict[str, Any]:
    attachment = message.attachment
    if attachment is None:
        return {}
    return {
        "attachment": {
            "name": attachment.name,
            "media_type": attachment.media_type,
            "size": attachment.size,
            "state": str(attachment.state),
        }
    }


def forgotten_json(message: Message) -> dict[str, Any] | None:
    """Why a message has no content any more, for machines."""
    why = message.forgotten
    if why is None:
        return None
    return {
        "expired": why.expired,
        "reason": why.reason,
        "time": datetime.fromtimestamp(why.time_ms / 1000, UTC).isoformat(),
        "agreed": [
            {
                "member": word.voice,
                "device": word.device,
                "time": datetime.fromtimestamp(word.time_ms / 1000, UTC).isoformat(),
            }
            for word in why.agreed
        ],
    }


def counted(count: int, noun: str) -> str:
    """How many there are: "1 device", "2 devices"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def record_json(message: Message, record: Record, me: str) -> dict[str, Any]:
    """The metadata of a message for machines: what the ledger has of it, sealed."""
    return {
        **_head(message, me),
        "kind": record.kind,
        "size": message.size,
        "commitment": record.commitment.hex(),
        "position": message.position,
        "held": message.content is not None,
        "anchored": message.anchored,
    }


def member_json(member: Member, *, me: str, connected: bool) -> dict[str, Any]:
    """A member for machines."""
    return {
        "did": member.did,
        "path": list(member.path or (member.did,)),
        "me": member.did == me,
        "connected": connected,
        "joined_at": member.joined_at,
        "role": member.role,
        "pin": member.pin.hex(),
    }


def clock(time: datetime, *, now: datetime | None = None) -> str:
    """A time for people: of today only the time of day."""
    local = time.astimezone()
    today = (now or datetime.now().astimezone()).date()
    return local.strftime("%H:%M:%S" if local.date() == today else "%Y-%m-%d %H:%M:%S")


def name_of(path: Sequence[str], me: str) -> str:
    """Who it is: the device, as wide as a short DID, and the people above it, if any."""
    author, *above = path[:-1]
    name = "you".ljust(SHORT_DID + 1) if author == me else short(author)
    return " of ".join((name, *(short(did) for did in above)))


def message_text(message: Message, me: str) -> str:
    """A message for people."""
    head = f"{short_id(message.id)}  {clock(message.time)}  {name_of(message.path, me)}  "
    topics = "".join(f"[{escape_line(topic)}] " for topic in message.topics)
    if message.forgotten is not None:
        why = "its time was over" if message.forgotten.expired else "all members agreed"
        return head + topics + f"({message.size} bytes, forgotten: {why})"
    file = ""
    if (attachment := message.attachment) is not None:
        file = f"<{escape_line(attachment.name)}, {size_text(attachment.size)}> "
        if not message.content:
            return head + topics + file.rstrip()
    text = content_text(message.content, message.size, " " * len(head))
    return head + topics + file + text


def content_text(content: bytes | None, size: int, indent: str) -> str:
    """A content for people."""
    if content is None:
        return f"({size} bytes, not held here)"
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return f"({size} bytes, not text: --json shows them)"
    if len(text) > MAX_SHOWN:
        return escape_text(text[:MAX_SHOWN], indent) + f"… ({size} bytes: --json shows all)"
    return escape_text(text, indent)


def record_text(message: Message, record: Record, me: str) -> str:
    """The metadata of a message for people."""
    topics = " ".join(escape_line(topic) for topic in message.topics) or "-"
    return (
        f"{short_id(message.id)}  {clock(message.time)}  {name_of(message.path, me)}  "
        f"#{message.seq:<5} "
        f"{record.size:>8} B  {'anchored' if message.anchored else 'waiting ':8}  "
        f"{record.commitment.hex()[:16]}…  {topics}"
    )
