"""Removes the real-time priority that SVT-AV1 gives to threads of this process.

In a root process, SVT-AV1 (4.1.0) gives all of its threads, and permanently the one that starts it, the highest
real-time priority, which starves everything else on the machine.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def no_realtime_priority() -> Iterator[None]:
    """Remove real-time priority from threads that got it inside the context."""
    before = _real_time()
    try:
        yield
    finally:
        if sys.platform == "linux":
            for thread in _real_time() - before:
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))


def _real_time() -> set[int]:
    """Return the threads of this process with real-time priority."""
    found: set[int] = set()
    if sys.platform == "linux":
        for thread in map(int, os.listdir("/proc/self/task")):
            with contextlib.suppress(ProcessLookupError):
                if os.sched_getscheduler(thread) in (os.SCHED_FIFO, os.SCHED_RR):
                    found.add(thread)
    return found
