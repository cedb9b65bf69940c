"""Perturbed branches: further evaluations of the positive branch with disturbed layers, to guide away from.

`guidance` evaluates them, in the forward of the usual branches where it can; `guidance_patches` combines them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import isqrt, sqrt
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, pad

from serve_app.errors import NodeError
from serve_app.recipe.guidance import PerturbedAttention, SkipLayerGuidance
from serve_app.sampling.guidance.layers import AttentionMap, WithoutAttention, between
from serve_app.sampling.schedules.levels import Levels

EQUAL_SHARE = 1.0
"""The attention that each token receives if all receive the same."""

TAPS = 9
"""Width of the blur's window in latent cells; the latents are padded by reflection."""


@dataclass(frozen=True, slots=True)
class PerturbedBranch:
    """The positive branch, evaluated with patched layers. patch: the guidance patch that requires it."""

    patch: PerturbedAttention | SkipLayerGuidance
    layers: tuple[Any, ...]


def perturbed_branches(patches: Iterable[Any], levels: Levels, sigma: float) -> Iterator[PerturbedBranch]:
    """Yield the perturbed branches that patches require at a level.

    Sources: Ahn et al. 2024, arXiv:2403.17377 (perturbed attention); Stability AI's Stable Diffusion 3.5 (skipped
    layers), after it.
    """
    for patch in patches:
        match patch:
            case PerturbedAttention(scale) if scale != 0:
                yield PerturbedBranch(patch, (WithoutAttention(),))
            case SkipLayerGuidance(skipped, scale, start, end) if scale > 0 and between(levels, start, end, sigma):
                yield PerturbedBranch(patch, (skipped,))


def blurrable(x: Tensor) -> bool:
    """Whether latents (B,C,h,w) are large enough to be blurred."""
    return min(x.shape[2:]) > TAPS // 2


def blurred(denoised: Tensor, attention: AttentionMap, sigma: float) -> Tensor:
    """Return latents (B,C,h,w) blurred by a Gaussian where tokens receive more than an equal share of attention.

    Errors: NodeError for a network that records no map. Source: Hong et al. 2022, arXiv:2210.00939, Algorithm 1.
    """
    if attention.received is None:
        raise NodeError("self-attention guidance needs a UNet: this network has no attention in its middle")
    received, (height, width) = attention.received, denoised.shape[-2:]
    rows = _rows(received.shape[1], height / width)
    attended = (received > EQUAL_SHARE).view(len(received), 1, rows, -1).to(denoised.dtype)
    mask = interpolate(attended, size=(height, width))
    return torch.lerp(denoised, _gaussian(denoised, sigma), mask)


def _rows(tokens: int, aspect: float) -> int:
    """Return the number of rows of a map with n tokens: the divisor of n nearest to the latents' aspect ratio."""
    wished = round(sqrt(aspect * tokens))
    near = (rows for off in range(isqrt(tokens // 4)) for rows in (wished + off, max(1, wished - off)))
    return next((rows for rows in near if tokens % rows == 0), 1)


def _gaussian(x: Tensor, sigma: float) -> Tensor:
    if sigma <= 0:
        return x
    at = torch.arange(TAPS, device=x.device, dtype=x.dtype) - TAPS // 2
    weights = torch.exp(-((at / sigma) ** 2) / 2)
    weights = weights / weights.sum()
    kernel = torch.outer(weights, weights).expand(x.shape[1], 1, -1, -1)
    return conv2d(pad(x, (TAPS // 2,) * 4, "reflect"), kernel, groups=x.shape[1])
