"""OpenMP's teams, which torch computes with on a CPU: of each thread that has computed, for as long as it lives.

Threads of a team that have nothing to do spin for a moment, until the next layer of a network has work for them. Where
all teams of a process have more threads than there are processors, libgomp has them sleep at once, and a forward of a
small picture wakes them hundreds of times (gomp_managed_threads in libgomp's team.c; figures: bench/README.md). So a
thread that computes now and then ends its team when it is done, and the thread of forwards has the only one.
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
"""omp_pause_soft: what the thread has set, such as how many are to be in its team, stays (OpenMP 5.0, 3.2.44)."""


def _found() -> Callable[[int], object]:
    """Return omp_pause_resource_all of the libgomp that came with torch. Other OpenMPs count no teams together."""
    for path in (Path(torch.__file__).parent / "lib").glob("libgomp*"):
        if (pause := getattr(ctypes.CDLL(str(path)), "omp_pause_resource_all", None)) is not None:
            return pause  # type: ignore[no-any-return]
    return lambda kind: None


_pause = _found()


def end_team() -> None:
    """End the calling thread's team, if it has one. Computing makes another, which takes some tens of microseconds."""
    _pause(SOFT)


class Executor(ThreadPoolExecutor):
    """Threads that have no team between two calls."""

    def submit(self, function: Callable[P, T], /, *arguments: P.args, **named: P.kwargs) -> Future[T]:
        def call() -> T:
            try:
                return function(*arguments, **named)
            finally:
                end_team()

        return super().submit(call)
