"""SEEDS: exponential Runge-Kutta methods on the SDE, whose stages share the noise of their step.

λ = −log sigma, h its step; in λ the noise is an Ornstein-Uhlenbeck process, drawn from stage to stage.
"""

from __future__ import annotations

from itertools import pairwise
from math import exp, expm1, log, sqrt
from typing import Literal

from torch import Tensor

from serve_app.sampling.lazy_sum import Latents
from serve_app.sampling.samplers.evaluation import Evaluation, NoiseSource, Sampler


def _noise_over(h: float, noise: Latents, so_far: Latents | None = None) -> Latents:
    """Return the noise after h more of λ·eta, in units of the level there; so_far: the noise before."""
    drawn = noise * sqrt(-expm1(-2 * h))
    return drawn if so_far is None else so_far * exp(-h) + drawn


def seeds_2(
    x: Latents,
    sigmas: Tensor,
    noise: NoiseSource,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    r: float = 0.5,
    solver: Literal["phi_1", "phi_2"] = "phi_1",
) -> Sampler:
    """SEEDS-2; two evaluations a step, one on a step to zero.

    x: latents (B,C,h,w) already at sigmas[0]. Yields Evaluation; is sent `denoised`, shaped as x; returns the final
    latents. eta: the share of noise; s_noise: multiplies it. r: position of the stage in λ, above 0 to 1. solver: how
    the slope of `denoised` is weighted; phi_2 with r = 1 is the exponential Heun method. Source: Gonzalez et al. 2023,
    arXiv:2305.14267, Algorithm 2 in data prediction; phi_2 is Hochbruck and Ostermann's one-parameter method of second
    order (2005, "Explicit exponential Runge-Kutta methods").
    """
    for i, (sigma, following) in enumerate(pairwise(sigmas.tolist())):
        denoised: Latents = yield Evaluation(x, sigma, step=i)
        if following == 0:
            return denoised
        h = log(sigma / following)
        h_eta = h * (1 + eta)
        middle = sigma * exp(-r * h)
        z = _noise_over(r * h * eta, noise(sigma, middle))
        u = denoised + (x - denoised) * exp(-r * h_eta) + z * (middle * s_noise)
        denoised_middle: Latents = yield Evaluation(u, middle, step=i)
        phi = -expm1(-h_eta) / 2 if solver == "phi_1" else -_h_phi_2(-h_eta)
        z = _noise_over((1 - r) * h * eta, noise(middle, following), z)
        x = denoised + (x - denoised) * exp(-h_eta) + z * (following * s_noise)
        x = x + (denoised_middle - denoised) * (phi / r)
    return x


def seeds_3(
    x: Latents,
    sigmas: Tensor,
    noise: NoiseSource,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    r_1: float = 1 / 3,
    r_2: float = 2 / 3,
) -> Sampler:
    """SEEDS-3; three evaluations a step, one on a step to zero. Arguments and results as `seeds_2`, with two stages.

    Source: Gonzalez et al. 2023, arXiv:2305.14267, Algorithm 3 in data prediction.
    """
    for i, (sigma, following) in enumerate(pairwise(sigmas.tolist())):
        denoised: Latents = yield Evaluation(x, sigma, step=i)
        if following == 0:
            return denoised
        h = log(sigma / following)
        h_eta = h * (1 + eta)
        first, second = sigma * exp(-r_1 * h), sigma * exp(-r_2 * h)
        z = _noise_over(r_1 * h * eta, noise(sigma, first))
        u = denoised + (x - denoised) * exp(-r_1 * h_eta) + z * (first * s_noise)
        denoised_1: Latents = yield Evaluation(u, first, step=i)
        z = _noise_over((r_2 - r_1) * h * eta, noise(first, second), z)
        u = denoised + (x - denoised) * exp(-r_2 * h_eta) + z * (second * s_noise)
        u = u - (denoised_1 - denoised) * (r_2 / r_1 * _h_phi_2(-r_2 * h_eta))
        denoised_2: Latents = yield Evaluation(u, second, step=i)
        z = _noise_over((1 - r_2) * h * eta, noise(second, following), z)
        x = denoised + (x - denoised) * exp(-h_eta) + z * (following * s_noise)
        x = x - (denoised_2 - denoised) * (_h_phi_2(-h_eta) / r_2)
    return x


def _h_phi_2(h: float) -> float:
    return (expm1(h) - h) / h
