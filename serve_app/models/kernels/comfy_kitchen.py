"""comfy_kitchen: ComfyUI's library of fused CUDA kernels, used on a GPU where it is installed.

Its operations are `torch.ops.comfy_kitchen`. Without it torch's own operations compute the same in more passes.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec

import torch

DEVICES = frozenset({"cuda"})
"""The kinds of device that it has kernels for."""

_OLDEST_CUDA = 13
"""CUDA of the torch builds that its kernels run with."""


def has_kernels(device: torch.device) -> bool:
    """Whether its operations may be called for tensors on a device."""
    return device.type in DEVICES and (device.type != "cuda" or _cuda() >= _OLDEST_CUDA) and is_installed()


def _cuda() -> int:
    """Return the version of CUDA that torch was built for, 0 for none."""
    return int((torch.version.cuda or "0").split(".")[0])


@lru_cache(maxsize=1)
def is_installed() -> bool:
    """Whether the package is there; its slow implementations compute on any device."""
    if find_spec("comfy_kitchen") is None:
        return False
    # Triton would compile its kernels during the first forwards.
    import_module("comfy_kitchen").disable_backend("triton")
    return True
