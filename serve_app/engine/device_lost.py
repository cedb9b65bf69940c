"""Errors after which a process cannot use its device any more: the CUDA context is corrupt, only a new process helps.

Every later CUDA call fails with the first error. A device that is out of memory is not lost.
"""

from __future__ import annotations

import torch

_CUDA_ERROR = "CUDA error"
"""How torch's errors of CUDA's runtime begin; those of its allocator do not."""


class DeviceLostError(Exception):
    """The device of this process cannot be used any more."""


def is_lost(error: BaseException) -> bool:
    """Whether an error means that the device is lost."""
    if isinstance(error, torch.OutOfMemoryError):
        return False
    message = str(error)
    of_device = isinstance(error, torch.AcceleratorError) or (
        isinstance(error, RuntimeError) and _CUDA_ERROR in message
    )
    return of_device and "out of memory" not in message


def check(error: BaseException) -> None:
    """Raise DeviceLostError if an error means it."""
    if is_lost(error):
        # Without its cause: the frames of a failed forward hold its tensors.
        raise DeviceLostError(f"the device is lost: {str(error).partition(chr(10))[0]}") from None
