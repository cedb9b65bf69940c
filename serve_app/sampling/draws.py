"""Draws noise ahead of its use, in threads of its own and on a CUDA stream of its own.

A draw may launch many kernels. Between two forwards they would delay the next one, on the calling thread and on its
stream. So a GPU draws on a side stream, and the forward's stream waits for the draw where it uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import cache
from itertools import cycle
from typing import Any, Protocol

import torch
from torch import Tensor

THREADS = 2
"""Number of drawing threads; each draws in the order of its requests."""


class Draws(Protocol):
    """Draws noise for a device, in order."""

    def made(self, draw: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Draw noise for the device; return a function that hands it over, once, to the calling thread's work.

        That work then starts after the draw on the device, and owns its memory. draw: uses no tensor made elsewhere.
        """
        ...


class HostDraws:
    """Draws of a device that computes synchronously, such as a CPU."""

    def made(self, draw: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Draw at once."""
        drawn = draw()
        return lambda: drawn


class CudaDraws:
    """Draws of a GPU, on a stream of their own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # Same priority as forwards, which wait for it.
        self._stream: Any = torch.cuda.Stream(device, priority=self._current.priority)  # type: ignore[no-untyped-call]

    def made(self, draw: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Draw on the stream, and record an event after it."""
        with torch.cuda.stream(self._stream):
            drawn = draw()
        event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self._stream)

        def hand_over() -> Tensor:
            current = self._current
            current.wait_event(event)
            drawn.record_stream(current)
            return drawn

        return hand_over

    @property
    def _current(self) -> Any:
        return torch.cuda.current_stream(self._device)


@cache
def draws_of(device: torch.device) -> Draws:
    """Return the draws of a device."""
    return CudaDraws(device) if device.type == "cuda" else HostDraws()


def thread() -> Executor:
    """Return the thread that draws for a run; runs are assigned to threads in turn."""
    return next(drawing_threads())


@cache
def drawing_threads() -> Iterator[Executor]:
    """Return the threads that draw, in an endless turn."""
    return cycle([ThreadPoolExecutor(1, "noise") for _ in range(THREADS)])
