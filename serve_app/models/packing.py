"""Convolutions and linear layers for the CPU whose weights lie as oneDNN reads them.

With plain weights oneDNN reorders a convolution's weight at every call. That hides behind the work of a large batch but
is most of the time of a small one: of the SD 1.5 UNet's forward of two rows at 8×8 latents, about 70 %. A plain linear
layer goes to the BLAS that torch was built with instead, which takes two to three times as long as oneDNN on CPUs whose
widest instructions it does not use.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_ops: Any = torch.ops.mkldnn


class PackedConvolution(nn.Module):
    """A Conv2d for inference with its weight packed. It cannot be trained, moved, patched or saved."""

    def __init__(self, plain: nn.Conv2d) -> None:
        super().__init__()
        self._padding, self._stride, self._dilation = list(plain.padding), list(plain.stride), list(plain.dilation)
        self._groups = plain.groups
        self._bias = plain.bias
        self._weight: Tensor = _ops._reorder_convolution_weight(
            plain.weight, self._padding, self._stride, self._dilation, self._groups
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of x (B,C,H,W) float32."""
        result: Tensor = _ops._convolution_pointwise(
            x, self._weight, self._bias, self._padding, self._stride, self._dilation, self._groups, "none", [], ""
        )
        return result


class PackedLinear(nn.Module):
    """A Linear for inference with its weight packed. It cannot be trained, moved, patched or saved."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        self._bias = plain.bias
        # Without a number of rows oneDNN takes the order that suits any.
        self._weight: Tensor = _ops._reorder_linear_weight(plain.weight, None)

    def forward(self, x: Tensor) -> Tensor:
        """Return the linear map of x (...,in) float32: (...,out)."""
        result: Tensor = _ops._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return result


def pack(network: nn.Module) -> None:
    """Pack the layers of a network in place, if it is float32 on a CPU that has oneDNN; else change nothing."""
    onednn: Any = torch.backends.mkldnn
    if not onednn.is_available():
        return
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            # One by one: the plain weight is let go before the next is packed.
            if isinstance(child, nn.Conv2d) and _packs(child):
                setattr(module, name, PackedConvolution(child))
            elif isinstance(child, nn.Linear) and _plain(child.weight):
                setattr(module, name, PackedLinear(child))


def _packs(convolution: nn.Conv2d) -> bool:
    zeros = convolution.padding_mode == "zeros" and isinstance(convolution.padding, tuple)
    return zeros and _plain(convolution.weight)


def _plain(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32
