"""When a device has done what it was asked for. A GPU is asked ahead of its work, so the host's clock does not tell.

A mark stands behind all that was asked for before it. On a CPU that is done by then; on a GPU an event of its stream
says when, and what passed between two events is the device's own time.

An engine has two streams of a GPU: one of forwards, and one beside it that has what they leave of it, for texts,
images and pictures. What is asked of the second comes after all that the first was asked for by then; nothing goes the
other way, so forwards never wait for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from time import perf_counter
from typing import Any, Protocol

import torch
from torch import Tensor


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

    @property
    def at_once(self) -> bool:
        """Whether the device has done what it is asked for by the time that it has been asked, as a CPU has."""
        ...

    @property
    def beside(self) -> Timeline | None:
        """What the device is asked for meanwhile, at a lower priority; None where it does all in one order."""
        ...

    def asked(self) -> AbstractContextManager[None]:
        """Have what this thread asks the device for inside be of it; as one beside another, after all of that by now.

        What is made inside is not to be used outside, but on the host.
        """
        ...

    def keep(self, tensor: Tensor) -> None:
        """Have a tensor made elsewhere keep its memory until what it has been asked for by now is done."""
        ...

    def mark(self) -> Mark:
        """Return a mark behind all that it has been asked for by now."""
        ...


def timeline_of(device: torch.device) -> Timeline:
    """Return the timeline of a device."""
    return _CudaTimeline(device) if device.type == "cuda" else HostTimeline()


class HostTimeline:
    """Of a device that does what it is asked for at once, as a CPU does."""

    at_once = True
    beside = None

    def asked(self) -> AbstractContextManager[None]:
        """Return a context without a meaning."""
        return nullcontext()

    def keep(self, tensor: Tensor) -> None:
        """Nothing uses it any more."""

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


FORWARDS, BESIDE = -1, 0
"""Priorities of streams; the lower number goes first."""


class _CudaTimeline:
    """A stream of a GPU. before: the one whose work goes first, if it is beside another."""

    at_once = False

    def __init__(self, device: torch.device, before: _CudaTimeline | None = None) -> None:
        self._before = before
        self._stream: Any = torch.cuda.Stream(device, priority=FORWARDS if before is None else BESIDE)  # type: ignore[no-untyped-call]
        self.beside = _CudaTimeline(device, self) if before is None else None

    @contextmanager
    def asked(self) -> Iterator[None]:
        with torch.cuda.stream(self._stream):
            if self._before is not None:
                self._stream.wait_stream(self._before._stream)
            yield

    def keep(self, tensor: Tensor) -> None:
        tensor.record_stream(self._stream)

    def mark(self) -> Mark:
        return _CudaMark(self._stream)


class _CudaMark:
    def __init__(self, stream: Any) -> None:
        self.asked_s = perf_counter()
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
