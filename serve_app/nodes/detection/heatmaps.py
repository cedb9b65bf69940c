"""Where a heatmap's maximum lies, finer than its points: the distribution-aware decoding of keypoints.

A heatmap is taken for a Gaussian: after smoothing, one Newton step on its logarithm leads from the largest point to the
maximum between points. Sources: Zhang et al. 2020, arXiv:1910.06278; Huang et al. 2020, arXiv:1911.07524.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from scipy.ndimage import gaussian_filter
from torch import Tensor

Array: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]

SPREAD, REACH = 2.0, 5
"""The deviation of what smooths, and how many points it reaches."""
LEAST, MOST = 1e-3, 50.0
"""Between these values logarithms are taken."""
MISSING = -1.0
"""Both coordinates of a keypoint that is not there."""


def keypoints_of(heatmaps: Tensor, size: tuple[int, int]) -> tuple[Array, Array]:
    """Return keypoints (K,2), as x and y in an image, and their scores (K,).

    heatmaps: (K,h,w), float32. size: width and height of the image that they are of. MISSING where no value is above 0.
    """
    maps: Array = heatmaps.numpy()
    count, height, width = maps.shape
    numbers = np.arange(count)
    largest = maps.reshape(count, -1).argmax(axis=1)
    scores: Array = maps.reshape(count, -1)[numbers, largest].copy()
    missing = scores <= 0
    y, x = np.unravel_index(np.where(missing, 0, largest), (height, width))
    steps = _newton_steps(_logarithms(maps), numbers, y, x)
    points = (np.stack([x, y], axis=-1).astype(np.float32) - steps).astype(np.float32)
    scale = ((np.array(size) - 1) / (np.array((width, height)) - 1)).astype(np.float32)
    points *= scale
    points[missing] = MISSING
    return points, scores


def _logarithms(maps: Array) -> Array:
    """Return logarithms of smoothed maps, each with its former maximum."""
    reach = REACH / SPREAD
    smooth: Array = gaussian_filter(maps, sigma=(0, SPREAD, SPREAD), mode="constant", truncate=reach)
    before, after = (each.max(axis=(1, 2), keepdims=True) for each in (maps, smooth))
    factors = np.divide(before, after, out=np.ones_like(before), where=after > 0)
    logarithms: Array = np.log(np.clip(smooth * factors, LEAST, MOST))
    return logarithms


def _newton_steps(maps: Array, numbers: Any, y: Any, x: Any) -> Any:
    """Return how far beyond its maximum each point lies, (K,2), by differences between its neighbours."""
    edged = np.pad(maps, ((0, 0), (1, 1), (1, 1)), mode="edge")

    def at(down: int, right: int) -> Any:
        return edged[numbers, y + 1 + down, x + 1 + right]

    here = at(0, 0)
    slope = np.stack([0.5 * (at(0, 1) - at(0, -1)), 0.5 * (at(1, 0) - at(-1, 0))], axis=-1)
    across = at(0, 1) - 2 * here + at(0, -1)
    along = at(1, 0) - 2 * here + at(-1, 0)
    mixed = 0.5 * (at(1, 1) - at(0, 1) - at(1, 0) + here + here - at(0, -1) - at(-1, 0) + at(-1, -1))
    bend = np.stack([across, mixed, mixed, along], axis=-1).reshape(-1, 2, 2)
    inverse = np.linalg.inv(bend + np.finfo(np.float32).eps * np.eye(2))
    return np.einsum("imn,in->im", inverse, slope)
