"""Where noise for a device is drawn ahead of its use: in threads of their own, by a GPU in an order of its own.

A draw may be many calls of a GPU. Asked for between two forwards they would all stand in the way of the next, in the
thread that asks and on the stream that it asks. So a GPU draws on a stream beside that of forwards, which waits for a
draw, on the device, where it comes to use it.
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
"""How many draw; each draws in the order in which it is asked to."""


class Draws(Protocol):
    """What a device is asked to draw, in an order of its own."""

    def made(self, draw: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Have noise drawn for the device; return what hands it over, once, to what a thread asks the device for next.

        That begins after it, and has its memory until it is done. draw: uses nothing that was made elsewhere.
        """
        ...


class HostDraws:
    """Of a device that does what it is asked for at once, as a CPU does."""

    def made(self, draw: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Draw."""
        drawn = draw()
        return lambda: drawn


class CudaDraws:
    """Of a GPU: a stream."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # Forwards wait for it, so it has their priority.
        self._stream: Any = torch.cuda.Stream(device, priority=self._current.priority)  # type: ignore[no-untyped-call]

    def made(self, draw: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Draw on the stream, and mark with an event where it is done."""
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
    """Return the thread that draws for one run: they take turns."""
    return next(_threads())


@cache
def _threads() -> Iterator[Executor]:
    return cycle([ThreadPoolExecutor(1, "noise") for _ in range(THREADS)])
