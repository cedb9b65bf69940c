"""Tuning of Python's garbage collector: it skips the objects that a process has from its start.

Importing torch, Ray and the models' classes makes a million objects that stay. Collections during the import find
nothing, and each later full collection would walk them again, which pauses a process for a tenth of a second and more.
In processes with few reference cycles, as the scheduler, collections are also made rare.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

YOUNG = 20_000
"""Collection threshold in new objects. With Python's own 700 a decision of the scheduler takes a fifth longer with a
thousand replicas.
"""


@contextlib.contextmanager
def freeze_startup_objects() -> Iterator[None]:
    """Disable collection inside the context, and freeze all objects at its end."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def collect_rarely() -> None:
    """Collect rarely; for a process whose objects have little memory."""
    gc.set_threshold(YOUNG)
