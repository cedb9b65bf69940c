"""Convolutions over a picture made twice as large, which the levels of a KL autoencoder's decoder end with.

Each cell that is repeated meets several taps of the kernel, which can be added up beforehand. Of 3×3 taps 2×2 are left
for each of its four copies: 16 products in place of 36. That is a transposed convolution of 4×4 with stride 2, equal up
to rounding (decision 47). Only the layer packed for the CPU is one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

_ops: Any = torch.ops.mkldnn

FACTOR = 2
"""How many times as large each side becomes."""


class Upsampling(nn.Conv2d):
    """A convolution of 3×3, padded by one, of a picture whose cells are repeated twice along each side."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (B,O,2H,2W) of x (B,C,H,W)."""
        return super().forward(interpolate(x, scale_factor=float(FACTOR), mode="nearest"))


class PackedUpsampling(nn.Module):
    """An Upsampling for inference with its taps added up and packed. It cannot be trained, moved, saved or unpacked.

    The weight takes 16/9 of the plain one's memory.
    """

    def __init__(self, plain: Upsampling) -> None:
        super().__init__()
        self.bias = plain.bias
        weight = _added_up(_added_up(plain.weight, 2), 3).transpose(0, 1).contiguous()
        self.weight: Tensor = _ops._reorder_convolution_transpose_weight(
            weight, [1, 1], [0, 0], [FACTOR, FACTOR], [1, 1], 1
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (B,O,2H,2W) of x (B,C,H,W) float32."""
        result: Tensor = _ops._convolution_transpose_pointwise(
            x, self.weight, self.bias, [1, 1], [0, 0], [FACTOR, FACTOR], [1, 1], 1, "none", [], ""
        )
        return result


def upsample_within(layer: nn.Conv2d) -> None:
    """Have a convolution, in place, upsample what it is given, which its caller does no longer.

    Errors: ValueError for any but one of 3×3, padded by one zero, without strides or groups.
    """
    if not is_same_size(layer):
        raise ValueError(f"{layer} cannot upsample: only a plain convolution of 3×3, padded by one zero, can")
    # The class alone differs, so that weights keep their names.
    layer.__class__ = Upsampling


def is_same_size(layer: nn.Conv2d) -> bool:
    """Whether a layer is a plain convolution of 3×3, padded by one zero, without strides or groups."""
    kind = (layer.kernel_size, layer.padding, layer.stride, layer.dilation, layer.groups, layer.padding_mode)
    return type(layer) is nn.Conv2d and kind == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros")


def _added_up(weight: Tensor, axis: int) -> Tensor:
    """Return a kernel's taps along an axis, (first, middle, last), as the transposed one's four.

    Of two cells made of one, the former meets the cell before with the first tap and the cell itself with the other
    two; the latter the cell itself with the first two and the cell after with the last.
    """
    first, middle, last = weight.unbind(axis)
    return torch.stack([last, middle + last, first + middle, first], axis)
