"""How much work one forward may hold: as configured, as the device has room for, and less where it has run out of it.

Work is counted in latent cells, by which a forward's memory grows. How many bytes a cell takes is learned from forwards
that were measured. Pure: it is told what failed, what was answered and what that took.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

from serve_app.engine.memory import CELL_BYTES

KEYS_KEPT = 256
"""Of how many kinds of forwards it is remembered what they may hold."""

GROWS_AFTER = 500
"""After so many forwards at a lowered limit, a little more is tried: memory may have come free."""

MEASURED = 8
"""Of how many forwards of a key it is remembered what they took. What others took beside one passes with it."""


@dataclass(slots=True)
class _Learned:
    """limit: what may be tried; good: the most that has been answered; forwards: answered since either changed.

    taken: cells and bytes of those that were measured.
    """

    limit: int
    good: int = 0
    forwards: int = 0
    taken: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=MEASURED))

    def points(self) -> list[tuple[int, int]]:
        """Return cells and the bytes that so many take, both rising, from none on."""
        latest = sorted(dict(self.taken).items())
        most = accumulate((taken for _, taken in latest), max)
        return [(0, 0), *((cells, taken) for (cells, _), taken in zip(latest, most, strict=True))]


class Budget:
    """The most cells of a forward, by the key of what runs it.

    max_cells: of every one. cell_bytes: what a cell is taken to need before any was measured.
    """

    def __init__(self, max_cells: int, cell_bytes: int = CELL_BYTES) -> None:
        self.max_cells = max_cells
        self._cell_bytes = cell_bytes
        self._learned: dict[Hashable, _Learned] = {}

    def limit(self, key: Hashable, room_bytes: int | None = None) -> int:
        """Return how many cells a forward may hold now, with so much room on the device; None: nobody knows."""
        learned = self._learned.get(key) or _Learned(self.max_cells)
        most = min(self.max_cells, learned.limit)
        if room_bytes is None:
            return most
        room_bytes = max(0, room_bytes)
        return min(most, _cells_in(room_bytes, learned.points()) if learned.taken else room_bytes // self._cell_bytes)

    def needs(self, key: Hashable, cells: int) -> int | None:
        """Return how many bytes so many cells will take; None before any were measured."""
        learned = self._learned.get(key)
        return None if learned is None or not learned.taken else _bytes_of(cells, learned.points())

    def expects(self, key: Hashable, cells: int) -> int:
        """Return how many bytes so many cells are taken to need, measured or not."""
        needed = self.needs(key, cells)
        return cells * self._cell_bytes if needed is None else needed

    def failed(self, key: Hashable, cells: int) -> None:
        """Note that so many cells did not fit: the limit is halved, but not below what has fit.

        Below `max_cells` it is in any case, of which a batch may have more.
        """
        learned = self._use(key)
        if learned.good >= cells:
            # It has fit once and does no longer: other weights have taken the memory.
            learned.good = 0
        learned.limit, learned.forwards = min(max(cells // 2, learned.good), self.max_cells - 1), 0

    def answered(self, key: Hashable, cells: int, taken_bytes: int | None = None) -> None:
        """Note that so many cells did fit, and took so much: after many such a lowered limit grows by an eighth."""
        learned = self._use(key)
        learned.good = max(learned.good, cells)
        learned.forwards += 1
        if taken_bytes:
            learned.taken.append((cells, taken_bytes))
        if learned.limit < self.max_cells and learned.forwards >= GROWS_AFTER:
            learned.limit, learned.forwards = learned.limit + max(1, learned.limit // 8), 0

    def _use(self, key: Hashable) -> _Learned:
        learned = self._learned.pop(key, None) or _Learned(self.max_cells)
        self._learned[key] = learned
        if len(self._learned) > KEYS_KEPT:
            del self._learned[next(iter(self._learned))]
        return learned


def _bytes_of(cells: int, points: list[tuple[int, int]]) -> int:
    """Return what cells take by the points beside them: on the line between two, beyond the last as many bytes each."""
    for (less, less_bytes), (more, more_bytes) in pairwise(points):
        if cells <= more:
            return less_bytes - (less - cells) * (more_bytes - less_bytes) // (more - less)
    last, last_bytes = points[-1]
    return -(-cells * last_bytes // last)


def _cells_in(room_bytes: int, points: list[tuple[int, int]]) -> int:
    """Return how many cells so many bytes have room for; `_bytes_of`, turned round."""
    for (less, less_bytes), (more, more_bytes) in pairwise(points):
        if room_bytes < more_bytes:
            return less + (room_bytes - less_bytes) * (more - less) // (more_bytes - less_bytes)
    last, last_bytes = points[-1]
    return room_bytes * last // last_bytes
