"""Everything that somebody else can fill has a limit, and docs/limits.md names it."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from tests.make_limits import LIMIT, PAGE, ROOM, SECTIONS, limits

# The transport over it has limits as well; a development environment has it.
pytest.importorskip("libp2p")


def test_every_limit_has_a_reason() -> None:
    assert [f"{one.module}.{one.name}" for one in limits() if not one.reason] == []


def test_the_page_of_limits_says_what_the_code_does() -> None:
    """Where a limit stands may change before the page is made again; what it is may not."""
    rows = re.findall(r"^\| `[\w.]+\.(\w+)` \| (\S+) \| \S", PAGE.read_text(), re.MULTILINE)
    told = Counter(row for row in rows if ROOM.fullmatch(row[0]))
    there = Counter((one.name, str(one.value)) for one in limits() if ROOM.fullmatch(one.name))
    assert told == there, (
        f"make docs/limits.md again (python -m tests.make_limits): {told - there} is told and "
        f"not there, {there - told} is there and not told"
    )
    assert len(rows) > 350


def test_no_limit_is_overlooked() -> None:
    # Those that peers, chains and files fill are found wherever they stand.
    named = {one.name for one in limits()}
    assert {
        "MAX_FRAME", "MAX_UNUSED", "MAX_GIVEN", "MAX_PATHS", "MAX_HANDSHAKES", "BUFFER",
        "MAX_AT_ONCE", "OUTGOING", "MAX_BACKLOG", "MAX_QUESTIONS", "MAX_PENDING",
    } <= named  # fmt: skip
    assert ROOM.fullmatch("MAX_ANYTHING")
    assert not LIMIT.fullmatch("VERSION")
    assert all(f"## {title}\n" in PAGE.read_text() for title in SECTIONS)
