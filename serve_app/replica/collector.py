"""Python's garbage collector in the server's processes: it leaves alone what a process has from its start.

Importing torch, Ray and the models' classes makes a million objects that stay. Collections meanwhile find nothing, and
each later one of everything would walk them again, which holds a process up for a tenth of a second and more. Where
next to no objects refer to each other in circles, as in the scheduler, it also looks at new ones seldom.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

YOUNG = 20_000
"""After so many new objects it looks for circles among them. Python's own 700 costs a decision of the
scheduler a fifth more once it knows a thousand replicas."""


@contextlib.contextmanager
def starting() -> Iterator[None]:
    """Collect nothing meanwhile, and never again look at what is there at the end of it."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def seldom() -> None:
    """Collect seldom from now on; for a process whose objects hold no large memory."""
    gc.set_threshold(YOUNG)
