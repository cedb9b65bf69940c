"""What encoders may not keep of the machine.

Where a process is root's, SVT-AV1 (4.1.0) gives all of its threads, and the one that starts it, the highest real-time
priority, the latter for good. Whatever else is to run there then stands still.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def priority_kept() -> Iterator[None]:
    """Take real-time priority from those threads of this process that the block has given it to."""
    before = _real_time()
    try:
        yield
    finally:
        if sys.platform == "linux":
            for thread in _real_time() - before:
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))


def _real_time() -> set[int]:
    """Return the threads of this process that come before all others of the machine."""
    found: set[int] = set()
    if sys.platform == "linux":
        for thread in map(int, os.listdir("/proc/self/task")):
            with contextlib.suppress(ProcessLookupError):
                if os.sched_getscheduler(thread) in (os.SCHED_FIFO, os.SCHED_RR):
                    found.add(thread)
    return found
