"""Ends the OpenMP thread teams that torch creates on a CPU, one for each thread that has computed.

Idle threads of a team spin briefly until the next layer of a network has work for them. If all teams of a process have
more threads than there are processors, libgomp puts them to sleep at once, and a forward of a small image wakes them
hundreds of times (gomp_managed_threads in libgomp's team.c; figures: bench/README.md). So a thread that computes only
at times ends its team afterwards, and the forward thread has the only one.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")

SOFT = 1
"""omp_pause_soft: settings of the thread, such as its number of threads, stay (OpenMP 5.0, 3.2.44)."""


def _found() -> Callable[[int], object]:
    """Return omp_pause_resource_all of torch's own libgomp. Other OpenMP runtimes do not count teams together."""
    for path in (Path(torch.__file__).parent / "lib").glob("libgomp*"):
        if (pause := getattr(ctypes.CDLL(str(path)), "omp_pause_resource_all", None)) is not None:
            return pause  # type: ignore[no-any-return]
    return lambda kind: None


pause = _found()


def end_team() -> None:
    """End the calling thread's team, if it has one. The next computation creates another, in tens of microseconds."""
    pause(SOFT)


class Executor(ThreadPoolExecutor):
    """A thread pool whose threads end their team after each call."""

    def submit(self, function: Callable[P, T], /, *arguments: P.args, **named: P.kwargs) -> Future[T]:
        def call() -> T:
            try:
                return function(*arguments, **named)
            finally:
                end_team()

        return super().submit(call)
