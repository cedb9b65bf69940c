"""Token merging (ToMe): tokens of an image are merged into similar ones, and later get their outputs.

In each 2×2 square one token is drawn as a destination. Of the other tokens, those most similar to a destination, by
cosine, are merged into it. Source: Bolya and Hoffman 2023, arXiv:2303.17604, sections 3 and 4.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from serve_app.sampling.transfer import to_device

SQUARE = 2

Merge: TypeAlias = "Callable[[Tensor, Tensor], tuple[Tensor, Callable[[Tensor], Tensor]]]"
"""From features (B,n,D), which are compared, and a tensor (B,n,d) to the merged, shorter tensor and the inverse."""


def merging(size: tuple[int, int], count: int, generator: torch.Generator) -> Merge | None:
    """Return a function that merges `count` tokens of an image of (h,w) tokens, or None if nothing is merged."""
    height, width = size
    if count <= 0 or height == 1 or width == 1:
        return None
    into = _drawn(height, width, generator)
    kept = torch.zeros(height * width, dtype=torch.bool)
    kept[into] = True
    others = (~kept).nonzero()[:, 0]

    def merge(features: Tensor, values: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        targets, sources = to_device(into, features.device), to_device(others, features.device)
        unit = features / features.norm(dim=-1, keepdim=True)
        likeness, nearest = (unit[:, sources] @ unit[:, targets].mT).max(dim=-1)
        by_likeness = likeness.argsort(dim=-1, descending=True)
        merged, left = by_likeness[:, :count], by_likeness[:, count:]
        to = nearest.gather(1, merged)

        def wide(index: Tensor) -> Tensor:
            return index[..., None].expand(-1, -1, values.shape[2])

        given = values[:, sources]
        mean = values[:, targets].scatter_reduce(1, wide(to), given.gather(1, wide(merged)), "mean")

        def back(made: Tensor) -> Tensor:
            rest, joined = made[:, : left.shape[1]], made[:, left.shape[1] :]
            of_sources = torch.empty_like(given)
            of_sources.scatter_(1, wide(left), rest)
            of_sources.scatter_(1, wide(merged), joined.gather(1, wide(to)))
            whole = torch.empty_like(values)
            whole[:, targets], whole[:, sources] = joined, of_sources
            return whole

        return torch.cat([given.gather(1, wide(left)), mean], dim=1), back

    return merge


def _drawn(height: int, width: int, generator: torch.Generator) -> Tensor:
    """Return the index of one random token of each whole square."""
    rows, columns = height // SQUARE, width // SQUARE
    which = torch.randint(SQUARE**2, (rows, columns, 1), generator=generator)[..., 0]
    y = torch.arange(rows)[:, None] * SQUARE + which // SQUARE
    x = torch.arange(columns) * SQUARE + which % SQUARE
    return (y * width + x).flatten()
