"""Tensors from host to device and back. A copy that waited would end the overlap of host and device."""

from __future__ import annotations

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device, without waiting for what the device has been asked before.

    Only from pinned memory can a GPU copy while the host goes on.
    """
    if tensor.device.type == "cpu" and device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def brought(tensor: Tensor) -> Tensor:
    """Return a tensor on the host. From a GPU its numbers are there once the GPU has done what it was asked for by now.

    Its memory is pinned then, of which there is little: who keeps it copies it.
    """
    return tensor.to("cpu", non_blocking=True)


def kept(tensor: Tensor) -> Tensor:
    """Return a tensor of the host that may be kept: it holds no pinned memory, and no more than its own."""
    if tensor.is_pinned() or tensor.untyped_storage().nbytes() > tensor.numel() * tensor.itemsize:
        return tensor.clone()
    return tensor
