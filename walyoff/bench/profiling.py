"""What a profiler saw, as rows that JSON can carry."""

from __future__ import annotations

import cProfile
import pstats
from pathlib import Path
from typing import Any

#: Functions that are told; the rest is not worth a line.
MOST = 40


def functions(profiler: cProfile.Profile) -> list[dict[str, Any]]:
    """The functions that took most of the time themselves, the greatest first.

    A profiled program is slower, and more so where it calls much: shares say where to look.
    """
    stats: dict[Any, Any] = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    rows = [
        {
            "name": _name(*place),
            "calls": calls,
            "own_s": round(own, 6),
            "total_s": round(total, 6),
        }
        for place, (_, calls, own, total, _) in stats.items()
    ]
    rows.sort(key=lambda row: -row["own_s"])
    return rows[:MOST]


def _name(file: str, line: int, function: str) -> str:
    if file == "~":
        return function.strip("<>")
    path = Path(file)
    # The package and the module, not where it is installed.
    return f"{'/'.join(path.parts[-3:])}:{line}({function})"
