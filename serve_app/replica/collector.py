"""Python's garbage collector in the server's processes: it leaves alone what a process has from its start.

Importing torch, Ray and the models' classes makes a million objects that stay. Collections meanwhile find nothing, and
each later one of everything would walk them again, which holds a process up for a tenth of a second and more.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def starting() -> Iterator[None]:
    """Collect nothing meanwhile, and never again look at what is there at the end of it."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
