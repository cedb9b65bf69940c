"""LongCat-Image and its edition for edits: Flux.1's blocks without a pooled text, for Qwen2.5-VL's texts.

Text tokens lie on a diagonal, images behind its end. Source: Meituan 2025, arXiv:2512.07584; the numbers are ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from serve_app.models.families.dit.flux import MU, Flux
from serve_app.models.families.family import File
from serve_app.models.files.tensors import Tensors
from serve_app.recipe.training import FluxFlow, Training

_OTHERS = (
    "distilled_guidance_layer.",
    "double_stream_modulation_img.",
    "controlnet_blocks.",
    "vector_in.",
    "txt_norm.",
)


@dataclass(frozen=True, slots=True)
class LongCatImage(Flux):
    """A backbone of LongCat-Image, without guidance and without a pooled text."""

    title = "LongCat-Image"

    @classmethod
    def recognises(cls, tensors: Tensors) -> bool:
        return not any(map(tensors.has, _OTHERS))

    def build(self) -> nn.Module:
        network: Any = super(LongCatImage, replace(self, pooled_width=1)).build()
        del network.time_text_embed.text_embedder
        built: nn.Module = network
        return built

    def training(self, file: File, names: Mapping[str, str]) -> Training:
        return FluxFlow(MU)

    def group_key(self, x: Tensor, inputs: Any) -> Hashable:
        """Return Flux.1's key and the length of the text, behind which images lie."""
        return super(LongCatImage, self).group_key(x, inputs), inputs.text.shape[1]

    def placed(self, text: int, images: Sequence[Tensor]) -> Tensor:
        of_text = torch.arange(text)[:, None] * torch.tensor([0.0, 1.0, 1.0])
        return torch.cat([of_text, *(at + torch.tensor([1.0, text, text]) for at in images)])
