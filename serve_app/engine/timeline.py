"""Streams of a device, and marks in them that say when it has done the work enqueued before and how long that took.

A GPU runs asynchronously: a mark is an event of its stream, and the time between two events is the device's own. On a
CPU all work is done by the time it has been enqueued.

An engine has two streams of a GPU: the main stream of forwards, and a side stream of lower priority for texts, images
and previews. Work on the side stream waits for everything that was enqueued on the main stream before it. Forwards
never wait for the side stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from time import perf_counter
from typing import Any, Protocol

import torch
from torch import Tensor


class Mark(Protocol):
    """A place in a stream. enqueued_s: when the host enqueued it, on the host's clock."""

    @property
    def enqueued_s(self) -> float: ...

    def done(self) -> bool:
        """Whether the device has reached it."""
        ...

    def wait(self) -> None:
        """Wait until the device has reached it. Errors: those of the work before it."""
        ...

    def since(self, earlier: Mark) -> float:
        """Return the seconds that passed on the device since an earlier mark of its timeline; both are done."""
        ...


class Timeline(Protocol):
    """A stream of one device: its work in order."""

    @property
    def at_once(self) -> bool:
        """Whether work is done by the time it has been enqueued, as on a CPU."""
        ...

    @property
    def side_stream(self) -> Timeline | None:
        """The stream of lower priority for work that no forward depends on; None where the device has one stream."""
        ...

    def enqueueing(self) -> AbstractContextManager[None]:
        """Enqueue this thread's work on this stream.

        A side stream first waits for everything already enqueued on the main stream. Tensors made inside are only valid
        on this stream or on the host.
        """
        ...

    def keep(self, tensor: Tensor) -> None:
        """Keep the memory of a tensor of another stream until the work enqueued by now is done."""
        ...

    def mark(self) -> Mark:
        """Return a mark after all work enqueued by now."""
        ...


def timeline_of(device: torch.device) -> Timeline:
    """Return the timeline of a device."""
    return _CudaTimeline(device) if device.type == "cuda" else HostTimeline()


class HostTimeline:
    """The stream of a device that does its work at once, as a CPU does."""

    at_once = True
    side_stream = None

    def enqueueing(self) -> AbstractContextManager[None]:
        """Return a context that does nothing: there is one stream."""
        return nullcontext()

    def keep(self, tensor: Tensor) -> None:
        """Do nothing: all work that uses it is done."""

    def mark(self) -> Mark:
        """Return the time on the host's clock."""
        return _HostMark()


class _HostMark:
    def __init__(self) -> None:
        self.enqueued_s = perf_counter()

    def done(self) -> bool:
        return True

    def wait(self) -> None:
        return None

    def since(self, earlier: Mark) -> float:
        return self.enqueued_s - earlier.enqueued_s


FORWARDS, SIDE = -1, 0
"""Priorities of streams; the lower number goes first."""


class _CudaTimeline:
    """A stream of a GPU. main: the stream that it waits for, if it is a side stream."""

    at_once = False

    def __init__(self, device: torch.device, main: _CudaTimeline | None = None) -> None:
        self._main = main
        self._stream: Any = torch.cuda.Stream(device, priority=FORWARDS if main is None else SIDE)  # type: ignore[no-untyped-call]
        self.side_stream = _CudaTimeline(device, self) if main is None else None

    @contextmanager
    def enqueueing(self) -> Iterator[None]:
        with torch.cuda.stream(self._stream):
            if self._main is not None:
                self._stream.wait_stream(self._main._stream)
            yield

    def keep(self, tensor: Tensor) -> None:
        tensor.record_stream(self._stream)

    def mark(self) -> Mark:
        return _CudaMark(self._stream)


class _CudaMark:
    def __init__(self, stream: Any) -> None:
        self.enqueued_s = perf_counter()
        # A blocking wait sleeps; another would keep a core, and the interpreter, busy.
        self._event: Any = torch.cuda.Event(enable_timing=True, blocking=True)  # type: ignore[no-untyped-call]
        self._event.record(stream)

    def done(self) -> bool:
        return bool(self._event.query())

    def wait(self) -> None:
        self._event.synchronize()

    def since(self, earlier: Mark) -> float:
        assert isinstance(earlier, _CudaMark), earlier
        return float(earlier._event.elapsed_time(self._event)) / 1000
