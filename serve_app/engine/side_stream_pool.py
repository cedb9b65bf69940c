"""The memory that a device keeps for what it is asked for beside forwards, which these cannot have.

torch's allocator keeps what a stream has given back for that stream alone. The two streams of a timeline so have a pool
each; weights and forwards share one. How much the other holds is measured, so that forwards are planned beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from serve_app.engine.memory import Beside, Memory


class BesidePool:
    """That pool of one device. memory: the device's, if it can be asked; beside: what is held there."""

    def __init__(self, memory: Memory | None = None, beside: Beside | None = None) -> None:
        self._memory = memory
        self._beside = beside
        self._most = 0

    @property
    def nbytes(self) -> int:
        """How much it holds that is not in use: the most that a call took at once, or less if less is kept at all."""
        return 0 if self._memory is None else min(self._most, self._memory.cached_bytes())

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Learn what is taken inside. Where weights are loaded meanwhile it is not known how much that is."""
        if (memory := self._memory) is None:
            yield
            return
        loading = self._loading
        memory.watch()
        held = memory.held_bytes()
        try:
            yield
        finally:
            if not (loading or self._loading):
                self._most = max(self._most, memory.peak_bytes() - held)

    def let_go(self) -> bool:
        """Give back what it holds, and return whether that was anything. It waits for the device."""
        if self._memory is None or not self.nbytes:
            return False
        self._memory.empty()
        self.note_empty()
        return True

    def note_empty(self) -> None:
        """Note that all that was kept has been given back."""
        self._most = 0

    @property
    def _loading(self) -> bool:
        return self._beside is not None and self._beside.reserved_bytes > 0
