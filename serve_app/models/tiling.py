"""Processes a large image in overlapping tiles, blended where they overlap.

A tile fades in over its overlap from every side, and the sum is divided by the sum of the weights. Positions, weights
and passes are those of ComfyUI 0.3.64 (`tiled_scale`), so that seams are where users know them; a video is also tiled
in time, as in 0.33 (`tiled_scale_multidim`). Knows no model: the work on a tile is a function. Work pauses between
tiles, so that others can use the device.
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
from serve_app.sampling.transfer import to_host

Tiles: TypeAlias = Generator[tuple[int, int], None, Tensor]
"""Work that pauses after every tile: yields (tiles done, tiles in all), returns the whole.

It is resumed once the device has done the work enqueued so far.
"""

Shape: TypeAlias = tuple[int, int]
"""(height, width) of a tile."""


@dataclass(frozen=True, slots=True)
class Axis:
    """How an axis is tiled: cells of a tile and of the overlap.

    length: from a number of cells to their length in the result. place: from a first cell to its position there.
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
    *,
    fades_inside: bool = False,
) -> Tiles:
    """Process a batch (B,C,…,H,W) once per tile shape and return the mean, float32 (B,c,…,H·scale,W·scale).

    work: a tile (1,C,…,h,w) to (1,c,…,h·scale,w·scale). overlap: in cells. time: for a batch (B,C,T,H,W).
    fades_inside: as `VaeFamily`. Errors: NodeError for an overlap as large as a tile.
    """

    def scaled(cells: int) -> int:
        return round(cells * scale)

    whole = [] if time is None else [time]
    passes = [[*whole, *(Axis(tile, overlap, scaled, scaled) for tile in shape)] for shape in shapes]
    count = len(passes[0])
    plans = [_plan(batch.shape[-count:], axes) for axes in passes]
    total = len(batch) * sum(prod(map(len, plan)) for plan in plans)
    done = 0
    size = [axis.length(side) for axis, side in zip(passes[0], batch.shape[-count:], strict=True)]
    means: list[Tensor | None] = [None] * len(batch)
    for axes, plan in zip(passes, plans, strict=True):
        tiles = prod(map(len, plan))
        for i, image in enumerate(torch.split(batch, 1)):
            blended, weights = torch.empty(0), torch.zeros(size)
            for cut in product(*plan):
                cells: tuple[Any, ...] = (..., *cut)
                tile = to_host(work(image[cells]).float())
                done += 1
                yield done, total
                if not blended.numel():
                    blended = tile.new_zeros(*tile.shape[:-count], *size)
                into: tuple[Any, ...] = (...,)
                fades = []
                for n, axis, part in zip(range(-count, 0), axes, cut, strict=True):
                    start, length = axis.place(part.start), tile.shape[n]
                    into += (slice(start, start + length),)
                    overlap_there = axis.length(axis.overlap) if tiles > 1 else 0
                    if fades_inside:
                        inside = part.start > 0, part.stop < batch.shape[n]
                        fade = _fade_inside(length, overlap_there, *inside)
                    else:
                        fade = _fade(length, overlap_there)
                    fades.append(fade.view(-1, *(1,) * (-n - 1)))
                weight = prod(fades[1:], start=fades[0])
                blended[into] += tile * weight
                weights[into] += weight
            blended /= weights
            before = means[i]
            means[i] = blended if before is None else before + blended
    return torch.cat([mean for mean in means if mean is not None]) / len(plans)


def three_shapes(size: int) -> list[Shape]:
    """Return a tall, a wide and a square tile of about one area, so that the passes' seams do not coincide."""
    return [(size * 2, size // 2), (size // 2, size * 2), (size, size)]


def _plan(sides: Sequence[int], axes: Sequence[Axis]) -> list[list[slice]]:
    """Return the cuts of each axis; the tiles are their product, too many for a list."""
    return [_cuts(side, axis.tile, axis.overlap) for side, axis in zip(sides, axes, strict=True)]


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


def _fade_inside(length: int, feather: int, begins: bool, ends: bool) -> Tensor:
    """Return weights (length,) that rise at the begin and fall at the end along half a wave, where these are inside."""
    weights = torch.ones(length)
    feather = min(feather, length // 2)
    if feather > 0:
        ramp = 0.5 - 0.5 * torch.cos(torch.linspace(0, 1, feather) * torch.pi)
        if begins:
            weights[:feather] = ramp
        if ends:
            weights[length - feather :] = 1 - ramp
    return weights
