"""Measured durations of forwards by size, and the smallest batch with nearly the best throughput. Pure.

Batching lowers the cost per row up to some size; beyond it, more rows only make all wait longer. Sizes get measured as
jobs come and go; where the curve is unknown the batch is not made smaller.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from statistics import median

KEYS_KEPT = 256
"""How many curves are kept."""
SIZES_KEPT = 64
"""Of how many sizes durations are kept, per curve."""
MEASURED = 3
"""How many durations of a size are needed before it counts."""
LATEST = 5
"""The median of this many durations is taken, so that a single disturbance does not count."""
KEPT = 0.98
"""The share of the best throughput that the chosen size has at least."""
AGAIN = 64
"""After this many smaller forwards one is as large as possible, so that this size is measured again."""


@dataclass(slots=True)
class _Curve:
    """durations: the latest, in seconds, by size. smaller: forwards since the last of the largest possible size."""

    durations: dict[int, deque[float]] = field(default_factory=dict)
    smaller: int = 0

    def seconds(self, size: int) -> float | None:
        """Return the seconds of a size, interpolated between measured ones; None where that is not known."""
        known = sorted(size for size, durations in self.durations.items() if len(durations) >= MEASURED)
        at = bisect_left(known, size)
        if at == len(known) or (at == 0 and known[0] != size):
            return None
        above = median(self.durations[known[at]])
        if known[at] == size:
            return above
        low, high = known[at - 1], known[at]
        below = median(self.durations[low])
        return below + (above - below) * (size - low) / (high - low)


class Curves:
    """The curves of forwards, by key."""

    def __init__(self) -> None:
        self._curves: dict[Hashable, _Curve] = {}

    def took(self, key: Hashable, size: int, seconds: float) -> None:
        """Add a measured forward."""
        curve = self._curves.pop(key, None) or _Curve()
        self._curves[key] = curve
        if len(self._curves) > KEYS_KEPT:
            del self._curves[next(iter(self._curves))]
        durations = curve.durations.pop(size, None) or deque(maxlen=LATEST)
        durations.append(seconds)
        curve.durations[size] = durations
        if len(curve.durations) > SIZES_KEPT:
            del curve.durations[next(iter(curve.durations))]

    def enough(self, key: Hashable, sizes: Sequence[int]) -> int:
        """Return the number, from 1, of the smallest of rising sizes that has nearly the best throughput.

        Where the curve is not known it is the last.
        """
        curve = self._curves.get(key)
        if curve is None or len(sizes) == 1:
            return len(sizes)
        seconds = [curve.seconds(size) for size in sizes]
        if not seconds[-1] or curve.smaller >= AGAIN:
            curve.smaller = 0
            return len(sizes)
        rates = [size / took if took else 0.0 for size, took in zip(sizes, seconds, strict=True)]
        taken = next(number for number, rate in enumerate(rates, 1) if rate >= KEPT * max(rates))
        curve.smaller = curve.smaller + 1 if taken < len(sizes) else 0
        return taken
