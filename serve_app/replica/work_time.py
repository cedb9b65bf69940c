"""The time that a task takes, without waiting for weights to load, which is measured separately."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter


class WorkTime:
    """A stopwatch that runs from its creation, and is paused while any node of the task waits for weights."""

    def __init__(self) -> None:
        self._began_s = perf_counter()
        self._waiting = 0
        self._waits_since_s = 0.0

    @property
    def seconds(self) -> float:
        """The measured time."""
        return (self._waits_since_s if self._waiting else perf_counter()) - self._began_s

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Pause inside the context."""
        if not self._waiting:
            self._waits_since_s = perf_counter()
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._began_s += perf_counter() - self._waits_since_s
