"""Convolutions that a CPU computes in no fewer products than they have."""

from __future__ import annotations

from torch import nn

OTHERS = [
    nn.Conv2d(4, 4, 1),
    nn.Conv2d(4, 4, 3),
    nn.Conv2d(4, 4, 3, padding=1, stride=2),
    nn.Conv2d(4, 4, 3, padding=1, groups=2),
    nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
]
"""One of each kind that is no plain convolution of 3×3, padded by one zero."""
