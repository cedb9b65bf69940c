"""How long a task takes, but for what it waits while weights are loaded for it: that is learned apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter


class WorkTime:
    """A clock that runs from its making on, and stands still while any node of the task waits for weights."""

    def __init__(self) -> None:
        self._began_s = perf_counter()
        self._waiting = 0
        self._waits_since_s = 0.0

    @property
    def seconds(self) -> float:
        """What has passed on it."""
        return (self._waits_since_s if self._waiting else perf_counter()) - self._began_s

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Stand still meanwhile."""
        if not self._waiting:
            self._waits_since_s = perf_counter()
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._began_s += perf_counter() - self._waits_since_s
