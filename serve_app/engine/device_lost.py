"""Errors of a device: those after which a process cannot use it any more, and those for want of its memory.

After the first every later CUDA call fails with the same error, as the context is corrupt; only a new process helps. A
device that is out of memory is not lost.
"""

from __future__ import annotations

import torch

from serve_app.errors import RankLostError

_CUDA_ERROR = "CUDA error"
"""How torch's errors of CUDA's runtime and of cuBLAS begin; those of its allocator do not."""
_NO_MEMORY = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What such an error says where memory is lacking outside of torch's allocator."""
_HARMLESS = (
    # The product was refused before it ran. Source: NVIDIA, cuBLAS documentation, "cublasStatus_t".
    "CUBLAS_STATUS_NOT_SUPPORTED",
    "CUBLAS_STATUS_INVALID_VALUE",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUBLAS_STATUS_ARCH_MISMATCH",
    # A capture was refused. Source: NVIDIA, CUDA runtime API, "cudaError_t".
    "stream is capturing",
    "during capture",
)
"""What such an error says where later calls work."""


class DeviceLostError(Exception):
    """The device of this process cannot be used any more."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the device has no memory for what was asked."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return _is_of_device(error) and any(words in str(error) for words in _NO_MEMORY)


def is_lost(error: BaseException) -> bool:
    """Whether an error means that the device is lost, or another rank that computes with it."""
    if isinstance(error, RankLostError):
        return True
    return _is_of_device(error) and not any(words in str(error) for words in (*_NO_MEMORY, *_HARMLESS))


def _is_of_device(error: BaseException) -> bool:
    """Whether an error is one of CUDA's, and not of torch's allocator."""
    if isinstance(error, torch.OutOfMemoryError):
        return False
    return isinstance(error, torch.AcceleratorError) or (isinstance(error, RuntimeError) and _CUDA_ERROR in str(error))


def check(error: BaseException) -> None:
    """Raise DeviceLostError if an error means it."""
    if is_lost(error):
        # Without its cause: the frames of a failed forward hold its tensors.
        raise DeviceLostError(f"the device is lost: {str(error).partition(chr(10))[0]}") from None
