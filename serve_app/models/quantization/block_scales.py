"""Weights with a scale for each block of neighbouring inputs: NVFP4 of four bits, and MXFP8 of eight.

As in ComfyUI's "comfy_quant": scales are tiled, as NVIDIA's matrix units read them. Source: NVIDIA, cuBLAS
documentation, "1D Block Scaling Factors Layout"; OCP Microscaling Formats 1.0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from serve_app.models.files.layout import Place, placed
from serve_app.models.quantization.eight_bit import in_eight_bits
from serve_app.models.quantization.quantized_linear import QuantizedWeight

NVFP4_BLOCK, MXFP8_BLOCK = 16, 32
"""How many inputs share a scale."""

_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Values of the four-bit codes, without their sign."""
_EXPONENT = 23
"""Lowest bit of the exponent in a single-precision number."""
_TILE_ROWS, _TILE_COLUMNS, _GROUP = 128, 4, 32


def untiled(scales: Tensor, rows: int, columns: int) -> Tensor:
    """Return scales (rows,columns) from tiles of 128×4, in each of which four rows 32 apart are adjacent."""
    down, across = -(-rows // _TILE_ROWS), -(-columns // _TILE_COLUMNS)
    tiles = scales.reshape(down, across, _GROUP, _TILE_ROWS // _GROUP, _TILE_COLUMNS)
    whole = tiles.permute(0, 3, 2, 1, 4).reshape(down * _TILE_ROWS, across * _TILE_COLUMNS)
    return whole[:rows, :columns].contiguous()


@dataclass(frozen=True, slots=True, eq=False)
class Nvfp4Weight(QuantizedWeight):
    """A weight in four bits. stored: (out,in/2) uint8, the first of two numbers in the higher half.

    scales: (out,in/16) float8_e4m3fn as bytes; scale: of all, () float32. inputs: factors of the inputs, (in,), or
    None.
    """

    stored: Tensor
    scales: Tensor
    scale: Tensor
    inputs: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.stored.shape[0], self.stored.shape[1] * 2

    @property
    def nbytes(self) -> int:
        return self.stored.numel() + self.scales.numel()

    def part(self, place: Place) -> Nvfp4Weight:
        return replace(self, stored=placed(self.stored, place), scales=placed(self.scales, place))

    def sent(self, send: Callable[[Tensor], Tensor]) -> Nvfp4Weight:
        inputs = None if self.inputs is None else send(self.inputs)
        return Nvfp4Weight(send(self.stored), send(self.scales), send(self.scale), inputs)

    def holding(self, wide: Tensor) -> QuantizedWeight:
        return in_eight_bits(wide)

    def wide(self) -> Tensor:
        own = self.widened(torch.float32)
        return own if self.inputs is None else own * self.inputs.float()

    def fill(self, out: Tensor) -> None:
        pairs = torch.index_select(_pairs(self.stored.device), 0, self.stored.int().flatten())
        scales = self.scale * self.scales.view(torch.float8_e4m3fn).float() / 2
        blocks = (*self.scales.shape, NVFP4_BLOCK)
        torch.mul(pairs.view(blocks), scales[..., None], out=out.view(blocks))

    def turned(self, x: Tensor) -> Tensor:
        return x if self.inputs is None else x * self.inputs.to(x.dtype)


@dataclass(frozen=True, slots=True, eq=False)
class Mxfp8Weight(QuantizedWeight):
    """A weight in eight bits. stored: (out,in) of a float8. scales: (out,in/32) uint8, exponents of two plus 127."""

    stored: Tensor
    scales: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.stored.shape[0], self.stored.shape[1]

    @property
    def nbytes(self) -> int:
        return self.stored.numel() + self.scales.numel()

    def part(self, place: Place) -> Mxfp8Weight:
        return Mxfp8Weight(placed(self.stored, place), placed(self.scales, place))

    def sent(self, send: Callable[[Tensor], Tensor]) -> Mxfp8Weight:
        return Mxfp8Weight(send(self.stored), send(self.scales))

    def holding(self, wide: Tensor) -> QuantizedWeight:
        return in_eight_bits(wide)

    def fill(self, out: Tensor) -> None:
        # They are exponents of single precision, where exponent 0 means zero.
        scales = (self.scales.int() << _EXPONENT).view(torch.float32)
        out.copy_(self.stored)
        out.view(*self.scales.shape, MXFP8_BLOCK).mul_(scales[..., None])


@lru_cache(maxsize=8)
def _pairs(device: torch.device) -> Tensor:
    """Return the doubled numbers of the two codes in each byte, (256,2) int8, the higher half's first."""
    codes = torch.tensor([*_E2M1, *(-number for number in _E2M1)])
    both = torch.cartesian_prod(codes, codes) * 2
    # This copy is synchronous, so any stream that uses it later finds it complete.
    return both.to(torch.int8).to(device)
