"""Small backbones with drawn weights, and rows for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from serve_app.models.families.dit.flux import FluxInputs
from serve_app.models.families.family import BackboneFamily, Rows
from serve_app.models.network import ForwardOptions, LoadedNetwork
from serve_app.recipe.training import Discrete


def network(family: BackboneFamily, dtype: torch.dtype = torch.float32, *, compiled: bool = False) -> LoadedNetwork:
    """Return a family's network with weights drawn from one seed."""
    module = family.empty().to_empty(device="cpu").to(dtype)
    draw = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=draw) * 0.1)
    return LoadedNetwork("drawn", family, module, Discrete(), options=ForwardOptions(compiled=compiled))


def rows_of(x: Tensor, inputs: Any, **changes: Any) -> Rows:
    """Return rows in the middle of a schedule."""
    return Rows(x, 0.5, torch.full((len(x),), 0.5), inputs, **changes)


def flux_rows(count: int, side: int, text: int, pooled: int, *, tokens: int = 6, **changes: Any) -> list[Rows]:
    """Return rows for a Flux. side: of the latents, in cells. text, pooled: widths of the text."""
    draw = torch.Generator().manual_seed(count * 100 + side)
    x = torch.randn(count, 16, side, side, generator=draw)
    inputs = FluxInputs(
        torch.randn(count, tokens, text, generator=draw),
        torch.randn(count, pooled, generator=draw),
        torch.full((count,), 3.5),
    )
    return [rows_of(x, inputs, **changes)]
