"""Convolutions for the CPU whose weights lie as oneDNN reads them, so that no forward has to bring them into order.

With plain weights oneDNN reorders every weight at every call. That hides behind the work of a large batch but is most
of the time of a small one: of the SD 1.5 UNet's forward of two rows at 8×8 latents, about 70 %.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class PackedConvolution(nn.Module):
    """A Conv2d for inference with its weight packed. It cannot be trained, moved, patched or saved."""

    def __init__(self, plain: nn.Conv2d) -> None:
        super().__init__()
        self._padding, self._stride, self._dilation = list(plain.padding), list(plain.stride), list(plain.dilation)
        self._groups = plain.groups
        self._bias = plain.bias
        ops: Any = torch.ops.mkldnn
        self._weight: Tensor = ops._reorder_convolution_weight(
            plain.weight, self._padding, self._stride, self._dilation, self._groups
        )
        self._convolve: Any = ops._convolution_pointwise

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of x (B,C,H,W) float32."""
        result: Tensor = self._convolve(
            x, self._weight, self._bias, self._padding, self._stride, self._dilation, self._groups, "none", [], ""
        )
        return result


def pack(network: nn.Module) -> None:
    """Pack the convolutions of a network in place, if it is float32 on a CPU that has oneDNN; else change nothing."""
    onednn: Any = torch.backends.mkldnn
    if not onednn.is_available():
        return
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d) and _packs(child):
                # One by one: the plain weight is let go before the next is packed.
                setattr(module, name, PackedConvolution(child))


def _packs(convolution: nn.Conv2d) -> bool:
    weight = convolution.weight
    plain = convolution.padding_mode == "zeros" and isinstance(convolution.padding, tuple)
    return plain and weight.device.type == "cpu" and weight.dtype == torch.float32
