"""Canny's edge detector, the outlines that edge ControlNets are drawn with.

Source: Canny 1986, "A computational approach to edge detection"; filters, border and thresholds are those that kornia
0.9 takes, which ComfyUI calls. kornia 0.8 and older keep neither of two equally strong neighbours, so that there the
outline of a hard step can be missing; the newer rule, OpenCV's, keeps the left or upper one.
"""

from __future__ import annotations

from math import pi
from typing import Annotated, Any

import numpy as np
import torch
from scipy.ndimage import label
from torch.nn.functional import conv2d, pad

from serve_app.errors import NodeError
from serve_app.nodes.declare import node
from serve_app.nodes.inputs import Float
from serve_app.nodes.sockets import IMAGE

OFFSETS = ((0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1))
"""(rows, columns) to the neighbour in direction k·45°, counted from the right downwards."""

FLAT = 1e-6
"""What is added under the root of a gradient's length: nothing weaker than its root is an edge."""


@node("Canny", "Detect Edges (Canny)", category="image/filters")
def canny(
    image: IMAGE,
    low_threshold: Annotated[float, Float(0.4, min=0.01, max=0.99, step=0.01)],
    high_threshold: Annotated[float, Float(0.8, min=0.01, max=0.99, step=0.01)],
) -> IMAGE:
    """Images as their outlines.

    Return white edges on black (B,H,W,3). Errors: NodeError for a low threshold above the high one.
    """
    if low_threshold > high_threshold:
        raise NodeError(f"low_threshold {low_threshold} is above high_threshold {high_threshold}")
    return _canny(image, low_threshold, high_threshold)[..., None].repeat(1, 1, 1, 3)


def _canny(images: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Return edges (B,H,W), 0 or 1, of images (B,H,W,1|3|4).

    low, high: of the gradient's length, in which a step from black to white is about 2.6. What is above `low` is an
    edge where it touches, through others like it, what is above `high`.
    """
    across, down = _gradient(_smooth(_grey(images)))
    thinned = _thin(across, down)
    weak, strong = thinned > low, thinned > high
    edges = [_touching(w.cpu().numpy(), s.cpu().numpy()) for w, s in zip(weak, strong, strict=True)]
    return torch.from_numpy(np.stack(edges)).to(images)


def _grey(images: torch.Tensor) -> torch.Tensor:
    if images.shape[-1] == 1:
        return images.movedim(-1, 1)
    return (images[..., :3] @ torch.tensor([0.299, 0.587, 0.114]).to(images))[:, None]


def _smooth(grey: torch.Tensor) -> torch.Tensor:
    """Blur (B,1,H,W) with a Gaussian of deviation 1, five wide."""
    weights = torch.exp(-(torch.arange(-2, 3) ** 2) / 2)
    kernel = (weights / weights.sum()).to(grey).reshape(1, 1, 1, 5)
    return conv2d(conv2d(pad(grey, (2, 2, 2, 2), mode="reflect"), kernel), kernel.mT)


def _gradient(grey: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return Sobel's differences to the right and downwards, (B,H,W) each."""
    kernel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]).to(grey)
    both = conv2d(pad(grey, (1, 1, 1, 1), mode="replicate"), torch.stack([kernel, kernel.T])[:, None])
    return both[:, 0], both[:, 1]


def _thin(across: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """Return the gradient's length (B,H,W) where it is a ridge, else 0.

    A ridge is longer than its neighbours ahead and behind along the gradient, to the nearest 45°; one to the right or
    below may be as long.
    """
    height, width = across.shape[-2:]
    lengths = (pad(across, (1, 1, 1, 1)) ** 2 + pad(down, (1, 1, 1, 1)) ** 2 + FLAT).sqrt()
    length = lengths[:, 1:-1, 1:-1]
    neighbours = torch.stack([lengths[:, 1 + r : 1 + r + height, 1 + c : 1 + c + width] for r, c in OFFSETS])
    ahead = (torch.atan2(down, across) * (4 / pi)).round().long() % 8
    ridge = length > FLAT**0.5
    for direction in (ahead, (ahead + 4) % 8):
        neighbour = neighbours.gather(0, direction[None])[0]
        ties = (direction == 0) | (direction == 2)
        ridge &= (length > neighbour) | (ties & (length == neighbour))
    thinned: torch.Tensor = length * ridge
    return thinned


def _touching(weak: np.ndarray[Any, Any], strong: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return (H,W) of the weak pixels whose patch, corners connecting, holds a strong one."""
    patches, _ = label(weak, structure=np.ones((3, 3)))
    kept: np.ndarray[Any, Any] = np.isin(patches, np.unique(patches[strong])) & weak
    return kept
