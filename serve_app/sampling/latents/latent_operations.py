"""LATENT_OPERATION: operations on latents between two evaluations, as callable values.

Sharpening changes each position's direction in channel space and keeps its length; tone mapping the other way round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, pad

from serve_app.errors import NodeError


class LatentOperation(Protocol):
    """LATENT_OPERATION: latents (B,C,h,w) to latents of the same shape. Further arguments are ignored."""

    def __call__(self, latent: Tensor, **context: Any) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class ReinhardTonemap:
    """Compress the lengths by m/(m+1), 1 being (mean + 5 standard deviations of an image's lengths) × multiplier.

    Source: Reinhard et al. 2002, "Photographic tone reproduction for digital images", equation 3.
    """

    multiplier: float

    def __call__(self, latent: Tensor, **context: Any) -> Tensor:
        """Return the latents with their longest vectors shortened."""
        lengths: Tensor = torch.linalg.vector_norm(latent, dim=1, keepdim=True) + 1e-10
        mean, deviation = (f(lengths, dim=(1, 2, 3), keepdim=True) for f in (torch.mean, torch.std))
        top = (deviation * 5 + mean) * self.multiplier
        scaled: Tensor = lengths * (1.0 / top)
        return latent / lengths * (scaled / (scaled + 1.0) * top)


@dataclass(frozen=True, slots=True, eq=False)
class Blending:
    """Move latents a share of the way to a reference (B',C,h',w'), resized and repeated to match.

    Source: the facts of ComfyUI's LatentOperationBlend, after 0.33.
    """

    reference: Tensor
    strength: float

    def __call__(self, latent: Tensor, **context: Any) -> Tensor:
        """Return the latents blended. Errors: NodeError for a reference of other channels or dimensions."""
        if self.strength == 0:
            return latent
        target = self.reference.to(latent)
        if target.ndim != latent.ndim or target.shape[1] != latent.shape[1]:
            raise NodeError(
                f"the reference is {tuple(target.shape)} and the latents are {tuple(latent.shape)}: "
                "they must have as many dimensions and channels"
            )
        if target.shape[2:] != latent.shape[2:]:
            target = interpolate(target, size=latent.shape[2:], mode="nearest")
        rows = torch.arange(latent.shape[0], device=latent.device) % target.shape[0]
        return torch.lerp(latent, target[rows], self.strength)


@dataclass(frozen=True, slots=True)
class Sharpening:
    """Sharpen directions with an unsharp mask: each minus 10·alpha × its surroundings, with weights of sum 1.

    radius: of the Gaussian's window, in latent pixels. sigma: the Gaussian's, in halves of the window.
    """

    radius: int
    sigma: float
    alpha: float

    def __call__(self, latent: Tensor, **context: Any) -> Tensor:
        """Return the latents sharpened. Errors: NodeError for latents smaller than the window's reflected border."""
        height, width = latent.shape[-2:]
        if self.radius >= min(height, width):
            raise NodeError(
                f"sharpen_radius is {self.radius} and the latents are {width}×{height}: it must be below both sides"
            )
        lengths: Tensor = torch.linalg.vector_norm(latent, dim=1, keepdim=True) + 1e-6
        channels = latent.shape[1]
        kernel = self._kernel(latent).expand(channels, 1, -1, -1)
        mirrored = pad(latent / lengths, (self.radius,) * 4, "reflect")
        sharpened: Tensor = conv2d(mirrored, kernel, groups=channels)
        return lengths * sharpened

    def _kernel(self, like: Tensor) -> Tensor:
        """Return the weights (2·radius+1, 2·radius+1)."""
        at = torch.linspace(-1, 1, 2 * self.radius + 1, device=like.device, dtype=like.dtype)
        gaussian = torch.exp(-(at[:, None] ** 2 + at**2) / (2 * self.sigma**2))
        kernel = gaussian / gaussian.sum() * (-10 * self.alpha)
        kernel[self.radius, self.radius] += 1 - kernel.sum()
        return kernel
