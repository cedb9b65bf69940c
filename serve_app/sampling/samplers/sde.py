"""The exponential samplers of the reverse-time SDE: DPM-Solver++ with noise, and ER-SDE.

λ = −log sigma, h its step. eta is the SDE's share of noise: 0 is the probability flow ODE.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from math import exp, expm1, log, sqrt
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from serve_app.sampling.lazy_sum import Latents
from serve_app.sampling.samplers import flow
from serve_app.sampling.samplers.evaluation import Evaluation, NoiseSource, Sampler
from serve_app.sampling.samplers.stochastic import ancestral_step
from serve_app.sampling.schedules.levels import Interpolation


def _between(sigma: float, following: float, r: float) -> float:
    # In single precision, as ComfyUI: noise is read from a Brownian path there, which differs at every point.
    here, there = torch.tensor(sigma).log().neg(), torch.tensor(following).log().neg()
    return float((here + r * (there - here)).neg().exp())


def sde_on_flow(function: Callable[..., Sampler], levels: Interpolation) -> Callable[..., Sampler]:
    """Return `dpmpp_sde` on a flow: by ratio, with the levels of stages and steps rounded as in ComfyUI."""
    return flow.by_ratio(partial(function, between=flow.between, step=flow.ratio_step), levels)


def dpmpp_sde(
    x: Latents,
    sigmas: Tensor,
    noise: NoiseSource,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    r: float = 0.5,
    between: Callable[[float, float, float], float] = _between,
    step: Callable[[float, float, float], tuple[float, float]] = ancestral_step,
) -> Sampler:
    """DPM-Solver++(2S) on the SDE; two evaluations a step, one on a step to zero.

    x: latents (B,C,h,w) already at sigmas[0]. Yields Evaluation; is sent `denoised`, shaped as x; returns the final
    latents. s_noise: multiplies the noise. r: position of the stage in λ, 0…1; between: its level, from the step's
    levels and r. step: as `ancestral_step`. Source: Lu et al. 2022, arXiv:2211.01095, Algorithm 1 with section 5's
    noise, as in Crowson's k-diffusion.
    """
    for i, (sigma, following) in enumerate(pairwise(sigmas.tolist())):
        denoised: Latents = yield Evaluation(x, sigma, step=i)
        if following == 0:
            return denoised
        middle = between(sigma, following, r)
        down, up = step(sigma, middle, eta)
        u = denoised + (x - denoised) * (down / sigma) + noise(sigma, middle) * (up * s_noise)
        denoised_middle: Latents = yield Evaluation(u, middle, step=i)
        down, up = step(sigma, following, eta)
        d = denoised + (denoised_middle - denoised) / (2 * r)
        x = d + (x - d) * (down / sigma) + noise(sigma, following) * (up * s_noise)
    return x


def dpmpp_2m_sde(
    x: Latents,
    sigmas: Tensor,
    noise: NoiseSource,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    solver: Literal["midpoint", "heun"] = "midpoint",
) -> Sampler:
    """SDE-DPM-Solver++(2M); one evaluation a step, first order on the first and to zero.

    Arguments and results as `dpmpp_sde`. solver: how the slope of `denoised` is weighted.
    Source: Lu et al. 2022, arXiv:2211.01095, section 5.
    """
    previous: Latents | None = None
    h_previous = 0.0
    for i, (sigma, following) in enumerate(pairwise(sigmas.tolist())):
        denoised: Latents = yield Evaluation(x, sigma, step=i)
        if following == 0:
            return denoised
        h = log(sigma / following)
        h_eta = h * (1 + eta)
        x = denoised + (x - denoised) * exp(-h_eta)
        if previous is not None:
            phi = -expm1(-h_eta) / 2 if solver == "midpoint" else expm1(-h_eta) / h_eta + 1
            x = x + (denoised - previous) * (phi * h / h_previous)
        x = x + noise(sigma, following) * (following * sqrt(-expm1(-2 * h * eta)) * s_noise)
        previous, h_previous = denoised, h
    return x


def dpmpp_3m_sde(x: Latents, sigmas: Tensor, noise: NoiseSource, *, eta: float = 1.0, s_noise: float = 1.0) -> Sampler:
    """SDE-DPM-Solver++(3M): `denoised` is a parabola in λ; one evaluation a step, of lower order on the first two.

    Arguments and results as `dpmpp_sde`. Source: Lu et al. 2022, arXiv:2211.01095, extended to third order in Crowson's
    k-diffusion.
    """
    history: list[Latents] = []
    steps: list[float] = []
    for i, (sigma, following) in enumerate(pairwise(sigmas.tolist())):
        denoised: Latents = yield Evaluation(x, sigma, step=i)
        if following == 0:
            return denoised
        h = log(sigma / following)
        h_eta = h * (1 + eta)
        x = denoised + (x - denoised) * exp(-h_eta)
        phi_2 = expm1(-h_eta) / h_eta + 1
        slopes = [
            (new - old) * (h / step) for new, old, step in zip([denoised, *history], history, steps, strict=False)
        ]
        if len(slopes) == 1:
            x = x + slopes[0] * phi_2
        elif len(slopes) == 2:
            curve = (slopes[0] - slopes[1]) * (h / (steps[0] + steps[1]))
            x = x + (slopes[0] + curve * (steps[0] / h)) * phi_2 - curve * (phi_2 / h_eta - 0.5)
        x = x + noise(sigma, following) * (following * sqrt(-expm1(-2 * h * eta)) * s_noise)
        history, steps = [denoised, *history][:2], [h, *steps][:2]
    return x


def er_sde(
    x: Latents,
    sigmas: Tensor,
    noise: NoiseSource,
    *,
    s_noise: float = 1.0,
    stages: int = 3,
    eta: float | None = None,
    power: float = 1.0,
) -> Sampler:
    """ER-SDE-Solver of up to third order; one evaluation a step, of lower order on the first two.

    Arguments and results as `dpmpp_sde`. eta: solve the reverse-time SDE with this share of noise, 0 being the ODE;
    None: the extended SDE with the paper's noise scale ER SDE 5, whose second factor is raised to a power; 0 gives the
    ODE too. Source: Cui et al. 2023, arXiv:2309.06169, Algorithm 2 with its integrals as sums over 200 points.
    """
    levels = sigmas.tolist()
    previous: Latents | None = None
    slope_previous: Latents | None = None

    def phi(sigma: float | np.ndarray) -> np.ndarray:
        if eta is not None:
            return np.power(sigma, eta + 1)
        scale: np.ndarray = np.power(np.exp(np.power(sigma, 0.3)) + 10, power)
        return sigma * scale

    for i, (sigma, following) in enumerate(pairwise(levels)):
        denoised: Latents = yield Evaluation(x, sigma, step=i)
        if following == 0:
            return denoised
        reached = float(phi(following))
        r = reached / float(phi(sigma))
        x = denoised + (x - denoised) * r
        if previous is not None and stages > 1:
            width = (sigma - following) / 200
            points = following + width * np.arange(200)
            slope = (denoised - previous) / (sigma - levels[i - 1])
            x = x + slope * (following - sigma + width * float(np.sum(1 / phi(points))) * reached)
            if slope_previous is not None and stages > 2:
                curve = (slope - slope_previous) / ((sigma - levels[i - 2]) / 2)
                moment = width * float(np.sum((points - sigma) / phi(points)))
                x = x + curve * ((following - sigma) ** 2 / 2 + moment * reached)
            slope_previous = slope
        x = x + noise(sigma, following) * (sqrt(max(0.0, following**2 - (sigma * r) ** 2)) * s_noise)
        previous = denoised
    return x
