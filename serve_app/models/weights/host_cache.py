"""Which copies of weights stay in host memory: a share of each part that takes turns, within a budget of bytes. Pure.

Where more models take turns than fit, evicting the least recently used discards exactly the one that is wanted next,
and none is ever found. So each keeps as large a share as the others. A part that is out of turn goes first. Next go
copies of parts that are on the GPU: they can be copied again as those are evicted.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

TURNS = 2
"""A part is out of turn once all others could have been evicted more often than this since it was."""


@dataclass(slots=True, eq=False)
class HostCopy:
    """The copy of one part in chunks of the given bytes, of which the first `present` are in host memory.

    required: how many of the first are needed if it is to return at all, as no file has their numbers. fixed_bytes: of
    host memory that it takes besides as long as it is evicted. on_gpu: the part is there too. used: the number of its
    last eviction.
    """

    key: Hashable
    sizes: Sequence[int]
    required: int
    fixed_bytes: int
    present: int = 0
    on_gpu: bool = False
    used: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the chunks that are there."""
        return sum(self.sizes[: self.present])

    @property
    def smaller(self) -> int | None:
        """How many chunks are left once one goes; None where all go with it."""
        left = self.present - 1
        is_some_use = left > 0 or (left == 0 and self.fixed_bytes > 0 and not self.on_gpu)
        return left if is_some_use and left >= self.required else None

    @property
    def smaller_share(self) -> float:
        """What share of the part is left once a chunk goes."""
        if (left := self.smaller) is None:
            return 0
        return (self.fixed_bytes + sum(self.sizes[:left])) / (self.fixed_bytes + sum(self.sizes))


class HostCache:
    """The copies. beside: returns how many bytes of the budget something else takes.

    shrunk: called with a copy that has lost a chunk, and with one that is gone, which has none and is not found.
    """

    def __init__(
        self,
        budget_bytes: int,
        beside: Callable[[], int] = lambda: 0,
        shrunk: Callable[[HostCopy], object] = lambda copy: None,
    ) -> None:
        self.budget_bytes = budget_bytes
        self._beside = beside
        self._shrunk = shrunk
        self._copies: dict[Hashable, HostCopy] = {}
        self._evictions = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the budget in use. It may be read at any time."""
        return sum(copy.nbytes for copy in [*self._copies.values()]) + self._beside()

    def __contains__(self, key: object) -> bool:
        return key in self._copies

    def evict(self, key: Hashable, sizes: Sequence[int], required: int = 0, fixed_bytes: int = 0) -> HostCopy | None:
        """Return the copy of a part that is evicted, with as many chunks as it may have; None if it is not kept."""
        self._evictions += 1
        if (copy := self._copies.get(key)) is None:
            copy = self._copies[key] = HostCopy(key, sizes, required, fixed_bytes)
        copy.present, copy.on_gpu, copy.used = len(sizes), False, self._evictions
        self.make_room(0)
        return self._copies.get(key)

    def take(self, key: Hashable) -> HostCopy | None:
        """Return the copy of a part that returns to the GPU, where it stays too; None if there is none."""
        if (copy := self._copies.get(key)) is not None:
            copy.on_gpu = True
        return copy

    def limit(self, copy: HostCopy, present: int) -> None:
        """Have a copy keep at most the first chunks."""
        while copy.key in self._copies and copy.present > present:
            self._shrink(copy)

    def forget(self, key: Hashable) -> None:
        """Remove the copy of a part, if there is one, without a call of `shrunk`."""
        self._copies.pop(key, None)

    def make_room(self, nbytes: int) -> None:
        """Have copies give way until `nbytes` more fit, or none is left."""
        while self._copies and self.nbytes + nbytes > self.budget_bytes:
            self._shrink(self._next())

    def _next(self) -> HostCopy:
        """Return the copy that gives way next."""
        copies = [*self._copies.values()]
        oldest = min(copies, key=lambda copy: copy.used)
        if self._evictions - oldest.used > TURNS * len(copies):
            return oldest
        if on_gpu := [copy for copy in copies if copy.on_gpu]:
            # The one that was back last is likely to be evicted last.
            return max(on_gpu, key=lambda copy: copy.used)
        return max(copies, key=lambda copy: (copy.smaller_share, copy.used))

    def _shrink(self, copy: HostCopy) -> None:
        left = copy.smaller
        copy.present = left or 0
        if left is None:
            del self._copies[copy.key]
        self._shrunk(copy)
