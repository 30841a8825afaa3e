"""Figures: every repetition, median and spread, and how many times slower than another.

A figure is a number with a name that ends in its unit. What ends in `_per_s` is better when
it is larger; everything else is better when it is smaller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

#: Significant digits: more would be noise.
_DIGITS = 4


def rounded(value: float) -> float:
    """With four significant digits."""
    return float(f"{value:.{_DIGITS}g}")


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Median, least, greatest and all values of a figure, in the order of the repetitions."""
    return {
        "median": rounded(median(values)),
        "min": rounded(min(values)),
        "max": rounded(max(values)),
        "all": [rounded(value) for value in values],
    }


def is_rate(name: str) -> bool:
    """True if more is better."""
    return name.endswith("_per_s")


def slower(name: str, own: float, other: float) -> float:
    """How many times slower (or larger) our figure is than another one: below 1 is better."""
    numerator, denominator = (other, own) if is_rate(name) else (own, other)
    return numerator / denominator if denominator else 0.0


class Figures:
    """The figures of one measurement, by system and name."""

    def __init__(self) -> None:
        self._values: dict[str, dict[str, list[float]]] = {}

    def add(self, system: str, figures: Mapping[str, float]) -> None:
        """One repetition of a system."""
        for name, value in figures.items():
            self._values.setdefault(system, {}).setdefault(name, []).append(float(value))

    def systems(self) -> list[str]:
        """Those that were measured."""
        return list(self._values)

    def of(self, system: str) -> dict[str, Any]:
        """The summaries of a system."""
        return {name: summary(values) for name, values in self._values.get(system, {}).items()}

    def ratios(self, own: str, other: str) -> dict[str, Any]:
        """How many times slower `own` is, repetition by repetition.

        The two of a repetition ran one right after the other, so what slowed both cancels.
        """
        found: dict[str, Any] = {}
        theirs = self._values.get(other, {})
        for name, values in self._values.get(own, {}).items():
            pairs = [
                slower(name, a, b)
                for a, b in zip(values, theirs.get(name, []), strict=False)
                if a and b
            ]
            if pairs:
                found[name] = summary(pairs)
        return found


def table(value: Mapping[str, Any]) -> str:
    """A result for people: one line for each figure."""
    others: Mapping[str, Any] = value.get("versus", {})
    ratios: Mapping[str, Any] = value.get("ratios", {})
    head = ["", "median", "min", "max"]
    for name in others:
        short = name.rpartition("/")[2]
        head += [short, f"x {short}"]
    rows = [head]
    for name, figure in value.items():
        if not isinstance(figure, Mapping) or "median" not in figure:
            continue
        row = [name, *(f"{figure[key]:g}" for key in ("median", "min", "max"))]
        for other in others:
            there = others[other].get(name)
            ratio = ratios.get(other, {}).get(name)
            row.append(f"{there['median']:g}" if there else "")
            row.append(f"{ratio['median']:.2f}" if ratio else "")
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
