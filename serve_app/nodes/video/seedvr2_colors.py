"""Color transfer from an image to its enlargement. Pure functions of frames (H,W,3) in 0…1.

Sources: Wang et al. 2023 (StableSR), arXiv:2305.07015, for the wavelets; Huang and Belongie 2017, arXiv:1703.06868, for
means and deviations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from serve_app.nodes.image.color_transfer import from_lab, to_lab

LEVELS = 5
"""How often an image is blurred, each time twice as wide."""
LIGHTNESS_KEPT = 0.8
"""Of an image's own lightness."""
LEAST_VARIANCE = 1e-5 / 4
_BINOMIAL = torch.tensor([0.25, 0.5, 0.25])


def by_wavelets(image: Tensor, reference: Tensor) -> Tensor:
    """Return the fine detail of an image on the coarse colours of another."""
    return (image - _coarse(image) + _coarse(reference)).clamp(0, 1)


def by_lab(image: Tensor, reference: Tensor) -> Tensor:
    """Return an image by wavelets whose shares of colours are those of the other, and its lightness a little."""
    size = image.shape
    own, other = (to_lab(each.reshape(-1, 3).T) for each in (by_wavelets(image, reference), reference))
    lightness, red, blue = (_matched(mine, theirs) for mine, theirs in zip(own, other, strict=True))
    lightness = LIGHTNESS_KEPT * own[0] + (1 - LIGHTNESS_KEPT) * lightness
    return from_lab(torch.stack([lightness, red, blue])).T.reshape(size)


def by_moments(image: Tensor, reference: Tensor) -> Tensor:
    """Return an image whose channels have the means and deviations of the other's."""
    (mean, spread), (other_mean, other_spread) = map(_moments, (image, reference))
    return ((image - mean) / spread * other_spread + other_mean).clamp(0, 1)


CORRECTIONS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "lab": by_lab,
    "wavelet": by_wavelets,
    "adain": by_moments,
}


def _coarse(image: Tensor) -> Tensor:
    """Return what an image (H,W,3) is blurred to."""
    blurred = image.movedim(-1, 0)[:, None]
    widest = max(1, min(image.shape[:2]) // 8)
    kernel = torch.outer(_BINOMIAL, _BINOMIAL)[None, None]
    for level in range(LEVELS):
        apart = min(2**level, widest)
        blurred = conv2d(pad(blurred, (apart,) * 4, mode="replicate"), kernel, dilation=apart)
    return blurred[:, 0].movedim(0, -1)


def _matched(channel: Tensor, reference: Tensor) -> Tensor:
    """Return values (N,) with those of the other of the same rank."""
    made = torch.empty_like(channel)
    made[channel.argsort()] = reference.sort().values
    return made


def _moments(image: Tensor) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(image, dim=(0, 1), correction=0)
    return mean, (variance + LEAST_VARIANCE).sqrt()
