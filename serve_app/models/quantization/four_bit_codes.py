"""Weights of four-bit codes that stand for numbers of eight bits: ComfyUI's W4A8.

A code, or its entry in a table of sixteen, times the scale of its group of inputs, rounded, is a number of eight bits.
These have one scale for each output, and their inputs are rotated in groups, as in `eight_bit`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from serve_app.models.files.layout import Place, placed
from serve_app.models.quantization.eight_bit import in_eight_bits, rotated
from serve_app.models.quantization.quantized_linear import QuantizedWeight

CODES = 16
_MIDDLE, _MOST = 8, 127


@dataclass(frozen=True, slots=True, eq=False)
class CodedWeight(QuantizedWeight):
    """A weight (out,in). stored: (out,in/2) uint8, the first of two codes in the lower half.

    scales: (out,in/n) of a float8 or float32, of groups of n inputs; scale: (out,1) float32. table: (16,) float32, the
    numbers of the codes; None: −8 to 7. group: number of neighbouring inputs that are rotated together.
    """

    stored: Tensor
    scales: Tensor
    scale: Tensor
    group: int
    table: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.stored.shape[0], self.stored.shape[1] * 2

    @property
    def nbytes(self) -> int:
        return self.stored.numel() + self.scales.nbytes

    def part(self, place: Place) -> CodedWeight:
        stored, scales, scale = (placed(tensor, place) for tensor in (self.stored, self.scales, self.scale))
        return replace(self, stored=stored, scales=scales, scale=scale)

    def sent(self, send: Callable[[Tensor], Tensor]) -> CodedWeight:
        table = None if self.table is None else send(self.table)
        return CodedWeight(send(self.stored), send(self.scales), send(self.scale), self.group, table)

    def holding(self, wide: Tensor) -> QuantizedWeight:
        return in_eight_bits(wide)

    def wide(self) -> Tensor:
        return rotated(self.widened(torch.float32), self.group)

    def fill(self, out: Tensor) -> None:
        table = self.table
        if table is None:
            table = torch.arange(-_MIDDLE, CODES - _MIDDLE, device=self.stored.device, dtype=torch.float32)
        # By byte, so that a lookup gives two numbers.
        pairs = torch.stack([table.repeat(CODES), table.repeat_interleave(CODES)], dim=-1)
        numbers = torch.index_select(pairs, 0, self.stored.flatten().int())
        grouped = numbers.view(*self.scales.shape, -1)
        grouped.mul_(self.scales.float()[..., None]).round_().clamp_(-_MOST, _MOST)
        out.copy_(numbers.view(self.shape).mul_(self.scale))

    def turned(self, x: Tensor) -> Tensor:
        return rotated(x, self.group)
