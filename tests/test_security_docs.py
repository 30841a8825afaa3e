"""The page of promises names tests that exist, and each promise names one."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "security.md").read_text()
NAMED = re.compile(r"`(test_\w+\.py)::(test_\w+)`")


def names_in(name: str) -> set[str]:
    """The names of the tests in a file."""
    tree = ast.parse((TESTS / name).read_text())
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(tree) if isinstance(node, functions)}


def promises() -> list[list[str]]:
    """The cells of each row of the tables of promises."""
    rows: list[list[str]] = []
    inside = False
    for line in PAGE.splitlines():
        if line.startswith("| promise |"):
            inside = True
        elif not line.startswith("|"):
            inside = False
        elif inside and not line.startswith("|---"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_every_test_that_the_page_names_exists() -> None:
    missing = {
        f"{name}::{test}" for name, test in NAMED.findall(PAGE) if test not in names_in(name)
    }
    assert not missing


def test_every_promise_has_an_attacker_a_limit_and_a_test() -> None:
    rows = promises()
    assert len(rows) >= 25
    for row in rows:
        assert len(row) == 4, row
        assert all(row), row
        assert NAMED.findall(row[3]), f"no test: {row[0]}"


def test_files_that_the_page_names_exist() -> None:
    for name in re.findall(r"`((?:tests|fuzz|docs)/[\w./]+)`", PAGE):
        assert (TESTS.parent / name).exists(), name
