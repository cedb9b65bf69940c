"""Weights kept in fewer bits than are computed in, and linear layers that widen them as they run.

How they are stored is a class of its own: `sixteen_bits`, `eight_bit`, `block_scales`, `ggml_blocks`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from serve_app.models.files.layout import Place

AT_ONCE = 2**24
"""How many numbers of a weight are widened at a time: what is made in between takes several times their memory."""
WIDE = torch.bfloat16
"""What weights are in where they are saved without the scales that belong to them."""


class QuantizedWeight(ABC):
    """A weight (out,in) as a file stores it."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(out, in)."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """How much memory it takes."""

    @abstractmethod
    def part(self, place: Place) -> QuantizedWeight:
        """Return what of it goes to a place that `may_go_to` names."""

    @abstractmethod
    def sent(self, send: Callable[[Tensor], Tensor]) -> QuantizedWeight:
        """Return it where `send` brings each of its tensors."""

    @abstractmethod
    def wide(self) -> Tensor:
        """Return the weight in float32."""

    def widened(self, dtype: torch.dtype) -> Tensor:
        """Return what inputs that went through `turned` are multiplied by: the weight, if they stay as they are."""
        return self.wide().to(dtype)

    def widened_by_rows(self, dtype: torch.dtype) -> Tensor:
        """Return as `widened`, made of some rows at a time where the weight is large."""
        rows, columns = self.shape
        step = max(1, AT_ONCE // columns)
        if rows <= step:
            return self.widened(dtype)
        whole: Tensor | None = None
        for first in range(0, rows, step):
            end = min(first + step, rows)
            part = self.part(Place("", rows=(first, end))).widened(dtype)
            whole = part.new_empty(self.shape) if whole is None else whole
            whole[first:end] = part
        assert whole is not None, "a weight has rows"
        return whole

    def multiplied(self, x: Tensor) -> Tensor | None:
        """Return inputs (…,in), rounded to eight bits, times the weight as it is stored: (…,out) in the dtype of x.

        None where the device has no such product for it.
        """
        return None

    def turned(self, x: Tensor) -> Tensor:
        """Return inputs (…,in) as they are multiplied by what `widened` returns."""
        return x

    @property
    def saved_as(self) -> torch.dtype:
        """What the weight is in where it is saved."""
        return WIDE

    @abstractmethod
    def holding(self, wide: Tensor) -> QuantizedWeight:
        """Return a weight of other numbers (out,in), in as many bits or a few more."""


def may_go_to(place: Place) -> bool:
    """Whether a weight can go to a place as it is stored: whole, or some of its rows."""
    return not place.transposed and place.shape is None


class QuantizedLinear(nn.Module):
    """A Linear for inference whose weight is kept. It cannot be trained or saved.

    weight: of the shape, dtype and device that the wide weight would have, for who asks that of a layer; it holds no
    numbers (all are NaN) and no memory. in_eight_bits: inputs are rounded to eight bits where that can be multiplied.
    """

    in_eight_bits = False

    def __init__(self, quantized: QuantizedWeight, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.quantized = quantized
        self.bias = bias
        self.out_features, self.in_features = quantized.shape
        self.weight = self._like(torch.device("cpu"), torch.float32)

    def move_to(self, send: Callable[[Tensor], Tensor], device: torch.device, dtype: torch.dtype) -> None:
        """Move to a device, to run in a dtype there. send: brings a tensor to it."""
        self.quantized = self.quantized.sent(send)
        self.weight = self._like(device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return the linear map of x (…,in): (…,out), in the dtype of x."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if self.in_eight_bits and (product := self.quantized.multiplied(x)) is not None:
            return product if bias is None else product + bias
        return linear(self.quantized.turned(x), self.quantized.widened_by_rows(x.dtype), bias)

    def holding(self, wide: Tensor) -> QuantizedLinear:
        """Return the layer with another weight (out,in), kept too."""
        return QuantizedLinear(self.quantized.holding(wide), self.bias)

    def plain(self) -> nn.Linear:
        """Return the same layer with a wide weight."""
        with torch.device("meta"):
            layer: Any = nn.Linear(self.in_features, self.out_features, bias=False)
        wide = self.quantized.wide().to(self.weight.dtype)
        layer.weight, layer.bias = nn.Parameter(wide, requires_grad=False), self.bias
        made: nn.Linear = layer.eval()
        return made

    def _like(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        return torch.full((), torch.nan, device=device, dtype=dtype).expand(self.quantized.shape)


def widen(network: nn.Module) -> None:
    """Give a network's layers that keep their weights wide ones, in place."""
    for name, layer in list(network.named_modules()):
        if isinstance(layer, QuantizedLinear):
            network.set_submodule(name, layer.plain())
