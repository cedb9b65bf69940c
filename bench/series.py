"""What a benchmark hands back: repeated figures of each contender, and ratios between contenders, pair by pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Series:
    """One figure measured repeatedly. benchmark, case, contender: what was measured, under which load, of whom."""

    benchmark: str
    case: str
    contender: str
    unit: str
    values: Sequence[float]

    @property
    def median(self) -> float:
        return median(self.values)


@dataclass(frozen=True)
class Ratio:
    """How two series compare. The i-th values were measured side by side, so noise that hits both cancels.

    target: what the median should be at least or at most, e.g. ">= 3"; empty where nothing is aimed at.
    """

    benchmark: str
    what: str
    values: Sequence[float]
    target: str = ""

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def met(self) -> bool | None:
        """Whether the median meets the target; None without one."""
        if not self.target:
            return None
        sign, bound = self.target.split()
        return self.median >= float(bound) if sign == ">=" else self.median <= float(bound)


def ratio(benchmark: str, what: str, above: Series, below: Series, target: str = "") -> Ratio:
    """Return above ÷ below, round by round."""
    return Ratio(benchmark, what, [a / b for a, b in zip(above.values, below.values, strict=True)], target)
