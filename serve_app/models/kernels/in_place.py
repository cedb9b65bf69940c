"""Activations of diffusers' feed-forward layers in the memory of their input.

Between the two matrix products of such a layer lies the largest tensor of a forward: of Wan 14B, 32,760 tokens of
13,824 numbers, 864 MB at 832×480. diffusers' activations make a second one, and gated ones a third. The numbers are
the same to the bit.
"""

from __future__ import annotations

import torch
from diffusers.models.activations import GEGLU, GELU, FP32SiLU, SwiGLU
from diffusers.models.transformers.transformer_z_image import FeedForward as ZImageFeedForward
from torch import Tensor, nn
from torch.nn.functional import gelu, silu


class InPlaceGELU(GELU):  # type: ignore[misc]
    """GELU of a linear layer's output."""

    def gelu(self, gate: Tensor) -> Tensor:
        made: Tensor = torch.ops.aten.gelu_(gate, approximate=self.approximate)
        return made


class InPlaceGEGLU(GEGLU):  # type: ignore[misc]
    """One half of a linear layer's output times GELU of the other."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden, gate = self.proj(hidden_states).chunk(2, dim=-1)
        return gelu(gate).mul_(hidden)


class InPlaceSwiGLU(SwiGLU):  # type: ignore[misc]
    """One half of a linear layer's output times SiLU of the other."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden, gate = self.proj(hidden_states).chunk(2, dim=-1)
        return silu(gate).mul_(hidden)


class InPlaceFP32SiLU(FP32SiLU):  # type: ignore[misc]
    """SiLU in single precision, of a copy where its input has another dtype."""

    def forward(self, inputs: Tensor) -> Tensor:
        single = inputs.float()
        return silu(single, inplace=single is not inputs).to(inputs.dtype)


class InPlaceZImageFeedForward(ZImageFeedForward):  # type: ignore[misc]
    """Z-Image's feed-forward layer."""

    def _forward_silu_gating(self, x1: Tensor, x3: Tensor) -> Tensor:
        return silu(x1, inplace=True).mul_(x3)


_IN_PLACE: dict[type[nn.Module], type[nn.Module]] = {
    GELU: InPlaceGELU,
    GEGLU: InPlaceGEGLU,
    SwiGLU: InPlaceSwiGLU,
    FP32SiLU: InPlaceFP32SiLU,
    ZImageFeedForward: InPlaceZImageFeedForward,
}


def in_place(network: nn.Module) -> nn.Module:
    """Return a network with its activations replaced by these."""
    for module in network.modules():
        if (kind := _IN_PLACE.get(type(module))) is not None:
            # Only the class changes: tensors and their names stay.
            module.__class__ = kind
    return network
