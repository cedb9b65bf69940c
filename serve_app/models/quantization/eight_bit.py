"""Weights of eight bits with one scale, or one for each output.

Stored are numbers in float8 or int8, the scales, and whether groups of inputs are rotated. Source of the rotation:
Croci et al. 2025 (regular Hadamard matrices), as ComfyUI's "convrot" has it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from math import sqrt

import torch
from torch import Tensor

from serve_app.models.files.layout import Place, placed
from serve_app.models.quantization.quantized_linear import WIDE, QuantizedWeight


@dataclass(frozen=True, slots=True, eq=False)
class EightBitWeight(QuantizedWeight):
    """A weight (out,in) of eight bits. scale: (1,) or (out,1) float32, its factor; None: 1.

    group: number of neighbouring inputs that are rotated together; 0 for none.
    """

    stored: Tensor
    scale: Tensor | None = None
    group: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        return self.stored.shape[0], self.stored.shape[1]

    @property
    def nbytes(self) -> int:
        return self.stored.numel()

    @property
    def saved_as(self) -> torch.dtype:
        return self.stored.dtype if self.scale is None else WIDE

    def part(self, place: Place) -> EightBitWeight:
        scale = self.scale if self.scale is None or len(self.scale) == 1 else placed(self.scale, place)
        return replace(self, stored=placed(self.stored, place), scale=scale)

    def sent(self, send: Callable[[Tensor], Tensor]) -> EightBitWeight:
        return replace(self, stored=send(self.stored), scale=None if self.scale is None else send(self.scale))

    def holding(self, wide: Tensor) -> EightBitWeight:
        """Return a weight with other numbers (out,in), quantized in the same way with scales of their own."""
        kind = self.stored.dtype
        if self.scale is None:
            return replace(self, stored=wide.to(kind))
        stored, scale = _scaled(rotated(wide.float(), self.group), kind, by_row=len(self.scale) > 1)
        return replace(self, stored=stored, scale=scale)

    def wide(self) -> Tensor:
        return rotated(self.widened(torch.float32), self.group)

    def widened(self, dtype: torch.dtype) -> Tensor:
        # A half-precision scale would add an error as large as the weights' own rounding, equal for a whole row.
        return self.stored.to(dtype) if self.scale is None else (self.stored.float() * self.scale).to(dtype)

    def multiplied(self, x: Tensor) -> Tensor | None:
        # The devices' eight-bit products take multiples of 16.
        if self.stored.dtype != torch.float8_e4m3fn or any(size % 16 for size in self.shape):
            return None
        rows = self.turned(x).reshape(-1, self.shape[1])
        eight, scale = _scaled(rows.float(), self.stored.dtype, by_row=True)
        own = self.stored.new_ones(1, dtype=torch.float32) if self.scale is None else self.scale
        # With a scale for each row the product is made in bfloat16 only.
        product: Tensor = torch._scaled_mm(
            eight, self.stored.mT, scale, own.expand(self.shape[0], 1).mT.contiguous(), out_dtype=torch.bfloat16
        )
        return product.to(x.dtype).view(*x.shape[:-1], self.shape[0])

    def turned(self, x: Tensor) -> Tensor:
        # The matrix is its own inverse, so rotating the inputs undoes the weight's rotation, and they are fewer.
        return rotated(x, self.group)


def in_eight_bits(wide: Tensor) -> EightBitWeight:
    """Return a weight (out,in) quantized to eight bits, with a scale for each output."""
    return EightBitWeight(*_scaled(wide.float(), torch.float8_e4m3fn, by_row=True))


def _scaled(wide: Tensor, kind: torch.dtype, *, by_row: bool) -> tuple[Tensor, Tensor]:
    """Return a weight (out,in) float32 in an eight-bit dtype and its scales, for each row or one for all."""
    largest = wide.abs().amax(dim=1, keepdim=True) if by_row else wide.abs().amax().reshape(1, 1)
    limits = torch.finfo(kind) if kind.is_floating_point else torch.iinfo(kind)
    scale = (largest / limits.max).clamp(min=torch.finfo(torch.float32).tiny)
    stored = wide / scale
    return (stored if kind.is_floating_point else stored.round()).to(kind), scale


def rotated(x: Tensor, group: int) -> Tensor:
    """Return x (…,n) with each group of neighbours rotated; group 0: unchanged."""
    if not group:
        return x
    groups = x.reshape(*x.shape[:-1], -1, group)
    return (groups @ _hadamard(group, x.device, x.dtype)).reshape(x.shape)


@lru_cache(maxsize=16)
def _hadamard(size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the orthogonal matrix (size,size), size a power of 4: symmetric, so its own inverse."""
    four = torch.tensor([[1.0, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]])
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.kron(matrix, four)
    # This copy is synchronous, so any stream that uses it later finds it complete.
    return (matrix / sqrt(size)).to(device, dtype)
