"""Maps of depths as pictures: stretched to 0…1, and coloured."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

LEAST = 1e-6
"""The least range that is stretched."""
_TURBO = torch.tensor(
    [
        [0.13572138, 0.09140261, 0.10667330],
        [4.61539260, 2.19418839, 12.64194608],
        [-42.66032258, 4.84296658, -60.58204836],
        [132.13108234, -14.18503333, 110.36276771],
        [-152.94239396, 4.27729857, -89.90310912],
        [59.28637943, 2.82956604, 27.34824973],
    ]
)
"""Coefficients of red, green and blue by their power. Source: Mikhailov 2019, Turbo, in Ruofei Du's polynomials."""


def turbo(values: Tensor) -> Tensor:
    """Return the colours (…,3) of values in 0…1, from blue to red."""
    powers = values.clamp(0, 1)[..., None] ** torch.arange(len(_TURBO))
    return (powers @ _TURBO).clamp(0, 1)


def grey(values: Tensor) -> Tensor:
    """Return maps (B,H,W) as images (B,H,W,3)."""
    return values.unsqueeze(-1).repeat(1, 1, 1, 3)


def quantiles(values: Tensor, *shares: float) -> list[Tensor]:
    """Return the values below which shares of all lie, of any number of values."""
    return [torch.tensor(float(one)) for one in np.quantile(values.numpy(), shares)]


def stretched(values: Tensor, least: Tensor, most: Tensor) -> Tensor:
    """Return values so that least is 0 and most 1; those beyond are cut."""
    return ((values - least) / (most - least).clamp(min=LEAST)).clamp(0, 1)
