"""Ovis-Image: Flux.1's blocks with gated feed-forward layers and without a pooled text, for Ovis's own texts.

Text tokens lie on a diagonal. Source: Wang et al. 2025, arXiv:2511.22982; the numbers are ComfyUI's.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from serve_app.models.families.dit import flux_names
from serve_app.models.families.dit.flux import Flux
from serve_app.models.families.shared.dit import WHOLE_EPS
from serve_app.models.files.layout import Table
from serve_app.models.files.tensors import Tensors

WIDER = 4
"""The width inside a feed-forward layer, as a multiple of a token's."""


@dataclass(frozen=True, slots=True)
class OvisImage(Flux):
    """A backbone of Ovis-Image, without guidance and without a pooled text."""

    title = "Ovis-Image"

    @classmethod
    def recognises(cls, tensors: Tensors) -> bool:
        return True

    def table(self, tensors: Tensors | None = None) -> Table:
        table = dict(flux_names.ends()) | dict(flux_names.embedders(("time_in",)))
        table |= {"txt_in": "context_embedder.linear", "txt_norm": "context_embedder.norm"}
        table["txt_norm.scale"] = "context_embedder.norm.weight"
        for number in range(self.doubles):
            names = dict(flux_names.double_block(number, self.width))
            table |= {theirs: ours for theirs, ours in names.items() if "_mlp." not in theirs}
            for of, ours in (("img", "ff"), ("txt", "ff_context")):
                table[f"double_blocks.{number}.{of}_mlp"] = f"transformer_blocks.{number}.{ours}"
        for number in range(self.singles):
            table |= flux_names.single_block(number, self.width, 2 * WIDER * self.width)
        return table | dict(flux_names.modulation(self.doubles, self.singles))

    def build(self) -> nn.Module:
        network: Any = super(OvisImage, replace(self, pooled_width=1)).build()
        del network.time_text_embed.text_embedder
        norm = nn.RMSNorm(self.text_width, WHOLE_EPS)
        network.context_embedder = nn.Sequential(OrderedDict(norm=norm, linear=network.context_embedder))
        for block in network.transformer_blocks:
            block.ff, block.ff_context = _Gated(self.width), _Gated(self.width)
        for block in network.single_transformer_blocks:
            block.proj_mlp, block.act_mlp = nn.Linear(self.width, 2 * WIDER * self.width), _GatedHalves()
        built: nn.Module = network
        return built

    def placed(self, text: int, images: Sequence[Tensor]) -> Tensor:
        return torch.cat([torch.arange(text)[:, None] * torch.tensor([0.0, 1.0, 1.0]), *images])


class _Gated(nn.Module):
    """A feed-forward layer with a gate."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, WIDER * width)
        self.up_proj = nn.Linear(width, WIDER * width)
        self.down_proj = nn.Linear(WIDER * width, width)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))
        return made


class _GatedHalves(nn.Module):
    """The first half of what a layer makes, times its second half as a gate."""

    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, dim=-1)
        return silu(gate) * value
