"""The design page says what is: dependencies, files."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DESIGN = (ROOT / "docs" / "design.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def section(title: str) -> str:
    return re.split(r"^## ", DESIGN.split(f"## {title}\n")[1], flags=re.MULTILINE)[0]


def test_every_dependency_has_its_reason_and_nothing_else_has_one() -> None:
    rows = re.findall(r"^\| ([\w-]+) \|", section("Dependencies"), re.MULTILINE)
    required = {re.split(r"[^\w-]", entry)[0] for entry in PROJECT["dependencies"]}
    assert {row for row in rows if row not in {"package", "---"}} == required


def test_the_tools_for_development_are_named() -> None:
    text = section("Dependencies")
    tools = {re.split(r"[^\w-]", entry)[0] for entry in PROJECT["optional-dependencies"]["dev"]}
    assert {tool for tool in tools if tool not in text} == set()


@pytest.mark.parametrize("page", ["docs/design.md", "docs/protocol.md", "CHANGELOG.md"])
def test_links_and_modules_that_a_page_names_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    here = (ROOT / page).parent
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (here / link).exists(), link
    for name in re.findall(
        r"`((?:walyoff|transports|codecs|tests|child)/[\w/]+\.(?:py|json))`", text
    ):
        path = f"walyoff/{name}" if name.startswith("child/") else name
        assert (ROOT / path).exists(), name


def test_the_changelog_has_the_version_that_is_installed() -> None:
    import walyoff

    assert PROJECT["version"] == walyoff.__version__
    assert f"## {walyoff.__version__} " in (ROOT / "CHANGELOG.md").read_text()
