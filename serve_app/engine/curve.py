"""What a forward takes by its size, as it was measured, and how large one need be. Pure: it is told durations.

Large forwards cost less a row up to some size, and beyond it next to nothing is gained: who else goes with them only
makes all wait longer. Sizes come to be measured as jobs come and go; one that was not is not taken for less.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from statistics import median

KEYS_KEPT = 256
"""Of how many kinds of forwards it is remembered what they take."""
SIZES_KEPT = 64
"""Of how many sizes of one."""
MEASURED = 3
"""How often a size was measured before it counts."""
LATEST = 5
"""Of how many durations the median is taken: what happens once beside a forward does not count."""
KEPT = 0.98
"""How much of the best throughput the size that is taken has at least."""
AGAIN = 64
"""After so many forwards that are smaller than could be, one is as large as can be, so that it is measured again."""


@dataclass(slots=True)
class _Curve:
    """durations: the latest, in seconds, by size. smaller: forwards since the last that was as large as could be."""

    durations: dict[int, deque[float]] = field(default_factory=dict)
    smaller: int = 0

    def seconds(self, size: int) -> float | None:
        """Return what a size takes, also between two that were measured; None where that is not known."""
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
    """The curve of each kind of forward."""

    def __init__(self) -> None:
        self._curves: dict[Hashable, _Curve] = {}

    def took(self, key: Hashable, size: int, seconds: float) -> None:
        """Note what a forward of a size took."""
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
        """Return which of sizes that a forward may have, growing, is taken: the smallest with nearly all throughput.

        It is counted from 1, and the last where the curve does not say.
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
