"""Points in space of each pixel: their focal length and distance, where they are by a depth, which way they face.

Focal lengths are of half the image's diagonal, intrinsics of an image whose sides are 1. Source: Wang et al. 2024,
arXiv:2410.19115.
"""

from __future__ import annotations

from math import hypot

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import least_squares
from torch import Tensor
from torch.nn.functional import interpolate, normalize, pad

SIDE = 64
"""Points along a side of those of which the focal length and the distance are estimated."""
FALLBACK_DEGREES = 60.0
"""The angle of view where the estimate is none that a camera has."""


def focal_of(degrees: float, aspect: float) -> float:
    """Return the focal length of an angle of view over the width. aspect: how many times as wide as high."""
    return float(aspect / hypot(1, aspect) / np.tan(np.radians(degrees) / 2))


def placed(points: Tensor, mask: Tensor, focal: float | None) -> tuple[float, float]:
    """Return the focal length, and by how much points (H,W,3) are farther, of those that a mask (H,W) has.

    focal: the length, where it is known; then only the distance is estimated.
    """
    height, width = mask.shape
    where = _where(height, width)
    few, at = (interpolate(one.movedim(-1, 0)[None], (SIDE, SIDE))[0].movedim(0, -1) for one in (points, where))
    there = interpolate(mask.float()[None, None], (SIDE, SIDE))[0, 0] > 0
    if int(there.sum()) < 2:
        return (1.0 if focal is None else focal), 0.0
    seen, places = few[there].numpy(), at[there].numpy()
    found, shift = _solved(seen, places, focal)
    if focal is None and not (np.isfinite(found) and found > 0):
        return _solved(seen, places, focal_of(FALLBACK_DEGREES, width / height))
    return found, shift


def _solved(points: NDArray[np.float32], places: NDArray[np.float32], focal: float | None) -> tuple[float, float]:
    """Return the focal length and the shift of depths under which points (N,3) are nearest to their places (N,2)."""
    slopes, depths = points[:, :2], points[:, 2]

    def projected(shift: NDArray[np.float64]) -> NDArray[np.float64]:
        made: NDArray[np.float64] = slopes / (depths + shift)[:, None]
        return made

    def length(seen: NDArray[np.float64]) -> float:
        return float((seen * places).sum() / np.square(seen).sum()) if focal is None else focal

    def missed(shift: NDArray[np.float64]) -> NDArray[np.float64]:
        seen = projected(shift)
        made: NDArray[np.float64] = (length(seen) * seen - places).ravel()
        return made

    shift = least_squares(missed, x0=0.0, ftol=1e-3, method="lm").x
    return length(projected(shift)), float(shift[0])


def _where(height: int, width: int) -> Tensor:
    """Return where each pixel is (H,W,2), x and y, in an image whose diagonal is 2."""
    diagonal = hypot(1, width / height)

    def along(cells: int, span: float) -> Tensor:
        edge = span * (cells - 1) / cells
        return torch.linspace(-edge, edge, cells)

    across, down = along(width, width / height / diagonal), along(height, 1 / diagonal)
    return torch.stack(torch.meshgrid(across, down, indexing="xy"), dim=-1)


def intrinsics_of(focal: float, aspect: float) -> Tensor:
    """Return the matrix (3,3) of a camera that looks at the middle of the image."""
    length = focal / 2 * hypot(1, aspect)
    return torch.tensor([[length / aspect, 0, 0.5], [0, length, 0.5], [0, 0, 1]])


def unprojected(depth: Tensor, intrinsics: Tensor) -> Tensor:
    """Return the points (H,W,3) of depths (H,W)."""
    height, width = depth.shape
    across, down = (torch.arange(width) + 0.5) / width, (torch.arange(height) + 0.5) / height
    x, y = torch.meshgrid(across, down, indexing="xy")
    rays = torch.stack([x, y, torch.ones_like(x)], dim=-1) @ intrinsics.inverse().T
    return rays * depth[..., None]


def normals_of(points: Tensor) -> Tensor:
    """Return the directions (H,W,3) in which a surface of points (H,W,3) faces; 0 where there is none."""
    there = points.isfinite().all(-1, keepdim=True)
    known = torch.where(there, points, torch.zeros_like(points)).movedim(-1, 0)
    across = pad(known[:, :, 2:] - known[:, :, :-2], (1, 1))
    down = pad(known[:, 2:] - known[:, :-2], (0, 0, 1, 1))
    # y is down, so that this order faces outwards.
    faces = normalize(torch.linalg.cross(down, across, dim=0), dim=0).movedim(0, -1)
    return torch.where(there, faces, torch.zeros_like(faces))
