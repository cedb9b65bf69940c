"""Quantized weights, and linear layers that dequantize them as they run.

Each storage format is a class of its own: `half_precision_text`, `eight_bit`, `block_scales`, `ggml_blocks`.
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
"""How many numbers of a weight are dequantized at a time: intermediate tensors take several times their memory."""
WIDE = torch.bfloat16
"""The dtype in which weights are saved without their scales."""


class QuantizedWeight(ABC):
    """A weight (out,in) as a file stores it. stored: its numbers, in the file's layout."""

    stored: Tensor

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(out, in)."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes as stored."""

    @abstractmethod
    def part(self, place: Place) -> QuantizedWeight:
        """Return the part of it for a place that `may_go_to` accepts."""

    @abstractmethod
    def sent(self, send: Callable[[Tensor], Tensor]) -> QuantizedWeight:
        """Return it with `send` applied to each of its tensors."""

    def wide(self) -> Tensor:
        """Return the weight in float32."""
        return self.widened(torch.float32)

    @abstractmethod
    def fill(self, out: Tensor) -> None:
        """Write to `out`, (out,in) of any float dtype, the factor of inputs that went through `turned`.

        That is the weight itself, if its inputs are not transformed.
        """

    def widened(self, dtype: torch.dtype) -> Tensor:
        """Return what `fill` writes, computed some rows at a time where the weight is large."""
        rows, columns = self.shape
        whole = torch.empty(self.shape, dtype=dtype, device=self.stored.device)
        step = max(1, AT_ONCE // columns)
        if rows <= step:
            self.fill(whole)
            return whole
        for first in range(0, rows, step):
            end = min(first + step, rows)
            self.part(Place("", rows=(first, end))).fill(whole[first:end])
        return whole

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return inputs (…,in) times the weight, and a bias in the dtype of x added: (…,out)."""
        return linear(self.turned(x), self.widened(x.dtype), bias)

    @property
    def may_multiply(self) -> bool | None:
        """Whether a device may multiply the weight as stored; None: it could, and the file does not say."""
        return False

    def multiplied(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return as `product`, with inputs rounded to eight bits, times the stored weight; if `may_multiply`."""
        raise NotImplementedError

    def turned(self, x: Tensor) -> Tensor:
        """Return inputs (…,in) transformed for multiplication by `widened`."""
        return x

    @property
    def saved_as(self) -> torch.dtype:
        """The weight's dtype when saved."""
        return WIDE

    @abstractmethod
    def holding(self, wide: Tensor) -> QuantizedWeight:
        """Return a weight with other numbers (out,in), in as many bits or a few more."""


def may_go_to(place: Place) -> bool:
    """Whether a quantized weight can go to a place without dequantization: whole, or some of its rows."""
    return not place.transposed and place.shape is None


class QuantizedLinear(nn.Module):
    """A Linear for inference with a quantized weight. It cannot be trained or saved.

    weight: a placeholder with the shape, dtype and device of the dequantized weight, for code that reads those of a
    layer; it takes no memory (all numbers are one NaN). in_eight_bits: inputs are rounded to eight bits and
    multiplied in that, which the device can, where the weight allows it.
    """

    in_eight_bits = False

    def __init__(self, quantized: QuantizedWeight, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.quantized = quantized
        self.bias = bias
        self.out_features, self.in_features = quantized.shape
        self.weight = self._like(torch.device("cpu"), torch.float32)

    @property
    def multiplies(self) -> bool:
        """Whether the stored weight is multiplied, and not dequantized first."""
        return self.in_eight_bits and self.quantized.may_multiply is not False

    def move_to(self, send: Callable[[Tensor], Tensor], device: torch.device, dtype: torch.dtype) -> None:
        """Move to a device, to compute in a dtype there. send: moves a tensor."""
        self.quantized = self.quantized.sent(send)
        self.weight = self._like(device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return the linear map of x (…,in): (…,out), in the dtype of x."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return self.quantized.multiplied(x, bias) if self.multiplies else self.quantized.product(x, bias)

    def holding(self, wide: Tensor) -> QuantizedLinear:
        """Return the layer with another weight (out,in), quantized too."""
        made = QuantizedLinear(self.quantized.holding(wide), self.bias)
        made.in_eight_bits = self.in_eight_bits
        return made

    def plain(self) -> nn.Linear:
        """Return the same layer with a dequantized weight."""
        with torch.device("meta"):
            layer: Any = nn.Linear(self.in_features, self.out_features, bias=False)
        wide = self.quantized.wide().to(self.weight.dtype)
        layer.weight, layer.bias = nn.Parameter(wide, requires_grad=False), self.bias
        made: nn.Linear = layer.eval()
        return made

    def _like(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        return torch.full((), torch.nan, device=device, dtype=dtype).expand(self.quantized.shape)


def widen(network: nn.Module) -> None:
    """Dequantize a network's quantized layers, in place."""
    for name, layer in list(network.named_modules()):
        if isinstance(layer, QuantizedLinear):
            network.set_submodule(name, layer.plain())
