"""Errors after which a process can do nothing more on its device: the context is gone, and a new process has another.

CUDA says so by every later call failing with the first error. A device that is out of memory is not lost.
"""

from __future__ import annotations

import torch

_SAYS = "CUDA error"
"""What torch's errors of CUDA's own runtime begin with; those of its allocator do not."""


class DeviceLostError(Exception):
    """The device of this process answers nothing any more."""


def is_lost(error: BaseException) -> bool:
    """Whether an error means that the device is lost."""
    if isinstance(error, torch.OutOfMemoryError):
        return False
    said = str(error)
    of_device = isinstance(error, torch.AcceleratorError) or (isinstance(error, RuntimeError) and _SAYS in said)
    return of_device and "out of memory" not in said


def check(error: BaseException) -> None:
    """Raise DeviceLostError if an error means it."""
    if is_lost(error):
        # Of the error its text alone: what led to it would keep the models that it was raised in.
        raise DeviceLostError(f"the device is lost: {str(error).partition(chr(10))[0]}") from None
