"""Measured durations of forwards by size, and the smallest batch with nearly the best throughput. Pure.

Batching lowers the cost per row up to some size; beyond it, more rows only make all wait longer and take memory. So the
largest size that may be chosen starts at one evaluation and doubles while the throughput grows.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from statistics import median_low

KEYS_KEPT = 256
"""How many curves are kept."""
SIZES_KEPT = 64
"""Of how many sizes durations are kept, per curve."""
MEASURED = 3
"""How many durations the largest size needs before it counts as no better than smaller ones."""
LATEST = 5
"""The median of this many durations is taken, so that a single disturbance does not count."""
KEPT = 0.98
"""The share of the best throughput that the chosen size has at least."""
GROWS = 1.2
"""How many times the throughput of half the size one measurement must show for larger ones to be tried at once."""
SHORTEST_S = 1e-9
"""A clock may not have moved within a forward."""
AGAIN = 64
"""After this many smaller forwards one is of the largest size tried, so that this size is measured again."""


@dataclass(slots=True)
class _Curve:
    """durations: the latest, in seconds, by size. smaller: forwards since the last of the largest possible size."""

    durations: dict[int, deque[float]] = field(default_factory=dict)
    smaller: int = 0

    def rate(self, size: int) -> float:
        """Return the throughput of a size, interpolated between measured durations; 0 where it is unknown."""
        known = sorted(self.durations)
        at = bisect_left(known, size)
        if at == len(known) or (at == 0 and known[0] != size):
            return 0.0
        above = median_low(self.durations[known[at]])
        if known[at] == size:
            return size / above
        low, high = known[at - 1], known[at]
        below = median_low(self.durations[low])
        return size / (below + (above - below) * (size - low) / (high - low))

    def limit(self) -> int:
        """Return the largest size to try: twice the largest measured one while the throughput grows, else that one."""
        largest = max(self.durations)
        # Sizes in between are too near for growth to show.
        smaller = [size for size in self.durations if 2 * size <= largest]
        count = len(self.durations[largest])
        if not smaller:
            # A network's first forward may be slow: it compiles, and packs weights.
            grows = count > 1
        else:
            best = max(map(self.rate, smaller))
            # The slowest counts: disturbances of a few forwards are as large as the gain, and every row takes memory.
            slowest = largest / max(self.durations[largest])
            grows = self.rate(largest) >= GROWS * best or (count >= MEASURED and slowest * KEPT > best)
        return 2 * largest if grows else largest

    def is_settled(self, size: int) -> bool:
        """Whether enough is known of a size to choose a smaller one."""
        durations = self.durations.get(size)
        return self.rate(size) > 0 if durations is None else len(durations) >= MEASURED


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
        durations.append(max(seconds, SHORTEST_S))
        curve.durations[size] = durations
        if len(curve.durations) > SIZES_KEPT:
            del curve.durations[next(iter(curve.durations))]

    def enough(self, key: Hashable, sizes: Sequence[int]) -> int:
        """Return the number, from 1, of the smallest of rising sizes that has nearly the best throughput.

        Only sizes up to the curve's limit are compared; the largest of those is chosen where its throughput is unknown.
        """
        curve = self._curves.get(key)
        if curve is None:
            return 1
        most = max(1, bisect_right(sizes, curve.limit()))
        if most == 1:
            return 1
        if not curve.is_settled(sizes[most - 1]) or curve.smaller >= AGAIN:
            curve.smaller = 0
            return most
        rates = [curve.rate(size) for size in sizes[:most]]
        taken = next(number for number, rate in enumerate(rates, 1) if rate >= KEPT * max(rates))
        curve.smaller = curve.smaller + 1 if taken < most else 0
        return taken
