"""The samplers that add noise of their own on the way. They draw it from a NoiseSource, never from torch's state."""

from __future__ import annotations

from itertools import pairwise
from math import sqrt

from torch import Tensor

from serve_app.sampling.evaluation import Evaluation, NoiseSource, Sampler
from serve_app.sampling.noise import noised


def ancestral_step(sigma: float, following: float, eta: float = 1.0) -> tuple[float, float]:
    """Return (sigma_down, sigma_up): where to step to, and how much noise then leads up to `following`.

    sigma_down² + sigma_up² = following². eta: 0 is deterministic, 1 the posterior's full variance.
    Source: Song et al. 2020, arXiv:2011.13456, ancestral sampling of the variance-exploding process.
    """
    sigma_up = min(following, eta * following * sqrt(sigma**2 - following**2) / sigma)
    return sqrt(following**2 - sigma_up**2), sigma_up


def euler_ancestral(x: Tensor, sigmas: Tensor, noise: NoiseSource) -> Sampler:
    """Euler's method to below the following level, then noise up to it; one evaluation a step.

    x: latents (B,C,h,w) already at sigmas[0]. Yields Evaluation; is sent `denoised`, shaped as x; returns the final
    latents. No noise is drawn for a step to zero. Source: as `ancestral_step`, with the step of Karras et al. 2022.
    """
    for i, (sigma, following) in enumerate(pairwise(sigmas.tolist())):
        denoised: Tensor = yield Evaluation(x, sigma, step=i)
        if following == 0:
            return denoised
        sigma_down, sigma_up = ancestral_step(sigma, following)
        x = x + (x - denoised) * ((sigma_down - sigma) / sigma) + noise(sigma, following) * sigma_up
    return x


def lcm(x: Tensor, sigmas: Tensor, noise: NoiseSource) -> Sampler:
    """Multistep consistency sampling: jump to zero, noise up to the following level; one evaluation a step.

    Arguments and results as `euler_ancestral`. Source: Luo et al. 2023, arXiv:2310.04378, Algorithm 3.
    """
    for i, (sigma, following) in enumerate(pairwise(sigmas.tolist())):
        x = yield Evaluation(x, sigma, step=i)
        if following > 0:
            x = noised(x, noise(sigma, following), following)
    return x
