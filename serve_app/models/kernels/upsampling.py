"""Twofold nearest upsampling fused with a 3×3 convolution, for the decoder of KL autoencoders.

A repeated cell meets several taps of the kernel, which can be summed in advance. Of 3×3 taps 2×2 remain for each of its
four copies: 16 products instead of 36. That is a transposed 4×4 convolution with stride 2, equal up to rounding
(decision 47). Only the layer packed for the CPU is computed so.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

_ops: Any = torch.ops.mkldnn

FACTOR = 2
"""Factor by which each side grows."""


class Upsampling(nn.Conv2d):
    """A 3×3 convolution, padded by one, of an image upsampled twofold by repetition."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (B,O,2H,2W) of x (B,C,H,W)."""
        return super().forward(interpolate(x, scale_factor=float(FACTOR), mode="nearest"))


class PackedUpsampling(nn.Module):
    """An Upsampling for inference with summed and packed taps. It cannot be trained, moved, saved or unpacked.

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
    """Change a convolution, in place, to upsample its input, which its caller must no longer do.

    Errors: ValueError for any but a 3×3 one, padded by one zero, without strides or groups.
    """
    if not is_same_size(layer):
        raise ValueError(f"{layer} cannot upsample: only a plain convolution of 3×3, padded by one zero, can")
    # Only the class changes, so that weights keep their names.
    layer.__class__ = Upsampling


def is_same_size(layer: nn.Conv2d) -> bool:
    """Whether a layer is a plain 3×3 convolution, padded by one zero, without strides or groups."""
    kind = (layer.kernel_size, layer.padding, layer.stride, layer.dilation, layer.groups, layer.padding_mode)
    return type(layer) is nn.Conv2d and kind == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros")


def _added_up(weight: Tensor, axis: int) -> Tensor:
    """Return a kernel's three taps along an axis as the transposed kernel's four.

    Of two copies of a cell, the first meets the cell before with the first tap and the cell itself with the other two;
    the second the cell itself with the first two and the cell after with the last.
    """
    first, middle, last = weight.unbind(axis)
    return torch.stack([last, middle + last, first + middle, first], axis)
