"""Which weights are evicted first: those that were used least, lately rather than long ago.

Least recently and frequently used (Lee et al., IEEE Trans. Computers 2001), with time in pieces of work: each weighs
more than the one before by the same factor. Uses are remembered of what is not held, too. So two files that take turns
for want of room come to be used more than one that was much used once, and is not any more, after at most twice as many
loads as that has uses to be remembered. It knows neither sizes nor what weights are.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

KEPT = 0.995
"""What a use weighs, of what one of the next piece of work does."""
LEAST = 0.01
"""What is used less than this share of one use now may be forgotten."""


class Uses(Generic[K]):
    """How often things were used, lately."""

    def __init__(self) -> None:
        self._counts: dict[K, float] = {}
        self._weight = 1.0

    def __len__(self) -> int:
        """Return of how many things use is remembered."""
        return len(self._counts)

    def add(self, keys: Iterable[K]) -> None:
        """Take in what one piece of work uses."""
        self._weight /= KEPT
        for key in keys:
            self._counts[key] = self._counts.get(key, 0.0) + self._weight
        if self._weight > 1 / LEAST:
            counts = {key: count / self._weight for key, count in self._counts.items()}
            self._counts = {key: count for key, count in counts.items() if count >= LEAST}
            self._weight = 1.0

    def least_first(self, keys: Iterable[K]) -> list[K]:
        """Return some things by how much they were used, least first, and else as given."""
        return sorted(keys, key=lambda key: self._counts.get(key, 0.0))
