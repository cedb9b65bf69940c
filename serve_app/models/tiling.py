"""Working through a large image in overlapping tiles, blended where they overlap.

A tile fades in over its overlap from every side, and the sum is divided by the sum of the weights. The positions,
weights and passes are those of ComfyUI 0.3.64 (`tiled_scale`), so that the seams are where a user knows them; a video
is cut in time as well, as by 0.33 (`tiled_scale_multidim`). Knows no model: what is done to a tile is a function.
Between two tiles the work pauses, so that others can use the device.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any, TypeAlias

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


@dataclass(frozen=True, slots=True)
class Axis:
    """How an axis is cut: cells of a tile and those that neighbours share.

    length: how many cells of the result so many become. place: where in it those go that begin at a cell.
    """

    tile: int
    overlap: int
    length: Callable[[int], int]
    place: Callable[[int], int]


def in_passes(
    batch: Tensor,
    work: Callable[[Tensor], Tensor],
    shapes: list[Shape],
    overlap: int,
    scale: float,
    time: Axis | None = None,
) -> Tiles:
    """Work through a batch (B,C,…,H,W) once per tile shape and return the mean, float32 (B,c,…,H·scale,W·scale).

    work: a tile (1,C,…,h,w) to (1,c,…,h·scale,w·scale). overlap: cells that neighbours share. time: of a batch
    (B,C,T,H,W). Errors: NodeError for an overlap that leaves a tile nothing of its own.
    """

    def scaled(cells: int) -> int:
        return round(cells * scale)

    whole = [] if time is None else [time]
    passes = [[*whole, *(Axis(tile, overlap, scaled, scaled) for tile in shape)] for shape in shapes]
    count = len(passes[0])
    plans = [_plan(batch.shape[-count:], axes) for axes in passes]
    total = len(batch) * sum(map(len, plans))
    done = 0
    size = [axis.length(side) for axis, side in zip(passes[0], batch.shape[-count:], strict=True)]
    means: list[Tensor | None] = [None] * len(batch)
    for axes, plan in zip(passes, plans, strict=True):
        for i, image in enumerate(torch.split(batch, 1)):
            blended, weights = torch.empty(0), torch.zeros(size)
            for cut in plan:
                cells: tuple[Any, ...] = (..., *cut)
                tile = brought(work(image[cells]).float())
                done += 1
                yield done, total
                if not blended.numel():
                    blended = tile.new_zeros(*tile.shape[:-count], *size)
                into: tuple[Any, ...] = (...,)
                fades = []
                for n, axis, part in zip(range(-count, 0), axes, cut, strict=True):
                    start, length = axis.place(part.start), tile.shape[n]
                    into += (slice(start, start + length),)
                    fade = _fade(length, axis.length(axis.overlap) if len(plan) > 1 else 0)
                    fades.append(fade.view(-1, *(1,) * (-n - 1)))
                weight = prod(fades[1:], start=fades[0])
                blended[into] += tile * weight
                weights[into] += weight
            blended /= weights
            before = means[i]
            means[i] = blended if before is None else before + blended
    return torch.cat([mean for mean in means if mean is not None]) / len(plans)


def three_shapes(size: int) -> list[Shape]:
    """Return a tall, a wide and a square tile of about one area: no seam of one pass lies on another's."""
    return [(size * 2, size // 2), (size // 2, size * 2), (size, size)]


def _plan(sides: Sequence[int], axes: Sequence[Axis]) -> list[tuple[slice, ...]]:
    cuts = (_cuts(side, axis.tile, axis.overlap) for side, axis in zip(sides, axes, strict=True))
    return list(product(*cuts))


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
