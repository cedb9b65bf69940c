"""Working through a large image in overlapping tiles, blended where they overlap.

A tile fades in over its overlap from every side, and the sum is divided by the sum of the weights. The positions,
weights and passes are those of ComfyUI 0.3.64 (`tiled_scale`), so that the seams are where a user knows them. Knows no
model: what is done to a tile is a function. Between two tiles the work pauses, so that others can use the device.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from itertools import product
from typing import TypeAlias

import torch
from torch import Tensor

from serve_app.errors import NodeError
from serve_app.sampling.transfer import brought

Tiles: TypeAlias = Generator[tuple[int, int], None, Tensor]
"""Work that pauses after every tile: yields (tiles done, tiles in all), returns the whole.

It goes on once the device has done what it was asked for by then.
"""

Shape: TypeAlias = tuple[int, int]
"""(height, width) of a tile."""


def in_passes(
    batch: Tensor, work: Callable[[Tensor], Tensor], shapes: list[Shape], overlap: int, scale: float
) -> Tiles:
    """Work through a batch (B,C,…,H,W) once per tile shape and return the mean, float32 (B,c,…,H·scale,W·scale).

    work: a tile (1,C,…,h,w) to (1,c,…,h·scale,w·scale). overlap: cells that neighbours share. Errors: NodeError for an
    overlap that leaves a tile nothing of its own.
    """
    plans = [_plan(batch, shape, overlap) for shape in shapes]
    total = len(batch) * sum(map(len, plans))
    done = 0
    size = [round(side * scale) for side in batch.shape[-2:]]
    means: list[Tensor | float] = [0.0] * len(batch)
    for plan in plans:
        for i, image in enumerate(torch.split(batch, 1)):
            blended, weights = torch.empty(0), torch.zeros(size)
            for rows, columns in plan:
                tile = brought(work(image[..., rows, columns]).float())
                done += 1
                yield done, total
                if not blended.numel():
                    blended = tile.new_zeros(*tile.shape[:-2], *size)
                height, width = tile.shape[-2:]
                top, left = round(rows.start * scale), round(columns.start * scale)
                into = (..., slice(top, top + height), slice(left, left + width))
                feather = round(overlap * scale) if len(plan) > 1 else 0
                weight = _fade(height, feather)[:, None] * _fade(width, feather)
                blended[into] += tile * weight
                weights[into] += weight
            means[i] += blended / weights
    return torch.cat([torch.as_tensor(mean) for mean in means]) / len(plans)


def three_shapes(size: int) -> list[Shape]:
    """Return a tall, a wide and a square tile of about one area: no seam of one pass lies on another's."""
    return [(size * 2, size // 2), (size // 2, size * 2), (size, size)]


def _plan(batch: Tensor, shape: Shape, overlap: int) -> list[tuple[slice, slice]]:
    rows, columns = (_cuts(side, tile, overlap) for side, tile in zip(batch.shape[-2:], shape, strict=True))
    return list(product(rows, columns))


def _cuts(side: int, tile: int, overlap: int) -> list[slice]:
    if side <= tile:
        return [slice(0, side)]
    if tile <= overlap:
        raise NodeError(f"tiles of {tile} overlap by {overlap}; the overlap must be smaller than every tile's side")
    return [slice(start, min(start + tile, side)) for start in range(0, side - overlap, tile - overlap)]


def _fade(length: int, feather: int) -> Tensor:
    """Return weights (length,) that rise over `feather` cells from both ends; all 1 if that is the whole length."""
    weights = torch.ones(length)
    if 0 < feather < length:
        ramp = torch.arange(1, feather + 1) / feather
        weights[:feather] *= ramp
        weights[length - feather :] *= ramp.flip(0)
    return weights
