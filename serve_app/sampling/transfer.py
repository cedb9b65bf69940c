"""Copies tensors between host and device without synchronising, so that both keep working."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device, without waiting for earlier work of the device.

    A GPU copies asynchronously from pinned memory only.
    """
    if tensor.device.type == "cpu" and device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def to_host(tensor: Tensor) -> Tensor:
    """Return a tensor on the host. From a GPU it is filled once the work enqueued so far is done.

    It lies in pinned memory, which is scarce: copy it with `unpinned` to store it.
    """
    return tensor.to("cpu", non_blocking=True)


def unpinned(tensor: Tensor) -> Tensor:
    """Return a host tensor for storage: in pageable memory, and no larger than itself."""
    if tensor.is_pinned() or tensor.untyped_storage().nbytes() > tensor.numel() * tensor.itemsize:
        return tensor.clone()
    return tensor
