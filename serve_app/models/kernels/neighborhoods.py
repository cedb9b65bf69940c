"""Attention of each cell of a video to those around it alone, by comfy_kitchen's kernel where there is one.

A window has one size everywhere: at the sides of the video it is moved inwards. Elsewhere than on a GPU with that
kernel cells are taken in cubes, each with the cells that its windows cover. Source: Hassani et al. 2023,
arXiv:2204.07143.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from serve_app.models.kernels.comfy_kitchen import has_kernels
from serve_app.sampling.transfer import to_device

Sides: TypeAlias = tuple[int, int, int]
Shape: TypeAlias = tuple[tuple[tuple[int, ...], int], ...]
"""Of each axis the starts of windows, and the number of cells that they cover."""
CUBE: Sides = (8, 8, 8)
"""Cells whose windows are computed together. Larger ones attend to fewer cells in vain, and take more memory."""


class _Piece(NamedTuple):
    """Cells along an axis, and those that their windows cover. starts: of each window, from the first covered cell."""

    cells: slice
    covered: slice
    starts: tuple[int, ...]


def neighborhood_attention(q: Tensor, k: Tensor, v: Tensor, window: Sides) -> Tensor:
    """Return what cells find in their windows, (B,F,h,w,H,d) as all three. Queries are scaled before.

    window: its frames, rows and columns; of a video with fewer along an axis, all of them.
    """
    if has_kernels(q.device):
        found: Tensor = torch.ops.comfy_kitchen.na3d(q, k, v, list(window), [False] * 3, 1.0)
        return found
    return _in_cubes(q, k, v, window)


def _in_cubes(q: Tensor, k: Tensor, v: Tensor, window: Sides) -> Tensor:
    """Return what `neighborhood_attention` does, by torch alone."""
    sides = q.shape[1:4]
    axes = [_pieces(side, min(size, side), cube) for side, size, cube in zip(sides, window, CUBE, strict=True)]
    windows = tuple(min(size, side) for side, size in zip(sides, window, strict=True))
    made, masks = torch.empty_like(q), {}
    for frames in axes[0]:
        for rows in axes[1]:
            for columns in axes[2]:
                pieces = frames, rows, columns
                here = (slice(None), *(piece.cells for piece in pieces))
                there = (slice(None), *(piece.covered for piece in pieces))
                shape = tuple((piece.starts, piece.covered.stop - piece.covered.start) for piece in pieces)
                if shape not in masks:
                    masks[shape] = _seen(shape, windows, q.device)
                # (B,H,n,d) each
                own, keys, values = (x.flatten(1, 3).transpose(1, 2) for x in (q[here], k[there], v[there]))
                found = scaled_dot_product_attention(own, keys, values, attn_mask=masks[shape], scale=1.0)
                made[here] = found.transpose(1, 2).reshape(q[here].shape)
    return made


@lru_cache(maxsize=64)
def _pieces(side: int, window: int, cube: int) -> tuple[_Piece, ...]:
    """Return the pieces of an axis."""

    def start(cell: int) -> int:
        return min(max(cell - window // 2, 0), side - window)

    def pieces() -> Iterator[_Piece]:
        for first in range(0, side, cube):
            cells = range(first, min(first + cube, side))
            begin = start(first)
            starts = tuple(start(cell) - begin for cell in cells)
            yield _Piece(slice(first, cells.stop), slice(begin, start(cells.stop - 1) + window), starts)

    return tuple(pieces())


def _seen(pieces: Shape, windows: Sequence[int], device: torch.device) -> Tensor | None:
    """Return which of the covered cells each cell sees, (n,m); None for all."""
    if all(covered == window for (_, covered), window in zip(pieces, windows, strict=True)):
        return None
    axes = []
    for (starts, covered), window in zip(pieces, windows, strict=True):
        first, cell = to_device(torch.tensor(starts), device)[:, None], torch.arange(covered, device=device)
        axes.append((cell >= first) & (cell < first + window))
    frames, rows, columns = axes
    seen = (
        frames[:, None, None, :, None, None]
        & rows[None, :, None, None, :, None]
        & columns[None, None, :, None, None, :]
    )
    return seen.flatten(3).flatten(0, 2)
