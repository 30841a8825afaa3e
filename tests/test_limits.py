"""Everything that somebody else can fill has a limit, and docs/limits.md names it."""

from __future__ import annotations

import re

import pytest

from tests.make_limits import LIMIT, PAGE, SECTIONS, limits, page

# The transport over it has limits as well; a development environment has it.
pytest.importorskip("libp2p")


def test_every_limit_has_a_reason() -> None:
    assert [f"{one.module}.{one.name}" for one in limits() if not one.reason] == []


def test_the_page_of_limits_says_what_the_code_does() -> None:
    assert PAGE.read_text() == page(), "docs/limits.md is old: python -m tests.make_limits"


def test_no_limit_is_overlooked() -> None:
    rows = re.findall(r"^\| `[\w.]+` \| (\S+) \| \S", PAGE.read_text(), re.MULTILINE)
    assert len(rows) == len(list(limits())) > 350
    assert all(float(value) >= 0 for value in rows)
    # Those that peers, chains and files fill are found wherever they stand.
    named = {one.name for one in limits()}
    assert {
        "MAX_FRAME", "MAX_UNUSED", "MAX_GIVEN", "MAX_PATHS", "MAX_HANDSHAKES", "BUFFER",
        "MAX_AT_ONCE", "OUTGOING", "MAX_BACKLOG", "MAX_QUESTIONS", "MAX_PENDING",
    } <= named  # fmt: skip
    assert LIMIT.fullmatch("MAX_ANYTHING")
    assert not LIMIT.fullmatch("VERSION")
    assert all(f"## {title}\n" in PAGE.read_text() for title in SECTIONS)
