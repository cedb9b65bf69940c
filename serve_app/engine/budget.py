"""How much work one forward may hold: as configured, and less where the device has run out of memory.

Work is counted in latent cells, by which a forward's memory grows. Pure: it is told what failed and what was answered.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

KEYS_KEPT = 256
"""Of how many kinds of forwards it is remembered what they may hold."""

GROWS_AFTER = 500
"""After so many forwards at a lowered limit, a little more is tried: memory may have come free."""


@dataclass(slots=True)
class _Learned:
    """limit: what may be tried; good: the most that has been answered; forwards: answered since either changed."""

    limit: int
    good: int = 0
    forwards: int = 0


class Budget:
    """The most cells of a forward, by the key of what runs it. max_cells: of every one."""

    def __init__(self, max_cells: int) -> None:
        self._max_cells = max_cells
        self._learned: dict[Hashable, _Learned] = {}

    def limit(self, key: Hashable) -> int:
        """Return how many cells a forward may hold now."""
        learned = self._learned.get(key)
        return self._max_cells if learned is None else min(self._max_cells, learned.limit)

    def failed(self, key: Hashable, cells: int) -> None:
        """Note that so many cells did not fit: the limit is halved, but not below what has fit."""
        learned = self._use(key)
        if learned.good >= cells:
            # It has fit once and does no longer: other weights have taken the memory.
            learned.good = 0
        learned.limit, learned.forwards = max(cells // 2, learned.good), 0

    def answered(self, key: Hashable, cells: int) -> None:
        """Note that so many cells did fit: after many such forwards a lowered limit grows by an eighth."""
        learned = self._use(key)
        learned.good = max(learned.good, cells)
        learned.forwards += 1
        if learned.limit < self._max_cells and learned.forwards >= GROWS_AFTER:
            learned.limit, learned.forwards = learned.limit + max(1, learned.limit // 8), 0

    def _use(self, key: Hashable) -> _Learned:
        learned = self._learned.pop(key, None) or _Learned(self._max_cells)
        self._learned[key] = learned
        if len(self._learned) > KEYS_KEPT:
            del self._learned[next(iter(self._learned))]
        return learned
