"""Text encoders as ComfyUI runs them on every device: 16-bit weights, single-precision arithmetic.

Large weights stay in sixteen bits, and each layer widens its own as it runs. Facts: ComfyUI 0.33.0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from serve_app.models.files.layout import Place, placed
from serve_app.models.kernels.packing import replace_parameters
from serve_app.models.quantization.quantized_linear import QuantizedLinear, QuantizedWeight

ITEMSIZE = torch.float16.itemsize

_TABLES = ("embed_tokens", "embed_tokens_per_layer", "token_embedding")
"""transformers' names of token embeddings, of which only the rows read are widened."""


@dataclass(frozen=True, slots=True, eq=False)
class SixteenBitWeight(QuantizedWeight):
    """A weight (out,in) in float16 or bfloat16."""

    stored: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.stored.shape[0], self.stored.shape[1]

    @property
    def nbytes(self) -> int:
        return self.stored.numel() * ITEMSIZE

    @property
    def saved_as(self) -> torch.dtype:
        return self.stored.dtype

    def part(self, place: Place) -> SixteenBitWeight:
        return SixteenBitWeight(placed(self.stored, place))

    def sent(self, send: Callable[[Tensor], Tensor]) -> SixteenBitWeight:
        return SixteenBitWeight(send(self.stored))

    def fill(self, out: Tensor) -> None:
        out.copy_(self.stored)

    def widened(self, dtype: torch.dtype) -> Tensor:
        # No intermediate tensor is made, so there is nothing to do in parts.
        return self.stored.to(dtype)

    def holding(self, wide: Tensor) -> SixteenBitWeight:
        return SixteenBitWeight(wide.to(self.stored.dtype))


def round_weights(network: nn.Module, dtype: torch.dtype) -> None:
    """Round a network's wider numbers to a dtype, in place, and widen eight-bit ones to it.

    Quantized layers are left alone.
    """

    def rounded(parameter: nn.Parameter) -> Tensor:
        fits = ITEMSIZE <= parameter.dtype.itemsize <= dtype.itemsize
        return parameter.data if fits else parameter.data.to(dtype)

    replace_parameters(network.modules(), rounded)


def names(network: nn.Module) -> set[str]:
    """Return the names of a network's tensors that stay in sixteen bits."""
    return {f"{name}.weight" for name, _ in _staying(network)}


def keep(network: nn.Module) -> list[nn.Parameter]:
    """Make a network's linear layers keep 16-bit weights, in place; return the other tensors that stay in them."""
    others: list[nn.Parameter] = []
    for name, layer in list(_staying(network)):
        if isinstance(layer, nn.Linear):
            network.set_submodule(name, QuantizedLinear(SixteenBitWeight(layer.weight.data), layer.bias))
        else:
            others += layer.parameters()
    return others


def _staying(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers whose weights stay, without quantized ones; the others need inputs of their dtype."""
    for name, layer in network.named_modules():
        # Language models' norms accept any input dtype; T5's would round it first.
        if type(layer) is nn.Linear or name.endswith(_TABLES) or type(layer).__name__.endswith("RMSNorm"):
            yield name, layer
