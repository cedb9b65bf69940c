"""A panorama as twelve views, towards the corners of an icosahedron, and their distances merged into one map.

The map is the one whose slopes and curvatures are nearest to those of the views, which each know their distances up to
a factor. It is solved at half the size first. Source: Wang et al. 2024, arXiv:2410.19115, and the authors' examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import convolve, map_coordinates
from scipy.sparse import csr_array, vstack
from scipy.sparse.linalg import lsmr
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]

VIEW_DEGREES = 90.0
LEAST_SIDE = 32
SOLVED_WHOLE = 256
"""The longest side of a map that is solved without a smaller one before it."""
EXACT = 1e-5
NEAREST = 1e-6
FAR, BEYOND = 0.95, 5.0
"""What no view has is as many times as far as this quantile."""
_GOLDEN = (1 + sqrt(5)) / 2
_CORNERS = (
    *((0, 1, _GOLDEN), (0, -1, _GOLDEN), (0, 1, -_GOLDEN), (0, -1, -_GOLDEN)),
    *((1, _GOLDEN, 0), (-1, _GOLDEN, 0), (1, -_GOLDEN, 0), (-1, -_GOLDEN, 0)),
    *((_GOLDEN, 0, 1), (_GOLDEN, 0, -1), (-_GOLDEN, 0, 1), (-_GOLDEN, 0, -1)),
)
_CROSS = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], np.float32)
"""The four neighbours of a pixel."""


def _views() -> Floats:
    """Return how each view turns the world (12,3,3): rows are its right, down and forwards."""
    forwards = np.array(_CORNERS, np.float32)
    forwards /= np.linalg.norm(forwards, axis=-1, keepdims=True)
    right = np.cross(forwards, np.array([0, 0, 1], np.float32))
    right /= np.linalg.norm(right, axis=-1, keepdims=True)
    return np.stack([right, np.cross(forwards, right), forwards], axis=-2).astype(np.float32)


def _grid(height: int, width: int) -> Floats:
    """Return where the middle of each pixel is (H,W,2), x and y in 0…1."""
    across, down = ((np.arange(side, dtype=np.float32) + 0.5) / side for side in (width, height))
    return np.stack(np.meshgrid(across, down), axis=-1).astype(np.float32)


def _directions(height: int, width: int) -> Floats:
    """Return where in space each pixel of a panorama is (H,W,3), at distance 1."""
    around, down = np.moveaxis(_grid(height, width), -1, 0)
    around, down = (1 - around) * 2 * np.pi, down * np.pi
    made = np.stack([np.sin(down) * np.cos(around), np.sin(down) * np.sin(around), np.cos(down)], axis=-1)
    return made.astype(np.float32)


def directions_of(height: int, width: int) -> Tensor:
    """Return where in space each pixel of a panorama is (H,W,3), at distance 1."""
    return torch.from_numpy(_directions(height, width))


def split(panorama: Tensor, side: int) -> Tensor:
    """Return the views (12,3,side,side) of a panorama (H,W,3)."""
    # A camera of 90° sees from −1 to 1 at distance 1.
    rays = np.concatenate([2 * _grid(side, side) - 1, np.ones((side, side, 1), np.float32)], axis=-1)
    world = np.einsum("hwc,vcd->vhwd", rays, _views())
    world /= np.linalg.norm(world, axis=-1, keepdims=True)
    across = 1 - np.arctan2(world[..., 1], world[..., 0]) / (2 * np.pi) % 1.0
    down = np.arccos(world[..., 2].clip(-1, 1)) / np.pi
    at = torch.from_numpy(np.stack([across, down], axis=-1).astype(np.float32)) * 2 - 1
    planes = panorama.float().movedim(-1, 0).expand(len(at), -1, -1, -1)
    return grid_sample(planes, at, padding_mode="border", align_corners=False)


def merged(size: tuple[int, int], distances: Sequence[Tensor], masks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the distances of a panorama of a size (H,W), up to a factor, and where any view has one.

    distances, masks: of each view (side,side).
    """
    logs = [np.log(one.numpy().clip(NEAREST)) for one in distances]
    found, there = _solved(*size, logs, [one.numpy() for one in masks])
    return torch.from_numpy(found), torch.from_numpy(there)


def filled(depth: Tensor, mask: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return distances and their mask (H,W) at a size, those that no view has far away."""
    if tuple(depth.shape) != size:
        depth = interpolate(depth[None, None], size=size, mode="bilinear")[0, 0]
        mask = interpolate(mask[None, None].float(), size=size)[0, 0] > 0
    if mask.any() and not mask.all():
        depth = torch.where(mask, depth, float(np.quantile(depth[mask].numpy(), FAR)) * BEYOND)
    return depth, mask


def _solved(height: int, width: int, logs: Sequence[Floats], masks: Sequence[Flags]) -> tuple[Floats, Flags]:
    start = None
    if max(height, width) > SOLVED_WHOLE:
        coarse = torch.from_numpy(_solved(height // 2, width // 2, logs, masks)[0])[None, None]
        finer = interpolate(coarse, size=(height, width), mode="bilinear").flatten().numpy()
        start = np.log(finer.clip(NEAREST))
    sums = _Means(), _Means(), _Means()
    seen = np.zeros((height, width), bool)
    directions = _directions(height, width)
    for turn, log, mask in zip(_views(), logs, masks, strict=True):
        log_there, there = _in_panorama(directions @ turn.T, log, mask)
        seen |= there
        # A panorama goes around, but not over its poles.
        around = np.pad(log_there, ((0, 0), (0, 1)), mode="wrap")
        known = np.pad(there, ((0, 0), (0, 1)), mode="wrap")
        sums[0].add(around[:, :-1] - around[:, 1:], known[:, :-1] & known[:, 1:])
        sums[1].add(around[:-1] - around[1:], known[:-1] & known[1:])
        neighbours = convolve(_around(log_there), _CROSS)[1:-1, 1:-1]
        complete = convolve(_around(there.astype(np.uint8)), _CROSS.astype(np.uint8))[1:-1, 1:-1] == 4
        sums[2].add(neighbours - 4 * log_there, complete & there)
    numbers = np.arange(height * width).reshape(height, width)
    wrapped, padded = np.pad(numbers, ((0, 0), (0, 1)), mode="wrap"), _around(numbers)
    equations = [
        _equations([1, -1], [wrapped[:, :-1], wrapped[:, 1:]], sums[0].known, numbers.size),
        _equations([1, -1], [wrapped[:-1], wrapped[1:]], sums[1].known, numbers.size),
        _equations(
            [-4, 1, 1, 1, 1],
            [numbers, padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]],
            sums[2].known,
            numbers.size,
        ),
    ]
    wanted = np.concatenate([one.mean() for one in sums])
    found = lsmr(vstack(equations), wanted, atol=EXACT, btol=EXACT, x0=start)[0]
    return np.exp(found).reshape(height, width).astype(np.float32), seen


def _in_panorama(points: Floats, log: Floats, mask: Flags) -> tuple[Floats, Flags]:
    """Return the logarithms of a view's distances, and where it has any, at points (H,W,3) as its camera sees them."""
    depth = points[..., 2]
    at = (points[..., :2] / depth[..., None].clip(1e-12) + 1) / 2
    inside = (depth > 0) & (at > 0).all(-1) & (at < 1).all(-1)
    height, width = log.shape
    places = [at[..., 1].clip(0, 1) * (height - 1), at[..., 0].clip(0, 1) * (width - 1)]
    sampled = map_coordinates(log, places, order=1, mode="nearest")
    known = map_coordinates(mask.astype(np.uint8), places, order=0, mode="nearest") > 0
    return np.where(inside, sampled, 0).astype(np.float32), inside & known


def _around(values: NDArray[Any]) -> NDArray[Any]:
    """Return a panorama with one pixel more on each side."""
    return np.pad(np.pad(values, ((1, 1), (0, 0)), mode="edge"), ((0, 0), (1, 1)), mode="wrap")


def _equations(factors: Sequence[int], numbers: Sequence[NDArray[np.int64]], known: Flags, unknowns: int) -> csr_array:
    """Return a row per pixel that is known: the sum of these unknowns, by these factors."""
    columns = np.stack([one[known] for one in numbers], axis=-1)
    ends = np.arange(0, columns.size + 1, len(factors))
    values = np.tile(np.array(factors, np.float32), len(columns))
    return csr_array((values, columns.ravel(), ends), shape=(len(columns), unknowns))


class _Means:
    """The mean of maps, each of what it knows."""

    def __init__(self) -> None:
        self._sum: Floats = np.zeros(1, np.float32)
        self._count: NDArray[np.int64] = np.zeros(1, np.int64)

    def add(self, values: NDArray[Any], known: Flags) -> None:
        self._sum = self._sum + values * known
        self._count = self._count + known

    @property
    def known(self) -> Flags:
        return self._count > 0

    def mean(self) -> NDArray[np.float64]:
        """Return the means of what any map knows, flat."""
        made: NDArray[np.float64] = self._sum[self.known].astype(np.float64) / self._count[self.known]
        return made
