"""When a device has done what it was asked for. A GPU is asked ahead of its work, so the host's clock does not tell.

A mark stands behind all that was asked for before it. On a CPU that is done by then; on a GPU an event of its stream
says when, and what passed between two events is the device's own time.
"""

from __future__ import annotations

from time import perf_counter
from typing import Any, Protocol

import torch


class Mark(Protocol):
    """A place in what a device is asked for. asked_s: when the host came by it, on the host's clock."""

    @property
    def asked_s(self) -> float: ...

    def done(self) -> bool:
        """Whether the device has come to it."""
        ...

    def wait(self) -> None:
        """Wait until the device has come to it. Errors: those of what it was asked for before."""
        ...

    def since(self, earlier: Mark) -> float:
        """Return the seconds that passed on the device from an earlier mark of its timeline; both are done."""
        ...


class Timeline(Protocol):
    """What one device is asked for, in order."""

    def mark(self) -> Mark:
        """Return a mark behind all that it has been asked for by now."""
        ...


def timeline_of(device: torch.device) -> Timeline:
    """Return the timeline of a device, as the thread that calls `mark` asks it."""
    return _CudaTimeline(device) if device.type == "cuda" else HostTimeline()


class HostTimeline:
    """Of a device that does what it is asked for at once, as a CPU does."""

    def mark(self) -> Mark:
        """Return where the host's clock is."""
        return _HostMark()


class _HostMark:
    def __init__(self) -> None:
        self.asked_s = perf_counter()

    def done(self) -> bool:
        return True

    def wait(self) -> None:
        return None

    def since(self, earlier: Mark) -> float:
        return self.asked_s - earlier.asked_s


class _CudaTimeline:
    def __init__(self, device: torch.device) -> None:
        self._device = device

    def mark(self) -> Mark:
        return _CudaMark(self._device)


class _CudaMark:
    def __init__(self, device: torch.device) -> None:
        self.asked_s = perf_counter()
        # A blocking wait sleeps; another would keep a core, and the interpreter, busy.
        self._event: Any = torch.cuda.Event(enable_timing=True, blocking=True)  # type: ignore[no-untyped-call]
        self._event.record(torch.cuda.current_stream(device))

    def done(self) -> bool:
        return bool(self._event.query())

    def wait(self) -> None:
        self._event.synchronize()

    def since(self, earlier: Mark) -> float:
        assert isinstance(earlier, _CudaMark), earlier
        return float(earlier._event.elapsed_time(self._event)) / 1000
