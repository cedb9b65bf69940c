"""The most latent cells of a forward: as configured, as the device has memory for, and fewer where it ran out of it.

A forward's memory grows with its latent cells. How many bytes a cell takes is learned from measured forwards. Pure: it
gets outcomes and measurements, and measures nothing. Before the first, a cell takes what was planned for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

from serve_app.models.weights.memory_plan import CELL_BYTES

KEYS_KEPT = 256
"""Of how many keys the limit is kept."""

GROWS_AFTER = 500
"""After this many forwards at a lowered limit, a little more is tried: memory may have been freed."""

MEASURED = 8
"""How many measurements of a key are kept. One that included other work's memory is forgotten with time."""


@dataclass(slots=True)
class _Learned:
    """limit: the most cells to try; good: the most that have fit; forwards: answered since either changed.

    cell_bytes: planned for a cell. taken: (cells, bytes) of the latest measured forwards.
    """

    limit: int
    cell_bytes: int
    good: int = 0
    forwards: int = 0
    taken: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=MEASURED))

    def points(self) -> list[tuple[int, int]]:
        """Return (cells, bytes that they take), both rising, from (0, 0)."""
        latest = sorted(dict(self.taken).items())
        most = accumulate((taken for _, taken in latest), max)
        return [(0, 0), *((cells, taken) for (cells, _), taken in zip(latest, most, strict=True))]


class Budget:
    """The most cells of a forward, by key: the network and how it groups rows.

    max_cells: of any forward. cell_bytes: assumed per cell where no forward was measured or planned.
    """

    def __init__(self, max_cells: int, cell_bytes: int = CELL_BYTES) -> None:
        self.max_cells = max_cells
        self._cell_bytes = cell_bytes
        self._learned: dict[Hashable, _Learned] = {}

    def limit(self, key: Hashable, room_bytes: int | None = None) -> int:
        """Return how many cells a forward may hold. room_bytes: free on the device; None: unknown."""
        learned = self._learned.get(key) or self._nothing_learned()
        most = min(self.max_cells, learned.limit)
        if room_bytes is None:
            return most
        room_bytes = max(0, room_bytes)
        return min(most, _cells_in(room_bytes, learned.points()) if learned.taken else room_bytes // learned.cell_bytes)

    def plan(self, key: Hashable, cell_bytes: int) -> None:
        """Set the bytes of a cell until forwards are measured."""
        self._use(key).cell_bytes = cell_bytes

    def needs(self, key: Hashable, cells: int) -> int | None:
        """Return how many bytes `cells` will take; None before any forward was measured."""
        learned = self._learned.get(key)
        return None if learned is None or not learned.taken else _bytes_of(cells, learned.points())

    def expects(self, key: Hashable, cells: int) -> int:
        """Return how many bytes `cells` are expected to take, measured or not."""
        needed = self.needs(key, cells)
        learned = self._learned.get(key) or self._nothing_learned()
        return cells * learned.cell_bytes if needed is None else needed

    def failed(self, key: Hashable, cells: int) -> None:
        """Note that `cells` did not fit: the limit becomes half of them, but not less than what has fit.

        It is below `max_cells` then, also where a batch of one request had more.
        """
        learned = self._use(key)
        if learned.good >= cells:
            # It has fit before: other weights have taken the memory.
            learned.good = 0
        learned.limit, learned.forwards = min(max(cells // 2, learned.good), self.max_cells - 1), 0

    def answered(self, key: Hashable, cells: int, taken_bytes: int | None = None) -> None:
        """Note that `cells` fit and took `taken_bytes`. A lowered limit grows after GROWS_AFTER forwards."""
        learned = self._use(key)
        learned.good = max(learned.good, cells)
        learned.forwards += 1
        if taken_bytes:
            learned.taken.append((cells, taken_bytes))
        if learned.limit < self.max_cells and learned.forwards >= GROWS_AFTER:
            learned.limit, learned.forwards = learned.limit + max(1, learned.limit // 8), 0

    def _use(self, key: Hashable) -> _Learned:
        learned = self._learned.pop(key, None) or self._nothing_learned()
        self._learned[key] = learned
        if len(self._learned) > KEYS_KEPT:
            del self._learned[next(iter(self._learned))]
        return learned

    def _nothing_learned(self) -> _Learned:
        return _Learned(self.max_cells, self._cell_bytes)


def _bytes_of(cells: int, points: list[tuple[int, int]]) -> int:
    """Return the bytes of cells: interpolated between points, beyond the last in proportion."""
    for (less, less_bytes), (more, more_bytes) in pairwise(points):
        if cells <= more:
            return less_bytes - (less - cells) * (more_bytes - less_bytes) // (more - less)
    last, last_bytes = points[-1]
    return -(-cells * last_bytes // last)


def _cells_in(room_bytes: int, points: list[tuple[int, int]]) -> int:
    """Return how many cells fit `room_bytes`: the inverse of `_bytes_of`."""
    for (less, less_bytes), (more, more_bytes) in pairwise(points):
        if room_bytes < more_bytes:
            return less + (room_bytes - less_bytes) * (more - less) // (more_bytes - less_bytes)
    last, last_bytes = points[-1]
    return room_bytes * last // last_bytes
