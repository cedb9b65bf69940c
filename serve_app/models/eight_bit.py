"""Weights of eight bits, and linear layers that keep them so and widen them as they run.

What a layer holds is its numbers in float8 or int8, what they are multiplied by, and whether groups of its inputs are
rotated. Source of the rotation: Croci et al. 2025 (regular Hadamard matrices), as ComfyUI's "convrot" has it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from serve_app.models.layout import Place, placed


@dataclass(frozen=True, slots=True, eq=False)
class EightBitWeight:
    """A weight (out,in) of eight bits. scale: (1,) or (out,1) float32, by which it is multiplied; None for not.

    group: so many neighbouring inputs are rotated together; 0 for none.
    """

    stored: Tensor
    scale: Tensor | None = None
    group: int = 0

    def part(self, place: Place) -> EightBitWeight:
        """Return what of it goes to a place that `may_go_to` names."""
        scale = self.scale if self.scale is None or len(self.scale) == 1 else placed(self.scale, place)
        return replace(self, stored=placed(self.stored, place), scale=scale)

    def holding(self, wide: Tensor) -> EightBitWeight:
        """Return a weight of other numbers (out,in), stored as these are; scales are chosen anew for them."""
        kind = self.stored.dtype
        if self.scale is None:
            return replace(self, stored=wide.to(kind))
        wide = rotated(wide.float(), self.group)
        largest = wide.abs().amax(dim=1, keepdim=True) if len(self.scale) > 1 else wide.abs().amax().reshape(1, 1)
        limits = torch.finfo(kind) if kind.is_floating_point else torch.iinfo(kind)
        scale = (largest / limits.max).clamp(min=torch.finfo(torch.float32).tiny)
        stored = wide / scale
        return replace(self, stored=(stored if kind.is_floating_point else stored.round()).to(kind), scale=scale)

    def wide(self) -> Tensor:
        """Return the weight in float32."""
        return rotated(_widened(self.stored, self.scale, torch.float32), self.group)


def may_go_to(place: Place) -> bool:
    """Whether a weight can go to a place in eight bits: as it is, or some of its rows."""
    return not place.transposed and place.shape is None


class EightBitLinear(nn.Module):
    """A Linear for inference that keeps eight bits a weight. It cannot be trained or saved.

    weight: of the shape, dtype and device that the wide weight would have, for who asks that of a layer; it holds no
    numbers (all are NaN) and no memory.
    """

    def __init__(self, weight: EightBitWeight, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.stored, self.scale, self.group = weight.stored, weight.scale, weight.group
        self.bias = bias
        self.out_features, self.in_features = weight.stored.shape
        self.weight = self._like(torch.device("cpu"), torch.float32)

    def move_to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move to a device, to run in a dtype there."""
        self.stored = self.stored.to(device)
        self.scale = None if self.scale is None else self.scale.to(device)
        self.weight = self._like(device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return the linear map of x (…,in): (…,out)."""
        # The matrix is its own inverse, so turning the inputs undoes the weight's rotation, and they are fewer.
        return linear(rotated(x, self.group), _widened(self.stored, self.scale, x.dtype), self.bias)

    def wide(self) -> Tensor:
        """Return the weight in float32."""
        return self._kept.wide()

    def holding(self, wide: Tensor) -> EightBitLinear:
        """Return the layer with another weight (out,in), in eight bits as this one is."""
        return EightBitLinear(self._kept.holding(wide), self.bias)

    def plain(self) -> nn.Linear:
        """Return the same layer with a wide weight."""
        with torch.device("meta"):
            layer: Any = nn.Linear(self.in_features, self.out_features, bias=False)
        wide = self.wide().to(self.weight.dtype)
        layer.weight, layer.bias = nn.Parameter(wide, requires_grad=False), self.bias
        made: nn.Linear = layer.eval()
        return made

    @property
    def _kept(self) -> EightBitWeight:
        return EightBitWeight(self.stored, self.scale, self.group)

    def _like(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        return torch.full((), torch.nan, device=device, dtype=dtype).expand(self.stored.shape)


def widen(network: nn.Module) -> None:
    """Give a network's layers of eight bits wide weights, in place."""
    for name, layer in list(network.named_modules()):
        if isinstance(layer, EightBitLinear):
            network.set_submodule(name, layer.plain())


def rotated(x: Tensor, group: int) -> Tensor:
    """Return x (…,n) with each group of so many neighbours rotated; 0 leaves it."""
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
    return (matrix / sqrt(size)).to(device, dtype)


def _widened(stored: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    # In half precision a scale would be off by as much as the weights' own rounding, and all of a row the same way.
    return stored.to(dtype) if scale is None else (stored.float() * scale).to(dtype)
