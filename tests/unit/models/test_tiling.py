"""Tiles: what they make of work whose whole result is known, and where they lie."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from serve_app.errors import NodeError
from serve_app.models.tiling import in_passes, three_shapes


def finished(tiles: Any) -> tuple[Tensor, list[tuple[int, int]]]:
    seen = []
    while True:
        try:
            seen.append(next(tiles))
        except StopIteration as end:
            return end.value, seen


@pytest.mark.parametrize("overlap", [0, 1, 3, 7])
@pytest.mark.parametrize("size", [(11, 23), (8, 8), (30, 9)])
def test_work_on_single_pixels_is_the_same_in_tiles_as_on_the_whole(size: tuple[int, int], overlap: int) -> None:
    batch = torch.rand(2, 3, *size)
    whole, _ = finished(in_passes(batch, lambda t: interpolate(t, scale_factor=3), [(8, 8), (10, 8)], overlap, 3))
    torch.testing.assert_close(whole, interpolate(batch, scale_factor=3))


def test_work_that_shrinks_is_put_where_it_belongs() -> None:
    batch = torch.rand(1, 2, 48, 80)
    whole, _ = finished(in_passes(batch, lambda t: avg_pool2d(t, 8), three_shapes(32), 8, 1 / 8))
    torch.testing.assert_close(whole, avg_pool2d(batch, 8))


def test_an_image_that_fits_a_tile_is_worked_through_once_a_pass() -> None:
    sizes: list[tuple[int, ...]] = []

    def work(tile: Tensor) -> Tensor:
        sizes.append(tuple(tile.shape))
        return tile

    _, seen = finished(in_passes(torch.rand(2, 1, 6, 6), work, [(8, 8), (6, 9)], 2, 1))
    assert sizes == [(1, 1, 6, 6)] * 4
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_neighbours_fade_into_each_other_over_their_overlap() -> None:
    numbers = iter((0.0, 1.0))
    whole, _ = finished(
        in_passes(torch.zeros(1, 1, 1, 12), lambda t: torch.full_like(t, next(numbers)), [(8, 8)], 4, 1)
    )
    # Cells 4 to 7 are in both tiles; the first fades by quarters as the second comes in.
    assert whole.flatten().tolist() == pytest.approx([0, 0, 0, 0, 1 / 5, 2 / 5, 3 / 5, 4 / 5, 1, 1, 1, 1])


def test_passes_are_averaged() -> None:
    numbers = iter((0.0, 0.6, 0.9))
    whole, _ = finished(in_passes(torch.zeros(1, 1, 4, 4), lambda t: t + next(numbers), three_shapes(8), 0, 1))
    assert torch.allclose(whole, torch.tensor(0.5))


def test_an_overlap_as_large_as_a_tile_is_an_error() -> None:
    with pytest.raises(NodeError, match="tiles of 32 overlap by 32"):
        finished(in_passes(torch.zeros(1, 1, 64, 128), lambda t: t, three_shapes(64), 32, 1))


def test_tiles_are_planned_as_they_come() -> None:
    batch = torch.zeros(1).expand(1, 1, 10**6, 10**6)
    tiles = in_passes(batch, lambda t: t[..., :1, :1].clone(), [(2, 2)], 1, 1e-6)
    assert next(tiles) == (1, 999_999**2)
