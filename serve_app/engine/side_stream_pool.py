"""The memory pool of the side stream, which forwards cannot use.

torch's allocator keeps freed memory for the stream that used it. So the two streams have a pool each; weights and
forwards share that of the main stream. The size of the side stream's pool is measured, and forwards are planned around
it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from serve_app.engine.memory import EvictableWeights, Memory


class SideStreamPool:
    """The side stream's pool of one device. memory: the device's, if known. weights: those that are loading count."""

    def __init__(self, memory: Memory | None = None, weights: EvictableWeights | None = None) -> None:
        self._memory = memory
        self._weights = weights
        self._most = 0

    @property
    def nbytes(self) -> int:
        """How many bytes it keeps for later: the most that a call took at once, but no more than all streams keep."""
        return 0 if self._memory is None else min(self._most, self._memory.cached_bytes())

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Measure the memory that work inside takes, unless weights are loaded meanwhile."""
        if (memory := self._memory) is None:
            yield
            return
        loading = self._loading
        memory.watch()
        held = memory.allocated_bytes()
        try:
            yield
        finally:
            if not (loading or self._loading):
                self._most = max(self._most, memory.peak_bytes() - held)

    def empty(self) -> bool:
        """Give its memory back to the device; return whether there was any. It waits for the device."""
        if self._memory is None or not self.nbytes:
            return False
        self._memory.empty()
        self.note_empty()
        return True

    def note_empty(self) -> None:
        """Note that the pool was emptied by somebody else."""
        self._most = 0

    @property
    def _loading(self) -> bool:
        return self._weights is not None and self._weights.reserved_bytes > 0
