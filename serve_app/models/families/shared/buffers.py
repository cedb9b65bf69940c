"""Numbers that others' layers hold as buffers: weights are filled from files and go to a device, buffers do not."""

from __future__ import annotations

from torch import nn


def buffers_as_weights(network: nn.Module) -> None:
    """Make the buffers of a network's layers parameters of the same names."""
    for layer in network.modules():
        for name, numbers in list(layer.named_buffers(recurse=False)):
            delattr(layer, name)
            layer.register_parameter(name, nn.Parameter(numbers, requires_grad=False))
