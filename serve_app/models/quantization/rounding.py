"""Rounding to eight bits by chance, so that what is lost of many small changes is nothing on average.

A number between two of float8's becomes either, the nearer one more often. Numbers that are float8's stay as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

EIGHT = torch.float8_e4m3fn
"""The dtype that devices multiply in eight bits."""
_EXPONENT = 0x7C00
"""The bits of the exponent in float16."""
_CHANCES = 128
"""As many places as float16 has between two neighbours of float8, so that sums with chances are exact."""


def rounded_by_chance(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return x in `EIGHT`. x: float16, which is overwritten. generator: of x's device."""
    limits = torch.finfo(EIGHT)
    step = torch.bitwise_and(x.view(torch.int16), _EXPONENT).view(torch.float16)
    step.clamp_(min=limits.smallest_normal).mul_(limits.eps)
    chances = torch.empty_like(x).random_(0, _CHANCES, generator=generator)
    x.div_(step).add_(chances, alpha=1 / _CHANCES).floor_().mul_(step)
    return x.clamp_(limits.min, limits.max).to(EIGHT)
