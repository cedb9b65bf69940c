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

from serve_app.models.files.file_tensor import held
from serve_app.models.files.layout import Place, placed
from serve_app.models.kernels.comfy_kitchen import has_kernels
from serve_app.models.quantization.quantized_linear import AT_ONCE, WIDE, QuantizedWeight
from serve_app.models.quantization.rounding import EIGHT, rounded_by_chance

_KITCHEN_CODES = {EIGHT: 5}


@dataclass(frozen=True, slots=True, eq=False)
class EightBitWeight(QuantizedWeight):
    """A weight (out,in) of eight bits. scale: (1,) or (out,1) float32, its factor; None: 1.

    group: number of neighbouring inputs that are rotated together; 0 for none. inputs: the file's scale of inputs in
    products of eight bits, () float32; None: 1. may: whether the file allows such products; None: it does not say.
    largest: the one scale, or the largest magnitude of several, on the host; None: unknown.
    """

    stored: Tensor
    scale: Tensor | None = None
    group: int = 0
    inputs: Tensor | None = None
    may: bool | None = None
    largest: float | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.stored.shape[0], self.stored.shape[1]

    @property
    def nbytes(self) -> int:
        return self.stored.numel()

    @property
    def saved_as(self) -> torch.dtype:
        return self.stored.dtype if self.scale is None else WIDE

    @property
    def may_multiply(self) -> bool | None:
        # The devices' eight-bit products take multiples of 16.
        fits = self.stored.dtype == EIGHT and not any(size % 16 for size in self.shape)
        return self.may if fits else False

    def part(self, place: Place) -> EightBitWeight:
        scale = self.scale if self.scale is None or len(self.scale) == 1 else placed(self.scale, place)
        return replace(self, stored=placed(self.stored, place), scale=scale)

    def sent(self, send: Callable[[Tensor], Tensor]) -> EightBitWeight:
        largest = self.largest
        if largest is None and self.scale is not None and self.scale.device.type == "cpu":
            largest = _largest(held(self.scale))
        scale, inputs = (None if tensor is None else send(tensor) for tensor in (self.scale, self.inputs))
        return replace(self, stored=send(self.stored), scale=scale, inputs=inputs, largest=largest)

    def holding(self, wide: Tensor) -> EightBitWeight:
        """Return a weight with other numbers (out,in), quantized in the same way with scales of their own."""
        kind = self.stored.dtype
        if self.scale is None:
            return replace(self, stored=wide.to(kind))
        stored, scale = _scaled(rotated(wide.float(), self.group), kind, by_row=len(self.scale) > 1)
        return replace(self, stored=stored, scale=scale, largest=None)

    def with_low_rank(self, down: Tensor, up: Tensor, generator: torch.Generator | None) -> EightBitWeight:
        """Return the weight with the product of up (out,r) and down (r,in) added, at its own scale, rounded by chance.

        It must be in `EIGHT`. generator: of its device.
        """
        if self.scale is not None:
            up = (up / self.scale).to(up.dtype)
        down, stored = self.turned(down), torch.empty_like(self.stored)
        step = max(1, AT_ONCE // self.shape[1])
        for first in range(0, len(stored), step):
            own = slice(first, first + step)
            added = self.stored[own].to(torch.float16).add_(up[own] @ down)
            stored[own] = rounded_by_chance(added, generator)
        return replace(self, stored=stored)

    def wide(self) -> Tensor:
        return rotated(self.widened(torch.float32), self.group)

    def fill(self, out: Tensor) -> None:
        # Eight bits fit sixteen, so rounding to these happens once, after the scale, which stays in single precision.
        out.copy_(self.stored)
        if self.scale is not None:
            out.mul_(self.scale)

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Scale what the stored numbers give: outputs are fewer than weights, or the product scales them itself."""
        if self.scale is None or self.largest is None:
            return super(EightBitWeight, self).product(x, bias)
        rows, stored = self.turned(x).reshape(-1, self.shape[1]), self.stored.to(x.dtype)
        if one := len(self.scale) == 1:
            into, keep = (rows.new_empty(()), 0) if bias is None else (bias, 1)
            made = torch.addmm(into, rows, stored.mT, beta=keep, alpha=self.largest)
        else:
            made = torch.addmm(rows.new_empty(()), rows, stored.mT, beta=0, alpha=self.largest)
            made.mul_(self.scale.mT / self.largest)
        return (made if one or bias is None else made.add_(bias)).view(*x.shape[:-1], self.shape[0])

    def multiplied(self, x: Tensor, bias: Tensor | None) -> Tensor:
        rows = self.turned(x).reshape(-1, self.shape[1])
        inputs = rows.new_ones((), dtype=torch.float32) if self.inputs is None else self.inputs
        scale = inputs.new_ones(1) if self.scale is None else self.scale
        eight, dtype = _rounded(rows, self.inputs, inputs), x.dtype
        if len(scale) > 1:
            # With a scale for each row the product is made in bfloat16 only.
            inputs, scale, dtype = inputs.expand(len(rows), 1).contiguous(), scale.mT.contiguous(), torch.bfloat16
        elif dtype.itemsize > torch.float16.itemsize:
            dtype = torch.bfloat16
        added = bias if dtype == x.dtype else None
        made: Tensor = torch._scaled_mm(eight, self.stored.mT, inputs, scale, bias=added, out_dtype=dtype)
        made = made.to(x.dtype)
        return (made if added is not None or bias is None else made + bias).view(*x.shape[:-1], self.shape[0])

    def turned(self, x: Tensor) -> Tensor:
        # The matrix is its own inverse, so rotating the inputs undoes the weight's rotation, and they are fewer.
        return rotated(x, self.group)


def in_eight_bits(wide: Tensor) -> EightBitWeight:
    """Return a weight (out,in) quantized to eight bits, with a scale for each output."""
    return EightBitWeight(*_scaled(wide.float(), torch.float8_e4m3fn, by_row=True))


def _largest(scale: Tensor) -> float:
    return float(scale) if scale.numel() == 1 else float(scale.abs().max()) or 1.0


def _rounded(x: Tensor, said: Tensor | None, scale: Tensor) -> Tensor:
    """Return inputs rounded to float8, as ComfyUI does: by the file's scale, and else as they are."""
    if has_kernels(x.device):
        rounded: Tensor = torch.ops.comfy_kitchen.quantize_fp8(x, scale, _KITCHEN_CODES[EIGHT])
        return rounded
    most = torch.finfo(EIGHT).max
    return (x.clamp(-most, most) if said is None else (x / said).clamp_(-most, most)).to(EIGHT)


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
