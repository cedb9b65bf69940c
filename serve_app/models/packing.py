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
    """A Conv2d for inference with its weight packed. It cannot be trained, moved or saved."""

    def __init__(self, plain: nn.Conv2d) -> None:
        super().__init__()
        self.padding, self.stride, self.dilation = plain.padding, plain.stride, plain.dilation
        self.groups = plain.groups
        self.bias = plain.bias
        self.weight: Tensor = _ops._reorder_convolution_weight(
            plain.weight, list(plain.padding), list(plain.stride), list(plain.dilation), self.groups
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of x (B,C,H,W) float32."""
        result: Tensor = _ops._convolution_pointwise(
            x, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups, "none", [], ""
        )
        return result

    def plain(self) -> nn.Conv2d:
        """Return the same layer with a plain copy of its weight, bit for bit."""
        out, of_group = self.weight.shape[:2]
        kernel = (self.weight.shape[2], self.weight.shape[3])
        with torch.device("meta"):
            layer = nn.Conv2d(of_group * self.groups, out, kernel, groups=self.groups, bias=False)
        layer.padding, layer.stride, layer.dilation = self.padding, self.stride, self.dilation
        layer.weight, layer.bias = nn.Parameter(self.weight.to_dense(), requires_grad=False), self.bias
        return layer.eval()


class PackedLinear(nn.Module):
    """A Linear for inference with its weight packed. It cannot be trained, moved or saved."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        self.bias = plain.bias
        # Without a number of rows oneDNN takes the order that suits any.
        self.weight: Tensor = _ops._reorder_linear_weight(plain.weight, None)

    def forward(self, x: Tensor) -> Tensor:
        """Return the linear map of x (...,in) float32: (...,out)."""
        result: Tensor = _ops._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return result

    def plain(self) -> nn.Linear:
        """Return the same layer with a plain copy of its weight, bit for bit."""
        out, inside = self.weight.shape
        with torch.device("meta"):
            layer = nn.Linear(inside, out, bias=False)
        layer.weight, layer.bias = nn.Parameter(self.weight.to_dense(), requires_grad=False), self.bias
        return layer.eval()


def pack(network: nn.Module) -> None:
    """Pack the layers of a network in place, if it is float32 on a CPU that has oneDNN; else change nothing."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            # One by one: the plain weight is let go before the next is packed.
            if (layer := packed(child)) is not child:
                setattr(module, name, layer)


def packed(layer: nn.Module) -> nn.Module:
    """Return the layer packed, or itself if that cannot be done or brings nothing."""
    onednn: Any = torch.backends.mkldnn
    if not onednn.is_available():
        return layer
    if isinstance(layer, nn.Conv2d) and _packs(layer):
        return PackedConvolution(layer)
    return PackedLinear(layer) if isinstance(layer, nn.Linear) and _full(layer.weight) else layer


def plain(layer: nn.Module) -> nn.Module:
    """Return a packed layer with plain weights, any other as it is."""
    return layer.plain() if isinstance(layer, PackedConvolution | PackedLinear) else layer


def _packs(convolution: nn.Conv2d) -> bool:
    zeros = convolution.padding_mode == "zeros" and isinstance(convolution.padding, tuple)
    return zeros and _full(convolution.weight)


def _full(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32
