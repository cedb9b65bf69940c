"""Attention to windows against attention to all with a mask, and against comfy_kitchen's."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from serve_app.models.kernels.comfy_kitchen import is_installed
from serve_app.models.kernels.neighborhoods import neighborhood_attention

CASES = (((1, 3, 3), (3, 5, 5)), ((9, 10, 3), (5, 7, 3)), ((3, 17, 9), (11, 3, 9)), ((2, 2, 2), (1, 1, 1)))
"""Sides of videos, and windows: of fewer cells than the window, of several cubes, of windows of one cell."""


def drawn(sides: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, *sides, 2, 4, generator=generator) for _ in range(3))
    return q, k, v


@pytest.mark.parametrize(("sides", "window"), CASES)
def test_a_cell_sees_a_window_that_is_moved_inwards(sides: tuple[int, int, int], window: tuple[int, int, int]) -> None:
    q, k, v = drawn(sides)
    cells = list(itertools.product(*map(range, sides)))
    seen = torch.zeros(len(cells), len(cells), dtype=torch.bool)
    for i, cell in enumerate(cells):
        first = [min(max(c - w // 2, 0), max(s - w, 0)) for c, w, s in zip(cell, window, sides, strict=True)]
        for j, other in enumerate(cells):
            seen[i, j] = all(f <= o < f + w for f, o, w in zip(first, other, window, strict=True))
    own, keys, values = (x.flatten(1, 3).transpose(1, 2) for x in (q, k, v))
    wanted = scaled_dot_product_attention(own, keys, values, attn_mask=seen, scale=1.0)
    torch.testing.assert_close(neighborhood_attention(q, k, v, window), wanted.transpose(1, 2).reshape(q.shape))


@pytest.mark.skipif(not is_installed(), reason="comfy_kitchen is not installed")
@pytest.mark.parametrize(("sides", "window"), CASES)
def test_kernels_compute_the_same(sides: tuple[int, int, int], window: tuple[int, int, int]) -> None:
    q, k, v = drawn(sides)
    theirs = torch.ops.comfy_kitchen.na3d(q, k, v, list(window), [False] * 3, 1.0)
    torch.testing.assert_close(neighborhood_attention(q, k, v, window), theirs)
