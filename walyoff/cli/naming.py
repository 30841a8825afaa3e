"""Which message is meant: as in git, the beginning of an id that begins no other one.

Decided here: how much of an id is shown, how much is asked for, and what is said when it is not
enough.
"""

from __future__ import annotations

from collections.abc import Iterable

from walyoff.cli.output import clock, escape_line, short_id
from walyoff.cli.runtime import Failure
from walyoff.message import Message

#: The fewest hexadecimal digits that are looked for.
LEAST_ID = 4
FULL_ID = 64
#: Messages that are named when several are meant.
MAX_CANDIDATES = 5
_DIGITS = frozenset("0123456789abcdef")


def wanted_id(text: str) -> str:
    """The digits that were given, in the form in which ids are compared. Raises Failure."""
    digits = text.lower()
    if not LEAST_ID <= len(digits) <= FULL_ID or not _DIGITS.issuperset(digits):
        raise Failure(
            f"{escape_line(text[:80])} is no message id: give {LEAST_ID} to {FULL_ID} of the "
            "hexadecimal digits that `walyoff log` and `walyoff attachments` begin with"
        )
    return digits


def the_one(found: Iterable[Message], wanted: str, what: str) -> Message:
    """The only one of these whose id begins so; `what` names them. Raises Failure."""
    matching = [message for message in found if message.id.hex().startswith(wanted)]
    if len(matching) == 1:
        return matching[0]
    if not matching:
        raise Failure(f"no {what} has an id that begins with {wanted}: see `walyoff log`")
    ids = [message.id.hex() for message in matching]
    # So much of each that it is no other one's.
    length = len(short_id(matching[0].id))
    while length < FULL_ID and len({one[:length] for one in ids}) < len(ids):
        length += 1
    named = [
        f"{one[:length]} ({clock(message.time)})"
        for one, message in zip(ids[:MAX_CANDIDATES], matching, strict=False)
    ]
    if len(ids) > MAX_CANDIDATES:
        named.append("...")
    raise Failure(f"{len(ids)} ids begin with {wanted}: give more of one of {', '.join(named)}")


__all__ = ["FULL_ID", "LEAST_ID", "the_one", "wanted_id"]
