"""A job's noise: drawn on the CPU from its seed alone, so neither batching nor the device changes it.

The scaling is that of variance-exploding models (eps, v). Their latents come out of sampling as they are, so there is
no inverse to undo.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isclose, sqrt

import torch
from torch import Tensor

from serve_app.sampling.brownian import BrownianPath
from serve_app.sampling.evaluation import NoiseSource
from serve_app.sampling.sigmas import NoiseLevels

SEEDS = 2**64
"""Seeds are taken modulo this."""


def noise(shape: Sequence[int], seed: int, batch_index: Sequence[int] | None = None) -> Tensor:
    """Return unit-variance noise of a shape (B,C,h,w), float32 on the CPU.

    batch_index: for each of the B latents, which noise of the seed's sequence it takes; indices may repeat. None draws
    the B at once, which for latents of a few values is another sequence. Source: ComfyUI's noise for a seed.
    """
    generator = torch.Generator().manual_seed(seed % SEEDS)
    if batch_index is None:
        return torch.randn(tuple(shape), generator=generator)
    drawn = [torch.randn((1, *shape[1:]), generator=generator) for _ in range(max(batch_index) + 1)]
    return torch.cat([drawn[i] for i in batch_index])


def gaussian_noise(x: Tensor, _sigmas: Tensor, seed: int) -> NoiseSource:
    """Return a source of independent noise shaped as x, the same on every device for a seed."""
    generator = torch.Generator().manual_seed(seed % SEEDS)

    def draw(_sigma: float, _following: float) -> Tensor:
        return torch.randn(x.shape, generator=generator).to(x.device)

    return draw


def brownian_noise(x: Tensor, sigmas: Tensor, seed: int) -> NoiseSource:
    """Return a source whose noise between two levels is the increment of one Brownian path over sigma, shaped as x.

    So a step and its stages meet the same noise, and so do runs of other step counts between the same levels.
    """
    path: BrownianPath | None = None

    def draw(sigma: float, following: float) -> Tensor:
        nonlocal path
        if path is None:
            path = BrownianPath(x.shape, float(sigmas[sigmas > 0].min()), float(sigmas.max()), seed % SEEDS)
        return ((path.at(following) - path.at(sigma)) / sqrt(abs(following - sigma))).to(x.device)

    return draw


def noised(latents: Tensor, noise: Tensor, sigma: float, *, max_denoise: bool = False) -> Tensor:
    """Return latents at noise level sigma.

    max_denoise: the run starts from pure noise, so x has the variance the model was trained on at its top level.
    """
    # In single precision, as ComfyUI: samplers that extrapolate far, or adapt, show even the last digit of x.
    level = torch.tensor(sigma, dtype=torch.float32)
    return latents + noise * float((1 + level**2).sqrt() if max_denoise else level)


def is_max_denoise(levels: NoiseLevels, sigma: float) -> bool:
    """Whether a run that starts at sigma starts at or above the model's top level."""
    return sigma > levels.sigma_max or isclose(sigma, levels.sigma_max, rel_tol=1e-5)
