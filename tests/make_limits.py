"""Writes docs/limits.md from the code: `python -m tests.make_limits`.

A limit is a constant of a module, named for what it bounds (`MAX_...`, or a queue, a window, a
time), with the reason in the comment above it; a comment counts for all that follow it without
a blank line. What has no reason is refused.
"""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "limits.md"
ROOTS = (ROOT, ROOT / "transports", ROOT / "codecs")
PACKAGES = ("walyoff", "walyoff_transports", "walyoff_codecs")
#: Not in a device of a user.
APART = {"agents", "bench", "demo", "testing"}
ROOM = re.compile(
    r"_?(MAX_\w+|\w*(BUFFER|BACKLOG|WAITING|OUTGOING|WINDOW|QUEUE_\w+|RECENT|RECENT_\w+|PART"
    r"|_BYTES|TIMEOUT|LIFETIME\w*|AT_ONCE))"
)
#: Times are on the page as well.
LIMIT = re.compile(
    rf"{ROOM.pattern}|\w*(_TIME|_AFTER|_AFTER_S|LATER_S|TELL_S|BAR_S|DEADLINE_S|REMEMBER_S"
    r"|WINDOW_S)"
)
HEAD = """# Limits

Everything that somebody else can fill has a limit: what peers, chains, files, the child process
and the command line give, and what waits between them. Here are all of them, with their
reasons. This page is made from the code (`python -m tests.make_limits`); `tests/test_limits.py`
fails when a limit is not here, has no reason, or is another one. Times are in seconds, sizes in
bytes, unless the name or the reason says otherwise. What no limit bounds is in
[security.md](security.md#room).
"""
#: Who fills it, and the modules.
SECTIONS = {
    "From peers, before they are known": (
        r"walyoff\.(handshakes|accepting|joining|introducing|inviting|issued|discovery|words)"
        r"|walyoff\.session\..*"
    ),
    "From members, in sessions": (
        r"walyoff\.(frames|chunk_frames|frame\w*|granting|kinship|connections|paths|certificates"
        r"|unused|trust|epochs|records|manifest|address\w*|leaving|control\w*)|walyoff\.engine\..*"
    ),
    "Encoding": r"walyoff\.wire|walyoff\.plugins|walyoff_codecs\..*|walyoff\.did_document",
    "From the chains": (
        r"walyoff\.child\.(?!rpc|server|main|kubo|stock_homes|hidden_key|repo|keyring).*"
        r"|walyoff\.walytis\.(ledger|register|identity|decoding)|walyoff\.audit\w*"
    ),
    "Between a device and its child process": (
        r"walyoff\.child\.(rpc|server|main|kubo|repo)|walyoff\.walytis\..*"
    ),
    "From files": (
        r"walyoff\.(moving|stores)\..*|walyoff\.(stock|sealing|channel_state|files)"
        r"|walyoff\.child\.(stock_homes|hidden_key|keyring)"
    ),
    "From the network below sessions": r"walyoff_transports\..*|walyoff\.sockets",
    "From the application and the command line": r".*",
}


@dataclass(frozen=True, slots=True)
class Limit:
    """One constant."""

    module: str
    name: str
    value: float
    reason: str


def limits() -> Iterator[Limit]:
    """All of them, by module and place."""
    for root, package in zip(ROOTS, PACKAGES, strict=True):
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            if APART.isdisjoint(parts):
                yield from _of_module(path, ".".join(parts))


def _of_module(path: Path, module: str) -> Iterator[Limit]:
    lines = path.read_text().splitlines()
    for name, line in _assigned(ast.parse("\n".join(lines))):
        if LIMIT.fullmatch(name):
            value = getattr(importlib.import_module(module), name)
            if isinstance(value, int | float):
                yield Limit(module, name, value, _reason(lines, line - 1))


def _assigned(tree: ast.Module) -> Iterator[tuple[str, int]]:
    for node in tree.body:
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign):
            targets = [node.target]
        else:
            continue
        for target in targets:
            for part in target.elts if isinstance(target, ast.Tuple) else [target]:
                if isinstance(part, ast.Name):
                    yield part.id, node.lineno


def _reason(lines: list[str], at: int) -> str:
    """The comment above a line, or above those just before it."""
    at -= 1
    while at >= 0 and lines[at] and not lines[at].startswith("#"):
        at -= 1
    found: list[str] = []
    while at >= 0 and lines[at].startswith("#"):
        found.insert(0, lines[at].lstrip("#: "))
        at -= 1
    return " ".join(found)


def page() -> str:
    """The text of the page."""
    rows: dict[str, list[str]] = {title: [] for title in SECTIONS}
    for limit in limits():
        title = next(
            t for t, modules in SECTIONS.items() if re.fullmatch(modules, limit.module)
        )
        reason = limit.reason.replace("|", "\\|")
        rows[title].append(f"| `{limit.module}.{limit.name}` | {limit.value} | {reason} |")
    parts = [HEAD]
    for title, found in rows.items():
        parts.append("\n".join((f"## {title}", "", "| limit | value | why |", "|---|---|---|")))
        parts[-1] += "\n" + "\n".join(found) + "\n"
    return "\n".join(parts)


if __name__ == "__main__":
    bare = [f"{one.module}.{one.name}" for one in limits() if not one.reason]
    if bare:
        sys.exit(f"without a reason: {', '.join(bare)}")
    PAGE.write_text(page())
